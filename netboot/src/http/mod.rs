//! HTTP: boot files, the machines' API and the operators' API.

pub(crate) mod boot_files;
pub(crate) mod server;

/// Who sent a request: an extension of each request that came over TCP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) std::net::SocketAddr);
