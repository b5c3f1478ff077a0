//! GRUB for machines that start by BIOS, made anew: the code of the first sector, and the second stage.
//!
//! The second stage has all modules in it that a configuration can ask for, so that the restored system needs no
//! files of that GRUB. `grub-mkimage` makes it; what `grub-bios-setup` does besides, which wants a disk with a table,
//! is a handful of numbers and is done here.
//!
//! ```text
//! first sector   0x5c second stage's first sector:u64   0x66 jump over a work-around for BIOSes that name no drive
//! second stage   first sector, from byte 500 down: sector:u64 count:u16 segment:u16 of what follows; count 0 ends it
//! ```
//!
//! Sources: grub-core/boot/i386/pc/{boot.S,diskboot.S}, include/grub/i386/pc/boot.h. Invariant: what was put on a disk
//! is read back from it as a BIOS would find it, and unpacked.

use std::fs;
use std::path::Path;

use backup::ByteRange;
use backup::identity::core_image::{self, CoreImage};

use crate::device::{BlockDevice, DiskReader, io_error};
use crate::job::error::Fault;
use crate::job::kernel::{failed, find_tool, run_tool};

/// The program that puts modules together.
const TOOL: &str = "grub-mkimage";
/// Where GRUB's parts are.
const PARTS: &str = "usr/lib/grub/i386-pc";
/// What is needed of them besides modules.
const IMAGES: [&str; 4] = [
    "boot.img",
    "diskboot.img",
    "kernel.img",
    "lzma_decompress.img",
];
/// Modules that configurations made by `grub-mkconfig` ask for, and file systems that they can lie on.
const MODULES: [&str; 57] = [
    "all_video",
    "biosdisk",
    "boot",
    "btrfs",
    "cat",
    "chain",
    "cmp",
    "configfile",
    "cpuid",
    "date",
    "echo",
    "eval",
    "ext2",
    "extcmd",
    "fat",
    "font",
    "gettext",
    "gfxmenu",
    "gfxterm",
    "gfxterm_background",
    "gzio",
    "halt",
    "help",
    "jpeg",
    "keystatus",
    "linux",
    "linux16",
    "loadenv",
    "loopback",
    "ls",
    "lvm",
    "lzopio",
    "memdisk",
    "minicmd",
    "multiboot",
    "normal",
    "ntfs",
    "part_gpt",
    "part_msdos",
    "password_pbkdf2",
    "png",
    "probe",
    "reboot",
    "regexp",
    "search",
    "search_fs_file",
    "search_fs_uuid",
    "search_label",
    "serial",
    "sleep",
    "terminal",
    "terminfo",
    "test",
    "true",
    "video",
    "xfs",
    "xzio",
];

const SECTOR: usize = 512;
/// Bytes of the first sector that are code; behind them are the disk's signature and its table.
const CODE: usize = 440;
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// The last entry of the second stage's list, in its first sector.
const LIST: usize = SECTOR - 12;
/// Real ones have some 330 KiB.
const MOST: usize = 480 << 10;

/// A GRUB that belongs to no disk yet.
#[derive(Debug)]
pub(crate) struct BiosGrub {
    code: [u8; CODE],
    stage: Vec<u8>,
}

/// Whether everything is there that one is made of; `root` is where packages' files are.
///
/// # Errors
/// [`Fault::Tool`] for the first thing that is missing.
pub(crate) fn check(root: &Path) -> Result<(), Fault> {
    find_tool(TOOL)?;
    let parts = root.join(PARTS);
    let modules = MODULES.map(|module| format!("{module}.mod"));
    let modules = modules.iter().map(String::as_str);
    let mut names = IMAGES.into_iter().chain(["moddep.lst"]).chain(modules);
    match names.find(|name| !parts.join(name).is_file()) {
        None => Ok(()),
        Some(name) => Err(Fault::Tool {
            tool: format!("/{PARTS}/{name}"),
            reason: "it is not in this environment, and GRUB for BIOS is made of it; make the boot files again with \
                     the package grub-pc-bin"
                .to_owned(),
        }),
    }
}

impl BiosGrub {
    /// Makes one that begins with `script`. `root` is where packages' files are.
    ///
    /// # Errors
    /// [`Fault::Tool`] when `grub-mkimage` fails or gives something else than a second stage.
    pub(crate) fn new(root: &Path, script: &str) -> Result<Self, Fault> {
        let fault = |reason: String| Fault::Tool {
            tool: TOOL.to_owned(),
            reason,
        };
        let io = |error: std::io::Error| fault(error.to_string());
        let folder = std::env::temp_dir().join(format!("netboot-grub-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).map_err(io)?;
        let made = Self::make(root, &folder, script);
        fs::remove_dir_all(&folder).map_err(io)?;
        let (boot, stage) = made?;
        let Some(code) = boot
            .first_chunk::<SECTOR>()
            .filter(|sector| boot.len() == SECTOR && sector[510..] == [0x55, 0xaa])
            .and_then(|sector| sector.first_chunk::<CODE>())
        else {
            return Err(fault(format!("/{PARTS}/boot.img is no boot sector")));
        };
        if !(2 * SECTOR..=MOST).contains(&stage.len()) {
            let len = stage.len();
            return Err(fault(format!("it made an image of {len} bytes")));
        }
        let code = *code;
        Ok(Self { code, stage })
    }

    fn make(root: &Path, folder: &Path, script: &str) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let parts = root.join(PARTS);
        let (config, image) = (folder.join("load.cfg"), folder.join("core.img"));
        let read = |path: &Path| {
            fs::read(path).map_err(|error| Fault::Tool {
                tool: path.display().to_string(),
                reason: error.to_string(),
            })
        };
        fs::write(&config, script).map_err(|error| Fault::Tool {
            tool: config.display().to_string(),
            reason: error.to_string(),
        })?;
        let mut arguments: Vec<&std::ffi::OsStr> = vec![
            "--format=i386-pc".as_ref(),
            "--directory".as_ref(),
            parts.as_os_str(),
            "--config".as_ref(),
            config.as_os_str(),
            "--prefix=/boot/grub".as_ref(),
            "--output".as_ref(),
            image.as_os_str(),
        ];
        arguments.extend(MODULES.map(std::ffi::OsStr::new));
        let (code, output) = run_tool(TOOL, &arguments)?;
        if code != Some(0) {
            return Err(failed(TOOL, code, &output));
        }
        Ok((read(&parts.join("boot.img"))?, read(&image)?))
    }

    /// Puts the second stage into a partition, and gives the code of the first sector that starts it.
    ///
    /// # Errors
    /// A partition that is too small, a disk that fails or does not hold what was written.
    pub(crate) fn put(&self, device: &dyn BlockDevice, place: ByteRange) -> Result<Vec<u8>, Fault> {
        let mut stage = self.stage.clone();
        stage.resize(stage.len().next_multiple_of(SECTOR), 0);
        let sectors = stage.len() / SECTOR;
        let first = place.start() / SECTOR as u64;
        let (Ok(rest), true) = (
            u16::try_from(sectors - 1),
            stage.len() as u64 <= place.len(),
        ) else {
            return Err(Fault::NotAsPlanned(format!(
                "GRUB's second stage has {} bytes, and its partition {}",
                stage.len(),
                place.len()
            )));
        };
        stage[LIST..LIST + 8].copy_from_slice(&(first + 1).to_le_bytes());
        stage[LIST + 8..LIST + 10].copy_from_slice(&rest.to_le_bytes());
        let end = place.start() + stage.len() as u64;
        let written = ByteRange::between(place.start(), end);
        device
            .write_at(place.start(), &stage)
            .map_err(io_error("writing", device, written))?;
        device
            .flush()
            .map_err(io_error("flushing", device, written))?;
        let mut code = self.code.to_vec();
        code[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.to_le_bytes());
        // Two instructions that do nothing, in place of the jump.
        code[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
        let found = core_image::read(
            &first_sector(&code),
            &DiskReader(device),
            device.size(),
            device.sector(),
        );
        match found.map_err(|error| Fault::NotAsPlanned(error.to_string()))? {
            CoreImage::Plain(_) => Ok(code),
            CoreImage::None | CoreImage::Unknown(_) => Err(Fault::ReadBack {
                device: device.name().to_owned(),
                what: "GRUB's second stage".to_owned(),
                offset: place.start(),
            }),
        }
    }
}

fn first_sector(code: &[u8]) -> Vec<u8> {
    let mut sector = code.to_vec();
    sector.resize(SECTOR, 0);
    sector
}
