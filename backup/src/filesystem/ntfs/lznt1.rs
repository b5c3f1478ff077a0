//! LZNT1, the compression of files in NTFS (MS-XCA, §2.5).
//!
//! A unit is a sequence of chunks, each of 4096 bytes when expanded and with a 16-bit header: its length
//! less one in the lower 12 bits, 3 in the next three, and in the highest whether it is compressed. A
//! compressed chunk is groups of a byte of flags and eight elements: a byte, or 16 bits with distance and
//! length, whose border moves as the chunk grows.
//!
//! Invariant: the output is never longer than it was asked to be, and no element reaches before its chunk.

/// Bytes of a chunk when expanded.
const CHUNK: usize = 4096;

/// Expands `input` into exactly `len` bytes: what it does not fill is zeros. `None` when it is damaged.
pub(super) fn expand(input: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut output = Vec::with_capacity(len);
    let mut rest = input;
    while output.len() < len && rest.len() >= 2 {
        let header = u16::from_le_bytes([rest[0], rest[1]]);
        if header == 0 {
            break;
        }
        let size = usize::from(header & 0xfff) + 1;
        let chunk = rest.get(2..2 + size)?;
        rest = &rest[2 + size..];
        if header >> 12 & 7 != 3 {
            return None;
        }
        // A chunk that ends early is followed by zeros up to the next one.
        let start = output.len();
        if header & 0x8000 == 0 {
            output.extend_from_slice(chunk.get(..chunk.len().min(len - start))?);
        } else {
            expand_chunk(chunk, &mut output, (start + CHUNK).min(len))?;
        }
        if !rest.is_empty() {
            output.resize((start + CHUNK).min(len), 0);
        }
    }
    output.resize(len, 0);
    Some(output)
}

fn expand_chunk(mut chunk: &[u8], output: &mut Vec<u8>, end: usize) -> Option<()> {
    let start = output.len();
    while let Some((flags, rest)) = chunk.split_first() {
        chunk = rest;
        for bit in 0..8 {
            if output.len() >= end || chunk.is_empty() {
                break;
            }
            if flags >> bit & 1 == 0 {
                output.push(chunk[0]);
                chunk = &chunk[1..];
                continue;
            }
            let element = usize::from(u16::from_le_bytes([chunk[0], *chunk.get(1)?]));
            chunk = &chunk[2..];
            let length_bits = length_bits(output.len() - start)?;
            let distance = (element >> length_bits) + 1;
            let count = (element & ((1 << length_bits) - 1)) + 3;
            let from = output
                .len()
                .checked_sub(distance)
                .filter(|from| *from >= start)?;
            // It may reach into what it writes itself.
            for at in from..from + count.min(end - output.len()) {
                output.push(output[at]);
            }
        }
        if output.len() >= end {
            break;
        }
    }
    Some(())
}

/// How many bits of an element are its length, when the chunk has `position` bytes: distances that do not
/// occur yet need no bits.
fn length_bits(position: usize) -> Option<u32> {
    let last = position.checked_sub(1)?;
    let distance_bits = (usize::BITS - last.leading_zeros()).max(4);
    16_u32.checked_sub(distance_bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    /// A compressor that takes the longest near match: another way of saying the format.
    fn compress(input: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        for chunk in input.chunks(CHUNK) {
            let mut body = Vec::new();
            let mut at = 0;
            while at < chunk.len() {
                let (flags_at, mut flags) = (body.len(), 0_u8);
                body.push(0);
                for bit in 0..8 {
                    if at >= chunk.len() {
                        break;
                    }
                    // The number of bits as MS-XCA's pseudo-code counts it.
                    let mut distance_bits = 4;
                    while 1 << distance_bits < at {
                        distance_bits += 1;
                    }
                    let most = (1 << (16 - distance_bits)) + 2;
                    let best = (at.saturating_sub(300)..at)
                        .map(|from| {
                            let same = (at..chunk.len())
                                .take(most)
                                .take_while(|to| chunk[*to] == chunk[from + to - at])
                                .count();
                            (same, from)
                        })
                        .max();
                    match best {
                        Some((count, from)) if count >= 3 => {
                            let element = (at - from - 1) << (16 - distance_bits) | (count - 3);
                            body.extend((element as u16).to_le_bytes());
                            flags |= 1 << bit;
                            at += count;
                        }
                        _ => {
                            body.push(chunk[at]);
                            at += 1;
                        }
                    }
                }
                body[flags_at] = flags;
            }
            if body.len() >= chunk.len() {
                output.extend((0x3000 | (chunk.len() - 1) as u16).to_le_bytes());
                output.extend_from_slice(chunk);
            } else {
                output.extend((0xb000 | (body.len() - 1) as u16).to_le_bytes());
                output.extend(body);
            }
        }
        output
    }

    #[test]
    fn the_example_of_the_specification_expands() {
        // MS-XCA §3.3.
        let input = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2,
            0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let expected = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D \
                        E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let output = expand(&input, expected.len()).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn damage_is_found() {
        // A distance before the chunk, a chunk behind the end, a wrong signature.
        assert_eq!(expand(&[0x03, 0xb0, 0x02, 0x41, 0x00, 0xf0], 64), None);
        assert_eq!(expand(&[0xff, 0xb0, 0x00], 64), None);
        assert_eq!(expand(&[0x00, 0x80, 0x00], 64), None);
        assert_eq!(expand(&[], 3), Some(vec![0; 3]));
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(48))]

        #[test]
        fn what_was_compressed_comes_back(
            words in proptest::collection::vec((0usize..6, 1usize..200), 0..60),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = noise;
            for (word, count) in words {
                let text = ["a", "netboot ", "\0", "restore point", "xyz", "\r\n"][word];
                bytes.extend(text.bytes().cycle().take(count));
            }
            prop_assert_eq!(expand(&compress(&bytes), bytes.len()), Some(bytes));
        }

        #[test]
        fn any_bytes_expand_to_the_length_asked_or_are_damaged(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            len in 0usize..10_000,
        ) {
            if let Some(output) = expand(&bytes, len) {
                prop_assert_eq!(output.len(), len);
            }
        }
    }
}
