//! The proxy and the search for other servers through any sequence of messages; the invariants are said there.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::dhcp_proxy(bytes));
