//! Any disk is looked at for signs of a RAID or a pool without a panic; what is found is in a partition
//! once.

#![no_main]

use std::collections::HashSet;

use backup::{SectorSize, member};
use fuzz_support::SparseDisk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for sector in [SectorSize::S512, SectorSize::S4096] {
        let mut disk = SparseDisk::from_bytes(bytes);
        disk.seal_gpt(sector.bytes());
        let Ok(found) = member::find(&disk, disk.size(), sector) else {
            continue;
        };
        let mut places = HashSet::new();
        for one in &found {
            assert!(places.insert(one.partition), "{found:?}");
            assert!(!one.member.to_string().is_empty());
        }
    }
});
