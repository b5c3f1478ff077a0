//! The TFTP server.
//!
//! `transfer` is one transfer as a state machine, `places` who may have one, `server` what a request
//! gets and how a transfer is told of, `driver` the thread that moves the bytes, `sending` how.

mod driver;
mod places;
mod sending;
pub(crate) mod server;
pub(crate) mod transfer;
