//! Making file systems smaller on their way to a smaller partition.
//!
//! The partition holds the front of the volume already. For the reference tool the whole volume is there: a file
//! of its old size, whose front is the partition itself and whose tail is fetched from the server when it is
//! read ([`image`], [`served`]). The tool moves what lies in the tail to the front; then the tail is dropped.
//!
//! Invariant: all of it comes before the commit, so that a restore that ends in between is one that begins
//! again; nothing is committed unless what is in the partition then says itself that it fits, and has no need of the tail.

use backup::chunk::Content;
use backup::filesystem::detect::detect;
use backup::filesystem::{Section, survey_volume};
use backup::manifest::{FileSystemKind, Manifest};
use backup::plan::{DiskPlan, RestorePlan, Shrink};
use backup::units::HumanBytes;
use backup::{ByteRange, Digest};
use protocol::progress::Stage;

use super::covered::Covered;
use super::lists::Lists;
use super::work::Piece;
use crate::device::{BlockDevice, DiskReader};
use crate::job::Engine;
use crate::job::error::Fault;
use image::Image;

#[cfg(test)]
mod crash_tests;
mod image;
mod served;
#[cfg(test)]
mod tests;
mod tools;

/// A volume that is made smaller, and the part of its content that has no place on the disk.
pub(super) struct Tail {
    /// Index of the disk in the plan.
    disk: usize,
    shrink: Shrink,
    /// Its partition on the target.
    range: ByteRange,
    /// Size of the partition that it was in.
    size: u64,
    /// What lies behind the front, or reaches over its end: in order, counted from the volume's first byte.
    pieces: Vec<Piece>,
}

/// The tails of all volumes that the plan makes smaller.
///
/// # Errors
/// [`Fault::Internal`] when plan, manifest and lists do not fit together.
pub(super) fn tails(
    plan: &RestorePlan,
    manifest: &Manifest,
    lists: &Lists<'_>,
) -> Result<Vec<Tail>, Fault> {
    let misfit = |what: &str| Fault::Internal(format!("plan and manifest do not fit: {what}"));
    let mut tails = Vec::new();
    for (disk, disk_plan) in plan.disks.iter().enumerate() {
        let image = manifest.disks.get(disk_plan.source as usize);
        let image = image.ok_or_else(|| misfit("no such source disk"))?;
        for shrink in &disk_plan.shrink {
            let copies = disk_plan.copies.iter();
            let found = copies
                .filter(|copy| is_place_of(disk_plan, shrink, copy.destination))
                .find_map(|copy| Some((copy, image.regions.get(copy.region as usize)?)));
            let (copy, region) = found.ok_or_else(|| misfit("no region to make smaller"))?;
            let list = &region.content.digest;
            let (front, size) = (copy.destination.len(), region.range.len());
            let mut pieces = Vec::new();
            for block in lists.blocks(list, ByteRange::between(front, size.max(front)))? {
                let chunks = lists.chunks(list, block)?.into_iter();
                let behind = chunks.filter(|chunk| chunk.range.end() > front);
                pieces.extend(behind.map(|chunk| Piece {
                    disk,
                    range: chunk.range,
                    content: chunk.content,
                }));
            }
            tails.push(Tail {
                disk,
                shrink: shrink.clone(),
                range: copy.destination,
                size,
                pieces,
            });
        }
    }
    Ok(tails)
}

/// Whether a part of the disk is the partition of a volume that is made smaller.
fn is_place_of(plan: &DiskPlan, shrink: &Shrink, place: ByteRange) -> bool {
    let mut partitions = plan.partitions.iter();
    partitions.any(|one| one.number == shrink.partition && one.range == place)
}

/// Whether the volume that goes to a place is made smaller for it: what has no room there as a whole is in a
/// [`Tail`].
pub(super) fn is_shrunk(plan: &DiskPlan, place: ByteRange) -> bool {
    let mut shrinks = plan.shrink.iter();
    shrinks.any(|shrink| is_place_of(plan, shrink, place))
}

/// Whether everything is there that making these file systems smaller needs; asked before the first write.
///
/// # Errors
/// [`Fault::Tool`] for the first thing that is not.
pub(super) fn check(plan: &RestorePlan) -> Result<(), Fault> {
    let mut shrinks = plan.disks.iter().flat_map(|disk| &disk.shrink).peekable();
    if shrinks.peek().is_some() {
        served::check()?;
    }
    shrinks.try_for_each(|shrink| tools::check(shrink.file_system))
}

/// Makes the volumes smaller; the disks are open and hold all that has a place on them. Returns sentences for the
/// summary.
///
/// # Errors
/// A tool that fails, a server that does not give the tail, and a volume that does not fit after all.
pub(super) fn shrink(
    engine: &Engine<'_>,
    disks: &[Covered<'_>],
    tails: &[Tail],
) -> Result<Vec<String>, Fault> {
    if tails.is_empty() {
        return Ok(Vec::new());
    }
    engine.tracker.stage(Stage::Growing, 0);
    let mut sentences = Vec::new();
    for tail in tails {
        engine.check_cancelled()?;
        let disk = disks
            .get(tail.disk)
            .ok_or_else(|| Fault::Internal(format!("no target disk {}", tail.disk)))?;
        shrink_one(engine, disk, tail)?;
        let Shrink {
            partition,
            file_system,
            from,
            to,
        } = &tail.shrink;
        sentences.push(format!(
            "Made the {file_system} in partition {partition} smaller, from {} to {}.",
            HumanBytes(*from),
            HumanBytes(*to)
        ));
        if *file_system == FileSystemKind::Ntfs {
            sentences.push(format!(
                "Windows checks partition {partition} when it starts for the first time, because its NTFS was made smaller."
            ));
        }
    }
    Ok(sentences)
}

fn shrink_one(engine: &Engine<'_>, device: &dyn BlockDevice, tail: &Tail) -> Result<(), Fault> {
    let name = format!(
        "what is behind the new end of partition {} of {}",
        tail.shrink.partition,
        device.name()
    );
    let mut image = Image::new(engine, device, tail, name);
    image.settle_edge()?;
    let result = served::with_file(&mut image, |file| tools::run(file, &tail.shrink));
    // Why the tool could not read or write says more than what it made of it.
    if let Some(fault) = image.fault.take() {
        return Err(fault);
    }
    result?;
    device
        .flush()
        .map_err(crate::device::io_error("flushing", device, tail.range))?;
    check_result(device, tail)
}

/// Looks at what is in the partition now.
fn check_result(device: &dyn BlockDevice, tail: &Tail) -> Result<(), Fault> {
    let shrink = &tail.shrink;
    let fault = |reason: String| Fault::Tool {
        tool: tools::name(shrink.file_system).to_owned(),
        reason: format!(
            "the {} in partition {} is not what it should be after it was made smaller: {reason}; \
             restore to a disk of the source's size",
            shrink.file_system, shrink.partition
        ),
    };
    let reader = DiskReader(device);
    let volume = Section::new(&reader, tail.range);
    let found = detect(&volume, tail.range.len()).map_err(|error| fault(error.to_string()))?;
    match &found[..] {
        [found] if found.file_system == shrink.file_system && found.size <= shrink.to => {}
        [found] => {
            return Err(fault(format!(
                "{} of {} bytes",
                found.file_system, found.size
            )));
        }
        found => return Err(fault(format!("signs of {} file systems", found.len()))),
    }
    // The NTFS tool leaves a mark for Windows to check the volume, so that its used clusters are not taken for
    // sure; the tool itself has checked them.
    if shrink.file_system != FileSystemKind::Ntfs {
        let survey = survey_volume(&volume, tail.range.len());
        survey.used.map_err(|doubt| fault(doubt.to_string()))?;
    }
    Ok(())
}

impl Piece {
    /// The digest of its data; `None` for zeros.
    const fn digest(&self) -> Option<Digest> {
        match self.content {
            Content::Data(digest) => Some(digest),
            Content::Zero => None,
        }
    }
}
