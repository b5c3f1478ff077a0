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
use super::difference::Maker;
use super::index::ChunkIndex;
use super::pack::{Entry, PACK_HEADER_LEN, PackId, PackIndex, pack_header};
use super::reader::RecordReader;
use super::record::{Checker, PackHeader, Stored, pack_record_at, record_at};
use super::resemblance::{Features, Resemblance};
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
    pub(super) stored: Stored,
}

impl Location {
    pub(super) const fn new(pack: PackId, entry: &Entry) -> Self {
        Self {
            pack,
            offset: entry.offset,
            plain_len: entry.header.plain_len,
            stored: entry.header.stored,
        }
    }

    /// The header of the record of `digest` that lies there.
    pub(super) const fn header(&self, digest: Digest) -> PackHeader {
        PackHeader {
            digest,
            plain_len: self.plain_len,
            stored: self.stored,
        }
    }

    /// Whether the record is a difference from another chunk.
    pub(super) const fn is_difference(&self) -> bool {
        self.stored.is_difference()
    }

    /// Bytes of the record, with its header.
    pub(super) const fn record_len(&self) -> usize {
        RecordHeader::LEN + self.stored.len() as usize
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

/// Names a chunk that the one of this digest, with these features, may be stored as a difference from.
pub(super) type ChooseBase<'a> = dyn Fn(&Digest, Features) -> Option<Digest> + 'a;

/// A chunk of an upload, decoded and compared.
struct Arrived<'a> {
    digest: Digest,
    /// Its record as it came.
    whole: &'a [u8],
    features: Features,
    /// Its record as a difference.
    difference: Option<Vec<u8>>,
}

impl Arrived<'_> {
    /// The whole record, as if it were read from a pack.
    fn whole_record(&self) -> Result<(Location, Vec<u8>), StoreError> {
        let header = pack_record_at(self.whole, 0)?.header;
        let nowhere = Location {
            pack: PackId(0),
            offset: 0,
            plain_len: header.plain_len,
            stored: header.stored,
        };
        Ok((nowhere, self.whole.to_vec()))
    }
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

    /// The chunk that this one is kept as a difference from, if it is.
    pub(super) fn base_of(&self, digest: &Digest) -> Option<Digest> {
        let index = self.read_index();
        let base = index.base(index.position(digest)?)?;
        index.at(base).map(|(digest, _)| digest)
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
        index
            .needed(digest)
            .for_each(|position| claims.claim(capture, position));
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
    /// the first is written; those that are in the store already are left out. A chunk that is much
    /// like one in the store is written as its difference from that.
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
        self.insert_with(capture, upload, &|_, features| {
            self.read_index().resembling(features)
        })
    }

    /// [`Self::insert`] with bases that `choose` names.
    pub(super) fn insert_with(
        &self,
        capture: &RestorePointId,
        upload: &[u8],
        choose: &ChooseBase<'_>,
    ) -> Result<Added, StoreError> {
        let arrived = self.check_upload(upload, choose)?;
        let mut added = Added::default();
        let mut writer = self.lock_writer()?;
        for record in &arrived {
            // Asked under the writer's lock: of two captures with the same chunk, one writes it.
            if self.claim(capture, &record.digest).is_some() {
                continue;
            }
            if added.chunks == 0 {
                self.check_room()?;
            }
            added.bytes += self.add(&mut writer, capture, record)?;
            added.chunks += 1;
        }
        Ok(added)
    }

    /// Decodes and compares all records of an upload, and makes differences of those that have a base.
    fn check_upload<'a>(
        &self,
        upload: &'a [u8],
        choose: &ChooseBase<'_>,
    ) -> Result<Vec<Arrived<'a>>, StoreError> {
        let cannot =
            |source| StoreError::io("cannot prepare to decode chunks for", &self.packs, source);
        let mut checker = Checker::new().map_err(cannot)?;
        let mut maker: Option<Maker> = None;
        let mut arrived: Vec<Arrived<'a>> = Vec::new();
        // Chunks of this upload that can be bases, by their numbers in it.
        let mut here = Resemblance::default();
        let mut at = 0;
        while at < upload.len() {
            let (header, frame) = record_at(upload, at)?;
            let plain = checker.decode(&header, frame)?;
            let features = Features::of(plain);
            let beside = here.find(features).and_then(|at| arrived.get(at as usize));
            // A chunk that is there, damaged, comes back whole: it may be the base of others.
            let is_new = self.find(&header.digest).is_none();
            let base = choose(&header.digest, features).or(beside.map(|other| other.digest));
            let mut difference = None;
            if let Some(base) = base.filter(|_| is_new) {
                let maker = match &mut maker {
                    Some(maker) => maker,
                    none => none.insert(Maker::new().map_err(cannot)?),
                };
                let read_base = |base: &Digest| match beside {
                    Some(other) if other.digest == *base => other.whole_record(),
                    _ => self.read_raw(base),
                };
                difference = maker.make(&header, plain, &base, &read_base);
            }
            let end = at + RecordHeader::LEN + frame.len();
            if difference.is_none() {
                // An upload has fewer chunks than u32 counts.
                here.add(features, arrived.len() as u32);
            }
            arrived.push(Arrived {
                digest: header.digest,
                whole: &upload[at..end],
                features,
                difference,
            });
            at = end;
        }
        Ok(arrived)
    }

    /// Writes a chunk and makes it known; bytes that were written.
    fn add(
        &self,
        writer: &mut Writer,
        capture: &RestorePointId,
        arrived: &Arrived<'_>,
    ) -> Result<u64, StoreError> {
        let is_new = self.find(&arrived.digest).is_none();
        let mut written = 0;
        let difference = arrived.difference.as_deref().filter(|_| is_new);
        for bytes in difference.into_iter().chain([arrived.whole]) {
            let record = pack_record_at(bytes, 0)?;
            // The base stays from here on, unless a collection has just taken it.
            if record
                .base
                .is_some_and(|base| !self.claim_base(capture, &base))
            {
                continue;
            }
            let location = self.append(writer, bytes, arrived.features)?;
            written += bytes.len() as u64;
            let mut claims = self.lock_claims();
            let mut index = self.write_index();
            let base = record.base.map(|base| index.position(&base).ok_or(()));
            let Ok(base) = base.transpose() else {
                // The capture was over, and its claims with it: the record is garbage.
                continue;
            };
            if let Some(position) = index.put(arrived.digest, location, base) {
                index.learn_features(position, arrived.features);
                index
                    .needed(&arrived.digest)
                    .for_each(|position| claims.claim(capture, position));
                return Ok(written);
            }
        }
        Err(StoreError::Broken)
    }

    /// Whether a chunk can be the base of a difference; then it stays until the capture is over.
    fn claim_base(&self, capture: &RestorePointId, base: &Digest) -> bool {
        self.claim(capture, base)
            .is_some_and(|location| !location.is_difference())
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
        digest: Digest,
        record: &[u8],
        from: Location,
        features: Features,
    ) -> Result<bool, StoreError> {
        let mut writer = self.lock_writer()?;
        if self.find(&digest) != Some(from) {
            return Ok(false);
        }
        let base = pack_record_at(record, 0)?.base;
        let location = self.append(&mut writer, record, features)?;
        let mut index = self.write_index();
        let base = base.and_then(|base| index.position(&base));
        let position = index.put(digest, location, base);
        index.learn_features(position.ok_or(StoreError::Broken)?, features);
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
        bytes: &[u8],
        features: Features,
    ) -> Result<Location, StoreError> {
        let record = pack_record_at(bytes, 0)?;
        let fits = writer
            .active
            .as_ref()
            .is_some_and(|active| active.len + bytes.len() as u64 <= self.limit);
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
        let entry = Entry {
            header: record.header,
            offset,
            base: record.base,
            features: if record.base.is_none() {
                features
            } else {
                Features::default()
            },
        };
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
        let index = PackIndex::new(active.id, active.len, active.entries.clone());
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
