//! Any disk has a layout or a reason why not: regions in order, within the disk, whole sectors.

#![no_main]

use backup::layout::{partitions_of, survey_disk};
use backup::{ByteRange, SectorSize};
use fuzz_support::{SparseDisk, assert_in_order};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, bytes)) = bytes.split_first() else {
        return;
    };
    let sector_len = if flags & 1 == 0 { 512 } else { 4096 };
    let sector = SectorSize::try_from(sector_len).expect("a sector size");
    let mut disk = SparseDisk::from_bytes(bytes);
    if flags & 2 == 0 {
        disk.seal_gpt(sector_len);
    }
    let Ok(layout) = survey_disk(&disk, disk.size(), sector) else {
        return;
    };
    let ranges: Vec<ByteRange> = layout.regions.iter().map(|region| region.range).collect();
    assert_in_order(&ranges, disk.size());
    for range in &ranges {
        assert!(range.start().is_multiple_of(sector_len) && range.len().is_multiple_of(sector_len));
    }
    // Every partition is in a region, or its bytes would be in no backup.
    for partition in partitions_of(&layout.table).expect("a table that was read") {
        let place = partition.range(sector);
        assert!(
            ranges.iter().any(|range| range.contains(place)),
            "{place:?} is in none of {ranges:?}"
        );
    }
});
