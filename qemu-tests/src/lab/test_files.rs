//! Bulk data of the source machine: files whose bytes are the same on every computer.
//!
//! Half of it does not compress, half does, some of it is there twice, so that storing, compressing and
//! deduplicating all have something to do. Odd owners, modes and names are made in `source/customize.sh`.

use std::fs;
use std::io;
use std::path::Path;

/// Files of each kind.
const FILES: u64 = 8;
/// Bytes of each file, before the odd bytes that keep it from ending on a block.
const SIZE: usize = 3 << 20;

/// Writes the data under `directory`, about 51 MiB.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for number in 0..FILES {
        let size = SIZE + number as usize * 37;
        fs::write(
            directory.join(format!("noise-{number:02}.bin")),
            noise(number, size),
        )?;
        fs::write(
            directory.join(format!("text-{number:02}.txt")),
            text(number, size),
        )?;
    }
    fs::copy(
        directory.join("noise-00.bin"),
        directory.join("copy of noise-00.bin"),
    )?;
    Ok(())
}

/// Xorshift64* (Marsaglia 2003; Vigna 2016): bytes that do not compress.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 80);
    let mut line = 0u64;
    while bytes.len() < size {
        bytes.extend_from_slice(
            format!("file {seed:02} line {line:08}: the same words again\n").as_bytes(),
        );
        line += 1;
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_depend_on_the_seed_alone() {
        assert_eq!(noise(3, 1000), noise(3, 1000));
        assert_ne!(noise(3, 1000), noise(4, 1000));
        assert_eq!(text(1, 99).len(), 99);
    }
}
