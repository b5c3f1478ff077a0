//! Where the pieces of a restore come from: the regions and the areas of logical volumes, in the order of the disks.
//!
//! Invariant: pieces come in order of disk and offset and never overlap; each stays within the destination of its
//! region or area, and so within its disk: checked before any disk is opened.

use backup::chunk::{Chunk, Content};
use backup::lvm::Mapping;
use backup::manifest::Manifest;
use backup::plan::RestorePlan;
use backup::{ByteRange, Digest};

use super::lists::{Lists, Needed};
use super::shrink;
use super::work::Piece;
use crate::job::error::Fault;

/// How a list's chunks come to lie on a disk.
#[derive(Debug)]
enum Way {
    /// As they are.
    Whole,
    /// As they are, but for those that have no room there as a whole.
    Front,
    /// Those of one area of a segment.
    Area {
        mapping: Mapping,
        segment: usize,
        area: usize,
    },
}

/// A contiguous part of a disk and the list of what belongs there.
#[derive(Debug)]
pub(super) struct Source {
    disk: usize,
    /// Where it begins on the disk, and how much is of it.
    place: ByteRange,
    list: Digest,
    /// The bytes of the region or volume that can lie there.
    part: ByteRange,
    way: Way,
}

fn misfit(what: &str) -> Fault {
    Fault::Internal(format!("plan and manifest do not fit: {what}"))
}

/// The sources of a plan in order, and the lists that they need.
///
/// # Errors
/// [`Fault::Internal`] when plan and manifest do not fit together.
pub(super) fn sources<'m>(
    plan: &RestorePlan,
    manifest: &'m Manifest,
) -> Result<(Vec<Source>, Vec<Needed<'m>>), Fault> {
    let (mut sources, mut needed) = (Vec::new(), Vec::new());
    for (disk, disk_plan) in plan.disks.iter().enumerate() {
        let image = manifest.disks.get(disk_plan.source as usize);
        let image = image.ok_or_else(|| misfit("no such source disk"))?;
        for copy in &disk_plan.copies {
            let region = image.regions.get(copy.region as usize);
            let region = region.ok_or_else(|| misfit("no such region"))?;
            let len = region.range.len();
            let (start, room) = (copy.destination.start(), copy.destination.len());
            let is_shrunk = shrink::is_shrunk(disk_plan, copy.destination);
            sources.push(Source {
                disk,
                place: ByteRange::between(start, start + len.min(room)),
                list: region.content.digest,
                part: ByteRange::between(0, len),
                way: if is_shrunk { Way::Front } else { Way::Whole },
            });
            needed.push(Needed {
                content: &region.content,
                size: len,
                check: Box::new(move |chunk| {
                    if chunk.range.end() > room && !is_shrunk {
                        return Err(misfit("a chunk leaves its destination"));
                    }
                    Ok(())
                }),
            });
        }
    }
    for (number, volume) in manifest.logical_volumes.iter().enumerate() {
        let of_volume = |what: &str| misfit(&format!("{}: {what}", volume.full_name()));
        let mapping = volume.mapping();
        let mapping = mapping.map_err(|error| of_volume(&error.to_string()))?;
        // Where only chosen volumes are restored, all of its areas are absent.
        let mut areas = plan.disks.iter().flat_map(|disk| &disk.areas);
        let is_planned = areas.any(|area| area.volume as usize == number);
        if mapping.size() == 0 || !is_planned {
            continue;
        }
        let areas = areas_of(plan, number, &volume.content.digest, &mapping, &of_volume)?;
        sources.extend(areas);
        let name = volume.full_name();
        let size = mapping.size();
        needed.push(Needed {
            content: &volume.content,
            size,
            check: Box::new(move |chunk| {
                // It is compared and written as a whole; a capture cuts it so. Runs of zeros are cut here.
                let in_one = mapping.places(chunk.range).next();
                let in_one = in_one.is_some_and(|place| place.volume == chunk.range);
                if matches!(chunk.content, Content::Data(_)) && !in_one {
                    return Err(misfit(&format!("{name}: a chunk lies in two places")));
                }
                Ok(())
            }),
        });
    }
    sources.sort_by_key(|source| (source.disk, source.place.start()));
    for source in &sources {
        if source.place.end() > plan.disks[source.disk].target.size {
            return Err(misfit("a region leaves the disk"));
        }
    }
    Ok((sources, needed))
}

/// A source for each area of a volume.
fn areas_of(
    plan: &RestorePlan,
    number: usize,
    list: &Digest,
    mapping: &Mapping,
    misfit: &dyn Fn(&str) -> Fault,
) -> Result<Vec<Source>, Fault> {
    let mut sources = Vec::new();
    let mut at = 0;
    for (segment, one) in mapping.segments().iter().enumerate() {
        let size = one
            .size()
            .ok_or_else(|| misfit("a segment without a size"))?;
        let part = ByteRange::between(at, at + size);
        at = part.end();
        for (area, range) in one.areas.iter().map(|area| area.range).enumerate() {
            let found = plan.disks.iter().enumerate().find_map(|(disk, plan)| {
                let mut areas = plan.areas.iter();
                let key = (number, segment, area);
                let is_it = |one: &&backup::plan::AreaCopy| {
                    (one.volume as usize, one.segment as usize, one.area as usize) == key
                };
                areas.find(is_it).map(|area| (disk, area.destination))
            });
            let (disk, destination) = found.ok_or_else(|| misfit("an area without a place"))?;
            if range.len() > destination.len() {
                return Err(misfit("an area leaves its destination"));
            }
            let start = destination.start();
            sources.push(Source {
                disk,
                place: ByteRange::between(start, start + range.len()),
                list: *list,
                part,
                way: Way::Area {
                    mapping: mapping.clone(),
                    segment,
                    area,
                },
            });
        }
    }
    Ok(sources)
}

impl Source {
    fn pieces(&self, chunks: &[Chunk]) -> Vec<Piece> {
        let start = self.place.start();
        let piece = |at: u64, len: u64, content| Piece {
            disk: self.disk,
            range: ByteRange::between(start + at, start + at + len),
            content,
        };
        match &self.way {
            Way::Whole | Way::Front => chunks
                .iter()
                .filter(|chunk| {
                    !matches!(self.way, Way::Front) || chunk.range.end() <= self.place.len()
                })
                .map(|chunk| piece(chunk.range.start(), chunk.range.len(), chunk.content))
                .collect(),
            Way::Area {
                mapping,
                segment,
                area,
            } => chunks
                .iter()
                .flat_map(|chunk| {
                    let places = mapping.places(chunk.range);
                    places
                        .filter(|place| (place.segment, place.area) == (*segment, *area))
                        .map(|place| piece(place.offset, place.volume.len(), chunk.content))
                })
                .collect(),
        }
    }
}

/// Fails when pieces of different sources have the same place: an area lies within the region of its physical
/// volume, between what else is saved of it.
///
/// # Errors
/// [`Fault::Internal`], and a list that has to be fetched again and cannot be.
pub(super) fn check_places(lists: &Lists<'_>, sources: &[Source]) -> Result<(), Fault> {
    let are_apart = sources
        .windows(2)
        .all(|pair| pair[0].disk < pair[1].disk || pair[0].place.end() <= pair[1].place.start());
    if are_apart {
        return Ok(());
    }
    let mut pieces = Pieces::new(lists, sources);
    while pieces.next()?.is_some() {}
    Ok(())
}

/// How far the pieces of a source are given.
struct Cursor<'a> {
    source: &'a Source,
    /// Blocks that were not read; none before the first.
    blocks: Option<std::ops::Range<usize>>,
    ready: std::iter::Peekable<std::vec::IntoIter<Piece>>,
}

impl<'a> Cursor<'a> {
    fn new(source: &'a Source) -> Self {
        let ready = Vec::new().into_iter().peekable();
        let blocks = None;
        Self {
            source,
            blocks,
            ready,
        }
    }

    /// Where the next piece begins; the source's own beginning before it is known.
    fn key(&mut self) -> (usize, u64) {
        let start = self.ready.peek().map(|piece| piece.range.start());
        (self.source.disk, start.unwrap_or(self.source.place.start()))
    }

    /// Makes pieces ready; false at the end.
    fn load(&mut self, lists: &Lists<'_>) -> Result<bool, Fault> {
        let source = self.source;
        let mut blocks = match self.blocks.take() {
            Some(blocks) => blocks,
            None => lists.blocks(&source.list, source.part)?,
        };
        while self.ready.peek().is_none() {
            let Some(block) = blocks.next() else {
                return Ok(false);
            };
            let pieces = source.pieces(&lists.chunks(&source.list, block)?);
            self.ready = pieces.into_iter().peekable();
        }
        self.blocks = Some(blocks);
        Ok(true)
    }
}

/// The pieces of all sources, in order. A block is in memory for each source that is begun and not at its end.
pub(super) struct Pieces<'a> {
    lists: &'a Lists<'a>,
    /// Sources that are not begun.
    sources: std::iter::Peekable<std::slice::Iter<'a, Source>>,
    begun: Vec<Cursor<'a>>,
    /// Disk and end of the last piece.
    end: (usize, u64),
}

impl<'a> Pieces<'a> {
    pub(super) fn new(lists: &'a Lists<'a>, sources: &'a [Source]) -> Self {
        Self {
            lists,
            sources: sources.iter().peekable(),
            begun: Vec::new(),
            end: (0, 0),
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// A list that has to be fetched again and cannot be; pieces that are out of order.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, Fault> {
        loop {
            let keys = self.begun.iter_mut().map(Cursor::key);
            let least = keys.enumerate().min_by_key(|(_, key)| *key);
            let waiting = self.sources.peek();
            let waiting = waiting.map(|source| (source.disk, source.place.start()));
            let index = match (least, waiting) {
                (Some((index, key)), waiting) if waiting.is_none_or(|other| key < other) => index,
                (_, Some(_)) => {
                    self.begun.extend(self.sources.next().map(Cursor::new));
                    let index = self.begun.len() - 1;
                    if !self.begun[index].load(self.lists)? {
                        self.begun.swap_remove(index);
                    }
                    continue;
                }
                (_, None) => return Ok(None),
            };
            let cursor = &mut self.begun[index];
            let piece = cursor.ready.next();
            if cursor.ready.peek().is_none() && !cursor.load(self.lists)? {
                self.begun.swap_remove(index);
            }
            let Some(piece) = piece else { continue };
            if (piece.disk, piece.range.start()) < self.end {
                return Err(misfit("two chunks have the same place"));
            }
            self.end = (piece.disk, piece.range.end());
            return Ok(Some(piece));
        }
    }
}

/// At most this many blocks are looked into for samples, and so many chunks of each are taken.
const SAMPLE_BLOCKS: usize = 16;
const SAMPLES_OF_BLOCK: usize = 8;

/// Some pieces of data of a disk, spread over it.
///
/// # Errors
/// A list that has to be fetched again and cannot be.
pub(super) fn samples(
    lists: &Lists<'_>,
    sources: &[Source],
    disk: usize,
) -> Result<Vec<Piece>, Fault> {
    let mut blocks = Vec::new();
    for source in sources.iter().filter(|source| source.disk == disk) {
        let of_source = lists.blocks(&source.list, source.part)?;
        blocks.extend(of_source.map(|block| (source, block)));
    }
    let mut samples = Vec::new();
    let step = blocks.len().div_ceil(SAMPLE_BLOCKS).max(1);
    for (source, block) in blocks.into_iter().step_by(step) {
        let pieces = source.pieces(&lists.chunks(&source.list, block)?);
        let data: Vec<_> = pieces
            .iter()
            .filter(|piece| piece.data_bytes() > 0)
            .collect();
        let step = data.len().div_ceil(SAMPLES_OF_BLOCK).max(1);
        samples.extend(data.into_iter().step_by(step).copied());
    }
    Ok(samples)
}
