//! The names in a folder. Hashed folders are read like plain ones: their index lies in what plain readers
//! take for unused entries.

use super::inode::{Inode, flag};
use super::{Reader, damaged, feature, node_id};
use crate::filesystem::crc::crc32c;
use crate::filesystem::tree::{Entry, TreeError};
use crate::little_endian::{le16, le32};

type Visit<'a> = &'a mut dyn FnMut(Entry) -> Result<(), TreeError>;

impl Reader {
    /// Gives each name of a folder but `.` and `..`.
    pub(super) fn entries(&self, folder: &Inode, visit: Visit<'_>) -> Result<(), TreeError> {
        if folder.has(flag::INLINE_DATA) {
            // The first four bytes are the folder above.
            let size = self.file_size(folder);
            self.list(folder, &folder.block()[4..], visit)?;
            let rest = folder.inline_rest()?;
            return if size > folder.block().len() as u64 && !rest.is_empty() {
                self.list(folder, rest, visit)
            } else {
                Ok(())
            };
        }
        let size = self.superblock.block_size;
        let blocks = self.file_size(folder).div_ceil(size);
        if blocks > self.superblock.blocks {
            return Err(damaged(format!(
                "the folder in inode {} is longer than the volume",
                folder.number
            )));
        }
        let mut at = 0;
        while at < blocks {
            let run = self.map(folder, at)?;
            let count = run.len.min(blocks - at);
            if let Some(first) = run.physical {
                for number in first..first + count {
                    let block = self.block(number)?;
                    self.check_block(folder, &block)?;
                    self.list(folder, &block, visit)?;
                }
            }
            at += count;
        }
        Ok(())
    }

    /// The checksum in the last twelve bytes, which look like an unused entry; index blocks have theirs
    /// elsewhere.
    fn check_block(&self, folder: &Inode, block: &[u8]) -> Result<(), TreeError> {
        let Some((seed, tail_at)) = folder.seed.zip(block.len().checked_sub(12)) else {
            return Ok(());
        };
        let tail = &block[tail_at..];
        let is_tail = le32(tail, 0) == 0 && le16(tail, 4) == 12 && tail[6..8] == [0, 0xde];
        if is_tail && crc32c(seed, &[&block[..tail_at]]) != le32(tail, 8) {
            return Err(damaged(format!(
                "a block of the folder in inode {} has a wrong checksum",
                folder.number
            )));
        }
        Ok(())
    }

    fn list(&self, folder: &Inode, mut bytes: &[u8], visit: Visit<'_>) -> Result<(), TreeError> {
        let broken = || damaged(format!("the folder in inode {} is no list", folder.number));
        while !bytes.is_empty() {
            if bytes.len() < 8 {
                return Err(broken());
            }
            let raw = usize::from(le16(bytes, 4));
            // Blocks of 64 KiB: two bits above the sixteen, and 0 or 65535 for all of it.
            let len = match raw {
                0 | 0xffff => bytes.len(),
                _ => (raw & 0xfffc) | (raw & 3) << 16,
            };
            let name_len = if self.incompatible & feature::FILE_TYPE != 0 {
                usize::from(bytes[6])
            } else {
                usize::from(le16(bytes, 6))
            };
            let number = le32(bytes, 0);
            let fits = len >= 8 && len <= bytes.len() && (number == 0 || 8 + name_len <= len);
            if !fits {
                return Err(broken());
            }
            if number != 0 {
                let name = &bytes[8..8 + name_len];
                if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                    return Err(broken());
                }
                if name != b"." && name != b".." {
                    visit(Entry {
                        name: name.to_vec(),
                        node: node_id(u64::from(number)),
                    })?;
                }
            }
            bytes = &bytes[len..];
        }
        Ok(())
    }
}
