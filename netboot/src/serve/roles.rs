//! What the server is on each link: DHCP server, proxy beside another one, or neither.
//!
//! Decided once, at the start. A server that turned from proxy to server while it runs would give addresses
//! on a network whose own server is away for a reboot; so it never does, it only says what it sees
//! (`watch`).
//!
//! Not here: how others are found (`dhcp::other_servers`), the answers.

use std::thread;

use super::{
    ServeError,
    links::{Link, example_pool},
};
use crate::{
    config::{Config, DhcpMode},
    dhcp::{
        other_servers::{OtherServer, Patience, look_for_servers},
        server::Settings,
    },
    sockets::OpenError,
};

/// What we are to the machines of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// DHCP is not answered.
    Off,
    /// Addresses and boot files.
    Server,
    /// Boot files; addresses come from another server.
    Proxy,
}

/// A link's role and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// What we are.
    pub(super) role: Role,
    /// For the ready line: `as proxy beside …`.
    pub(super) words: String,
    /// What is wrong with it, for people.
    pub(super) warning: Option<String>,
    /// Who else answers, if that was looked for.
    pub(super) others: Option<Vec<OtherServer>>,
}

/// The role of each link. In `auto` mode this takes up to 4 s.
///
/// # Errors
/// When we may not look for other servers.
pub(super) fn choose(
    config: &Config,
    links: &[Link],
    settings: &Settings,
) -> Result<Vec<Chosen>, ServeError> {
    let fixed = |role, words: &str| Chosen {
        role,
        words: words.to_owned(),
        warning: None,
        others: None,
    };
    let mode = config.dhcp.as_ref().map_or(DhcpMode::Off, |dhcp| dhcp.mode);
    let chosen: Vec<Chosen> = match mode {
        DhcpMode::Off => vec![fixed(Role::Off, "without DHCP"); links.len()],
        DhcpMode::Server => vec![fixed(Role::Server, "as DHCP server"); links.len()],
        DhcpMode::Proxy => vec![fixed(Role::Proxy, "as proxy"); links.len()],
        DhcpMode::Auto => look(links)?
            .into_iter()
            .zip(links)
            .map(|(found, link)| match found {
                // Nobody but us is on a loopback interface or behind an address.
                None => fixed(Role::Server, "as DHCP server"),
                Some(found) => decide(found, gives_addresses(links, link, settings), link),
            })
            .collect(),
    };
    for (chosen, link) in chosen.iter().zip(links) {
        if let Some(warning) = &chosen.warning {
            log::warn!("{warning}");
        } else {
            log::info!("{} {}", link.name(), chosen.words);
        }
    }
    Ok(chosen)
}

/// Looks on every link at the same time. `None` for links where nobody else can be.
fn look(links: &[Link]) -> Result<Vec<Option<Vec<OtherServer>>>, OpenError> {
    let look_on = |link: &Link| {
        let interface = link.ethernet()?;
        Some(smol::block_on(look_for_servers(
            interface,
            Patience::FirstAnswer,
        )))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = links
            .iter()
            .map(|link| scope.spawn(move || look_on(link)))
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(found) => found.transpose(),
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

/// Whether there is anything to give on a link: a subnet there, or one behind a relay.
fn gives_addresses(links: &[Link], link: &Link, settings: &Settings) -> bool {
    settings.subnets.iter().any(|subnet| {
        let on = |link: &Link| {
            link.networks()
                .any(|own| subnet.network.contains(&own.addr()))
        };
        on(link) || !links.iter().any(on)
    })
}

fn decide(found: Vec<OtherServer>, can_give: bool, link: &Link) -> Chosen {
    let other = found.iter().find(|other| other.gives_addresses());
    let (role, words, warning) = match (other, can_give) {
        (Some(other), _) => {
            let words = format!("as proxy beside the DHCP server {}", other.server);
            let unused = || {
                format!(
                    "the DHCP server {} answers on {}, so netboot is a proxy there and gives none of the \
                     addresses that it was given. Switch that server off and start netboot again, or \
                     leave the addresses out",
                    other.server,
                    link.name()
                )
            };
            (Role::Proxy, words, can_give.then(unused))
        }
        (None, true) => {
            let words = "as DHCP server (no other one answers)".to_owned();
            (Role::Server, words, None)
        }
        (None, false) => {
            let words = "as proxy (no DHCP server answers yet)".to_owned();
            let example = link.networks().next().map_or_else(String::new, |network| {
                format!(" (such as --pool {})", example_pool(network))
            });
            let warning = format!(
                "no DHCP server answers on {}, and this one has no addresses to give: machines there \
                 get no address. Start the network's DHCP server, or let netboot be it with --pool \
                 FIRST-LAST{example}",
                link.name()
            );
            (Role::Proxy, words, Some(warning))
        }
    };
    Chosen {
        role,
        words,
        warning,
        others: Some(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn link() -> Link {
        Link {
            interface: None,
            address: Ipv4Addr::new(10, 0, 0, 5),
        }
    }

    fn other(offered: Option<Ipv4Addr>) -> OtherServer {
        OtherServer {
            server: Ipv4Addr::new(10, 0, 0, 1),
            offered,
            boot_file: None,
        }
    }

    #[test]
    fn beside_a_dhcp_server_it_is_the_proxy_even_with_a_pool() {
        let found = vec![other(None), other(Some(Ipv4Addr::new(10, 0, 0, 77)))];
        for can_give in [false, true] {
            let chosen = decide(found.clone(), can_give, &link());
            assert_eq!(chosen.role, Role::Proxy);
            assert_eq!(chosen.words, "as proxy beside the DHCP server 10.0.0.1");
            // Addresses that are not given are not passed over in silence.
            assert_eq!(chosen.warning.is_some(), can_give);
        }
    }

    #[test]
    fn alone_it_gives_addresses_only_if_it_has_some() {
        // Another boot server gives no addresses.
        let found = vec![other(None)];
        assert_eq!(decide(found.clone(), true, &link()).role, Role::Server);
        let chosen = decide(found, false, &link());
        assert_eq!(chosen.role, Role::Proxy);
        let warning = chosen.warning.expect("a warning");
        assert!(
            warning.contains("no DHCP server answers on 10.0.0.5")
                && warning.contains("--pool FIRST-LAST"),
            "{warning}"
        );
    }
}
