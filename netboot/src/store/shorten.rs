//! Which lists of a restore point are kept short, and by which base.
//!
//! A disk that is captured every day has nearly the same chunk list every day. When a restore point is published,
//! each of its lists is compared with lists of earlier ones, those of the same machine first; if half of its chunks are
//! named in one of them, it is kept as a short list (`short_list`) beside a hard link to that one.
//!
//! Invariant: a short list takes a list's place only after it was read back and has its digest. A failure leaves
//! the list as it was sent.

use std::path::{Path, PathBuf};

use backup::Digest;
use backup::chunk::{Chunk, Content};
use backup::manifest::RestorePointId;

use super::StoreError;
use super::lists::{self, ListError, StoredList};
use super::restore_points::RestorePoints;
use super::short_list::{Numbers, ShortListWriter};
use super::storage::{self, UNFINISHED};

/// Lists that are looked at to find a base.
const CANDIDATES: usize = 4;
/// Restore points whose lists are.
const POINTS: usize = 6;
/// The longest base, in bytes: what is held of it in memory is half of that.
const LONGEST_BASE: u64 = 256 * 1024 * 1024;

/// A whole list that others can refer to.
struct Candidate {
    digest: Digest,
    /// Its file.
    path: PathBuf,
}

impl RestorePoints {
    /// Shortens those of the staged lists for which that is worth it. The caller publishes one restore point at a time.
    pub(super) fn shorten_lists<'a>(
        &self,
        id: &RestorePointId,
        machine: &str,
        digests: impl Iterator<Item = &'a Digest>,
    ) {
        let directory = self.staging_root.join(id.as_str());
        let mut points = None;
        for digest in digests {
            let list = StoredList::open(self.storage.as_ref(), &directory, digest);
            let Ok(list) = list.map_err(|error| log::debug!("chunk list {digest}: {error}")) else {
                continue;
            };
            if list.is_short() || list.len() < self.shortened_from {
                continue;
            }
            let points = points.get_or_insert_with(|| self.points_to_refer_to(machine));
            if let Err(error) = self.shorten(&directory, (digest, list.len()), points) {
                log::warn!(
                    "chunk list {digest} is kept as it was sent: {}",
                    super::chain(&error)
                );
            }
        }
    }

    /// The folders of restore points whose lists are probably like those of this machine.
    fn points_to_refer_to(&self, machine: &str) -> Vec<PathBuf> {
        let mut views = self.list();
        views.reverse();
        // Stable: the newest of each kind stays first.
        views.sort_by_key(|view| view.machine.as_deref() != Some(machine));
        let newest = views.iter().take(POINTS);
        newest
            .map(|view| self.published_root.join(view.id.as_str()))
            .collect()
    }

    /// Whole lists of at least a quarter of `len` bytes.
    fn candidates(&self, points: &[PathBuf], len: u64) -> Result<Vec<Candidate>, StoreError> {
        let storage = self.storage.as_ref();
        let mut candidates: Vec<Candidate> = Vec::new();
        for directory in points {
            for entry in storage::list_if_there(storage, directory)? {
                let path = directory.join(&entry.name);
                let (digest, is_base) = match lists::digest_of_base(&entry.name) {
                    Some(digest) => (Some(digest), true),
                    None => (lists::digest_of_name(&entry.name), false),
                };
                let Some(digest) = digest else {
                    continue;
                };
                let known = candidates.iter().any(|known| known.digest == digest);
                // What cannot be opened is no candidate.
                let fits = |found: u64| found >= len / 4 && found <= LONGEST_BASE;
                let usable = is_base
                    || StoredList::open(storage, directory, &digest)
                        .is_ok_and(|list| !list.is_short());
                let found = storage.open(&path).and_then(|file| file.len());
                if !known && usable && found.is_ok_and(fits) {
                    candidates.push(Candidate { digest, path });
                }
                if candidates.len() == CANDIDATES {
                    return Ok(candidates);
                }
            }
        }
        Ok(candidates)
    }

    fn shorten(
        &self,
        directory: &Path,
        (digest, len): (&Digest, u64),
        points: &[PathBuf],
    ) -> Result<(), StoreError> {
        let storage = self.storage.as_ref();
        let path = lists::path(directory, digest);
        let cannot = |source| StoreError::io("cannot shorten", &path, source);
        let mut best: Option<(Candidate, Numbers, u64)> = None;
        let mut entries = 0;
        for candidate in self.candidates(points, len)? {
            if candidate.digest == *digest {
                // The same list again: all of it is there.
                best = Some((candidate, Numbers::default(), u64::MAX));
                break;
            }
            let Ok(numbers) = self.numbers(&candidate) else {
                continue;
            };
            let (mut named, mut data) = (0, 0);
            entries = 0;
            each_chunk(self, directory, digest, |chunk| {
                entries += 1;
                if let Content::Data(digest) = &chunk.content {
                    data += 1;
                    named += u64::from(numbers.find(digest).is_some());
                }
                Ok(())
            })
            .map_err(|error| cannot(std::io::Error::other(error.to_string())))?;
            let more = best.as_ref().is_none_or(|(_, _, best)| named > *best);
            if more && named * 2 >= data {
                best = Some((candidate, numbers, named));
            }
            if named * 10 >= data * 9 {
                break;
            }
        }
        let Some((base, numbers, named)) = best else {
            return Ok(());
        };
        if named == u64::MAX {
            return self.link_same(&base.path, &path).map_err(cannot);
        }
        let link = lists::base_path(directory, &base.digest);
        match storage.link(&base.path, &link) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            // A file system without hard links: nothing can be shared there.
            Err(error) => {
                log::debug!("no link to {}: {error}", base.path.display());
                return Ok(());
            }
        }
        let unfinished = unfinished(&path);
        let write = || -> Result<bool, ListError> {
            let create = storage.create(&unfinished).map_err(cannot)?;
            let writer = ShortListWriter::new(&create, entries, &base.digest);
            let mut writer = writer.map_err(cannot)?;
            each_chunk(self, directory, digest, |chunk| {
                writer
                    .add(&chunk, &numbers)
                    .map_err(|error| cannot(error).into())
            })?;
            let written = writer.finish().map_err(cannot)?;
            // Read back as it will be read, down to its digest.
            let short = StoredList::open_at(storage, &unfinished, directory).map_err(cannot)?;
            let found = short.hash(&unfinished, |_| Ok::<_, ListError>(()))?;
            Ok(found == *digest && written < len)
        };
        match write() {
            Ok(true) => {
                storage.rename(&unfinished, &path).map_err(cannot)?;
                storage::sync_directory(storage, directory)
            }
            outcome => {
                // Tidied away at the next start or publication too.
                let _ = storage.remove_file(&unfinished);
                if !lists::is_base_used(storage, directory, &base.digest) {
                    let _ = storage.remove_file(&link);
                }
                outcome
                    .map(drop)
                    .map_err(|error| cannot(std::io::Error::other(error.to_string())))
            }
        }
    }

    /// A link to a whole list that is the same takes the place of the copy.
    fn link_same(&self, whole: &Path, path: &Path) -> std::io::Result<()> {
        let storage = self.storage.as_ref();
        let unfinished = unfinished(path);
        if storage.link(whole, &unfinished).is_ok() {
            storage.rename(&unfinished, path)?;
        }
        Ok(())
    }

    fn numbers(&self, candidate: &Candidate) -> Result<Numbers, ListError> {
        let storage = self.storage.as_ref();
        let mut numbers = Numbers::default();
        let file = storage.open(&candidate.path);
        let file = file.map_err(|error| StoreError::io("cannot read", &candidate.path, error))?;
        let list = StoredList::whole(file)
            .map_err(|error| StoreError::io("cannot read", &candidate.path, error))?;
        let found = lists::read_list(&list, (&candidate.path, u64::MAX), |chunk| {
            numbers.add(&chunk);
            Ok::<_, ListError>(())
        })?;
        // What is referred to is what it says it is.
        if found.0 != candidate.digest {
            return Err(ListError::OtherDigest { found: found.0 });
        }
        Ok(numbers)
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

fn each_chunk(
    points: &RestorePoints,
    directory: &Path,
    digest: &Digest,
    mut each: impl FnMut(Chunk) -> Result<(), ListError>,
) -> Result<(), ListError> {
    let place = (digest, u64::MAX);
    lists::read(points.storage.as_ref(), directory, place, |chunk| {
        each(chunk)
    })
    .map(drop)
}
