//! The checksum that ext4, XFS and Btrfs share.

/// The kernel's `crc32c(seed, bytes)`: without the final inversion of the published algorithm.
pub(crate) fn crc32c(seed: u32, parts: &[&[u8]]) -> u32 {
    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    // The crate takes the initial value in the algorithm's unreflected form.
    let mut digest = CRC.digest_with_initial(seed.reverse_bits());
    for part in parts {
        digest.update(part);
    }
    !digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernels() {
        // Check value of the published algorithm over "123456789".
        assert_eq!(!crc32c(!0, &[b"12345", b"6789"]), 0xe306_9283);
        // Chaining by seed is the same as one run.
        assert_eq!(
            crc32c(crc32c(!0, &[b"12345"]), &[b"6789"]),
            crc32c(!0, &[b"123456789"])
        );
    }
}
