//! The chunks: an index in memory, packs on the disk, one writer.
//!
//! Invariant: what is in the index can be read; what a published restore point needs lies in sealed
//! packs, so that the only bytes a restart may cut off belong to no restore point. What is *not*
//! here: what a restart does (`opening`), what restore points are (`restore_points`).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use backup::Digest;
use backup::chunk::RecordHeader;

use super::durable;
use super::pack::{Entry, PACK_HEADER_LEN, PackId, PackIndex, pack_header, record_len};
use super::record::{Checker, record_at};
use super::{Batches, StoreError, opening};

/// The most bytes of a pack; a record that does not fit begins the next one.
pub(crate) const PACK_LIMIT: u64 = 64 * 1024 * 1024;

/// About how many bytes are read at once for a restore: bounds the memory of each answer.
pub(super) const BATCH: usize = 512 * 1024;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(super) pack: PackId,
    pub(super) offset: u32,
    pub(super) plain_len: u32,
    pub(super) stored_len: u32,
}

impl Location {
    pub(super) const fn new(pack: PackId, entry: &Entry) -> Self {
        Self {
            pack,
            offset: entry.offset,
            plain_len: entry.header.plain_len,
            stored_len: entry.header.stored_len,
        }
    }

    /// Bytes of the record, with its header.
    pub(super) const fn record_len(&self) -> usize {
        RecordHeader::LEN + self.stored_len as usize
    }

    /// Whether `other` begins where this record ends.
    const fn is_before(&self, other: &Self) -> bool {
        self.pack.0 == other.pack.0
            && self.offset as u64 + self.record_len() as u64 == other.offset as u64
    }

    /// Plain bytes of the chunk.
    pub(crate) const fn plain_len(&self) -> u32 {
        self.plain_len
    }
}

/// What an upload added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Added {
    /// Chunks that were not in the store.
    pub(crate) chunks: u64,
    /// Bytes that they take in packs.
    pub(crate) bytes: u64,
}

/// A pack that is being written.
pub(super) struct ActivePack {
    pub(super) id: PackId,
    pub(super) file: File,
    /// Where the next record goes. The file may be longer by a record that could not be written
    /// whole; sealing and recovery cut that off.
    pub(super) len: u64,
    pub(super) entries: Vec<Entry>,
}

/// The only part that writes packs.
pub(super) struct Writer {
    pub(super) active: Option<ActivePack>,
    pub(super) next: u32,
    /// Set when the disk refused to make something durable: what the kernel then holds in memory
    /// says nothing about the disk any more, so nothing is added until a restart has read it all.
    pub(super) broken: bool,
}

/// The chunks of a store.
pub(crate) struct ChunkStore {
    packs: PathBuf,
    limit: u64,
    index: RwLock<HashMap<Digest, Location>>,
    writer: Mutex<Writer>,
}

impl ChunkStore {
    /// Opens the packs of a directory, which is created if it is not there, and recovers what a
    /// crash left.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or a pack cannot be read, or a repair not be written.
    pub(crate) fn open(packs: &Path) -> Result<Self, StoreError> {
        Self::open_with_limit(packs, PACK_LIMIT)
    }

    pub(super) fn open_with_limit(packs: &Path, limit: u64) -> Result<Self, StoreError> {
        durable::create_directory(packs)?;
        let opened = opening::recover(packs)?;
        Ok(Self {
            packs: packs.to_owned(),
            limit,
            index: RwLock::new(opened.index),
            writer: Mutex::new(opened.writer),
        })
    }

    /// Opens the packs for reading only and changes nothing, so that a server may use them at the
    /// same time: sealed packs never change, and of the one being written the whole records count.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or a pack cannot be read.
    pub(super) fn open_read_only(packs: &Path) -> Result<Self, StoreError> {
        let writer = Writer {
            active: None,
            next: 0,
            broken: true,
        };
        Ok(Self {
            packs: packs.to_owned(),
            limit: 0,
            index: RwLock::new(opening::look(packs)?),
            writer: Mutex::new(writer),
        })
    }

    /// Where a chunk lies, if it is in the store.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Location> {
        // Nothing panics while the lock is held; the map is whole even if something did.
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(digest).copied()
    }

    /// The chunks and the bytes of their records.
    pub(crate) fn size(&self) -> (u64, u64) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = index
            .values()
            .map(|location| location.record_len() as u64)
            .sum();
        (index.len() as u64, bytes)
    }

    /// Adds the records of one upload. Every one is decoded and compared with its digest before
    /// the first is written; those that are in the store already are left out.
    ///
    /// The chunks are durable when [`Self::seal`] has returned.
    ///
    /// # Errors
    /// [`StoreError::Record`] when a record is not sound (then nothing was added),
    /// [`StoreError::Full`] and [`StoreError::Io`] when a pack cannot be written.
    pub(crate) fn insert(&self, upload: &[u8]) -> Result<Added, StoreError> {
        let mut checker = Checker::new().map_err(|source| {
            StoreError::io("cannot prepare to decode chunks for", &self.packs, source)
        })?;
        let mut records = Vec::new();
        let mut at = 0;
        while at < upload.len() {
            let (header, frame) = record_at(upload, at)?;
            checker.check(&header, frame)?;
            let end = at + RecordHeader::LEN + frame.len();
            records.push((header, &upload[at..end]));
            at = end;
        }
        let mut added = Added::default();
        let mut writer = self.lock_writer()?;
        for (header, bytes) in records {
            // Asked under the writer's lock: of two captures with the same chunk, one writes it.
            if self.find(&header.digest).is_some() {
                continue;
            }
            let location = self.append(&mut writer, header, bytes)?;
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.insert(header.digest, location);
            added.chunks += 1;
            added.bytes += bytes.len() as u64;
        }
        Ok(added)
    }

    fn append(
        &self,
        writer: &mut Writer,
        header: RecordHeader,
        bytes: &[u8],
    ) -> Result<Location, StoreError> {
        let fits = writer
            .active
            .as_ref()
            .is_some_and(|active| active.len + record_len(&header) <= self.limit);
        if !fits {
            self.seal_active(writer)?;
            writer.active = Some(self.begin_pack(writer.next)?);
            writer.next = writer.next.saturating_add(1);
        }
        let Some(active) = writer.active.as_mut() else {
            return Err(StoreError::Broken);
        };
        let path = || active.id.pack_path(&self.packs);
        active
            .file
            .write_all_at(bytes, active.len)
            .map_err(|source| StoreError::io("cannot write to the pack", &path(), source))?;
        let offset = u32::try_from(active.len).map_err(|_| StoreError::Broken)?;
        let entry = Entry { header, offset };
        active.len = entry.end();
        active.entries.push(entry);
        Ok(Location::new(active.id, &entry))
    }

    fn begin_pack(&self, number: u32) -> Result<ActivePack, StoreError> {
        let id = PackId(number);
        let path = id.pack_path(&self.packs);
        let create = || -> std::io::Result<File> {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.write_all_at(&pack_header(id), 0)
                // An empty file left behind would keep its name from being used again.
                .inspect_err(|_| drop(std::fs::remove_file(&path)))?;
            Ok(file)
        };
        let file =
            create().map_err(|source| StoreError::io("cannot create the pack", &path, source))?;
        Ok(ActivePack {
            id,
            file,
            len: PACK_HEADER_LEN as u64,
            entries: Vec::new(),
        })
    }

    /// Makes durable all that was inserted so far, and closes its pack for ever.
    ///
    /// # Errors
    /// [`StoreError::Io`]; then nothing more can be inserted until the server is started again.
    pub(crate) fn seal(&self) -> Result<(), StoreError> {
        let mut writer = self.lock_writer()?;
        self.seal_active(&mut writer)
    }

    fn seal_active(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let Some(active) = writer.active.as_ref() else {
            return Ok(());
        };
        if active.entries.is_empty() {
            return Ok(());
        }
        let path = active.id.pack_path(&self.packs);
        let finish = active
            .file
            .set_len(active.len)
            .and_then(|()| active.file.sync_all());
        if let Err(source) = finish {
            writer.broken = true;
            return Err(StoreError::io(
                "cannot make durable the pack",
                &path,
                source,
            ));
        }
        durable::sync_directory(&self.packs).inspect_err(|_| writer.broken = true)?;
        // A failure from here on leaves a durable pack without an index: the next seal, or the
        // next start, tries again.
        let index = PackIndex {
            id: active.id,
            pack_len: active.len,
            entries: active.entries.clone(),
        };
        durable::replace(&active.id.index_path(&self.packs), &[&index.encode()])?;
        writer.active = None;
        Ok(())
    }

    fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let writer = self.writer.lock().map_err(|_| StoreError::Broken)?;
        if writer.broken {
            return Err(StoreError::Broken);
        }
        Ok(writer)
    }

    /// Finds all `digests` and prepares to read their records in this order.
    ///
    /// # Errors
    /// [`StoreError::Missing`] for the first one that is not in the store.
    pub(crate) fn read_records(
        self: &Arc<Self>,
        digests: &[Digest],
    ) -> Result<RecordReader, StoreError> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = digests
            .iter()
            .map(|digest| {
                let location = index.get(digest).copied();
                location
                    .map(|location| (*digest, location))
                    .ok_or(StoreError::Missing { digest: *digest })
            })
            .collect::<Result<Vec<_>, _>>()?;
        drop(index);
        Ok(RecordReader {
            store: Arc::clone(self),
            wanted,
            at: 0,
            open: None,
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.packs
    }

    /// Every chunk and its place, in the order of packs.
    pub(super) fn all(&self) -> Vec<(Digest, Location)> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = index.iter().map(|(digest, at)| (*digest, *at)).collect();
        drop(index);
        all.sort_unstable_by_key(|(_, at)| (at.pack, at.offset));
        all
    }
}

/// Reads records for a restore, some at a time, in the order that was asked for.
///
/// The headers are made from the index, whose checksum was checked; frames are passed on as they
/// lie in the pack. A reader checks each against its digest, so a damaged frame is found there, by
/// name, and costs the server no decoding.
pub(crate) struct RecordReader {
    store: Arc<ChunkStore>,
    wanted: Vec<(Digest, Location)>,
    at: usize,
    open: Option<(PackId, File)>,
}

impl RecordReader {
    /// Bytes of all records that were asked for.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.wanted
            .iter()
            .map(|(_, at)| at.record_len() as u64)
            .sum()
    }

    /// Reads records that lie side by side in one pack by one call, and puts their headers in front.
    fn read_run(
        run: &[(Digest, Location)],
        packs: &Path,
        open: &mut Option<(PackId, File)>,
        into: &mut [u8],
    ) -> Result<(), StoreError> {
        let Some((_, first)) = run.first() else {
            return Ok(());
        };
        let path = first.pack.pack_path(packs);
        let mut read = || -> std::io::Result<()> {
            let file = match open.take() {
                Some((id, file)) if id == first.pack => file,
                _ => File::open(&path)?,
            };
            file.read_exact_at(into, u64::from(first.offset))?;
            *open = Some((first.pack, file));
            Ok(())
        };
        read().map_err(|source| StoreError::io("cannot read the pack", &path, source))?;
        let mut position = 0;
        for (digest, at) in run {
            let header = RecordHeader {
                digest: *digest,
                plain_len: at.plain_len,
                stored_len: at.stored_len,
            };
            into[position..position + RecordHeader::LEN].copy_from_slice(&header.encode());
            position += at.record_len();
        }
        Ok(())
    }
}

impl Batches for RecordReader {
    fn next_batch(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let rest = &self.wanted[self.at..];
        let mut len = 0;
        let mut count = 0;
        for (_, at) in rest {
            if count > 0 && len + at.record_len() > BATCH {
                break;
            }
            len += at.record_len();
            count += 1;
        }
        let batch = &rest[..count];
        // At most one batch: lengths come from the index, whose limits are checked.
        let mut bytes = vec![0; len];
        let mut filled = 0;
        let beside = |(_, a): &(Digest, Location), (_, b): &(Digest, Location)| a.is_before(b);
        for run in batch.chunk_by(beside) {
            let len: usize = run.iter().map(|(_, at)| at.record_len()).sum();
            let into = &mut bytes[filled..filled + len];
            Self::read_run(run, &self.store.packs, &mut self.open, into)?;
            filled += len;
        }
        self.at += count;
        Ok((count > 0).then_some(bytes))
    }
}
