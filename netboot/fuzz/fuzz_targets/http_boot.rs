//! Any request for a boot file is answered with the right bytes or refused, without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::http_boot(bytes));
