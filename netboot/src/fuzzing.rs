//! The door for the fuzz targets in `netboot/fuzz`, and what must hold whatever the network sends.
//!
//! Each function takes any bytes, plays them against one part of the server and panics when an
//! invariant is broken. The unit tests here play random bytes, so that the checks themselves stay
//! right; the fuzzer looks for the rare ones. Compiled for tests and fuzzing only.

mod dhcp_proxy;
mod dhcp_server;
mod http_boot;
mod tftp_transfer;

use std::path::Path;

pub use dhcp_proxy::dhcp_proxy;
pub use dhcp_server::dhcp_server;
pub use http_boot::http_boot;
pub use tftp_transfer::tftp_transfer;

use crate::config::{Config, Overrides};

/// A configuration is read and makes sense, or is refused in words.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, Path::new("fuzz.toml"), Overrides::default()) {
        Ok(config) => {
            for subnet in &config.subnets {
                assert!(subnet.pool.start() <= subnet.pool.end());
                assert!(crate::config::is_within(&subnet.pool, subnet.network));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Records, packs and indexes of the store.
pub fn store_files(bytes: &[u8]) {
    crate::store::fuzzing::store_files(bytes);
}

/// A fuzzer's bytes as a row of choices; zeros when there are no more.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next bytes, at most `len`.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One of some values.
    fn of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[usize::from(self.byte()) % N]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, proptest};

    proptest! {
        #[test]
        fn no_sequence_breaks_the_dhcp_server(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            dhcp_server(&bytes);
        }

        #[test]
        fn no_sequence_breaks_the_proxy(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            dhcp_proxy(&bytes);
        }

        #[test]
        fn no_sequence_breaks_a_transfer(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            tftp_transfer(&bytes);
        }

        #[test]
        fn no_request_breaks_the_boot_files(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            http_boot(&bytes);
        }

        #[test]
        fn no_bytes_break_the_store(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            store_files(&bytes);
        }

        #[test]
        fn no_text_breaks_the_configuration(text: String) {
            config(text.as_bytes());
        }
    }
}
