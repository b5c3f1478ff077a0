//! Inodes, and where the content of one lies.

use super::big_endian::{be16, be32, be64};
use super::btree::{Block, FILE, MAX_LEVELS, Place};
use super::superblock::{Superblock, checksum_fits};
use super::{Fault, damaged};
use crate::filesystem::ReadAt;
use crate::filesystem::tree::Timestamp;

const MAGIC: u16 = 0x494e;
/// Length of the fixed part in versions 1 and 2, and in version 3.
const SHORT_LEN: usize = 100;
const LONG_LEN: usize = 176;
const REALTIME: u16 = 0x1;
const BIG_TIMES: u64 = 0x8;
const MANY_EXTENTS: u64 = 0x10;
/// Files are no longer than this.
const MAX_SIZE: u64 = 1 << 63;

/// How the data fork is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Device,
    /// The content itself.
    Local,
    Extents,
    Tree,
}

/// An inode that was checked.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) modified: Option<Timestamp>,
    pub(super) realtime: bool,
    pub(super) format: Format,
    /// The data fork.
    pub(super) fork: Vec<u8>,
    extents: u64,
}

/// A run of blocks of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapping {
    /// Which block of the file it begins with.
    pub(super) offset: u64,
    /// How many blocks.
    pub(super) count: u64,
    /// Byte of the volume.
    pub(super) at: u64,
    /// Reserved, but never written: reads as zeros.
    pub(super) unwritten: bool,
}

impl Inode {
    pub(super) fn read(
        volume: &dyn ReadAt,
        superblock: &Superblock,
        number: u64,
    ) -> Result<Self, Fault> {
        let at = superblock
            .locate_inode(number)
            .ok_or_else(|| damaged(format!("there is no inode {number}")))?;
        let mut bytes = vec![0; superblock.inode_size as usize];
        volume.read_at(at, &mut bytes)?;
        Self::parse(superblock, number, &bytes)
    }

    /// Checks the bytes of an inode.
    pub(super) fn parse(superblock: &Superblock, number: u64, bytes: &[u8]) -> Result<Self, Fault> {
        let bad = |what: &str| damaged(format!("inode {number} has {what}"));
        let version = bytes[4];
        let header = if superblock.checksums {
            LONG_LEN
        } else {
            SHORT_LEN
        };
        if be16(bytes, 0) != MAGIC
            || !(if superblock.checksums { 3..=3 } else { 1..=2 }).contains(&version)
        {
            return Err(bad("no inode in its place"));
        }
        let mut flags = 0;
        if superblock.checksums {
            if !checksum_fits(bytes, 100) {
                return Err(bad("a checksum that does not fit"));
            }
            if be64(bytes, 152) != number || bytes[160..176] != superblock.meta_uuid {
                return Err(bad("an inode from elsewhere in its place"));
            }
            flags = be64(bytes, 120);
        }
        let format = match bytes[5] {
            0 => Format::Device,
            1 => Format::Local,
            2 => Format::Extents,
            3 => Format::Tree,
            _ => return Err(bad("an unknown format")),
        };
        let literal = &bytes[header..];
        let fork = match usize::from(bytes[82]) * 8 {
            0 => literal,
            len => literal.get(..len).ok_or_else(|| bad("forks outside it"))?,
        };
        let size = be64(bytes, 56);
        if size > MAX_SIZE {
            return Err(bad(&format!("{size} bytes")));
        }
        Ok(Self {
            number,
            mode: be16(bytes, 2),
            size,
            uid: be32(bytes, 8),
            gid: be32(bytes, 12),
            links: if version == 1 {
                be16(bytes, 6).into()
            } else {
                be32(bytes, 16)
            },
            modified: timestamp(be64(bytes, 40), flags & BIG_TIMES != 0),
            realtime: be16(bytes, 90) & REALTIME != 0,
            format,
            fork: fork.to_vec(),
            extents: if flags & MANY_EXTENTS == 0 {
                be32(bytes, 76).into()
            } else {
                be64(bytes, 24)
            },
        })
    }

    /// Gives the runs that hold any of the file's blocks `from`..`to`, in order, to `visit`.
    pub(super) fn mappings<E: From<Fault>>(
        &self,
        volume: &dyn ReadAt,
        superblock: &Superblock,
        (from, to): (u64, u64),
        visit: &mut dyn FnMut(Mapping) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut search = Search {
            inode: self,
            volume,
            superblock,
            from,
            to,
            end: 0,
        };
        match self.format {
            Format::Device | Format::Local => Ok(()),
            Format::Extents => {
                let records = usize::try_from(self.extents)
                    .ok()
                    .filter(|count| *count <= self.fork.len() / FILE.record_len)
                    .ok_or_else(|| self.bad_extents())?;
                self.fork
                    .chunks_exact(FILE.record_len)
                    .take(records)
                    .try_for_each(|record| search.record(record, (0, u64::MAX), visit))
            }
            Format::Tree => search.root(visit),
        }
    }

    fn bad_extents(&self) -> Fault {
        damaged(format!("the extents of inode {} are wrong", self.number))
    }
}

/// Seconds and nanoseconds of 32 bits each, or nanoseconds since the least of those (bigtime).
fn timestamp(value: u64, big: bool) -> Option<Timestamp> {
    const SECOND: u64 = 1_000_000_000;
    let (seconds, nanoseconds) = if big {
        (
            i64::try_from(value / SECOND).ok()? + i64::from(i32::MIN),
            value % SECOND,
        )
    } else {
        // The upper half is signed.
        ((value.cast_signed()) >> 32, value & 0xffff_ffff)
    };
    (nanoseconds < SECOND).then_some(Timestamp {
        seconds,
        nanoseconds: nanoseconds as u32,
    })
}

/// A walk over the extents of an inode.
struct Search<'a> {
    inode: &'a Inode,
    volume: &'a dyn ReadAt,
    superblock: &'a Superblock,
    from: u64,
    to: u64,
    /// Where the run before ended.
    end: u64,
}

impl Search<'_> {
    /// An extent, which must lie within the keys `between`.
    fn record<E: From<Fault>>(
        &mut self,
        record: &[u8],
        between: (u64, u64),
        visit: &mut dyn FnMut(Mapping) -> Result<(), E>,
    ) -> Result<(), E> {
        // Unwritten: 1 bit, file block: 54, block: 52, count: 21.
        let (high, low) = (be64(record, 0), be64(record, 8));
        let offset = high << 1 >> 10;
        let block = (high & 0x1ff) << 43 | low >> 21;
        let count = low & 0x1f_ffff;
        let at = self.superblock.locate(block, count);
        let sane = offset >= self.end
            && offset >= between.0
            && count > 0
            && offset + count <= between.1
            && offset + count <= MAX_SIZE / self.superblock.block_size;
        let Some(at) = at.filter(|_| sane) else {
            return Err(self.inode.bad_extents().into());
        };
        self.end = offset + count;
        if offset >= self.to || self.end <= self.from {
            return Ok(());
        }
        visit(Mapping {
            offset,
            count,
            at,
            unwritten: high >> 63 == 1,
        })
    }

    /// The root of the tree is in the inode: level, count, keys, pointers.
    fn root<E: From<Fault>>(
        &mut self,
        visit: &mut dyn FnMut(Mapping) -> Result<(), E>,
    ) -> Result<(), E> {
        let inode = self.inode;
        let fork = &inode.fork;
        if fork.len() < 20 {
            return Err(inode.bad_extents().into());
        }
        let (level, count) = (u32::from(be16(fork, 0)), usize::from(be16(fork, 2)));
        let most = (fork.len() - 4) / 16;
        if !(1..MAX_LEVELS).contains(&level) || !(1..=most).contains(&count) {
            return Err(inode.bad_extents().into());
        }
        let (keys, children) = fork[4..].split_at(most * 8);
        let numbers = |bytes: &[u8]| -> Vec<u64> {
            let numbers = bytes.chunks_exact(8).take(count);
            numbers.map(|bytes| be64(bytes, 0)).collect()
        };
        self.children(level, &numbers(keys), &numbers(children), u64::MAX, visit)
    }

    /// The blocks below a node whose keys are not outside what is looked for.
    fn children<E: From<Fault>>(
        &mut self,
        level: u32,
        keys: &[u64],
        children: &[u64],
        end: u64,
        visit: &mut dyn FnMut(Mapping) -> Result<(), E>,
    ) -> Result<(), E> {
        let ends = keys.iter().skip(1).copied().chain([end]);
        for ((from, to), child) in keys.iter().copied().zip(ends).zip(children) {
            if from >= to {
                return Err(self.inode.bad_extents().into());
            }
            if from < self.to && to > self.from {
                self.descend(*child, level - 1, (from, to), visit)?;
            }
        }
        Ok(())
    }

    fn descend<E: From<Fault>>(
        &mut self,
        block: u64,
        level: u32,
        between: (u64, u64),
        visit: &mut dyn FnMut(Mapping) -> Result<(), E>,
    ) -> Result<(), E> {
        let inode = self.inode;
        let at = self.superblock.locate(block, 1);
        let place = Place {
            at: at.ok_or_else(|| inode.bad_extents())?,
            owner: inode.number,
            level,
        };
        let mut bytes = vec![0; self.superblock.block_size as usize];
        self.volume
            .read_at(place.at, &mut bytes)
            .map_err(Fault::from)?;
        let checked = Block::check(&FILE, self.superblock, &place, &bytes)?;
        if level == 0 {
            return checked
                .records()
                .try_for_each(|record| self.record(record, between, visit));
        }
        let keys: Vec<u64> = checked.keys().map(|key| be64(key, 0)).collect();
        let children: Vec<u64> = checked.children().collect();
        if keys.first().is_none_or(|first| *first < between.0) {
            return Err(inode.bad_extents().into());
        }
        self.children(level, &keys, &children, between.1, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_after_2038_are_kept() {
        let old = timestamp(0xffff_ffff_0000_0007, false).unwrap();
        assert_eq!((old.seconds, old.nanoseconds), (-1, 7));
        let offset = 1u64 << 31;
        let late = timestamp((offset + 5_000_000_000) * 1_000_000_000 + 9, true).unwrap();
        assert_eq!((late.seconds, late.nanoseconds), (5_000_000_000, 9));
        let least = timestamp(0, true).unwrap();
        assert_eq!(least.seconds, -(1 << 31));
        assert_eq!(timestamp(1_000_000_000, false), None);
    }
}
