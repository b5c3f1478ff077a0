//! A kernel command line is read without a panic, and what was read is written and read back alike.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::boot_args::BootArgs;

fuzz_target!(|line: &str| {
    if let Ok(read) = BootArgs::parse(line) {
        assert_eq!(BootArgs::parse(&read.to_string()), Ok(read));
    }
});
