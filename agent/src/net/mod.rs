//! The environment's network: links, DHCP, the way to the server, HTTP.
//!
//! Invariant: only [`ports`] touches sockets and interfaces for DHCP; [`dhcp_client`] is a state
//! machine. What is *not* here: what is said to the server ([`crate::beacon`], [`crate::job`]), TLS,
//! Wi-Fi (a restore needs a cable).

pub(crate) mod http;
