//! Any physical volumes are surveyed without a panic; what is saved of them lies in order within them,
//! and what is mapped lies within the disks and nowhere twice.

#![no_main]

use backup::ByteRange;
use backup::filesystem::ReadAt;
use backup::lvm::{Candidate, survey};
use fuzz_support::{SparseDisk, assert_in_order};
use libfuzzer_sys::fuzz_target;

/// LVM's checksum: CRC-32 from another start, and not inverted at the end.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
    hasher.update(bytes);
    !hasher.finalize()
}

/// Makes the checksums of label, metadata area and description right, so that what is behind them is
/// reached.
fn seal(disk: &mut SparseDisk) {
    let word = |bytes: &[u8], at: usize| {
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(value)
    };
    let mut label = [0; 512];
    if disk.read_at(512, &mut label).is_err() || label[..8] != *b"LABELONE" {
        return;
    }
    let sum = crc(&label[20..]).to_le_bytes();
    disk.write(512 + 16, &sum);
    // Where LVM puts the metadata area by default.
    let mut header = [0; 512];
    if disk.read_at(4096, &mut header).is_err() || header[4..20] != *b" LVM2 x[5A%r0N*>" {
        return;
    }
    let (offset, len) = (word(&header, 40), word(&header, 48));
    let mut text = vec![0; usize::try_from(len).unwrap_or(0).min(1 << 16)];
    if offset < 1 << 20 && disk.read_at(4096 + offset, &mut text).is_ok() {
        header[56..60].copy_from_slice(&crc(&text).to_le_bytes());
    }
    let sum = crc(&header[4..]).to_le_bytes();
    header[..4].copy_from_slice(&sum);
    disk.write(4096, &header);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&second, bytes)) = bytes.split_first() else {
        return;
    };
    let mut disk = SparseDisk::from_bytes(bytes);
    seal(&mut disk);
    let mut disks: Vec<&dyn ReadAt> = vec![&disk];
    // A second disk that is the same one: a doubled physical volume.
    if second & 1 != 0 {
        disks.push(&disk);
    }
    let candidates: Vec<_> = (0..)
        .zip(&disks)
        .map(|(number, _)| Candidate {
            disk: number,
            range: ByteRange::between(0, disk.size()),
            sector: if second & 2 == 0 { 512 } else { 4096 },
        })
        .collect();
    let found = survey(&candidates, &disks);
    assert_eq!(found.physical_volumes.len(), candidates.len());
    for saved in found.physical_volumes.iter().flatten() {
        assert_in_order(saved, disk.size());
    }
    let mut taken = Vec::new();
    for volume in &found.logical_volumes {
        let Ok((mapping, survey)) = &volume.content else {
            continue;
        };
        for area in mapping.segments().iter().flat_map(|one| &one.areas) {
            assert!(area.range.end() <= disk.size(), "{area:?}");
            taken.push((area.disk, area.range));
        }
        if let Ok(used) = &survey.used {
            assert_in_order(used, mapping.size());
        }
    }
    taken.sort_unstable();
    for pair in taken.windows(2) {
        let apart = pair[0].0 != pair[1].0 || !pair[0].1.overlaps(pair[1].1);
        assert!(apart, "{pair:?}");
    }
});
