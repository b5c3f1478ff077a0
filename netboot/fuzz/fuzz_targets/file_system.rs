//! Any volume is surveyed without a panic; used ranges and heads lie in order within it.

#![no_main]

use backup::filesystem::{detect, survey_volume};
use fuzz_support::{SparseDisk, assert_in_order};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let disk = SparseDisk::from_bytes(bytes);
    let survey = survey_volume(&disk, disk.size());
    if let Ok(used) = &survey.used {
        assert_in_order(used, disk.size());
    }
    assert_in_order(&survey.heads, disk.size());
    let _ = detect::is_raid_member(&disk, disk.size());
});
