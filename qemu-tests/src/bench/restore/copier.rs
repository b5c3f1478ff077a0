//! What the hardware can do: a parallel copy of ranges from disk to disk, past the page cache.
//!
//! It knows where the bytes are, decodes and checks nothing, and has nothing to wait for but the disks: a bound
//! for every restore. Each thread takes the next megabyte, in disk order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use backup::ByteRange;

/// How many are on their way at a time.
const THREADS: usize = 4;
/// The most bytes of an access.
const STEP: u64 = 1 << 20;
/// What direct access asks of offset, length and memory.
pub(super) const ALIGN: u64 = 4096;

/// Memory that direct access takes.
struct Buffer {
    storage: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let storage = vec![0; (STEP + ALIGN) as usize];
        let start = storage.as_ptr().align_offset(ALIGN as usize);
        Self { storage, start }
    }

    fn of(&mut self, len: u64) -> &mut [u8] {
        &mut self.storage[self.start..self.start + len as usize]
    }
}

fn open(path: &Path, write: bool) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(nix::libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {} for direct access", path.display()))
}

/// Ranges on whole pages, merged where they touch, in steps.
fn steps(ranges: &[ByteRange]) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges {
        let start = range.start() - range.start() % ALIGN;
        let end = range.end().next_multiple_of(ALIGN);
        match merged.last_mut() {
            Some(before) if before.end() >= start => {
                *before = ByteRange::between(before.start(), end.max(before.end()));
            }
            _ => merged.push(ByteRange::between(start, end)),
        }
    }
    let mut steps = Vec::new();
    for range in merged {
        let mut at = range.start();
        while at < range.end() {
            let end = (at + STEP).min(range.end());
            steps.push(ByteRange::between(at, end));
            at = end;
        }
    }
    steps
}

fn in_parallel(
    ranges: &[ByteRange],
    work: impl Fn(ByteRange, &mut Buffer) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Duration> {
    let steps = steps(ranges);
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        let thread = || {
            let mut buffer = Buffer::new();
            while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(*step, &mut buffer)?;
            }
            anyhow::Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(thread)).collect();
        threads.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(began.elapsed())
}

/// Copies the ranges, and returns when they are on the medium.
pub(super) fn copy(from: &Path, to: &Path, ranges: &[ByteRange]) -> anyhow::Result<Duration> {
    let (from, to) = (open(from, false)?, open(to, true)?);
    let began = Instant::now();
    in_parallel(ranges, |step, buffer| {
        let bytes = buffer.of(step.len());
        from.read_exact_at(bytes, step.start())?;
        Ok(to.write_all_at(bytes, step.start())?)
    })?;
    to.sync_data()?;
    Ok(began.elapsed())
}

/// Reads the ranges.
pub(super) fn read(from: &Path, ranges: &[ByteRange]) -> anyhow::Result<Duration> {
    let from = open(from, false)?;
    in_parallel(ranges, |step, buffer| {
        Ok(from.read_exact_at(buffer.of(step.len()), step.start())?)
    })
}

/// Overwrites the ranges with old data: bytes that no chunk has.
pub(super) fn spoil(disk: &Path, ranges: &[ByteRange]) -> anyhow::Result<()> {
    let file = open(disk, true)?;
    in_parallel(ranges, |step, buffer| {
        let bytes = buffer.of(step.len());
        bytes.fill(0xa5);
        bytes[..8].copy_from_slice(&step.start().to_le_bytes());
        Ok(file.write_all_at(bytes, step.start())?)
    })?;
    Ok(file.sync_data()?)
}

/// Fails unless both have the same bytes in the ranges.
pub(super) fn ensure_same(one: &Path, other: &Path, ranges: &[ByteRange]) -> anyhow::Result<()> {
    let (a, b) = (File::open(one)?, File::open(other)?);
    in_parallel(ranges, |step, buffer| {
        let mut second = vec![0; step.len() as usize];
        let first = buffer.of(step.len());
        a.read_exact_at(first, step.start())?;
        b.read_exact_at(&mut second, step.start())?;
        // Outside of the ranges they may differ: only whole ranges are compared.
        for range in within(ranges, step) {
            let part =
                (range.start() - step.start()) as usize..(range.end() - step.start()) as usize;
            ensure!(
                first[part.clone()] == second[part],
                "{} and {} differ in {range}",
                one.display(),
                other.display()
            );
        }
        Ok(())
    })?;
    Ok(())
}

/// The parts of the ranges that lie within a step.
fn within(ranges: &[ByteRange], step: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
    let first = ranges.partition_point(|range| range.end() <= step.start());
    ranges[first..]
        .iter()
        .take_while(move |range| range.start() < step.end())
        .map(move |range| {
            ByteRange::between(range.start().max(step.start()), range.end().min(step.end()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_copied_compared_and_spoilt_and_nothing_else_is() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let bytes: Vec<u8> = (0..3 << 20)
            .map(|at: u32| (at / 4096 + at % 251) as u8)
            .collect();
        std::fs::write(&from, &bytes).unwrap();
        std::fs::write(&to, vec![0; bytes.len()]).unwrap();
        let ranges = [
            ByteRange::between(8192, 1_600_000),
            ByteRange::between(2 << 20, (2 << 20) + 4096),
        ];
        copy(&from, &to, &ranges).unwrap();
        ensure_same(&from, &to, &ranges).unwrap();
        let copied = std::fs::read(&to).unwrap();
        assert!(copied[..8192].iter().all(|byte| *byte == 0));
        assert_eq!(copied[8192..1_600_000], bytes[8192..1_600_000]);
        assert!(copied[1_601_536..2 << 20].iter().all(|byte| *byte == 0));
        read(&to, &ranges).unwrap();
        spoil(&to, &ranges[1..]).unwrap();
        assert!(ensure_same(&from, &to, &ranges).is_err());
        ensure_same(&from, &to, &ranges[..1]).unwrap();
    }
}
