//! Power cuts: a restore is cut at every write and flush, with writes since the last flush kept,
//! dropped or torn; the disk must not start before it is whole, and the same restore must end right.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use backup::hardware::Disk;
use backup::plan::{Choices, DiskPlan, RestorePlan};
use backup::{ByteRange, SectorSize};

use super::commit::{Write, Writes, commit};
use super::restore;
use super::tests::noise;
use crate::boot_repair::variables::Variables;
use crate::capture::capture;
use crate::device::{Access, BlockDevice, DeviceError};
use crate::job::JobError;
use crate::job::error::{Fault, Touched};
use crate::job::fake::{Bench, FakeServer, ImageMachine, disk, point, run};
use crate::job::platform::{Loader, Platform};

const SIZE: u64 = 16 << 20;

/// A disk that keeps apart what was written and what is on the medium.
#[derive(Clone)]
pub(super) struct Medium {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Written since the last flush.
    pending: Vec<(usize, Vec<u8>)>,
    pub(super) operations: u64,
    /// The operation that does not happen any more.
    pub(super) cut_at: u64,
    /// A sector that cannot be written.
    bad: Option<u64>,
    /// A sector that says it was written and was not.
    lost: Option<u64>,
}

impl Medium {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            operations: 0,
            cut_at: u64::MAX,
            bad: None,
            lost: None,
        }
    }

    fn operation(&mut self) -> io::Result<()> {
        if self.operations >= self.cut_at {
            return Err(io::Error::other("power cut"));
        }
        self.operations += 1;
        Ok(())
    }

    /// What is found after the cut: of what was not flushed, each sector is there or not.
    pub(super) fn after_cut(&self, seed: u64) -> Self {
        let mut bytes = self.durable.clone();
        let mut coin = 0;
        let sectors = self
            .pending
            .iter()
            .map(|(_, bytes)| bytes.len().div_ceil(512))
            .sum::<usize>();
        let coins = noise(seed, sectors);
        for (at, written) in &self.pending {
            for (number, sector) in written.chunks(512).enumerate() {
                // Seeds 0 and 1 are the extremes: all lost, all there.
                if seed == 1 || seed > 1 && coins[coin] & 1 == 1 {
                    let at = at + number * 512;
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
                coin += 1;
            }
        }
        Self::new(bytes)
    }

    /// Whether it boots by itself, as the head of `kill_tests` defines it.
    pub(super) fn starts(&self) -> bool {
        let first = &self.durable[..512];
        first[510..] == [0x55, 0xaa] || matches!(first[0], 0xe9 | 0xeb)
    }
}

pub(super) struct CrashDisk(pub(super) Arc<Mutex<Medium>>);

impl BlockDevice for CrashDisk {
    fn name(&self) -> &str {
        "crash disk"
    }

    fn size(&self) -> u64 {
        self.0.lock().unwrap().live.len() as u64
    }

    fn sector(&self) -> SectorSize {
        SectorSize::S512
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let medium = self.0.lock().unwrap();
        if medium.operations >= medium.cut_at {
            return Err(io::Error::other("power cut"));
        }
        let at = offset as usize;
        buffer.copy_from_slice(&medium.live[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut medium = self.0.lock().unwrap();
        medium.operation()?;
        let sectors = offset / 512..(offset + bytes.len() as u64).div_ceil(512);
        if medium.bad.is_some_and(|bad| sectors.contains(&bad)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let at = offset as usize;
        let mut kept = bytes.to_vec();
        if let Some(lost) = medium.lost.filter(|lost| sectors.contains(lost)) {
            let from = lost as usize * 512;
            let before = medium.live[from..from + 512].to_vec();
            kept[from - at..from - at + 512].copy_from_slice(&before);
        }
        medium.live[at..at + kept.len()].copy_from_slice(&kept);
        medium.pending.push((at, kept));
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.write_at(range.start(), &vec![0; range.len() as usize])
    }

    /// Whoever reads there afterwards sees that nobody should have.
    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.write_at(range.start(), &vec![0xdd; range.len() as usize])
    }

    fn flush(&self) -> io::Result<()> {
        let mut medium = self.0.lock().unwrap();
        medium.operation()?;
        for (at, bytes) in std::mem::take(&mut medium.pending) {
            medium.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

struct CrashMachine(Arc<Mutex<Medium>>);

impl Platform for CrashMachine {
    fn open(&self, _: &Disk, _: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        Ok(Box::new(CrashDisk(Arc::clone(&self.0))))
    }

    fn check_tools(&self, _: &RestorePlan) -> Result<(), Fault> {
        Ok(())
    }

    fn finish_volumes(&self, _: &DiskPlan, _: &[Loader]) -> Result<Vec<String>, Fault> {
        Ok(Vec::new())
    }

    fn reread_table(&self, _: &Disk) -> io::Result<()> {
        Ok(())
    }

    fn variables(&self) -> Option<&dyn Variables> {
        None
    }
}

/// A captured disk: BIOS boot partition and ext4, with enough chunks for several batches.
pub(super) fn server() -> &'static FakeServer {
    static SERVER: OnceLock<FakeServer> = OnceLock::new();
    SERVER.get_or_init(captured)
}

/// The same in a server of one's own.
pub(super) fn captured() -> FakeServer {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("source");
    fs::write(&image, vec![0; SIZE as usize]).unwrap();
    let path = image.to_str().unwrap();
    let table = "label: gpt\\nfirst-lba: 34\\nstart=34, size=2014, type=21686148-6449-6E6F-744E-656564454649\\nstart=2048, type=linux";
    run(
        "sh",
        &["-c", &format!("printf '{table}\\n' | sfdisk -q {path}")],
    );
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..8u64 {
        fs::write(tree.join(number.to_string()), noise(number + 1, 1_300_000)).unwrap();
    }
    let tree = tree.to_str().unwrap();
    run(
        "mke2fs",
        &[
            "-q",
            "-t",
            "ext4",
            "-d",
            tree,
            "-E",
            "offset=1048576",
            path,
            "14M",
        ],
    );
    let mut bytes = fs::read(&image).unwrap();
    bytes[..440].copy_from_slice(&noise(70, 440));
    // The BIOS boot partition, also where the marker will be.
    bytes[34 * 512..1 << 20].copy_from_slice(&noise(71, (1 << 20) - 34 * 512));
    fs::write(&image, bytes).unwrap();
    let bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", SIZE)]);
    capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
    bench.server
}

/// A captured disk without a table: a FAT file system from its first sector to its last, with a boot
/// sector and with data where the marker will be.
pub(super) fn server_of_whole_disk() -> &'static FakeServer {
    static SERVER: OnceLock<FakeServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("source");
        fs::write(&image, vec![0; SIZE as usize]).unwrap();
        let path = image.to_str().unwrap();
        run("mkfs.vfat", &["-F", "16", path]);
        for number in 0..8u64 {
            let file = folder.path().join(number.to_string());
            fs::write(&file, noise(number + 1, 1_300_000)).unwrap();
            run("mcopy", &["-i", path, file.to_str().unwrap(), "::/"]);
        }
        let bench = Bench::new(ImageMachine::new(folder.path()), vec![disk("source", SIZE)]);
        capture(&bench.engine(), &point("rp-1"), Default::default()).unwrap();
        bench.server
    })
}

/// What a restore that nothing cuts makes of the old disk.
pub(super) fn whole(server: &FakeServer) -> &'static Medium {
    static OF_TABLE: OnceLock<Medium> = OnceLock::new();
    static OF_WHOLE_DISK: OnceLock<Medium> = OnceLock::new();
    let place = if std::ptr::eq(server, self::server()) {
        &OF_TABLE
    } else {
        &OF_WHOLE_DISK
    };
    place.get_or_init(|| {
        let (whole, _, ended) = restore_to(server, old_disk(), u64::MAX);
        assert!(ended);
        whole
    })
}

/// Restores to the medium, cut at an operation; returns the medium and how many bytes were fetched.
pub(super) fn restore_to(
    server: &FakeServer,
    mut medium: Medium,
    cut_at: u64,
) -> (Medium, u64, bool) {
    medium.cut_at = cut_at;
    let (medium, fetched, result) = try_restore(server, medium);
    (medium, fetched, result.is_ok())
}

pub(super) fn try_restore(
    server: &FakeServer,
    medium: Medium,
) -> (Medium, u64, Result<Vec<String>, JobError>) {
    try_restore_as(server, disk("target", SIZE), &Choices::default(), medium)
}

/// The same with choices, to a disk that the machine reports so.
pub(super) fn try_restore_as(
    server: &FakeServer,
    target: Disk,
    choices: &Choices,
    medium: Medium,
) -> (Medium, u64, Result<Vec<String>, JobError>) {
    let medium = Arc::new(Mutex::new(medium));
    let bench = Bench::new(CrashMachine(Arc::clone(&medium)), vec![target]);
    let mut engine = bench.engine();
    engine.server = server;
    let result = restore(&engine, &point("rp-1"), choices);
    let fetched = engine.tracker.network_bytes();
    let medium = medium.lock().unwrap().clone();
    (medium, fetched, result)
}

pub(super) fn old_disk() -> Medium {
    static OLD: OnceLock<Vec<u8>> = OnceLock::new();
    let old = OLD.get_or_init(|| {
        let mut old = noise(40, SIZE as usize);
        // So that a start is ours.
        old[0] = 0;
        old[510..512].copy_from_slice(&[0, 0]);
        old
    });
    Medium::new(old.clone())
}

#[test]
fn cut_at_every_write_the_disk_never_starts_half_and_the_restore_goes_on() {
    cut_at_every_write(server());
}

#[test]
fn cut_at_every_write_a_disk_without_a_table_never_starts_half_either() {
    cut_at_every_write(server_of_whole_disk());
}

fn cut_at_every_write(server: &FakeServer) {
    let (whole, all, ended) = restore_to(server, old_disk(), u64::MAX);
    assert!(ended && whole.starts() && whole.live == whole.durable);
    let mut resumed_with_less = 0;
    for cut in 0..whole.operations {
        for seed in [0, 1, cut + 2] {
            let (medium, _, ended) = restore_to(server, old_disk(), cut);
            assert!(!ended, "cut at {cut}");
            let found = medium.after_cut(seed);
            assert!(
                !found.starts() || found.durable == whole.durable,
                "cut at {cut}, seed {seed}: half"
            );

            // Cut a second time, at a place that is different each time, then left alone.
            let again = (cut * 7 + seed * 3) % whole.operations;
            let (medium, _, _) = restore_to(server, found, again);
            let found = medium.after_cut(seed + 1);
            assert!(
                !found.starts() || found.durable == whole.durable,
                "second cut at {again}: half"
            );
            let (medium, fetched, ended) = restore_to(server, found, u64::MAX);
            assert!(
                ended && medium.durable == whole.durable,
                "cut at {cut}, seed {seed}"
            );
            resumed_with_less += u64::from(fetched < all);
        }
    }
    assert!(
        resumed_with_less > whole.operations,
        "{resumed_with_less} of {}",
        3 * whole.operations
    );
}

#[test]
fn an_interrupted_restore_fetches_only_what_is_not_there() {
    let (whole, all, _) = restore_to(server(), old_disk(), u64::MAX);
    // Late: the data is there, the table is not.
    let (medium, _, _) = restore_to(server(), old_disk(), whole.operations - 4);
    let (medium, fetched, ended) = restore_to(server(), medium.after_cut(1), u64::MAX);
    assert!(ended && medium.durable == whole.durable);
    // Pieces with parts that are written last are always fetched again.
    assert!(fetched * 3 < all, "{fetched} of {all}");
}

#[test]
fn a_target_sector_that_cannot_be_written_is_named() {
    let mut medium = old_disk();
    // In the middle of a long write.
    medium.bad = Some(9001);
    let (medium, _, result) = try_restore(server(), medium);
    let error = result.unwrap_err();
    assert_eq!(error.code, "disk-error");
    assert!(
        error
            .reason
            .contains("writing crash disk failed at LBA 9001 "),
        "{}",
        error.reason
    );
    assert!(!medium.starts());
}

#[test]
fn a_disk_that_lost_a_write_of_the_commit_does_not_start() {
    // Primary GPT, the end of the marker's sector, backup GPT.
    for lost in [1, 2047, SIZE / 512 - 1] {
        let mut medium = old_disk();
        medium.lost = Some(lost);
        let (medium, _, result) = try_restore(server(), medium);
        let error = result.unwrap_err();
        assert_eq!(error.code, "disk-error", "{}", error.reason);
        assert!(
            error.reason.contains("does not boot"),
            "sector {lost}: {}",
            error.reason
        );
        assert!(medium.live[..512].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn no_disk_starts_before_the_rest_of_all_disks_was_read_again() {
    let write = |what: &str, offset, bytes: Vec<u8>| Write {
        what: what.to_owned(),
        offset,
        bytes,
    };
    let commit_with_lost = |lost: Option<u64>| {
        let disks = [None, lost].map(|lost| {
            let mut medium = Medium::new(vec![0; SIZE as usize]);
            medium.lost = lost;
            Arc::new(Mutex::new(medium))
        });
        let devices = disks.clone().map(CrashDisk);
        let writes = || Writes {
            before: vec![write("table", 512, noise(1, 1024))],
            last: Some(write("the first sector", 0, vec![0x55; 512])),
        };
        let devices: Vec<_> = devices
            .iter()
            .map(|device| (device as &dyn BlockDevice, writes()))
            .collect();
        let mut touched = Touched::Begun;
        let result = commit(&devices, &mut touched);
        let first = disks.map(|disk| disk.lock().unwrap().durable[0] == 0x55);
        (result.is_ok(), touched, first)
    };
    let (yes, no) = (true, false);
    assert_eq!(
        commit_with_lost(None),
        (yes, Touched::Committed, [yes, yes])
    );
    assert_eq!(commit_with_lost(Some(2)), (no, Touched::Begun, [no, no]));
    assert_eq!(
        commit_with_lost(Some(0)),
        (no, Touched::Committing, [yes, no])
    );
}
