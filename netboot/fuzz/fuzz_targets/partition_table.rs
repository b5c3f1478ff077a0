//! GPT and MBR of any disk: read without a panic; a table that was read, made to fit a disk of
//! another size and written there, has the same partitions when it is read again.

#![no_main]

use backup::SectorSize;
use backup::gpt::read_gpt;
use backup::mbr::read_mbr;
use fuzz_support::SparseDisk;
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
    let size = disk.size() - disk.size() % sector_len;
    let other = match flags >> 2 & 3 {
        0 => size,
        1 => size + (8 << 20),
        2 => size / 2 - size / 2 % sector_len,
        _ => 100 << 30,
    };
    if let Ok(Some(read)) = read_gpt(&disk, size, sector)
        && let Ok(writes) = read.table.resized_for(other, &[])
    {
        let mut target = SparseDisk::empty(other);
        target.commit(&writes);
        let again = read_gpt(&target, other, sector)
            .expect("readable")
            .expect("a GPT");
        assert_eq!(again.table.partitions().ok(), read.table.partitions().ok());
        assert_eq!(again.warnings, Vec::<String>::new());
    }
    if let Ok(table) = read_mbr(&disk, size, sector) {
        let _ = table.sectors();
        let partitions = table.partitions();
        if let Ok(writes) = table.resized_for(other, None) {
            let mut target = SparseDisk::empty(other);
            target.commit(&writes);
            let again = read_mbr(&target, other, sector).expect("readable");
            assert_eq!(again.partitions().ok(), partitions.as_ref().ok().cloned());
        }
        for partition in partitions.into_iter().flatten() {
            let _ = table.resized_for(other, Some((partition.number, other / sector_len - 1)));
            let half = partition.first_lba + (partition.last_lba - partition.first_lba) / 2;
            let moved = (partition.number, partition.first_lba / 2, half);
            if let Ok(writes) = table.moved_for(other, &[moved]) {
                let mut target = SparseDisk::empty(other);
                target.commit(&writes);
                let again = read_mbr(&target, other, sector).expect("readable");
                let found = again.partitions().expect("partitions");
                let found = found.iter().find(|one| one.number == partition.number);
                let found = found.map(|one| (one.number, one.first_lba, one.last_lba));
                assert_eq!(found, Some(moved));
            }
        }
    }
});
