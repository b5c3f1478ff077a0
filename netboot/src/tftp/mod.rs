//! The TFTP server: transfers as state machines, and the sockets' tasks that drive them.

pub(crate) mod server;
pub(crate) mod transfer;
