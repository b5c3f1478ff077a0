//! Volumes that count in sectors, on a disk whose sectors have another size than the source's.
//!
//! The volume is restored as it was; then what comes before its first cluster is written anew. Invariant: that comes
//! before the commit; a restore that ends in between finds these pieces differ and begins with them again.

use backup::ByteRange;
use backup::filesystem::detect::detect;
use backup::filesystem::{Section, fat_sectors};
use backup::plan::{DiskPlan, SectorChange};

use super::covered::Covered;
use crate::device::{BlockDevice, DiskReader, io_error};
use crate::job::Engine;
use crate::job::error::Fault;

/// The most bytes before the first cluster; FAT32 with clusters of 4096 bytes has as many at 64 GiB.
const MOST: u64 = 128 << 20;

/// Changes the volumes of all disks, which are open and hold the backup's data. Returns sentences for the summary.
///
/// # Errors
/// A disk that fails, or a volume that cannot have such sectors.
pub(super) fn change(
    engine: &Engine<'_>,
    disks: &[Covered<'_>],
    plans: &[DiskPlan],
) -> Result<Vec<String>, Fault> {
    let mut sentences = Vec::new();
    for (disk, plan) in disks.iter().zip(plans) {
        for change in &plan.sectors {
            engine.check_cancelled()?;
            let partition = plan
                .partitions
                .iter()
                .find(|one| one.number == change.partition)
                .ok_or_else(|| Fault::Internal(format!("no partition {}", change.partition)))?;
            change_one(disk, partition.range, change)?;
            sentences.push(format!(
                "The {} in partition {} has sectors of {} bytes now.",
                change.file_system,
                change.partition,
                change.to.bytes()
            ));
        }
    }
    Ok(sentences)
}

fn change_one(
    device: &dyn BlockDevice,
    range: ByteRange,
    change: &SectorChange,
) -> Result<(), Fault> {
    let fault = |reason: String| Fault::Tool {
        tool: format!(
            "sectors of {} bytes for the {} in partition {}",
            change.to.bytes(),
            change.file_system,
            change.partition
        ),
        reason: format!("{reason}; restore to a disk with the sectors of the source"),
    };
    let read = |len: u64| {
        let place = ByteRange::between(range.start(), range.start() + len);
        let mut bytes = vec![0; len as usize];
        device
            .read_at(range.start(), &mut bytes)
            .map_err(io_error("reading", device, place))?;
        Ok::<_, Fault>(bytes)
    };
    let len = fat_sectors::front_len(&read(512.min(range.len()))?)
        .filter(|len| *len <= range.len().min(MOST))
        .ok_or_else(|| fault("it is no FAT whose beginning fits into memory".to_owned()))?;
    let front =
        fat_sectors::front_for(&read(len)?, change.to).map_err(|error| fault(error.to_string()))?;
    let place = ByteRange::between(range.start(), range.start() + len);
    device
        .write_at(range.start(), &front)
        .map_err(io_error("writing", device, place))?;
    device
        .flush()
        .map_err(io_error("flushing", device, place))?;

    let reader = DiskReader(device);
    let found = detect(&Section::new(&reader, range), range.len())
        .map_err(|error| fault(error.to_string()))?;
    let sectors = found
        .first()
        .map(|found| (found.file_system, found.sector_size));
    let wanted = Some(change.to.bytes());
    match sectors {
        Some((kind, Some(own))) if kind == change.file_system && Some(u64::from(own)) == wanted => {
            Ok(())
        }
        _ => Err(fault("it does not read back as such".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    use backup::SectorSize;
    use backup::hardware::FirmwareKind;
    use backup::plan::Choices;

    use crate::capture::capture;
    use crate::job::fake::{Bench, ImageMachine, disk, point, run};
    use crate::restore::restore;
    use crate::restore::tests::{files_of, noise};

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_uefi_disk_goes_to_sectors_of_4096_bytes_and_back() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (source, len) = (folder.path().join("source"), 128 * MIB);
        File::create(&source).unwrap().set_len(len).unwrap();
        let path = source.to_str().unwrap();
        let script = "label: gpt\\nstart=1MiB, size=64MiB, type=uefi\\nstart=65MiB, size=60MiB\\n";
        run(
            "sh",
            &["-c", &format!("printf '{script}' | sfdisk -q {path}")],
        );
        let volume = folder.path().join("volume");
        let name = volume.to_str().unwrap();
        let file = File::options().write(true).open(&source).unwrap();
        File::create(&volume).unwrap().set_len(64 * MIB).unwrap();
        run("mkfs.fat", &["-F", "16", "-s", "8", name]);
        let loader = folder.path().join("loader");
        fs::write(&loader, noise(4, 300_000)).unwrap();
        run(
            "mcopy",
            &["-i", name, loader.to_str().unwrap(), "::/loader"],
        );
        file.write_all_at(&fs::read(&volume).unwrap(), MIB).unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..9u64 {
            fs::write(tree.join(number.to_string()), noise(number, 900_000)).unwrap();
        }
        let tree = tree.to_str().unwrap();
        run(
            "mke2fs",
            &["-q", "-t", "ext4", "-b", "4096", "-d", tree, name, "60M"],
        );
        file.write_all_at(&fs::read(&volume).unwrap()[..60 << 20], 65 * MIB)
            .unwrap();

        let machine = ImageMachine::new(folder.path());
        let mut bench = Bench::new(machine, vec![disk("source", len)]);
        bench.inventory.firmware = FirmwareKind::Uefi;
        capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
        let mut from = "rp-1";
        for (number, to) in [(1, SectorSize::S4096), (2, SectorSize::S512)] {
            let (name, len) = (format!("target{number}"), len + number * 32 * MIB);
            let image = folder.path().join(&name);
            File::create(&image).unwrap().set_len(len).unwrap();
            let mut target = disk(&name, len);
            target.logical_sector = to;
            bench.platform.sector = to;
            bench.inventory.disks = vec![target];
            let summary = restore(&bench.engine(), &point(from), &Choices::default()).unwrap();
            let said = format!(
                "The FAT16 in partition 1 has sectors of {} bytes",
                to.bytes()
            );
            assert!(
                summary.iter().any(|line| line.starts_with(&said)),
                "{summary:?}"
            );
            assert!(
                summary.iter().any(|line| line.starts_with("Grew the ext4")),
                "{summary:?}"
            );

            // The first partition is where it was; the second one as long as there is room.
            let mut bytes = vec![0; (len - 66 * MIB) as usize];
            let file = File::open(&image).unwrap();
            file.read_exact_at(&mut bytes, 65 * MIB).unwrap();
            fs::write(&volume, &bytes).unwrap();
            run("e2fsck", &["-f", "-n", volume.to_str().unwrap()]);
            let mut found = files_of(&volume, &folder.path().join(format!("found{number}")));
            found.retain(|(name, _)| name != "lost+found");
            let expected = (0..9u64).map(|number| (number.to_string(), noise(number, 900_000)));
            assert!(found == expected.collect::<Vec<_>>());
            bytes.resize(64 << 20, 0);
            file.read_exact_at(&mut bytes[..64 << 20], MIB).unwrap();
            fs::write(&volume, &bytes[..64 << 20]).unwrap();
            run("fsck.fat", &["-n", volume.to_str().unwrap()]);
            let out = folder.path().join(format!("out{number}"));
            run(
                "mcopy",
                &[
                    "-i",
                    volume.to_str().unwrap(),
                    "::/loader",
                    out.to_str().unwrap(),
                ],
            );
            assert!(fs::read(out).unwrap() == noise(4, 300_000));
            from = "rp-2";
            if number == 1 {
                capture(&bench.engine(), &point(from), Default::default()).unwrap();
            }
        }
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: only root makes a block device of 4096 byte sectors");
            return;
        }
        // The kernel and its tools read the table.
        let image = folder.path().join("target1");
        let node = run(
            "losetup",
            &["-f", "--show", "-b", "4096", image.to_str().unwrap()],
        );
        let verified = run("sfdisk", &["--verify", node.trim()]);
        let dump = run("sfdisk", &["-d", node.trim()]);
        run("losetup", &["-d", node.trim()]);
        assert!(verified.contains("No errors detected"), "{verified}");
        assert!(dump.contains("sector-size: 4096"), "{dump}");
        assert!(
            dump.contains("start=         256, size=       16384"),
            "{dump}"
        );
    }
}
