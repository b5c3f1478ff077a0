//! What a backup is: units, digests, chunks, the manifest of a restore point, disk layouts and the
//! plans made from them.
//!
//! Invariant: nothing here does I/O. No file, socket, clock, randomness or async; bytes and values
//! in, bytes and values out. A `clippy.toml` beside this crate keeps it so. What is *not* here:
//! reading disks (`agent`), keeping chunks (`netboot`), the wire (`protocol`).

pub mod chunk;
pub mod digest;
pub mod filesystem;
pub mod gpt;
pub mod hardware;
pub mod identity;
pub mod layout;
mod little_endian;
pub mod lvm;
pub mod manifest;
pub mod mbr;
pub mod member;
pub mod plan;
pub mod system;
pub mod units;

pub use digest::Digest;
pub use units::{ByteRange, Lba, SectorSize};
