//! The chunks: an index in memory, packs on the disk, one writer.
//!
//! Invariant: what is in the index can be read; what a published restore point needs lies in sealed
//! packs, so that the only bytes a restart may cut off belong to no restore point. What is *not*
//! here: what a restart does (`opening`), what restore points are (`restore_points`), how records
//! are read (`reader`), what is removed (`gc`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use backup::Digest;
use backup::chunk::RecordHeader;
use backup::manifest::RestorePointId;

use super::claims::Claims;
use super::damage::DamagedRecord;
use super::index::ChunkIndex;
use super::pack::{Entry, PACK_HEADER_LEN, PackId, PackIndex, pack_header, record_len};
use super::reader::RecordReader;
use super::record::{Checker, record_at};
use super::storage::{self, OpenFile, SharedStorage};
use super::{StoreError, damage, opening};

/// The most bytes of a pack; a record that does not fit begins the next one.
pub(crate) const PACK_LIMIT: u64 = 64 * 1024 * 1024;

/// About how many bytes are read at once: bounds the memory of each answer.
pub(super) const BATCH: usize = 512 * 1024;

/// What uploads leave free on the disk, for the state database and for a garbage collection, which
/// needs room before it makes room: two packs.
pub(crate) const RESERVE: u64 = 2 * PACK_LIMIT;

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
    pub(super) const fn is_before(&self, other: &Self) -> bool {
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
    pub(super) file: OpenFile,
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
    pub(super) storage: SharedStorage,
    pub(super) packs: PathBuf,
    pub(super) limit: u64,
    read_only: bool,
    /// Whether a pack was gone at the start.
    pub(super) lost_packs: bool,
    damaged: Mutex<Vec<DamagedRecord>>,
    writer: Mutex<Writer>,
    claims: Mutex<Claims>,
    index: RwLock<ChunkIndex>,
}

impl ChunkStore {
    /// Opens the packs of a directory, which is created if it is not there, and recovers what a
    /// crash left.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or a pack cannot be read, or a repair not be written.
    pub(super) fn open(
        storage: SharedStorage,
        packs: &Path,
        limit: u64,
    ) -> Result<Self, StoreError> {
        storage::create_directory(storage.as_ref(), packs)?;
        let damaged = damage::read(storage.as_ref(), packs)?;
        let opened = opening::recover(storage.as_ref(), packs, &damaged)?;
        Ok(Self {
            storage,
            packs: packs.to_owned(),
            limit,
            read_only: false,
            lost_packs: opened.lost,
            damaged: Mutex::new(damaged),
            writer: Mutex::new(opened.writer),
            claims: Mutex::default(),
            index: RwLock::new(opened.index),
        })
    }

    /// Opens the packs for reading only and changes nothing, so that a server may use them at the
    /// same time: sealed packs never change, and of the one being written the whole records count.
    ///
    /// # Errors
    /// [`StoreError`] when the directory or a pack cannot be read.
    pub(super) fn open_read_only(storage: SharedStorage, packs: &Path) -> Result<Self, StoreError> {
        let index = opening::look(storage.as_ref(), packs)?;
        let mut store = Self::without_index(storage, packs);
        store.index = RwLock::new(index);
        Ok(store)
    }

    /// A store for reading only in which every chunk is missing.
    pub(super) fn without_index(storage: SharedStorage, packs: &Path) -> Self {
        let writer = Writer {
            active: None,
            next: 0,
            broken: true,
        };
        Self {
            storage,
            packs: packs.to_owned(),
            limit: 0,
            read_only: true,
            lost_packs: false,
            damaged: Mutex::default(),
            writer: Mutex::new(writer),
            claims: Mutex::default(),
            index: RwLock::default(),
        }
    }

    /// Where a chunk lies, if it is in the store.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Location> {
        self.read_index().find(digest)
    }

    /// Where a chunk lies that a restore can be made of: it is there and not known to be damaged.
    pub(crate) fn find_sound(&self, digest: &Digest) -> Option<Location> {
        let index = self.read_index();
        let position = index.position(digest)?;
        let (_, location) = index.at(position)?;
        (!index.is_damaged(position)).then_some(location)
    }

    /// The chunks and the bytes of their records.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.read_index().size()
    }

    /// [`Self::find_sound`] for a capture that runs: the chunk stays in the store until that capture
    /// is over.
    pub(crate) fn claim(&self, capture: &RestorePointId, digest: &Digest) -> Option<Location> {
        let mut claims = self.lock_claims();
        let index = self.read_index();
        let position = index.position(digest)?;
        if index.is_damaged(position) {
            return None;
        }
        claims.claim(capture, position);
        Some(index.at(position)?.1)
    }

    /// A capture goes on that this process knows nothing of: it relies on all that is there.
    pub(crate) fn claim_all(&self, capture: &RestorePointId) {
        let mut claims = self.lock_claims();
        let end = self.read_index().end();
        claims.claim_all(capture, end);
    }

    /// A capture is over, one way or the other.
    pub(crate) fn end_claims(&self, capture: &RestorePointId) {
        self.lock_claims().end(capture);
    }

    /// Adds the records of one upload. Every one is decoded and compared with its digest before
    /// the first is written; those that are in the store already are left out.
    ///
    /// A chunk that was found damaged is replaced. The chunks are durable when [`Self::seal`] has
    /// returned, and stay until `capture` is over.
    ///
    /// # Errors
    /// [`StoreError::Record`] when a record is not sound (then nothing was added),
    /// [`StoreError::Full`] and [`StoreError::Io`] when a pack cannot be written.
    pub(crate) fn insert(
        &self,
        capture: &RestorePointId,
        upload: &[u8],
    ) -> Result<Added, StoreError> {
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
            if self.claim(capture, &header.digest).is_some() {
                continue;
            }
            if added.chunks == 0 {
                self.check_room()?;
            }
            let location = self.append(&mut writer, header, bytes)?;
            let mut claims = self.lock_claims();
            let position = self.write_index().put(header.digest, location);
            claims.claim(capture, position.ok_or(StoreError::Broken)?);
            added.chunks += 1;
            added.bytes += bytes.len() as u64;
        }
        Ok(added)
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let free = self.storage.free_bytes(&self.packs);
        let free = free.map_err(|source| {
            StoreError::io("cannot see how much room is left for", &self.packs, source)
        })?;
        if free < RESERVE {
            return Err(StoreError::Full {
                what: "no chunk can be added to",
                path: self.packs.clone(),
            });
        }
        Ok(())
    }

    /// Moves a chunk, whose record was checked, from a pack that is to be removed into the one that
    /// is being written; false when it does not lie at `from` any more.
    pub(super) fn rewrite(
        &self,
        header: RecordHeader,
        record: &[u8],
        from: Location,
    ) -> Result<bool, StoreError> {
        let mut writer = self.lock_writer()?;
        if self.find(&header.digest) != Some(from) {
            return Ok(false);
        }
        let location = self.append(&mut writer, header, record)?;
        self.write_index().put(header.digest, location);
        Ok(true)
    }

    /// Makes sure that a pack with a higher number than `removed` is there, so that a number is never
    /// used twice.
    pub(super) fn keep_numbering(&self, removed: PackId) -> Result<(), StoreError> {
        let mut writer = self.lock_writer()?;
        if removed.0.saturating_add(1) >= writer.next {
            let active = self.begin_pack(writer.next)?;
            writer.next = writer.next.saturating_add(1);
            let path = active.id.pack_path(&self.packs);
            let synced = active.file.sync();
            writer.active = Some(active);
            synced.map_err(|source| {
                writer.broken = true;
                StoreError::io("cannot make durable the pack", &path, source)
            })?;
            storage::sync_directory(self.storage.as_ref(), &self.packs)
                .inspect_err(|_| writer.broken = true)?;
        }
        Ok(())
    }

    /// The pack that is being written.
    pub(super) fn active(&self) -> Result<Option<PackId>, StoreError> {
        Ok(self.lock_writer()?.active.as_ref().map(|active| active.id))
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
        let create = || -> std::io::Result<OpenFile> {
            let file = self.storage.create_new(&path)?;
            file.write_all_at(&pack_header(id), 0)
                // An empty file left behind would keep its name from being used again.
                .inspect_err(|_| drop(self.storage.remove_file(&path)))?;
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
            .and_then(|()| active.file.sync());
        if let Err(source) = finish {
            writer.broken = true;
            return Err(StoreError::io(
                "cannot make durable the pack",
                &path,
                source,
            ));
        }
        storage::sync_directory(self.storage.as_ref(), &self.packs)
            .inspect_err(|_| writer.broken = true)?;
        // A failure from here on leaves a durable pack without an index: the next seal, or the
        // next start, tries again.
        let index = PackIndex {
            id: active.id,
            pack_len: active.len,
            entries: active.entries.clone(),
        };
        let path = active.id.index_path(&self.packs);
        storage::replace(self.storage.as_ref(), &path, &index.encode())?;
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
        let index = self.read_index();
        let find = |digest: &Digest| {
            let location = index.find(digest);
            location
                .map(|location| (*digest, location))
                .ok_or(StoreError::Missing { digest: *digest })
        };
        let wanted = digests.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        drop(index);
        Ok(RecordReader::new(Arc::clone(self), wanted))
    }

    /// Reads the directory again, when what this process holds is older than the packs: a server
    /// that collects garbage beside us removed one.
    pub(super) fn look_again(&self) -> Result<(), StoreError> {
        if self.read_only {
            let index = opening::look(self.storage.as_ref(), &self.packs)?;
            *self.write_index() = index;
        }
        Ok(())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.packs
    }

    // Nothing panics while one of these locks is held, and each change of what they guard is whole
    // by itself.

    pub(super) fn read_index(&self) -> RwLockReadGuard<'_, ChunkIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_index(&self) -> RwLockWriteGuard<'_, ChunkIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_damage(&self) -> MutexGuard<'_, Vec<DamagedRecord>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
