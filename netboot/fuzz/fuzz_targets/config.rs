//! Any configuration file is read or refused in words, without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| netboot::fuzzing::config(bytes));
