//! A region or logical volume of a published restore point as a volume that can be read at any place.
//!
//! Nothing is held in memory but a few decoded chunks: the place of a byte is found in the list's file by
//! halving, the chunk comes from its pack, is decoded and compared with its digest. No lock is taken and
//! nothing is written, so that it works beside a running server.
//!
//! Invariant: every byte that is given out was compared with its digest, or is part of a range of zeros, or
//! was not saved; the bytes that were not saved are counted ([`RegionReader::unsaved_bytes`]).

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backup::Digest;
use backup::filesystem::{ReadAt, ReadError};
use backup::manifest::RestorePointId;

use super::chunk_store::ChunkStore;
use super::lists::{self, ListError, StoredList};
use super::record::Checker;
use super::{Store, StoreError};

/// Bytes before the entries of a list, and of each entry (`docs/formats/chunks.md`).
const LIST_HEADER: u64 = 16;
const ENTRY: u64 = 48;
/// Decoded chunks that are kept: 16 MiB at most.
const CACHED: usize = 64;

/// An entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its number in the list.
    index: u64,
    /// Its first byte in the region.
    pub(crate) start: u64,
    /// The byte after its last.
    pub(crate) end: u64,
    /// The chunk, or `None` for zeros.
    pub(crate) digest: Option<Digest>,
}

/// The file of a published chunk list, read by position.
pub(crate) struct ListFile {
    list: StoredList,
    path: PathBuf,
    entries: u64,
}

impl ListFile {
    /// Opens the list of a region and compares it with its digest.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read or is another one.
    pub(crate) fn open(
        store: &Store,
        id: &RestorePointId,
        digest: &Digest,
    ) -> Result<Self, StoreError> {
        let directory = store.restore_points.published_root.join(id.as_str());
        let path = lists::path(&directory, digest);
        let cannot = |source| StoreError::io("cannot read the chunk list", &path, source);
        let other = |reason: &str| cannot(std::io::Error::other(reason.to_owned()));
        let storage = store.restore_points.storage.as_ref();
        let list = StoredList::open(storage, &directory, digest).map_err(cannot)?;
        let mut begins = false;
        let mut first = true;
        let found = list.hash(&path, |bytes| {
            begins |= first && bytes.starts_with(b"NBCL\x01\0\0\0");
            first = false;
            Ok::<_, ListError>(())
        });
        if !begins {
            return Err(other("it is no chunk list of version 1"));
        }
        if !found.is_ok_and(|found| found == *digest) {
            return Err(other("its bytes have another digest than its name"));
        }
        let body = list.len().checked_sub(LIST_HEADER);
        let body = body.filter(|body| body.is_multiple_of(ENTRY));
        let body = body.ok_or_else(|| other("it holds no whole number of entries"))?;
        Ok(Self {
            list,
            entries: body / ENTRY,
            path,
        })
    }

    /// How many entries it has.
    pub(crate) const fn len(&self) -> u64 {
        self.entries
    }

    /// Reads entries from number `first` into `places`, as many as fit into `bytes`; how many.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn read(
        &self,
        first: u64,
        bytes: &mut [u8],
        places: &mut Vec<Place>,
    ) -> Result<usize, StoreError> {
        places.clear();
        let room = bytes.len() as u64 / ENTRY;
        let count = room.min(self.entries.saturating_sub(first));
        let wanted = &mut bytes[..(count * ENTRY) as usize];
        self.list
            .read_exact_at(wanted, LIST_HEADER + first * ENTRY)
            .map_err(|source| StoreError::io("cannot read the chunk list", &self.path, source))?;
        let entries = wanted.chunks_exact(ENTRY as usize);
        places.extend(
            entries
                .zip(first..)
                .map(|(entry, index)| place(index, entry)),
        );
        Ok(places.len())
    }

    fn entry(&self, index: u64) -> Result<Place, String> {
        let mut bytes = [0; ENTRY as usize];
        self.list
            .read_exact_at(&mut bytes, LIST_HEADER + index * ENTRY)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        Ok(place(index, &bytes))
    }

    /// The first entry that ends after byte `at`.
    fn find(&self, at: u64) -> Result<Option<Place>, String> {
        let (mut from, mut to) = (0, self.entries);
        while from < to {
            let middle = from + (to - from) / 2;
            if self.entry(middle)?.end <= at {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        if from < self.entries {
            self.entry(from).map(Some)
        } else {
            Ok(None)
        }
    }
}

fn place(index: u64, entry: &[u8]) -> Place {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&entry[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (start, lengths) = (word(0), word(8));
    let mut digest = [0; Digest::LEN];
    digest.copy_from_slice(&entry[16..48]);
    Place {
        index,
        start,
        end: start.saturating_add(lengths & 0xffff_ffff),
        digest: (lengths >> 32 == 1).then(|| Digest::from_bytes(digest)),
    }
}

struct Cached {
    digest: Digest,
    used: u64,
    plain: Arc<[u8]>,
}

struct Cache {
    checker: Checker,
    chunks: Vec<Cached>,
    clock: u64,
    last: Option<Place>,
}

/// The region as a volume.
pub(crate) struct RegionReader {
    store: Arc<ChunkStore>,
    list: ListFile,
    len: u64,
    cache: Mutex<Cache>,
    unsaved: Arc<AtomicU64>,
}

impl RegionReader {
    /// Opens what this chunk list of a published restore point is of, and how long that is.
    ///
    /// # Errors
    /// [`StoreError`] when its list cannot be read.
    pub(crate) fn open(
        store: &Store,
        id: &RestorePointId,
        (digest, len): (&Digest, u64),
    ) -> Result<Self, StoreError> {
        let list = ListFile::open(store, id, digest)?;
        let checker = Checker::new().map_err(|source| {
            StoreError::io("cannot prepare to decode", store.chunks.directory(), source)
        })?;
        Ok(Self {
            store: Arc::clone(&store.chunks),
            list,
            len,
            cache: Mutex::new(Cache {
                checker,
                chunks: Vec::new(),
                clock: 0,
                last: None,
            }),
            unsaved: Arc::default(),
        })
    }

    /// Counts the bytes that were read and are in no chunk: the backup does not have them, they were given
    /// out as zeros.
    pub(crate) fn unsaved_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.unsaved)
    }

    fn find(&self, cache: &mut Cache, at: u64) -> Result<Option<Place>, String> {
        if let Some(last) = cache.last {
            if last.start <= at && at < last.end {
                return Ok(Some(last));
            }
            // Files are read forwards, so the next entry is tried before searching.
            if at >= last.end && last.index + 1 < self.list.len() {
                let next = self.list.entry(last.index + 1)?;
                if at < next.end {
                    cache.last = Some(next);
                    return Ok(Some(next));
                }
            }
        }
        let found = self.list.find(at)?;
        cache.last = found.or(cache.last);
        Ok(found)
    }

    fn chunk(&self, cache: &mut Cache, place: &Place, digest: Digest) -> Result<Arc<[u8]>, String> {
        cache.clock += 1;
        let clock = cache.clock;
        if let Some(cached) = cache.chunks.iter_mut().find(|one| one.digest == digest) {
            cached.used = clock;
            return Ok(Arc::clone(&cached.plain));
        }
        let plain: Arc<[u8]> = self.store.plain(&digest, &mut cache.checker)?.into();
        if plain.len() as u64 != place.end - place.start {
            return Err(format!(
                "chunk {digest} has {} bytes, its place has {}",
                plain.len(),
                place.end - place.start
            ));
        }
        if cache.chunks.len() >= CACHED {
            let oldest = cache
                .chunks
                .iter()
                .enumerate()
                .min_by_key(|(_, one)| one.used);
            if let Some((oldest, _)) = oldest {
                cache.chunks.swap_remove(oldest);
            }
        }
        cache.chunks.push(Cached {
            digest,
            used: clock,
            plain: Arc::clone(&plain),
        });
        Ok(plain)
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        // Nothing panics while the lock is held; the cache is whole even if something did.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let rest = &mut buffer[done..];
            let until = |end: u64| {
                usize::try_from(end.saturating_sub(at))
                    .map_or(rest.len(), |len| len.min(rest.len()))
            };
            let found = self.find(&mut cache, at)?;
            let count = match found {
                Some(place) if place.start <= at => {
                    let count = until(place.end);
                    match place.digest {
                        None => rest[..count].fill(0),
                        Some(digest) => {
                            let plain = self.chunk(&mut cache, &place, digest)?;
                            let from = usize::try_from(at - place.start).unwrap_or(usize::MAX);
                            let part = plain.get(from..).and_then(|part| part.get(..count));
                            let part = part.ok_or("a chunk is shorter than its place")?;
                            rest[..count].copy_from_slice(part);
                        }
                    }
                    count
                }
                other => {
                    let count = other.map_or(rest.len(), |place| until(place.start));
                    rest[..count].fill(0);
                    self.unsaved.fetch_add(count as u64, Ordering::Relaxed);
                    count
                }
            };
            if count == 0 {
                return Err(format!("the chunk list is not in order at byte {at}"));
            }
            done += count;
        }
        Ok(())
    }
}

impl ReadAt for RegionReader {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let failed = |reason| ReadError {
            offset,
            len,
            reason,
        };
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let reason = format!("past the end of the volume of {} bytes", self.len);
            return Err(failed(reason));
        }
        self.fill(offset, buffer).map_err(failed)
    }
}
