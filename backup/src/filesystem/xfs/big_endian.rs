//! Big-endian fields at fixed places of on-disk structures.
//!
//! Invariant: the caller has checked that the structure is long enough; every offset here is a
//! constant of the format or the place of a record that was checked to lie inside its block.

/// The 16-bit field at byte `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit field at byte `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// The 64-bit field at byte `at`.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
