//! Requests for boot files, of any method, path, query and headers.
//!
//! ```text
//! method:u8 len:u8 target, then (name:u8 len:u8 value)*
//! ```
//!
//! What must hold: an answer of 200 or 206 to GET carries exactly the part of the file that it says;
//! no other answer carries a byte of a file.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use protocol::dhcp::MacAddress;
use tower_service::Service;
use uuid::Uuid;

use super::Choices;
use crate::{
    boot_catalogue::BootCatalogue,
    boot_desk::{BootDesk, Chainloaded},
    boot_policy::{
        AtBoot, BootDecision, BootPolicy, MachineDirectory, MachineState, UnknownMachines,
    },
    dhcp::boot_table::LoaderChoice,
    flight_recorder::FlightRecorder,
    http::boot_files::{BootFiles, router},
};

const CONTENT: &[u8] = b"0123456789abcdefghij";

struct Strangers;

impl MachineDirectory for Strangers {
    fn at_boot(&self, _: MacAddress, _: Option<Uuid>) -> AtBoot {
        AtBoot {
            state: MachineState::Unknown,
            next: None,
        }
    }

    fn told(&self, _: MacAddress, _: Option<Uuid>, _: BootDecision) {}
}

fn routes() -> Router {
    static ROUTES: OnceLock<Router> = OnceLock::new();
    let make = || {
        let folder: PathBuf =
            std::env::temp_dir().join(format!("netboot-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("vmlinuz"), CONTENT).expect("a file");
        let catalogue = BootCatalogue::read(&folder, &folder).expect("a catalogue");
        let recorder = Arc::new(FlightRecorder::in_memory());
        let desk = BootDesk {
            catalogue: Arc::new(catalogue),
            directory: Arc::new(Strangers),
            recorder: Arc::clone(&recorder),
            policy: BootPolicy {
                unknown: UnknownMachines::Recovery,
                menu_seconds: 30,
                loaders: LoaderChoice::default(),
            },
            http_port: 8080,
            chainloaded: Chainloaded::default(),
        };
        router(Arc::new(BootFiles {
            desk: Arc::new(desk),
            recorder,
            fallback_url: "http://10.77.0.1:8080".to_owned(),
        }))
    };
    ROUTES.get_or_init(make).clone()
}

/// Plays bytes as a request.
///
/// # Panics
/// When an invariant is broken.
pub fn http_boot(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let method = choices.of([Method::GET.as_str(), "HEAD", "POST", "OPTIONS"]);
    let target = match choices.byte() {
        0 => b"/boot/vmlinuz",
        1 => b"/boot/ipxe?mac=52:54:00:12:34:56&platform=efi".as_slice(),
        2 => b"/boot/for/52-54-00-12-34-56/vmlinuz",
        len => choices.take(usize::from(len)),
    };
    let mut request = Request::builder().method(method).uri(target);
    while !choices.is_empty() {
        let name = choices.of([
            "range",
            "host",
            "if-range",
            "if-none-match",
            "content-length",
        ]);
        let len = usize::from(choices.byte());
        request = request.header(name, choices.take(len));
    }
    let Ok(request) = request.body(Body::empty()) else {
        return;
    };
    let get = request.method() == Method::GET;
    let file = target.starts_with(b"/boot/vmlinuz");
    let (status, headers, body) = smol::block_on(async {
        let response = match routes().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (parts.status, parts.headers, body)
    });
    if !get || !file {
        return;
    }
    match status {
        StatusCode::OK => assert_eq!(body, CONTENT),
        StatusCode::PARTIAL_CONTENT => {
            let range = headers[header::CONTENT_RANGE].to_str().expect("text");
            let (first, last) = range
                .strip_prefix("bytes ")
                .and_then(|range| range.strip_suffix("/20")?.split_once('-'))
                .expect("a range of 20 bytes");
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(body, CONTENT[first..=last]);
        }
        _ => assert!(
            !body
                .windows(4)
                .any(|part| CONTENT.windows(4).any(|own| own == part))
        ),
    }
}
