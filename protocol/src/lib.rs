//! What goes over the wire: DHCP, TFTP, beacon, jobs, API types, boot arguments, progress.
//!
//! Invariant: nothing here does I/O. What is *not* here: sockets and routes (`netboot`), the
//! network of the recovery environment (`agent`).

pub mod api;
pub mod beacon;
pub mod boot_args;
pub mod dhcp;
pub mod import;
pub mod job;
pub mod progress;
pub mod tftp;
pub mod unlock;
pub mod upkeep;
