//! UEFI boot entries: read without a panic, written to the bytes they were read from.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The agent is a program: its parsers come in as source.
#[path = "../../../agent/src/boot_repair/load_option.rs"]
#[allow(dead_code, reason = "a target uses a part of it")]
mod load_option;

use load_option::{HardDrive, LoadOption};

fuzz_target!(|bytes: &[u8]| {
    let Ok(option) = LoadOption::parse(bytes) else {
        return;
    };
    assert_eq!(option.encode(), bytes);
    let _ = (option.description(), option.target());
    let drive = HardDrive {
        number: 1,
        start: 2048,
        sectors: 4096,
        guid: uuid::Uuid::from_u128(7),
    };
    let moved = option.moved_to(&drive);
    let again = LoadOption::parse(&moved.encode()).expect("a moved entry is an entry");
    assert_eq!(again, moved);
});
