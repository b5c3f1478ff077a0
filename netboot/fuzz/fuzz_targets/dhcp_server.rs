//! The DHCP server through any sequence of messages, times and restarts; the invariants are said there.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::dhcp_server(bytes));
