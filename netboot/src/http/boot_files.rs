//! HTTP routes of a boot: the files, whole or in part, and each machine's iPXE script.
//!
//! Invariants: a request chooses an entry of the catalogue and nothing else; a file is streamed,
//! never held whole, however many machines fetch it.
//!
//! Not here: what a machine boots (`boot_policy`), connections (`http::server`).

use std::{io, os::unix::fs::FileExt, sync::Arc, time::Instant};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_lite::stream;
use protocol::dhcp::MacAddress;
use serde::Deserialize;
use uuid::Uuid;

use super::PeerAddress;
use crate::{
    boot_content::Content,
    boot_desk::BootDesk,
    boot_policy::{LOADER_PATH, Platform, SCRIPT_PATH, ipxe_script},
    flight_recorder::{Fact, FlightRecorder, Over, Stopped, printable},
};

/// Bytes read from a file at a time. A machine's connection holds one or two of them.
const PIECE: usize = 128 * 1024;
/// Characters of a file's name that go to logs and time lines.
const MAX_NAME: usize = 100;

/// What the routes need.
pub(crate) struct BootFiles {
    /// Who answers.
    pub(crate) desk: Arc<BootDesk>,
    /// The time lines.
    pub(crate) recorder: Arc<FlightRecorder>,
    /// Our URL for a machine that does not say how it reached us.
    pub(crate) fallback_url: String,
}

/// `/boot/ipxe`, `/boot/for/MAC/NAME` and `/boot/NAME`.
pub(crate) fn router(boot: Arc<BootFiles>) -> Router {
    Router::new()
        .route(SCRIPT_PATH, get(send_script))
        .route(
            &format!("{LOADER_PATH}/{{mac}}/{{*name}}"),
            get(send_loader),
        )
        .route("/boot/{*name}", get(send_file))
        .with_state(boot)
}

#[derive(Deserialize)]
struct ScriptQuery {
    mac: Option<String>,
    uuid: Option<String>,
    platform: Option<Platform>,
}

async fn send_script(
    State(boot): State<Arc<BootFiles>>,
    Query(query): Query<ScriptQuery>,
    headers: HeaderMap,
) -> Response {
    let base = base_url(&headers).unwrap_or_else(|| boot.fallback_url.clone());
    let text = match (query.mac.as_deref(), query.platform) {
        (Some(mac), Some(platform)) => {
            let Ok(mac) = mac.parse::<MacAddress>() else {
                return (StatusCode::BAD_REQUEST, "mac is not a MAC address\n").into_response();
            };
            let uuid = query.uuid.and_then(|uuid| Uuid::parse_str(&uuid).ok());
            let desk = Arc::clone(&boot.desk);
            let decided = smol::unblock(move || {
                let decision = desk.decision(mac, uuid);
                desk.told(Over::Http, mac, uuid, decision);
                desk.chainloaded.went_on(mac);
                decision
            });
            let (decision, seconds) = (decided.await, boot.desk.policy.menu_seconds);
            ipxe_script::of_machine(decision, &base, mac, platform, seconds)
        }
        _ => ipxe_script::chain(&base),
    };
    // The answer of the next boot may be another one.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

/// The URL by which the machine reached us: right behind relays and address translation, too.
fn base_url(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".:-".contains(&byte);
    // It goes into a script and onto a kernel command line: nothing but an address may.
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(fits))
        .then(|| format!("http://{host}"))
}

/// The loader of UEFI HTTP Boot. A machine without work is told that there is none: its firmware
/// goes on to the next boot entry at once, which a loader that starts only to give up does not
/// always reach (OVMF 2022.11 with iPXE of 2019 stopped now and then).
async fn send_loader(
    State(boot): State<Arc<BootFiles>>,
    Path((mac, name)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Ok(machine) = mac.parse::<MacAddress>() else {
        return (StatusCode::BAD_REQUEST, "not a MAC address\n").into_response();
    };
    let (desk, wanted) = (Arc::clone(&boot.desk), name.clone());
    if smol::unblock(move || desk.may_have(Over::Http, machine, &wanted)).await {
        send_named(boot, name, Some(machine), request).await
    } else {
        (StatusCode::NOT_FOUND, "nothing to do for this machine\n").into_response()
    }
}

#[derive(Deserialize)]
struct FileQuery {
    mac: Option<String>,
}

async fn send_file(
    State(boot): State<Arc<BootFiles>>,
    Path(name): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Response {
    let machine = query
        .mac
        .and_then(|mac| mac.parse().ok())
        .or_else(|| machine_of(&boot.recorder, &request));
    send_named(boot, name, machine, request).await
}

async fn send_named(
    boot: Arc<BootFiles>,
    name: String,
    machine: Option<MacAddress>,
    request: Request,
) -> Response {
    let (catalogue, wanted) = (Arc::clone(&boot.desk.catalogue), name.clone());
    // The catalogue may read the folder again, and opening a file may wait for the disk.
    let opened = smol::unblock(move || {
        let file = catalogue.find(&wanted)?;
        Some(catalogue.open(&file).map(|content| (file, content)))
    });
    let (file, content) = match opened.await {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            log::warn!("HTTP: {name}: {error}");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        None => {
            if let Some(mac) = machine {
                let (over, file) = (Over::Http, printable(&name, MAX_NAME));
                boot.recorder.record(mac, Fact::NotHere { over, file });
            }
            return (StatusCode::NOT_FOUND, "no such boot file\n").into_response();
        }
    };
    let etag = format!("\"{}\"", file.digest);
    let headers = request.headers();
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == etag.as_bytes())
    {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    let part = match requested_range(headers, &etag, file.len) {
        Wanted::Whole => None,
        Wanted::Part(first, last) => Some((first, last)),
        Wanted::Nothing => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{}", file.len))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    let (start, len) = part.map_or((0, file.len), |(first, last)| (first, last - first + 1));
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, etag)
        .header(header::CONTENT_LENGTH, len);
    if let Some((first, last)) = part {
        response = response.status(StatusCode::PARTIAL_CONTENT).header(
            header::CONTENT_RANGE,
            format!("bytes {first}-{last}/{}", file.len),
        );
    }
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        let name = printable(&name, MAX_NAME);
        if let Some(mac) = machine {
            let (over, file, bytes) = (Over::Http, name.clone(), len);
            let begun = Fact::FetchBegun { over, file, bytes };
            boot.recorder.record(mac, begun);
        }
        let report = Report {
            recorder: Arc::clone(&boot.recorder),
            machine,
            name,
            started: Instant::now(),
            part_of: part.map(|_| file.len),
            len,
            sent: 0,
        };
        Body::from_stream(pieces(content, start, len, report))
    };
    response
        .body(body)
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn machine_of(recorder: &FlightRecorder, request: &Request) -> Option<MacAddress> {
    recorder.machine_of(request.extensions().get::<PeerAddress>()?.0)
}

/// The file from `start`, piece by piece: from memory as it is, from the disk each piece when the
/// connection has room for it.
fn pieces(
    content: Content,
    start: u64,
    len: u64,
    report: Report,
) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::unfold((content, report), move |(content, mut report)| async move {
        let left = len - report.sent;
        if left == 0 {
            return None;
        }
        let size = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let offset = start + report.sent;
        let piece = match &content {
            Content::Memory(bytes) => part(bytes, offset, size),
            Content::Disk { file, .. } => {
                let file = Arc::clone(file);
                let read = smol::unblock(move || {
                    let mut piece = vec![0; size];
                    file.read_exact_at(&mut piece, offset)
                        .map(|()| Bytes::from(piece))
                });
                read.await
            }
        };
        if piece.is_ok() {
            report.sent += size as u64;
        }
        Some((piece, (content, report)))
    })
}

/// A part of bytes in memory, without a copy.
fn part(bytes: &Bytes, offset: u64, len: usize) -> io::Result<Bytes> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(len)?))
        .map(|part| bytes.slice_ref(part))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Tells the flight recorder how a fetch ended: whole, or when the connection was dropped.
struct Report {
    recorder: Arc<FlightRecorder>,
    machine: Option<MacAddress>,
    name: String,
    started: Instant,
    /// The file's length, when a part was asked for.
    part_of: Option<u64>,
    len: u64,
    sent: u64,
}

impl Drop for Report {
    fn drop(&mut self) {
        let (over, file) = (Over::Http, std::mem::take(&mut self.name));
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let fact = if self.sent == self.len {
            Fact::Fetched {
                over,
                file,
                bytes: self.len,
                milliseconds,
                part_of: self.part_of,
            }
        } else {
            Fact::FetchStopped {
                over,
                file,
                bytes: self.sent,
                of: self.len,
                milliseconds,
                why: Stopped::Dropped,
            }
        };
        match self.machine {
            Some(mac) => self.recorder.record(mac, fact),
            None => log::info!("{fact}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    /// The range lies behind the end.
    Nothing,
}

/// What the request's `Range` asks of a file (RFC 9110 §14). Several ranges in one request get the
/// whole file, which §14.2 allows: no boot client asks so.
fn requested_range(headers: &HeaderMap, etag: &str, len: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::IF_RANGE).is_some_and(|known| known != etag) {
        return Wanted::Whole;
    }
    let Some((first, last)) = text(header::RANGE)
        .and_then(|range| range.trim().strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'))
    else {
        return Wanted::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim()) {
        (Ok(first), "") if first < len => Wanted::Part(first, len - 1),
        (Ok(first), last) => match last.parse::<u64>() {
            Ok(last) if last < first => Wanted::Whole,
            Ok(last) if first < len => Wanted::Part(first, last.min(len - 1)),
            Ok(_) => Wanted::Nothing,
            Err(_) if last.is_empty() => Wanted::Nothing,
            Err(_) => Wanted::Whole,
        },
        // `-N`: the last N bytes.
        (Err(_), last) if first.trim().is_empty() => match last.parse::<u64>() {
            Ok(0) => Wanted::Nothing,
            Ok(_) if len == 0 => Wanted::Nothing,
            Ok(count) => Wanted::Part(len.saturating_sub(count), len - 1),
            Err(_) => Wanted::Whole,
        },
        (Err(_), _) => Wanted::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str, len: u64) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, text.parse().expect("a header"));
        requested_range(&headers, "\"tag\"", len)
    }

    #[test]
    fn every_form_of_one_range_is_understood() {
        assert_eq!(range("bytes=0-0", 10), Wanted::Part(0, 0));
        assert_eq!(range("bytes=4-", 10), Wanted::Part(4, 9));
        assert_eq!(range("bytes=4-99", 10), Wanted::Part(4, 9));
        assert_eq!(range("bytes=-3", 10), Wanted::Part(7, 9));
        assert_eq!(range("bytes=-30", 10), Wanted::Part(0, 9));
        assert_eq!(range("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(range("bytes=-0", 10), Wanted::Nothing);
        assert_eq!(range("bytes=0-", 0), Wanted::Nothing);
    }

    #[test]
    fn what_is_no_single_range_gets_the_whole_file() {
        for text in [
            "bytes=1-2,4-5",
            "bytes=5-4",
            "lines=1-2",
            "bytes=a-b",
            "bytes=",
        ] {
            assert_eq!(range(text, 10), Wanted::Whole, "{text}");
        }
    }

    #[test]
    fn a_range_of_another_version_gets_the_whole_file() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, "bytes=1-2".parse().expect("a header"));
        headers.insert(header::IF_RANGE, "\"old\"".parse().expect("a header"));
        assert_eq!(requested_range(&headers, "\"tag\"", 10), Wanted::Whole);
    }

    #[test]
    fn only_an_address_goes_from_the_host_header_into_scripts() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "10.77.0.1:8080".parse().expect("a header"));
        assert_eq!(base_url(&headers).as_deref(), Some("http://10.77.0.1:8080"));
        headers.insert(header::HOST, "x init=/bin/sh".parse().expect("a header"));
        assert_eq!(base_url(&headers), None);
    }
}
