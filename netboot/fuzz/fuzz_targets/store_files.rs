//! Records, packs and their indexes: read without a panic, written to the bytes they were read from.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::store_files(bytes));
