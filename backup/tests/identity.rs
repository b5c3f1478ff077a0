//! The ids of copies, checked by the tools that other programs find them with.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

mod images;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::SectorSize;
use backup::gpt::read_gpt;
use backup::identity::core_image::{self, CoreImage};
use backup::identity::volume::{self, Patch};
use backup::mbr::read_mbr;
use images::{Image, Memory, folder, run};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use uuid::Uuid;

const NEW: Uuid = Uuid::from_u128(0x1122_3344_5566_4788_99aa_bbcc_ddee_ff00);

/// An image of so many MiB, made by a program that gets its path last.
fn image(folder: &Path, mib: u64, package: &str, program: &str, arguments: &[&str]) -> PathBuf {
    let path = folder.join("image");
    let _ = fs::remove_file(&path);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    let mut all = arguments.to_vec();
    all.push(path.to_str().unwrap());
    run(package, program, &all);
    path
}

fn apply(path: &Path, patches: &[Patch]) {
    let file = File::options().write(true).open(path).unwrap();
    for patch in patches {
        file.write_all_at(&patch.bytes, patch.offset).unwrap();
    }
}

/// What `blkid` finds, without its cache.
fn blkid(path: &Path, tag: &str) -> String {
    let path = path.to_str().unwrap();
    let arguments = ["-p", "-o", "value", "-s", tag, path];
    run("util-linux", "blkid", &arguments).trim().to_owned()
}

#[test]
fn fat_volumes_get_another_serial_number_in_each_boot_sector() {
    let folder = folder();
    for (width, mib) in [("12", 4), ("16", 32), ("32", 64)] {
        let arguments = ["-F", width, "-i", "1AB0E5F0"];
        let path = image(folder.path(), mib, "dosfstools", "mkfs.vfat", &arguments);
        assert_eq!(blkid(&path, "UUID"), "1AB0-E5F0");
        let patches = volume::fat(&Image::open(&path), 0xdead_beef).unwrap();
        assert_eq!(patches.len(), if width == "32" { 2 } else { 1 });
        apply(&path, &patches);
        assert_eq!(blkid(&path, "UUID"), "DEAD-BEEF", "FAT{width}");
        // Clean, and both boot sectors the same.
        run("dosfstools", "fsck.fat", &["-n", path.to_str().unwrap()]);
    }
}

#[test]
fn exfat_gets_another_serial_number_and_keeps_its_checksums() {
    let folder = folder();
    let path = image(folder.path(), 32, "exfatprogs", "mkfs.exfat", &[]);
    apply(
        &path,
        &volume::exfat(&Image::open(&path), 0xdead_beef).unwrap(),
    );
    assert_eq!(blkid(&path, "UUID"), "DEAD-BEEF");
    run("exfatprogs", "fsck.exfat", &["-n", path.to_str().unwrap()]);
    // A region that is damaged is left alone.
    apply(
        &path,
        &[Patch {
            offset: 600,
            bytes: vec![1],
        }],
    );
    volume::exfat(&Image::open(&path), 1).unwrap_err();
}

#[test]
fn a_swap_gets_another_uuid() {
    let folder = folder();
    let path = image(folder.path(), 4, "util-linux", "mkswap", &["-L", "swap"]);
    apply(&path, &volume::swap(&Image::open(&path), NEW).unwrap());
    assert_eq!(blkid(&path, "UUID"), NEW.to_string());
    assert_eq!(blkid(&path, "LABEL"), "swap");
    volume::swap(&Memory(&[0; 8192]), NEW).unwrap_err();
}

#[test]
fn btrfs_gets_another_uuid_in_each_superblock_and_stays_clean() {
    let folder = folder();
    let path = image(folder.path(), 128, "btrfs-progs", "mkfs.btrfs", &["-q"]);
    let size = 128 << 20;
    // The second time the trees are marked with another id already.
    for new in [NEW, Uuid::from_u128(NEW.as_u128() + 1)] {
        let patches = volume::btrfs(&Image::open(&path), size, new).unwrap();
        assert_eq!(patches.len(), 2);
        apply(&path, &patches);
        assert_eq!(blkid(&path, "UUID"), new.to_string());
        let path = path.to_str().unwrap();
        run("btrfs-progs", "btrfs", &["check", "--readonly", path]);
    }
    apply(
        &path,
        &[Patch {
            offset: (64 << 10) + 1000,
            bytes: vec![1],
        }],
    );
    volume::btrfs(&Image::open(&path), size, NEW).unwrap_err();
}

fn table(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("disk");
    let _ = fs::remove_file(&path);
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let shell = format!("printf '{script}' | sfdisk -q {}", path.display());
    run("fdisk", "sh", &["-c", &shell]);
    path
}

#[test]
fn a_gpt_gets_other_guids_in_both_copies() {
    let folder = folder();
    let script = "label: gpt\\nsize=10M,type=uefi,name=esp\\ntype=linux\\n";
    let path = table(folder.path(), script);
    let before = run("fdisk", "sfdisk", &["-d", path.to_str().unwrap()]);
    let read = read_gpt(&Image::open(&path), 64 << 20, SectorSize::S512).unwrap();
    let ids = [(1, Uuid::from_u128(1)), (2, Uuid::from_u128(2))];
    let copy = read.unwrap().table.with_ids(NEW, &ids, 7).unwrap();
    for write in copy.resized_for(64 << 20, &[]).unwrap() {
        apply(
            &path,
            &[Patch {
                offset: write.offset,
                bytes: write.bytes.0,
            }],
        );
    }
    let disk = path.to_str().unwrap();
    run("gdisk", "sgdisk", &["--verify", disk]);
    assert!(run("gdisk", "sgdisk", &["--verify", disk]).contains("No problems found"));
    let after = run("fdisk", "sfdisk", &["-d", disk]);
    let upper = |uuid: Uuid| uuid.to_string().to_uppercase();
    assert!(
        after.contains(&format!("label-id: {}", upper(NEW))),
        "{after}"
    );
    for (_, id) in ids {
        assert!(after.contains(&format!("uuid={}", upper(id))), "{after}");
    }
    // Nothing else changed.
    let without_ids = |text: &str| {
        let words = text.split([' ', ',', '\n']);
        let ids = |word: &&str| word.len() != 36 && !word.starts_with("uuid=");
        words.filter(ids).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(without_ids(&after), without_ids(&before));
    copy.with_ids(NEW, &[(9, NEW)], 7).unwrap_err();
}

#[test]
fn a_pc_table_gets_another_signature_where_it_has_one() {
    let folder = folder();
    let path = table(
        folder.path(),
        "label: dos\\nlabel-id: 0x11223344\\n,10M\\n,\\n",
    );
    let read = read_mbr(&Image::open(&path), 64 << 20, SectorSize::S512).unwrap();
    assert_eq!(read.signature(), Some(0x1122_3344));
    let copy = read.with_signature(0xcafe_f00d);
    for write in copy.resized_for(64 << 20, None).unwrap() {
        apply(
            &path,
            &[Patch {
                offset: write.offset,
                bytes: write.bytes.0,
            }],
        );
    }
    let after = run("fdisk", "sfdisk", &["-d", path.to_str().unwrap()]);
    assert!(after.contains("label-id: 0xcafef00d"), "{after}");
    let mut none = read;
    none.first_sector.0[440..444].fill(0);
    assert_eq!(none.with_signature(5), none);
}

/// A disk with GRUB's boot sector and an image with this configuration built in.
fn grub(folder: &Path, config: Option<&str>) -> Vec<u8> {
    let (core, load) = (folder.join("core.img"), folder.join("load.cfg"));
    let mut arguments = vec!["-O", "i386-pc", "-o", core.to_str().unwrap()];
    arguments.extend(["-p", "(,gpt2)/boot/grub"]);
    if let Some(config) = config {
        fs::write(&load, config).unwrap();
        arguments.extend(["-c", load.to_str().unwrap()]);
    }
    arguments.extend(["biosdisk", "part_gpt", "ext2", "search_fs_uuid", "normal"]);
    run("grub-pc-bin", "grub-mkimage", &arguments);
    let mut boot = fs::read("/usr/lib/grub/i386-pc/boot.img").unwrap();
    let mut core = fs::read(core).unwrap();
    // What grub-bios-setup does.
    boot[0x5c..0x64].copy_from_slice(&34u64.to_le_bytes());
    core[500..508].copy_from_slice(&35u64.to_le_bytes());
    let mut disk = vec![0; 4 << 20];
    disk[..512].copy_from_slice(&boot);
    disk[34 * 512..34 * 512 + core.len()].copy_from_slice(&core);
    disk
}

fn core_image_of(disk: &[u8]) -> CoreImage {
    let size = disk.len() as u64;
    core_image::read(&disk[..512], &Memory(disk), size, SectorSize::S512).unwrap()
}

#[test]
fn what_is_built_into_grubs_second_stage_is_seen() {
    let folder = folder();
    let config = format!("search.fs_uuid {NEW} root\n");
    let has = |disk: &[u8]| match core_image_of(disk) {
        CoreImage::Plain(image) => {
            let id = NEW.to_string();
            image.windows(36).any(|word| word == id.as_bytes())
        }
        other => panic!("{other:?}"),
    };
    assert!(has(&grub(folder.path(), Some(&config))));
    let mut disk = grub(folder.path(), None);
    assert!(!has(&disk));
    // What cannot be read is not taken for an image without an id.
    disk[35 * 512 + 12] ^= 0xff;
    assert!(matches!(core_image_of(&disk), CoreImage::Unknown(_)));
    disk[0x5c..0x64].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(core_image_of(&disk), CoreImage::Unknown(_)));
    disk[..512].fill(0);
    assert_eq!(core_image_of(&disk), CoreImage::None);
}

#[test]
fn the_places_of_a_file_on_fat_hold_its_content() {
    let folder = folder();
    let arguments = ["-F", "16", "-s", "1"];
    let path = image(folder.path(), 16, "dosfstools", "mkfs.vfat", &arguments);
    let at = path.to_str().unwrap();
    let content: Vec<u8> = (0..20_000u32).map(|number| number as u8).collect();
    let file = folder.path().join("content");
    for (name, len) in [("a", 700), ("b", 600)] {
        fs::write(&file, &content[..len]).unwrap();
        let target = format!("::{name}");
        run(
            "mtools",
            "mcopy",
            &["-i", at, file.to_str().unwrap(), &target],
        );
    }
    // Its chain begins in the hole that this leaves.
    run("mtools", "mdel", &["-i", at, "::a"]);
    fs::write(&file, &content).unwrap();
    run(
        "mtools",
        "mcopy",
        &["-i", at, file.to_str().unwrap(), "::c"],
    );

    let volume: Arc<dyn backup::filesystem::ReadAt + Send + Sync> = Arc::new(Image::open(&path));
    let tree = backup::filesystem::tree::open(Arc::clone(&volume), 16 << 20).unwrap();
    let stay = backup::filesystem::tree_path::AtEnd::Stay;
    let node = backup::filesystem::tree_path::find(tree.as_ref(), tree.root(), b"c", stay);
    let places = tree.places(node.unwrap()).unwrap().unwrap();
    assert!(places.len() > 1, "{places:?}");
    let mut found = Vec::new();
    for place in places {
        let mut bytes = vec![0; place.len() as usize];
        volume.read_at(place.start(), &mut bytes).unwrap();
        found.extend(bytes);
    }
    assert!(found == content);
}

proptest! {
    /// No bytes make the readers panic, and no patch leaves the volume.
    #[test]
    fn damaged_volumes_are_refused_or_patched_within(
        start in proptest::collection::vec(any::<u8>(), 512),
        flips in proptest::collection::vec((0usize..512, any::<u8>()), 0..4),
        exfat in any::<bool>(),
    ) {
        let mut volume = vec![0; 128 << 10];
        volume[..512].copy_from_slice(&start);
        // Something of the right kind, so that more than the first check is reached.
        let sign: &[u8] = if exfat { b"\xeb\x76\x90EXFAT   " } else { b"\xeb\x3c\x90" };
        volume[..sign.len()].copy_from_slice(sign);
        volume[510..512].copy_from_slice(&[0x55, 0xaa]);
        volume[4086..4096].copy_from_slice(b"SWAPSPACE2");
        for (at, value) in flips {
            volume[at] = value;
        }
        let size = volume.len() as u64;
        let view = Memory(&volume);
        let all = [
            volume::fat(&view, 1),
            volume::exfat(&view, 1),
            volume::swap(&view, NEW),
            volume::btrfs(&view, size, NEW),
        ];
        for patch in all.into_iter().flatten().flatten() {
            prop_assert!(patch.offset + patch.bytes.len() as u64 <= size);
        }
        // The boot code as GRUB's, with a place and a list that lie.
        volume[0x180..0x18a].copy_from_slice(b"GRUB \0Geom");
        volume[0x5c..0x64].copy_from_slice(&u64::from(start[3]).to_le_bytes());
        volume[0x18a..0x18c].copy_from_slice(&[0, 0]);
        let read = core_image::read(&volume[..512], &Memory(&volume), size, SectorSize::S512);
        prop_assert_eq!(read.is_ok(), true);
    }
}
