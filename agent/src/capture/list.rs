//! Listing: what the workers found, put in order and sent as the chunk lists of the regions.
//!
//! Invariant: results come in any order and leave in the order of the reads; a list is sent in parts
//! while the disk is read, and only its last part is in memory. Memory: [`WINDOW`] reads that came too
//! early, at most [`MAX_PIECES`](backup::plan::reads::MAX_PIECES) × 64 bytes each, and one part of a list.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use backup::chunk::{Chunk, ListBuilder, ListPart};
use backup::manifest::ChunkListRef;
use protocol::api::FinishList;

use crate::job::Engine;
use crate::job::error::Fault;
use crate::job::server::ListName;
use crate::log::chain;

/// How many reads may be under way or done before the first of them that is not done.
pub(crate) const WINDOW: u64 = 64;
/// A part of a list is sent when it has this many bytes.
const PART: usize = 1 << 20;

/// The chunks of one read.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The read's number; reads are numbered as they are made, from 0.
    pub(crate) read: u64,
    /// Which of the regions it is of.
    pub(crate) region: usize,
    /// Its chunks in order, counted from the region's start.
    pub(crate) chunks: Vec<Chunk>,
}

/// A region as its list sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedRegion {
    /// What the server calls its list until it is whole.
    pub(crate) name: ListName,
    /// The region's length in bytes.
    pub(crate) len: u64,
}

/// Keeps the reader from running ahead of what is listed.
#[derive(Debug, Default)]
pub(crate) struct Window {
    listed: Mutex<u64>,
    moved: Condvar,
}

impl Window {
    /// Waits until read `number` may be made; `stop` ends the wait.
    pub(crate) fn wait(&self, number: u64, stop: impl Fn() -> bool) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        while number >= *listed + WINDOW && !stop() {
            let step = Duration::from_millis(100);
            let waited = self.moved.wait_timeout(listed, step);
            listed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn advance(&self, to: u64) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = to;
        self.moved.notify_all();
    }
}

/// Sends the lists of all regions; what workers found comes from `results`, which ends when all is
/// read. Returns the name of each list.
///
/// # Errors
/// A server that refuses.
pub(crate) fn send_lists(
    engine: &Engine<'_>,
    regions: &[ListedRegion],
    window: &Window,
    results: &Receiver<Listed>,
) -> Result<Vec<ChunkListRef>, Fault> {
    let mut lister = Lister {
        engine,
        regions,
        lists: Vec::with_capacity(regions.len()),
        open: None,
    };
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok(listed) = results.recv() {
        early.insert(listed.read, listed);
        while let Some(listed) = early.remove(&next) {
            lister.take(&listed)?;
            next += 1;
            window.advance(next);
        }
    }
    lister.close_before(regions.len())?;
    Ok(lister.lists)
}

struct Lister<'a> {
    engine: &'a Engine<'a>,
    regions: &'a [ListedRegion],
    /// Lists that are whole, of the first regions.
    lists: Vec<ChunkListRef>,
    /// The one after those.
    open: Option<Open>,
}

/// A list that is being sent.
struct Open {
    region: ListedRegion,
    builder: ListBuilder,
}

impl Lister<'_> {
    fn take(&mut self, listed: &Listed) -> Result<(), Fault> {
        self.close_before(listed.region)?;
        let mut open = self.open()?;
        for chunk in &listed.chunks {
            open.push(self.engine, chunk)?;
        }
        self.open = Some(open);
        Ok(())
    }

    /// The list of the first region that has none.
    fn open(&mut self) -> Result<Open, Fault> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        let region = self.regions.get(self.lists.len()).copied();
        let region = region.ok_or_else(|| Fault::Internal("a chunk of no region".to_owned()))?;
        Ok(Open {
            region,
            builder: ListBuilder::new(region.len),
        })
    }

    /// Ends the lists of all regions before this one.
    fn close_before(&mut self, region: usize) -> Result<(), Fault> {
        while self.lists.len() < region {
            let open = self.open()?;
            self.lists.push(open.close(self.engine)?);
        }
        Ok(())
    }
}

impl Open {
    fn push(&mut self, engine: &Engine<'_>, chunk: &Chunk) -> Result<(), Fault> {
        let pushed = self.builder.push(chunk);
        pushed.map_err(|error| Fault::Internal(chain(&error)))?;
        if self.builder.part_len() >= PART {
            let part = self.builder.take_part();
            self.send(engine, &part)?;
        }
        Ok(())
    }

    fn send(&self, engine: &Engine<'_>, part: &ListPart) -> Result<(), Fault> {
        engine
            .server
            .list_part(self.region.name, part.offset, &part.bytes)
            .map_err(Fault::server(format!(
                "sending chunk list {} from byte {}",
                self.region.name, part.offset
            )))?;
        engine.tracker.network(part.bytes.len() as u64);
        Ok(())
    }

    fn close(mut self, engine: &Engine<'_>) -> Result<ChunkListRef, Fault> {
        let builder = std::mem::replace(&mut self.builder, ListBuilder::new(0));
        let built = builder.finish();
        let built = built.map_err(|error| Fault::Internal(chain(&error)))?;
        if let Some(part) = &built.last {
            self.send(engine, part)?;
        }
        let (length, digest) = (built.length, built.name.digest);
        engine
            .server
            .finish_list(self.region.name, &FinishList { length, digest })
            .map_err(Fault::server(format!(
                "ending chunk list {}",
                self.region.name
            )))?;
        Ok(built.name)
    }
}

const _: () = assert!(PART + 4096 <= protocol::api::MAX_UPLOAD);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use backup::chunk::{ChunkList, Content};
    use backup::{ByteRange, Digest};

    use super::*;
    use crate::job::fake::{Bench, ImageMachine};

    fn zero(start: u64, end: u64) -> Chunk {
        Chunk {
            range: ByteRange::between(start, end),
            content: Content::Zero,
        }
    }

    fn data(start: u64, end: u64) -> Chunk {
        Chunk {
            range: ByteRange::between(start, end),
            content: Content::Data(Digest::of(&start.to_le_bytes())),
        }
    }

    /// The lists that the server has in the end.
    fn listed(regions: &[u64], results: Vec<Listed>) -> Vec<(ChunkListRef, ChunkList)> {
        let bench = Bench::new(ImageMachine::new("/nowhere".as_ref()), Vec::new());
        let regions: Vec<_> = regions
            .iter()
            .zip(0..)
            .map(|(len, region)| ListedRegion {
                name: ListName { disk: 0, region },
                len: *len,
            })
            .collect();
        let (sender, receiver) = channel();
        results
            .into_iter()
            .for_each(|listed| sender.send(listed).unwrap());
        drop(sender);
        let names = send_lists(&bench.engine(), &regions, &Window::default(), &receiver).unwrap();
        assert_eq!(names.len(), regions.len());
        names
            .into_iter()
            .zip(&regions)
            .map(|(name, region)| {
                let list = bench.server.list(&name.digest);
                (name, ChunkList::decode(&list, region.len).unwrap())
            })
            .collect()
    }

    #[test]
    fn results_in_any_order_become_lists_in_order_with_runs_of_zeros_merged() {
        let result = |read, region, chunks: &[Chunk]| Listed {
            read,
            region,
            chunks: chunks.to_vec(),
        };
        let lists = listed(
            &[100, 7, 50],
            vec![
                result(2, 2, &[data(3, 9)]),
                result(1, 0, &[zero(20, 30), data(30, 40), zero(41, 50)]),
                result(0, 0, &[zero(0, 10), zero(10, 20)]),
            ],
        );
        let chunks: Vec<_> = lists.iter().map(|(_, list)| list.chunks()).collect();
        assert_eq!(chunks[0], [zero(0, 30), data(30, 40), zero(41, 50)]);
        assert!(chunks[1].is_empty(), "a region of which nothing is saved");
        assert_eq!(chunks[2], [data(3, 9)]);
        let first = &lists[0].0;
        assert_eq!(
            (first.chunks, first.data_bytes, first.zero_bytes),
            (3, 10, 39)
        );
    }

    #[test]
    fn a_long_list_is_sent_in_parts() {
        let chunks: Vec<_> = (0..100_000).map(|at| data(at * 10, at * 10 + 10)).collect();
        let mut results: Vec<_> = chunks
            .chunks(500)
            .zip(0..)
            .map(|(chunks, read)| Listed {
                read,
                region: 0,
                chunks: chunks.to_vec(),
            })
            .collect();
        results.reverse();
        let lists = listed(&[1_000_000], results);
        assert_eq!(lists[0].1.chunks(), chunks);
        assert_eq!(lists[0].0.chunks, 100_000);
    }
}
