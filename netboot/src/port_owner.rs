//! Who holds a port that we cannot have, as far as `/proc` shows it.
//!
//! Not here: opening ports (`sockets`).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Transport protocols that have ports here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Transport {
    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }

    /// Its word in firewall rules.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Whether anybody has a socket on the port.
pub(crate) fn is_held(transport: Transport, port: u16) -> bool {
    !inodes(transport, port).is_empty()
}

fn inodes(transport: Transport, port: u16) -> Vec<String> {
    let tables = match transport {
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| socket_inodes(&text, transport, port))
        .collect()
}

/// The process that has a socket on the port, such as `dnsmasq (process 812)`. `None` when there
/// is none, or when it belongs to somebody else and we are not root.
pub(crate) fn port_owner(transport: Transport, port: u16) -> Option<String> {
    let inodes = inodes(transport, port);
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|process| owner_among(&process.path(), &inodes))
}

/// Inodes of the sockets bound to `port` (proc(5), `/proc/net/tcp`): field 2 is the local address
/// as `ADDRESS:PORT` in hexadecimal, 4 the state (0A is listening), 10 the inode.
fn socket_inodes(table: &str, transport: Transport, port: u16) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            let (_, hex) = local.rsplit_once(':')?;
            let listens = transport == Transport::Udp || *state == "0A";
            let fits = u16::from_str_radix(hex, 16).ok()? == port && listens;
            fits.then(|| (*inode).to_owned())
        })
        .collect()
}

fn owner_among(process: &Path, inodes: &[String]) -> Option<String> {
    let id: u32 = process.file_name()?.to_str()?.parse().ok()?;
    let holds = fs::read_dir(process.join("fd")).ok()?.flatten().any(|fd| {
        let target = fs::read_link(fd.path()).unwrap_or_else(|_| PathBuf::new());
        let target = target.to_string_lossy();
        target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inode| inodes.iter().any(|known| known == inode))
    });
    let name = fs::read_to_string(process.join("comm")).ok()?;
    holds.then(|| format!("{} (process {id})", name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_tcp_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n\
             1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 4712 1\n\
             2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4713 1\n";
        assert_eq!(socket_inodes(table, Transport::Tcp, 8080), ["4711"]);
    }

    #[test]
    fn our_own_socket_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        let owner = port_owner(Transport::Udp, port).expect("an owner");
        assert!(
            owner.ends_with(&format!("(process {})", std::process::id())),
            "{owner}"
        );
    }
}
