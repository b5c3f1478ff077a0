//! A server in memory and a machine of image files, so that the engine is tested as it is, without
//! root, network or a virtual machine.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup::chunk::RecordHeader;
use backup::hardware::{Disk, FirmwareKind, Inventory, MachineIdentity};
use backup::manifest::{FileSystemKind, RestorePointId};
use backup::plan::{DiskPlan, RestorePlan};
use backup::{ByteRange, Digest, SectorSize};
use protocol::api::{ApiError, FinishList, MAX_UPLOAD};
use protocol::unlock::VolumeKey;

use crate::boot_repair::variables::Variables;
use crate::device::{Access, BlockDevice, Device, DeviceError};
use crate::job::error::Fault;
use crate::job::grow::grow_file_system;
use crate::job::platform::{Loader, Platform};
use crate::job::server::{ChunkServer, ListName};
use crate::job::tracker::Tracker;
use crate::job::{Engine, ProgressSlot};
use crate::net::http::RequestError;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps chunks in memory, with the checks that the real server makes.
#[derive(Default)]
pub(crate) struct FakeServer {
    records: Mutex<HashMap<Digest, Vec<u8>>>,
    lists: Mutex<HashMap<Digest, Vec<u8>>>,
    /// Lists that are not whole.
    parts: Mutex<HashMap<ListName, Vec<u8>>>,
    pub(crate) manifests: Mutex<HashMap<RestorePointId, Vec<u8>>>,
    /// Chunks that were stored by uploads.
    pub(crate) uploaded: AtomicU64,
    boot_files: Mutex<HashMap<String, Vec<u8>>>,
    /// Digests whose next answer is damaged on the wire only.
    pub(crate) noisy: Mutex<HashSet<Digest>>,
    /// How many fetches it still answers; then it is away.
    answers: Mutex<Option<u64>>,
}

fn refused(code: &str, message: String) -> RequestError {
    RequestError::Refused {
        request: "a request".to_owned(),
        status: 400,
        error: ApiError {
            code: code.to_owned(),
            message,
        },
    }
}

impl FakeServer {
    /// Flips one bit of a stored chunk; returns its digest. Deterministic: the least digest.
    pub(crate) fn damage_one(&self) -> Digest {
        let mut records = lock(&self.records);
        let digest = *records.keys().min().unwrap();
        let record = records.get_mut(&digest).unwrap();
        let middle = RecordHeader::LEN + (record.len() - RecordHeader::LEN) / 2;
        record[middle] ^= 1;
        digest
    }

    /// Keeps a list under a digest, its own or not.
    pub(crate) fn put_list(&self, digest: Digest, list: Vec<u8>) {
        lock(&self.lists).insert(digest, list);
    }

    /// A list that is whole.
    pub(crate) fn list(&self, digest: &Digest) -> Vec<u8> {
        lock(&self.lists)[digest].clone()
    }

    /// A digest that is stored.
    pub(crate) fn any_digest(&self) -> Digest {
        *lock(&self.records).keys().max().unwrap()
    }

    /// Puts a file into the boot folder.
    pub(crate) fn put_boot_file(&self, name: &str, bytes: &[u8]) {
        lock(&self.boot_files).insert(name.to_owned(), bytes.to_vec());
    }

    /// Answers so many fetches and is away then; `None` answers all.
    pub(crate) fn answers_left(&self, answers: Option<u64>) {
        *lock(&self.answers) = answers;
    }

    /// Forgets a chunk.
    pub(crate) fn forget(&self, digest: &Digest) {
        lock(&self.records).remove(digest);
    }
}

impl ChunkServer for FakeServer {
    fn manifest(&self, id: &RestorePointId) -> Result<Vec<u8>, RequestError> {
        let manifests = lock(&self.manifests);
        manifests
            .get(id)
            .cloned()
            .ok_or_else(|| refused("not-found", id.to_string()))
    }

    fn chunk_list(
        &self,
        _: &RestorePointId,
        digest: &Digest,
        part: ByteRange,
    ) -> Result<Vec<u8>, RequestError> {
        let lists = lock(&self.lists);
        Ok(lists[digest][part.start() as usize..part.end() as usize].to_vec())
    }

    fn fetch(&self, digests: &[Digest], answer: &mut Vec<u8>) -> Result<(), RequestError> {
        if let Some(left) = lock(&self.answers).as_mut() {
            if *left == 0 {
                return Err(RequestError::Unreachable {
                    server: "the server".to_owned(),
                    request: "a fetch".to_owned(),
                    reason: "it is away".to_owned(),
                });
            }
            *left -= 1;
        }
        let records = lock(&self.records);
        answer.clear();
        for digest in digests {
            let missing = || refused("missing-chunk", format!("chunk {digest} is not stored"));
            let record = records.get(digest).ok_or_else(missing)?;
            answer.extend_from_slice(record);
            if lock(&self.noisy).remove(digest) {
                *answer.last_mut().unwrap() ^= 1;
            }
        }
        Ok(())
    }

    fn missing(&self, digests: &[Digest]) -> Result<Vec<bool>, RequestError> {
        let records = lock(&self.records);
        Ok(digests
            .iter()
            .map(|digest| !records.contains_key(digest))
            .collect())
    }

    fn upload(&self, mut bytes: &[u8]) -> Result<(), RequestError> {
        while let Some((head, rest)) = bytes.split_first_chunk() {
            let header = RecordHeader::decode(head).unwrap();
            let (frame, after) = rest.split_at(header.stored_len as usize);
            let plain = zstd::bulk::decompress(frame, header.plain_len as usize).unwrap();
            assert_eq!(Digest::of(&plain), header.digest);
            let record = [&head[..], frame].concat();
            lock(&self.records).insert(header.digest, record);
            self.uploaded.fetch_add(1, Ordering::Relaxed);
            bytes = after;
        }
        assert!(bytes.is_empty());
        Ok(())
    }

    fn list_part(&self, name: ListName, offset: u64, part: &[u8]) -> Result<(), RequestError> {
        assert!(part.len() <= MAX_UPLOAD);
        let mut parts = lock(&self.parts);
        let list = parts.entry(name).or_default();
        if offset == 0 {
            list.clear();
        }
        assert_eq!(list.len() as u64, offset, "list {name}");
        list.extend_from_slice(part);
        Ok(())
    }

    fn finish_list(&self, name: ListName, whole: &FinishList) -> Result<(), RequestError> {
        let list = lock(&self.parts).remove(&name).unwrap();
        let found = (list.len() as u64, Digest::of(&list));
        assert_eq!(found, (whole.length, whole.digest), "list {name}");
        lock(&self.lists).insert(whole.digest, list);
        Ok(())
    }

    fn keys(&self) -> Result<Vec<VolumeKey>, RequestError> {
        Ok(Vec::new())
    }

    fn boot_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, RequestError> {
        let file = lock(&self.boot_files).get(name).cloned();
        let file = file.ok_or_else(|| refused("not-found", name.to_owned()))?;
        assert!(file.len() as u64 <= limit);
        Ok(file)
    }

    fn publish(&self, manifest: &[u8]) -> Result<(), RequestError> {
        let parsed = backup::manifest::Manifest::from_json(manifest).unwrap();
        for (content, _) in parsed.contents() {
            assert!(lock(&self.lists).contains_key(&content.digest));
        }
        lock(&self.manifests).insert(parsed.id, manifest.to_vec());
        Ok(())
    }
}

/// Firmware variables in memory.
#[derive(Default)]
pub(crate) struct MemoryVariables {
    pub(crate) values: Mutex<std::collections::BTreeMap<String, Vec<u8>>>,
    pub(crate) writes: AtomicU64,
}

impl Variables for MemoryVariables {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.values).keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(lock(&self.values).get(name).cloned())
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        lock(&self.values).insert(name.to_owned(), value.to_vec());
        Ok(())
    }
}

/// What opens the encrypted volumes of an [`ImageMachine`].
pub(crate) const OPENS: &[u8] = b"the right key";
/// Where their content begins; each byte of it has its bits inverted.
pub(crate) const HEADER: u64 = 1 << 20;

/// The plain side of such a volume.
struct Mirrored {
    disk: Box<dyn BlockDevice>,
    range: ByteRange,
}

impl BlockDevice for Mirrored {
    fn name(&self) -> &str {
        "opened"
    }

    fn size(&self) -> u64 {
        self.range.len()
    }

    fn sector(&self) -> SectorSize {
        self.disk.sector()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(offset + buffer.len() as u64 <= self.range.len());
        self.disk.read_at(self.range.start() + offset, buffer)?;
        buffer.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn zero(&self, _: ByteRange) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine whose disks are image files in a folder, named as in the inventory.
pub(crate) struct ImageMachine {
    folder: PathBuf,
    pub(crate) sector: SectorSize,
    pub(crate) variables: Option<MemoryVariables>,
}

impl ImageMachine {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            sector: SectorSize::S512,
            variables: None,
        }
    }
}

impl Platform for ImageMachine {
    fn open(&self, disk: &Disk, access: Access) -> Result<Box<dyn BlockDevice>, DeviceError> {
        let device = Device::open(&self.folder.join(&disk.name), access)?;
        Ok(Box::new(device.with_sector(self.sector)))
    }

    fn unlock(
        &self,
        disk: &Disk,
        range: ByteRange,
        _: FileSystemKind,
        key: &VolumeKey,
    ) -> Result<Box<dyn BlockDevice>, Fault> {
        if key.key.bytes() != OPENS {
            return Err(Fault::Key {
                place: key.place.to_string(),
                reason: "no key of it is the one that was given".to_owned(),
            });
        }
        let range = ByteRange::between(range.start() + HEADER, range.end());
        let disk = self.open(disk, Access::Read)?;
        Ok(Box::new(Mirrored { disk, range }))
    }

    fn check_tools(&self, _: &RestorePlan) -> Result<(), Fault> {
        Ok(())
    }

    fn finish_volumes(&self, disk: &DiskPlan, _: &[Loader]) -> Result<Vec<String>, Fault> {
        let image = self.folder.join(&disk.target.name);
        let mut sentences = Vec::new();
        for grow in &disk.grow {
            let partition = disk
                .partitions
                .iter()
                .find(|one| one.number == grow.partition)
                .unwrap();
            // The tools can work at an offset, but resize2fs then cuts the file to the new size.
            let part = self.folder.join("growing");
            let (start, len) = (partition.range.start(), partition.range.len());
            let mut bytes = vec![0; len as usize];
            let file = File::options().read(true).write(true).open(&image).unwrap();
            file.read_exact_at(&mut bytes, start).unwrap();
            std::fs::write(&part, bytes).unwrap();
            sentences.extend(grow_file_system(&part, grow)?);
            file.write_all_at(&std::fs::read(&part).unwrap(), start)
                .unwrap();
        }
        Ok(sentences)
    }

    fn reread_table(&self, _: &Disk) -> io::Result<()> {
        Ok(())
    }

    fn variables(&self) -> Option<&dyn Variables> {
        self.variables
            .as_ref()
            .map(|variables| variables as &dyn Variables)
    }
}

/// Runs a tool that must succeed; returns its output.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{tool} {arguments:?}: {text}");
    text
}

/// Everything that an engine refers to.
pub(crate) struct Bench<P> {
    pub(crate) server: FakeServer,
    pub(crate) platform: P,
    pub(crate) inventory: Inventory,
    pub(crate) cancelled: AtomicBool,
    pub(crate) keys: Vec<VolumeKey>,
    slot: ProgressSlot,
}

impl<P: Platform> Bench<P> {
    pub(crate) fn new(platform: P, disks: Vec<Disk>) -> Self {
        let inventory = Inventory {
            identity: MachineIdentity::default(),
            firmware: FirmwareKind::Bios,
            architecture: "x86_64".to_owned(),
            disks,
            nics: Vec::new(),
            memory: 1 << 30,
            without_driver: Vec::new(),
        };
        Self {
            server: FakeServer::default(),
            platform,
            inventory,
            cancelled: AtomicBool::new(false),
            keys: Vec::new(),
            slot: ProgressSlot::default(),
        }
    }

    pub(crate) fn engine(&self) -> Engine<'_> {
        Engine {
            server: &self.server,
            platform: &self.platform,
            inventory: &self.inventory,
            keys: &self.keys,
            cancelled: &self.cancelled,
            tracker: Tracker::new(&self.slot),
            read_back: false,
        }
    }
}

/// An inventory entry.
pub(crate) fn disk(name: &str, size: u64) -> Disk {
    Disk {
        name: name.to_owned(),
        model: Some("IMAGE".to_owned()),
        serial: Some(format!("SERIAL-{name}")),
        wwn: None,
        size,
        logical_sector: SectorSize::S512,
        physical_sector: 512,
        removable: false,
        read_only: false,
        partitions: Vec::new(),
    }
}

/// The id of a restore point.
pub(crate) fn point(text: &str) -> RestorePointId {
    RestorePointId::try_from(text.to_owned()).unwrap()
}
