//! The journal of a file system that was not unmounted: the blocks in it that the file system does not have
//! yet.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/journal.rst` and `include/linux/jbd2.h`. All numbers
//! are big endian.
//!
//! Invariant: only transactions with their commit count, in the order of their sequence, and a revoked block
//! is taken from no transaction up to the one that revoked it: what the kernel's own recovery does.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Reader, damaged};
use crate::filesystem::crc::crc32c;
use crate::filesystem::tree::TreeError;
use crate::filesystem::{ReadAt, ReadError};

const MAGIC: u32 = 0xc03b_3998;
/// The most blocks that are taken from a journal: 64 MiB of memory at worst.
const MAX_BLOCKS: usize = 1 << 21;

/// Kinds of blocks.
mod kind {
    pub(super) const DESCRIPTOR: u32 = 1;
    pub(super) const COMMIT: u32 = 2;
    pub(super) const REVOKE: u32 = 5;
}

/// `JBD2_FEATURE_INCOMPAT_`.
mod feature {
    pub(super) const WIDE: u32 = 0x2;
    pub(super) const CHECKSUM_2: u32 = 0x8;
    pub(super) const CHECKSUM_3: u32 = 0x10;
    /// revoke, 64bit, async_commit, csum_v2, csum_v3. Not fast commits, whose area is read differently.
    pub(super) const KNOWN: u32 = 0x1 | WIDE | 0x4 | CHECKSUM_2 | CHECKSUM_3;
}

/// Flags of a descriptor's tag.
mod tag {
    pub(super) const ESCAPED: u32 = 0x1;
    pub(super) const SAME_UUID: u32 = 0x2;
    pub(super) const LAST: u32 = 0x8;
}

/// A volume as it would be after the journal is replayed.
pub(super) struct Replayed {
    volume: Arc<dyn ReadAt + Send + Sync>,
    block_size: u64,
    /// Where the newer content of a block is, and whether its first word was changed there.
    newer: HashMap<u64, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    block: u64,
    escaped: bool,
}

impl ReadAt for Replayed {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done as u64);
            let (block, within) = (at / self.block_size, at % self.block_size);
            let mut len = self.until_newer(block, within, buffer.len() - done);
            let part = &mut buffer[done..done + len];
            match self.newer.get(&block) {
                None => self.volume.read_at(at, part)?,
                Some(place) => {
                    len = len.min((self.block_size - within) as usize);
                    let part = &mut part[..len];
                    self.volume
                        .read_at(place.block * self.block_size + within, part)?;
                    if place.escaped {
                        let magic = MAGIC.to_be_bytes();
                        for (byte, value) in part.iter_mut().zip(magic.iter().skip(within as usize))
                        {
                            *byte = *value;
                        }
                    }
                }
            }
            done += len;
        }
        Ok(())
    }
}

impl Replayed {
    /// Bytes from here to the next block that is in the journal, at most `len`.
    fn until_newer(&self, block: u64, within: u64, len: usize) -> usize {
        let mut end = self.block_size - within;
        let mut next = block + 1;
        while end < len as u64 && !self.newer.contains_key(&next) {
            end += self.block_size;
            next += 1;
        }
        usize::try_from(end).map_or(len, |end| end.min(len))
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a journal's superblock says.
struct Journal<'a> {
    reader: &'a Reader,
    inode: super::Inode,
    first: u64,
    end: u64,
    features: u32,
    seed: u32,
}

/// Reads the journal of a file system that says that it must be replayed.
pub(super) fn replay(reader: &Reader) -> Result<Replayed, TreeError> {
    let block_size = reader.superblock.block_size;
    let mut replayed = Replayed {
        volume: Arc::clone(&reader.volume),
        block_size,
        newer: HashMap::new(),
    };
    if reader.journal_inode == 0 {
        return Err(TreeError::Unsupported(
            "an ext file system whose journal is on another device".to_owned(),
        ));
    }
    let inode = reader.inode(u64::from(reader.journal_inode))?;
    let mut head = vec![0; block_size as usize];
    reader.read_file(&inode, 0, &mut head)?;
    let version = be32(&head, 4);
    let (first, end) = (u64::from(be32(&head, 20)), u64::from(be32(&head, 16)));
    let sound = be32(&head, 0) == MAGIC
        && matches!(version, 3 | 4)
        && u64::from(be32(&head, 12)) == block_size
        && first > 0
        && first < end
        && end <= reader.file_size(&inode) / block_size;
    if !sound {
        return Err(damaged("its journal has no sound superblock"));
    }
    let features = if version == 4 { be32(&head, 40) } else { 0 };
    if features & !feature::KNOWN != 0 {
        return Err(TreeError::Unsupported(format!(
            "a journal with the features {:#x} that must be replayed",
            features & !feature::KNOWN
        )));
    }
    let (sequence, start) = (be32(&head, 24), u64::from(be32(&head, 28)));
    if start == 0 {
        return Ok(replayed);
    }
    if start < first || start >= end {
        return Err(damaged("its journal begins outside itself"));
    }
    let journal = Journal {
        reader,
        inode,
        first,
        end,
        features,
        seed: crc32c(!0, &[&head[48..64]]),
    };
    replayed.newer = journal.newer(sequence, start)?;
    Ok(replayed)
}

/// One transaction's blocks as they come.
#[derive(Default)]
struct Transaction {
    written: Vec<(u64, Place)>,
    revoked: Vec<u64>,
}

impl Journal<'_> {
    fn newer(&self, mut sequence: u32, start: u64) -> Result<HashMap<u64, Place>, TreeError> {
        let mut written: Vec<(u32, u64, Place)> = Vec::new();
        // The last transaction, counted from the first, that revoked a block.
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let mut transaction = Transaction::default();
        let mut number = 0;
        let mut at = start;
        let mut left = self.end - self.first;
        while left > 0 {
            let block = self.block(at)?;
            left -= 1;
            at = self.after(at);
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            match be32(&block, 4) {
                kind::DESCRIPTOR if self.is_sound(&block, block.len() - 4) => {
                    for (target, escaped) in self.tags(&block) {
                        let place = Place {
                            block: self.physical(at)?,
                            escaped,
                        };
                        transaction.written.push((target, place));
                        left = left.saturating_sub(1);
                        at = self.after(at);
                    }
                }
                kind::REVOKE if self.is_sound(&block, block.len() - 4) => {
                    transaction.revoked.extend(self.revocations(&block));
                }
                kind::COMMIT if self.is_sound(&block, 16) => {
                    for block in transaction.revoked.drain(..) {
                        revoked.insert(block, number);
                    }
                    let done = transaction.written.drain(..);
                    written.extend(done.map(|(target, place)| (number, target, place)));
                    sequence = sequence.wrapping_add(1);
                    number += 1;
                }
                _ => break,
            }
            if written.len() + transaction.written.len() + revoked.len() > MAX_BLOCKS {
                return Err(TreeError::Unsupported(
                    "a journal of so many blocks".to_owned(),
                ));
            }
        }
        let mut newer = HashMap::new();
        for (number, target, place) in written {
            if revoked.get(&target).is_none_or(|until| *until < number) {
                newer.insert(target, place);
            }
        }
        Ok(newer)
    }

    const fn after(&self, at: u64) -> u64 {
        if at + 1 >= self.end {
            self.first
        } else {
            at + 1
        }
    }

    fn physical(&self, at: u64) -> Result<u64, TreeError> {
        self.reader
            .map(&self.inode, at)?
            .physical
            .ok_or_else(|| damaged("its journal has a hole"))
    }

    fn block(&self, at: u64) -> Result<Vec<u8>, TreeError> {
        self.reader.block(self.physical(at)?)
    }

    const fn has_checksums(&self) -> bool {
        self.features & (feature::CHECKSUM_2 | feature::CHECKSUM_3) != 0
    }

    /// Whether the checksum at byte `at` is that of the block with zeros in its place.
    fn is_sound(&self, block: &[u8], at: usize) -> bool {
        !self.has_checksums()
            || crc32c(self.seed, &[&block[..at], &[0; 4], &block[at + 4..]]) == be32(block, at)
    }

    /// The block numbers of a descriptor and whether their first word was changed.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool)> {
        let wide = self.features & feature::WIDE != 0;
        let third = self.features & feature::CHECKSUM_3 != 0;
        let second = self.features & feature::CHECKSUM_2 != 0;
        let len = match (third, second, wide) {
            (true, _, _) => 16,
            (_, true, true) => 14,
            (_, true, false) => 10,
            (_, _, true) => 12,
            (_, _, false) => 8,
        };
        let end = block.len() - if self.has_checksums() { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + len <= end {
            let tag = &block[at..at + len];
            let flags = if third {
                be32(tag, 4)
            } else {
                u32::from(u16::from_be_bytes([tag[6], tag[7]]))
            };
            let high = if wide { u64::from(be32(tag, 8)) } else { 0 };
            let number = u64::from(be32(tag, 0)) | high << 32;
            tags.push((number, flags & tag::ESCAPED != 0));
            if flags & tag::LAST != 0 {
                break;
            }
            at += len + if flags & tag::SAME_UUID == 0 { 16 } else { 0 };
        }
        tags
    }

    fn revocations(&self, block: &[u8]) -> Vec<u64> {
        let len = if self.features & feature::WIDE != 0 {
            8
        } else {
            4
        };
        let end = (be32(block, 12) as usize).min(block.len());
        let numbers = block.get(16..end).unwrap_or_default().chunks_exact(len);
        numbers
            .map(|number| match number {
                [a, b, c, d] => u64::from(u32::from_be_bytes([*a, *b, *c, *d])),
                _ => u64::from(be32(number, 0)) << 32 | u64::from(be32(number, 4)),
            })
            .collect()
    }
}
