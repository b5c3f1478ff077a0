//! The log: whether the file system was unmounted cleanly, so that nothing in it must be replayed.
//!
//! The log is a ring of 512-byte blocks. Each bears the number of the round in which it was written, in
//! its first four bytes or, in the header of a record, after the magic number. The head is where the
//! number drops. The log is clean when the record before the head is nothing but an unmount record
//! (`xlog_find_head` and `xlog_check_unmount_rec` in the kernel's `xfs_log_recover.c`). mkfs and
//! xfs_repair write such a record too.
//!
//! Invariant: stricter than the kernel, which looks for the head by halves: all blocks are read, and a
//! number that rises, or drops by more than one, is no clean log. Blocks that were never written bear 0.

use super::big_endian::{be32, be64};
use super::superblock::Superblock;
use super::{Fault, damaged, unsupported};
use crate::filesystem::ReadAt;

const BLOCK: u64 = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// How much of a record's rounds fit in one header.
const HEADER_COVERS: u32 = 32 << 10;
const UNMOUNT: u8 = 0x20;
const CLIENT_LOG: u8 = 0xaa;
/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// Where the head is, and the record header before it.
struct Head {
    block: u64,
    record: u64,
}

/// Refuses a log with anything to replay.
pub(super) fn check_clean(volume: &dyn ReadAt, superblock: &Superblock) -> Result<(), Fault> {
    if superblock.log_start == 0 {
        return Err(unsupported("its log is on another device"));
    }
    let start = superblock
        .locate(superblock.log_start, superblock.log_blocks)
        .ok_or_else(|| damaged("its log is outside the file system"))?;
    let blocks = superblock.log_blocks * superblock.block_size / BLOCK;
    let head = find_head(volume, start, blocks)?;
    let mut header = [0; BLOCK as usize];
    volume.read_at(start + head.record * BLOCK, &mut header)?;
    let (version, len, number) = (be32(&header, 8), be32(&header, 12), be64(&header, 16));
    let known = matches!(version, 1 | 2)
        && number == u64::from(be32(&header, 4)) << 32 | head.record
        && header[304..320] == superblock.uuid;
    if !known {
        return Err(damaged("the last record of its log is not one of its own"));
    }
    let mut header_blocks = 1;
    if superblock.log_v2 && version == 2 {
        header_blocks = u64::from(be32(&header, 320).div_ceil(HEADER_COVERS).max(1));
    }
    let end = head.record + header_blocks + u64::from(len).div_ceil(BLOCK);
    let mut operation = [0; BLOCK as usize];
    let at = (head.record + header_blocks) % blocks;
    volume.read_at(start + at * BLOCK, &mut operation)?;
    let clean = end % blocks == head.block % blocks
        && be32(&header, 40) == 1
        && operation[8] == CLIENT_LOG
        && operation[9] & UNMOUNT != 0;
    if clean {
        Ok(())
    } else {
        Err(unsupported("its log must be replayed first"))
    }
}

/// Whether round `next` comes after `round`.
fn follows(round: u32, next: u32) -> bool {
    round.checked_add(1) == Some(next)
}

fn find_head(volume: &dyn ReadAt, start: u64, blocks: u64) -> Result<Head, Fault> {
    let mut piece = vec![0; PIECE.min(blocks * BLOCK) as usize];
    let mut first = None;
    let mut previous = 0;
    let mut head = None;
    // The last record header before the head, and the last in all the log.
    let (mut before, mut last) = (None, None);
    let mut block = 0;
    while block < blocks {
        let count = (PIECE / BLOCK).min(blocks - block);
        let piece = &mut piece[..(count * BLOCK) as usize];
        volume.read_at(start + block * BLOCK, piece)?;
        for (number, bytes) in (block..).zip(piece.chunks_exact(BLOCK as usize)) {
            let is_record = be32(bytes, 0) == RECORD_MAGIC;
            let round = be32(bytes, if is_record { 4 } else { 0 });
            let first = *first.get_or_insert(round);
            if number > 0 && round != previous {
                let drops = previous == first && (round == 0 || follows(round, first));
                // xfs_repair and xfs_db leave zeros behind the unmount record, then the round before.
                let ends_zeros = head.is_some() && previous == 0 && follows(round, first);
                match head {
                    None if drops => head = Some(number),
                    Some(_) if ends_zeros => {}
                    _ => return Err(unsupported("its log was written in part")),
                }
            }
            previous = round;
            if is_record {
                last = Some(number);
                if head.is_none() {
                    before = last;
                }
            }
        }
        block += count;
    }
    if first == Some(0) {
        return Err(damaged("its log is empty"));
    }
    let Some(record) = before.or(last) else {
        return Err(damaged("its log has no record"));
    };
    Ok(Head {
        block: head.unwrap_or(blocks),
        record,
    })
}
