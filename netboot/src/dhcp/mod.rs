//! The DHCP server and the proxy: leases, what firmware gets which file, the answers, and the search for
//! other servers, without sockets.

mod boot_answer;
pub(crate) mod boot_table;
mod conflict;
pub(crate) mod exchange;
pub(crate) mod lease;
pub(crate) mod lease_store;
pub(crate) mod other_servers;
pub(crate) mod proxy;
pub(crate) mod proxy_service;
pub(crate) mod reservations;
pub(crate) mod server;
pub(crate) mod service;
