//! Extended attributes: behind the inode, in a block of their own, and in inodes of their own.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/attributes.rst`, `fs/ext4/xattr.h` and
//! `fs/ext4/acl.h`, little endian:
//!
//! ```text
//! in an inode   magic:u32 | entries, whose values count from the first entry
//! in a block    magic:u32 references:u32 blocks:u32 hash:u32 crc:u32 [u8; 12] | entries, whose values
//!               count from the block's start
//! entry         name length:u8 prefix:u8 offset:u16 inode:u32 size:u32 hash:u32 name, filled up to four
//! ```
//!
//! Access lists are given as the kernel gives them to programs (`linux/posix_acl_xattr.h`), not as they lie
//! on the disk.

use super::inode::{ATTRIBUTES_MAGIC, Inode};
use super::{Reader, damaged, feature};
use crate::filesystem::crc::crc32c;
use crate::filesystem::tree::{Attribute, TreeError};
use crate::little_endian::{le16, le32};

/// Bytes before the entries of a block.
const HEADER: usize = 32;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// The longest value that programs can read or write (`XATTR_SIZE_MAX`).
const MAX_VALUE: u32 = 64 << 10;
/// The most bytes of all values of one file.
const MAX_VALUES: usize = 1 << 20;

impl Reader {
    /// The extended attributes of a file or folder.
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Vec<Attribute>, TreeError> {
        let mut found = Vec::new();
        if let Some(area) = inode.attribute_area() {
            self.add(inode, (area, 0), &mut found)?;
        }
        let wide = self.incompatible & feature::WIDE != 0;
        let number = inode.attribute_block(wide);
        if number != 0 {
            let mut block = self.block(number)?;
            if le32(&block, 0) != ATTRIBUTES_MAGIC || le32(&block, 8) != 1 {
                return Err(broken(inode));
            }
            if let Some(seed) = self.seed {
                let expected = le32(&block, 16);
                block[16..20].fill(0);
                let sum = crc32c(seed, &[&number.to_le_bytes(), &block]);
                if sum != expected {
                    return Err(damaged(format!(
                        "the attributes in block {number} have the checksum {sum:08x} (expected {expected:08x})"
                    )));
                }
            }
            self.add(inode, (&block, HEADER), &mut found)?;
        }
        Ok(found)
    }

    /// Adds what an area holds from its entry at `at` on.
    fn add(
        &self,
        inode: &Inode,
        (area, mut at): (&[u8], usize),
        found: &mut Vec<Attribute>,
    ) -> Result<(), TreeError> {
        let mut total: usize = found.iter().map(|one| one.value.len()).sum();
        // Each round moves on by at least 16 bytes. A list that fills its area has no end.
        while let Some(entry) = area.get(at..at + ENTRY) {
            if le32(entry, 0) == 0 {
                break;
            }
            let name_at = at + ENTRY;
            let name = area.get(name_at..name_at + usize::from(entry[0]));
            let name = name.ok_or_else(|| broken(inode))?;
            at = name_at + name.len().next_multiple_of(4);
            let Some(name) = full_name(entry[1], name) else {
                continue;
            };
            let (from, place, len) = (le16(entry, 2), le32(entry, 4), le32(entry, 8));
            total = total.saturating_add(len as usize);
            if len > MAX_VALUE || total > MAX_VALUES {
                return Err(damaged(format!(
                    "an attribute of inode {} has {len} bytes",
                    inode.number
                )));
            }
            let value = if place == 0 {
                let from = usize::from(from);
                let part = area.get(from..from + len as usize);
                part.ok_or_else(|| broken(inode))?.to_vec()
            } else {
                self.value_in_inode(place, len)?
            };
            let value = if name.starts_with(b"system.posix_acl_") {
                access_list(&value).ok_or_else(|| broken(inode))?
            } else {
                value
            };
            found.push(Attribute { name, value });
        }
        Ok(())
    }

    /// A long value, which is the content of an inode of its own.
    fn value_in_inode(&self, number: u32, len: u32) -> Result<Vec<u8>, TreeError> {
        let inode = self.inode(u64::from(number))?;
        // At most 64 KiB.
        let mut value = vec![0; len as usize];
        let read = self.read_file(&inode, 0, &mut value)?;
        if read < value.len() {
            return Err(damaged(format!(
                "inode {number} holds {read} bytes of an attribute of {len}"
            )));
        }
        Ok(value)
    }
}

fn broken(inode: &Inode) -> TreeError {
    damaged(format!(
        "the attributes of inode {} are no list",
        inode.number
    ))
}

/// The name with its prefix (`EXT4_XATTR_INDEX_`); none for what the file system keeps for itself.
fn full_name(prefix: u8, name: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match prefix {
        1 => b"user.",
        2 if name.is_empty() => b"system.posix_acl_access",
        3 if name.is_empty() => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        // Content that is kept in the inode is no attribute of the file.
        7 if name != b"data" => b"system.",
        8 if name.is_empty() => b"system.richacl",
        _ => return None,
    };
    let full = [prefix, name].concat();
    (!full.contains(&0)).then_some(full)
}

/// An access list as programs get it: version 2, and a number with every entry.
fn access_list(disk: &[u8]) -> Option<Vec<u8>> {
    const OWN_VERSION: u32 = 1;
    const VERSION: u32 = 2;
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    if disk.len() < 4 || le32(disk, 0) != OWN_VERSION {
        return None;
    }
    let mut list = VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let entry = rest.get(..4)?;
        let tag = le16(entry, 0);
        let named = matches!(tag, USER | GROUP);
        let number = if named {
            le32(rest.get(..8)?, 4)
        } else {
            u32::MAX
        };
        list.extend_from_slice(entry);
        list.extend_from_slice(&number.to_le_bytes());
        rest = &rest[if named { 8 } else { 4 }..];
    }
    Some(list)
}
