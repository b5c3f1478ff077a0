//! A TFTP transfer through any sequence of packets, losses and times; the invariants are said there.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::tftp_transfer(bytes));
