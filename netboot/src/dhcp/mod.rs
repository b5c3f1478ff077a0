//! The DHCP server: leases, what firmware gets which file, and the answers, without sockets.

pub(crate) mod boot_table;
pub(crate) mod lease;
pub(crate) mod lease_store;
pub(crate) mod server;
pub(crate) mod service;
