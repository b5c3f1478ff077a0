//! Compressed extents: zlib, LZO and zstd, as Btrfs frames them.
//!
//! Invariant: an extent gives at most [`MAX_LEN`] bytes, whatever it says; what it does not give is zeros,
//! as in the kernel (`fs/btrfs/compression.c`).

use flate2::{Decompress, FlushDecompress};

use super::Fault;
use crate::little_endian::le32;

/// The most bytes that a compressed extent holds, compressed or not (`BTRFS_MAX_UNCOMPRESSED`).
pub(super) const MAX_LEN: usize = 128 << 10;
/// The largest window that Btrfs writes (`ZSTD_BTRFS_MAX_WINDOWLOG`).
const MAX_WINDOW_LOG: u32 = 17;

/// The content of an extent of `len` bytes, at most [`MAX_LEN`].
pub(super) fn decompress(
    kind: u8,
    input: &[u8],
    len: usize,
    sector: usize,
) -> Result<Vec<u8>, Fault> {
    if len > MAX_LEN {
        return Err(Fault::damaged(format!(
            "a compressed extent of {len} bytes"
        )));
    }
    let mut output = vec![0; len];
    let fits = match kind {
        1 => Decompress::new(true)
            .decompress(input, &mut output, FlushDecompress::None)
            .is_ok(),
        2 => lzo_segments(input, &mut output, sector).is_some(),
        3 => zstd(input, &mut output).is_ok(),
        _ => return Err(Fault::Unsupported(format!("compression of kind {kind}"))),
    };
    if fits {
        Ok(output)
    } else {
        Err(Fault::damaged(
            "a compressed extent that cannot be decompressed",
        ))
    }
}

fn zstd(input: &[u8], output: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    let mut filled = 0;
    while filled < output.len() {
        match decoder.read(&mut output[filled..])? {
            0 => break,
            len => filled += len,
        }
    }
    Ok(())
}

/// `fs/btrfs/lzo.c`: the length of all, then segments of at most a sector each, each after its length; a
/// length never crosses the border of a sector.
fn lzo_segments(input: &[u8], output: &mut [u8], sector: usize) -> Option<()> {
    let total = le32(input.get(..4)?, 0) as usize;
    let input = input.get(..total)?;
    let mut at = 4;
    for segment in output.chunks_mut(sector) {
        let left = sector - at % sector;
        if left < 4 {
            at += left;
        }
        if at >= input.len() {
            break;
        }
        let len = le32(input.get(at..at + 4)?, 0) as usize;
        at += 4;
        lzo(input.get(at..at.checked_add(len)?)?, segment)?;
        at += len;
    }
    Some(())
}

/// LZO1X, as the kernel's `Documentation/staging/lzo.rst` describes it, until its end or that of `output`.
fn lzo(input: &[u8], output: &mut [u8]) -> Option<()> {
    let mut bytes = Bytes { input, at: 0 };
    let mut filled = 0;
    // How many literals the last instruction copied; 4 stands for more than 3.
    let mut state = 0;
    if let Some(first @ 18..) = input.first() {
        bytes.at = 1;
        let len = usize::from(first - 17);
        literals(&mut bytes, output, &mut filled, len)?;
        state = len.min(4);
    }
    loop {
        if filled == output.len() {
            return Some(());
        }
        let code = usize::from(bytes.next()?);
        let (len, distance, trailing) = match code {
            0..16 if state == 0 => {
                let len = 3 + if code == 0 { bytes.length(15)? } else { code };
                literals(&mut bytes, output, &mut filled, len)?;
                state = 4;
                continue;
            }
            0..16 => {
                let high = usize::from(bytes.next()?) << 2;
                let (len, base) = if state == 4 { (3, 2049) } else { (2, 1) };
                (len, high + (code >> 2) + base, code & 3)
            }
            16..32 => {
                let len = 2 + match code & 7 {
                    0 => bytes.length(7)?,
                    len => len,
                };
                let word = bytes.word()?;
                let distance = 16384 + ((code & 8) << 11) + (word >> 2);
                if distance == 16384 {
                    return Some(());
                }
                (len, distance, word & 3)
            }
            32..64 => {
                let len = 2 + match code & 31 {
                    0 => bytes.length(31)?,
                    len => len,
                };
                let word = bytes.word()?;
                (len, (word >> 2) + 1, word & 3)
            }
            _ => {
                let len = if code < 128 {
                    3 + (code >> 5 & 1)
                } else {
                    5 + (code >> 5 & 3)
                };
                let high = usize::from(bytes.next()?) << 3;
                (len, high + (code >> 2 & 7) + 1, code & 3)
            }
        };
        for _ in 0..len.min(output.len() - filled) {
            output[filled] = output[filled.checked_sub(distance)?];
            filled += 1;
        }
        literals(&mut bytes, output, &mut filled, trailing)?;
        state = trailing;
    }
}

fn literals(
    bytes: &mut Bytes<'_>,
    output: &mut [u8],
    filled: &mut usize,
    len: usize,
) -> Option<()> {
    let len = len.min(output.len() - *filled);
    let from = bytes.input.get(bytes.at..bytes.at.checked_add(len)?)?;
    output[*filled..*filled + len].copy_from_slice(from);
    bytes.at += len;
    *filled += len;
    Some(())
}

/// Compressed bytes, read in order.
struct Bytes<'a> {
    input: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.input.get(self.at)?;
        self.at += 1;
        Some(*byte)
    }

    fn word(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes([
            self.next()?,
            self.next()?,
        ])))
    }

    /// A long length: `base`, 255 for each zero, and the byte that ends it.
    fn length(&mut self, base: usize) -> Option<usize> {
        let mut len = base;
        loop {
            match self.next()? {
                0 => len = len.checked_add(255)?,
                last => return len.checked_add(usize::from(last)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lzo_copies_literals_and_matches_until_its_end() {
        // Four literals, a match of 6 at distance 4, the end.
        let input = [
            21,
            b'a',
            b'b',
            b'c',
            b'd',
            128 | 1 << 5 | 3 << 2,
            0,
            17,
            0,
            0,
        ];
        let mut output = [0; 12];
        lzo(&input, &mut output).unwrap();
        assert_eq!(&output, b"abcdabcdab\0\0");
    }

    #[test]
    fn a_match_before_the_beginning_is_damage() {
        assert_eq!(
            lzo(&[21, 1, 2, 3, 4, 128 | 1 << 5, 9, 17, 0, 0], &mut [0; 12]),
            None
        );
    }
}
