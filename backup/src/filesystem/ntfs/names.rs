//! Names, kept as UTF-16LE.

/// UTF-8; half of a surrogate pair, which Windows allows in names, is encoded by itself, so that different
/// names stay different.
pub(super) fn utf8(utf16: &[u8]) -> Vec<u8> {
    let units = utf16
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let mut bytes = Vec::with_capacity(utf16.len());
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(char) => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let unit = half.unpaired_surrogate();
                // Three bytes of 4, 6 and 6 bits.
                let [low, high] = unit.to_le_bytes();
                bytes.extend([
                    0xe0 | high >> 4,
                    0x80 | (unit >> 6 & 0x3f) as u8,
                    0x80 | low & 0x3f,
                ]);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_utf8_and_half_pairs_stay_apart() {
        let utf16 = |units: &[u16]| -> Vec<u8> {
            units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
        };
        let text: Vec<u16> = "aä€😀".encode_utf16().collect();
        assert_eq!(utf8(&utf16(&text)), "aä€😀".as_bytes());
        assert_eq!(utf8(&utf16(&[0x61, 0xd83d])), b"a\xed\xa0\xbd");
        assert_ne!(utf8(&utf16(&[0xd83d])), utf8(&utf16(&[0xd83e])));
    }
}
