//! Looks for other DHCP and boot servers while the server runs, and keeps what was seen for operators.
//!
//! Invariant: nothing is changed by what is seen; it is said, in the log and at `/api/v1/network`.
//!
//! Not here: how others are found (`dhcp::other_servers`).

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};

use super::{
    links::Link,
    roles::{Chosen, Role},
};
use crate::{
    dhcp::other_servers::{OtherServer, Patience, look_for_servers},
    sockets::Interface,
};

/// Path of the list of [`LinkView`] on the control socket.
pub(crate) const NETWORK: &str = "/api/v1/network";

/// A link that is served, and who else answers there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkView {
    /// Interface and address.
    pub(crate) link: String,
    /// `server`, `proxy` or `off`.
    pub(crate) role: String,
    /// Why.
    pub(crate) reason: String,
    /// Other DHCP and boot servers.
    pub(crate) other_servers: Vec<OtherServerView>,
    /// What is wrong, and what to do.
    pub(crate) warning: Option<String>,
    /// When others were looked for last, in milliseconds since 1970-01-01 UTC.
    pub(crate) looked_at: Option<u64>,
}

/// Another server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OtherServerView {
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// A DHCP server, not only a boot server.
    pub(crate) gives_addresses: bool,
    /// The boot file it tells x86-64 UEFI machines.
    pub(crate) boot_file: Option<String>,
}

/// How often is looked, with a random minute more or less: many netboots started together must not ask
/// together for ever.
const EVERY: Duration = Duration::from_secs(300);
const MORE_OR_LESS: Duration = Duration::from_secs(60);
/// When is looked first where the start did not.
const FIRST: Duration = Duration::from_secs(60);

/// What is known of the links served.
pub(super) struct Board {
    links: Mutex<Vec<LinkView>>,
}

impl Board {
    /// What the start found.
    pub(super) fn new(links: &[Link], chosen: &[Chosen]) -> Self {
        let views = links.iter().zip(chosen).map(|(link, chosen)| LinkView {
            link: link.name(),
            role: match chosen.role {
                Role::Off => "off",
                Role::Server => "server",
                Role::Proxy => "proxy",
            }
            .to_owned(),
            reason: chosen.words.clone(),
            other_servers: chosen.others.iter().flatten().map(view).collect(),
            warning: chosen.warning.clone(),
            looked_at: chosen.others.as_ref().map(|_| now_ms()),
        });
        Self {
            links: Mutex::new(views.collect()),
        }
    }

    fn update(&self, index: usize, others: &[OtherServer], warning: Option<String>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(index) {
            link.other_servers = others.iter().map(view).collect();
            link.warning = warning;
            link.looked_at = Some(now_ms());
        }
    }
}

fn view(other: &OtherServer) -> OtherServerView {
    OtherServerView {
        address: other.server,
        gives_addresses: other.gives_addresses(),
        boot_file: other.boot_file.clone(),
    }
}

/// The route by which operators see it.
pub(super) fn router(board: Arc<Board>) -> Router {
    Router::new().route(NETWORK, get(network)).with_state(board)
}

async fn network(State(board): State<Arc<Board>>) -> Json<Vec<LinkView>> {
    let links = board.links.lock().unwrap_or_else(PoisonError::into_inner);
    Json(links.clone())
}

/// A link to watch.
pub(super) struct Watched {
    /// Its place on the board.
    pub(super) index: usize,
    /// Where to look.
    pub(super) interface: Interface,
    /// What was decided at the start.
    pub(super) chosen: Chosen,
}

/// Watches one link for ever.
pub(super) async fn watch(watched: Watched, board: Arc<Board>) -> io::Result<()> {
    let name = &watched.interface.name;
    let mut known = watched.chosen.others.clone();
    let mut wait = if known.is_some() { interval() } else { FIRST };
    loop {
        smol::Timer::after(wait).await;
        wait = interval();
        let found = match look_for_servers(&watched.interface, Patience::Everybody).await {
            Ok(found) => found,
            Err(error) => {
                log::warn!("other DHCP servers on {name} cannot be looked for: {error}");
                return Ok(());
            }
        };
        let warning = judge(watched.chosen.role, name, &found);
        match &warning {
            Some(warning) => log::error!("{warning}"),
            None if known.as_ref() != Some(&found) => log::info!("{}", seen(name, &found)),
            None => {}
        }
        board.update(watched.index, &found, warning);
        known = Some(found);
    }
}

fn interval() -> Duration {
    // Any even spread will do; this crate's source of randomness makes identifiers.
    let random = uuid::Uuid::new_v4().as_fields().0;
    let span = u32::try_from(2 * MORE_OR_LESS.as_secs()).unwrap_or(1);
    EVERY - MORE_OR_LESS + Duration::from_secs(u64::from(random % span))
}

fn seen(name: &str, found: &[OtherServer]) -> String {
    let list: Vec<_> = found.iter().map(ToString::to_string).collect();
    match list.as_slice() {
        [] => format!("no other DHCP server answers on {name}"),
        list => format!("on {name} answers {}", list.join(", and ")),
    }
}

/// What is wrong with a link, in a sentence that says what to do.
fn judge(role: Role, name: &str, found: &[OtherServer]) -> Option<String> {
    let gives = found.iter().find(|other| other.gives_addresses());
    let boots = found.iter().find(|other| other.boot_file.is_some());
    match (role, gives, boots) {
        (Role::Server, Some(other), _) => Some(format!(
            "a second DHCP server, {}, gives addresses on {name} beside this one: machines that take \
             its answer do not boot from here, and two machines may get one address. Switch one of \
             the two off, or start netboot with --mode proxy",
            other.server
        )),
        (Role::Proxy, None, _) => Some(format!(
            "no DHCP server answers on {name}: machines there get no address, and netboot is only a \
             proxy. Start the network's DHCP server; netboot becomes it only when it is started \
             again with --mode server and addresses to give"
        )),
        (Role::Server | Role::Proxy, _, Some(other)) => Some(format!(
            "another boot server, {}, answers on {name} too, with the file \"{}\": machines boot from \
             whichever they choose. Switch it off for the machines that netboot shall boot",
            other.server,
            other.boot_file.as_deref().unwrap_or_default()
        )),
        _ => None,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(gives: bool, file: Option<&str>) -> OtherServer {
        OtherServer {
            server: Ipv4Addr::new(10, 0, 0, 1),
            offered: gives.then_some(Ipv4Addr::new(10, 0, 0, 77)),
            boot_file: file.map(str::to_owned),
        }
    }

    #[test]
    fn a_second_server_a_missing_one_and_another_boot_server_are_told_apart() {
        let judged = |role, found: &[OtherServer]| judge(role, "eth0", found).unwrap_or_default();
        let second = judged(Role::Server, &[other(true, None)]);
        assert!(second.starts_with("a second DHCP server, 10.0.0.1, gives addresses on eth0"));
        let missing = judged(Role::Proxy, &[]);
        assert!(missing.starts_with("no DHCP server answers on eth0"));
        let boots = judged(Role::Proxy, &[other(true, Some("pxelinux.0"))]);
        assert!(boots.starts_with("another boot server, 10.0.0.1") && boots.contains("pxelinux.0"));
        assert_eq!(judge(Role::Server, "eth0", &[]), None);
        assert_eq!(judge(Role::Proxy, "eth0", &[other(true, None)]), None);
    }

    #[test]
    fn intervals_lie_around_five_minutes() {
        for _ in 0..200 {
            let interval = interval();
            assert!(interval >= EVERY - MORE_OR_LESS && interval < EVERY + MORE_OR_LESS);
        }
    }
}
