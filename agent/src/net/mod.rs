//! The environment's network: links, DHCP, the way to the server, HTTP.
//!
//! Invariant: only [`ports`] and [`way`] touch interfaces and sockets for DHCP; [`dhcp_client`] and
//! [`discovery`] are state machines. What is *not* here: what is said to the server ([`crate::beacon`], [`crate::job`]),
//! TLS, Wi-Fi (a restore needs a cable), static addresses and VLANs (later).

pub(crate) mod dhcp_client;
pub(crate) mod discovery;
pub(crate) mod http;
pub(crate) mod link;
pub(crate) mod ports;
mod random;
pub(crate) mod way;
