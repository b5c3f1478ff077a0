//! How much is in the store, and what each restore point alone takes.
//!
//! Memory: a word for each position of the index, two bits for each while one restore point is read.

use protocol::upkeep::{RestorePointSize, StoreView};

use super::bits::Bits;
use super::chunk_store::Location;
use super::opening;
use super::pack::PACK_HEADER_LEN;
use super::{Store, StoreError, chain};

/// What uses a chunk: nobody, the restore point with this number from 1, or several.
const SEVERAL: u32 = u32::MAX;

impl Store {
    /// Adds up the store. A restore point that cannot be read is left out and logged.
    ///
    /// # Errors
    /// [`StoreError`] when the packs cannot be looked at.
    pub(crate) fn sizes(&self) -> Result<StoreView, StoreError> {
        let mut view = StoreView::default();
        let mut users: Vec<u32> = vec![0; self.chunks.read_index().end() as usize];
        // What each restore point alone takes, by its number.
        let mut unique = vec![0];
        let mut numbers = Vec::new();
        for (point, number) in self.restore_points.list().into_iter().zip(1u32..) {
            unique.push(0);
            let mut own = Bits::default();
            let mut stored = 0;
            let read = self.each_data_chunk(&point.id, |digest| {
                let index = self.chunks.read_index();
                for position in index.needed(digest) {
                    if own.has(position) {
                        continue;
                    }
                    own.set(position);
                    stored += index.at(position).map_or(0, |(_, at)| len(&at));
                    if let Some(user) = users.get_mut(position as usize) {
                        *user = if *user == 0 { number } else { SEVERAL };
                    }
                }
            });
            if let Err(error) = read {
                log::error!("restore point {}: {}", point.id, chain(&error));
                continue;
            }
            view.logical_bytes = view.logical_bytes.saturating_add(point.data_bytes);
            numbers.push(number as usize);
            view.restore_points.push(RestorePointSize {
                id: point.id,
                machine_name: point.machine_name,
                logical_bytes: point.data_bytes,
                stored_bytes: stored,
                unique_bytes: 0,
            });
        }
        self.add_up(&users, &mut view, &mut unique);
        for (point, number) in view.restore_points.iter_mut().zip(numbers) {
            point.unique_bytes = unique[number];
        }
        let (storage, directory) = (self.chunks.storage.as_ref(), self.chunks.directory());
        for id in opening::list(storage, directory)?.packs {
            let len = storage
                .open(&id.pack_path(directory))
                .and_then(|file| file.len());
            // One that a collection removes at this moment takes nothing.
            view.stored_bytes += len.unwrap_or(0);
            view.packs += 1;
        }
        let needed = view.unique_bytes + view.shared_bytes + view.captures_bytes;
        let heads = view.packs * PACK_HEADER_LEN as u64;
        view.dead_bytes = view.stored_bytes.saturating_sub(needed + heads);
        view.free_bytes = storage.free_bytes(directory).map_err(|source| {
            StoreError::io("cannot see how much room is left for", directory, source)
        })?;
        Ok(view)
    }

    fn add_up(&self, users: &[u32], view: &mut StoreView, unique: &mut [u64]) {
        let claims = self.chunks.lock_claims();
        let index = self.chunks.read_index();
        for position in 0..index.end() {
            let Some((_, at)) = index.at(position) else {
                continue;
            };
            view.chunks += 1;
            view.damaged_chunks += u64::from(index.is_damaged(position));
            match users.get(position as usize).copied().unwrap_or(0) {
                0 if claims.hold(position) => view.captures_bytes += len(&at),
                0 => {}
                SEVERAL => view.shared_bytes += len(&at),
                number => {
                    view.unique_bytes += len(&at);
                    if let Some(own) = unique.get_mut(number as usize) {
                        *own += len(&at);
                    }
                }
            }
        }
    }
}

const fn len(at: &Location) -> u64 {
    at.record_len() as u64
}
