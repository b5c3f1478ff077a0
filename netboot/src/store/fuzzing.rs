//! What fuzzing sees of the store's formats. Compiled for tests and fuzzing only.

use backup::Digest;
use backup::chunk::RecordHeader;

use super::pack::{PackId, PackIndex, check_pack_header};
use super::record::{Checker, record_at};

/// Reads bytes as a record, as the head of a pack and as an index.
///
/// # Panics
/// When what was read is not written to the same bytes.
pub(crate) fn store_files(bytes: &[u8]) {
    let id = PackId(1);
    let _ = check_pack_header(bytes, id);
    if let Ok((header, frame)) = record_at(bytes, 0) {
        let mut checker = Checker::new().expect("a decoder");
        if checker.check(&header, frame).is_ok() {
            assert_eq!(header.encode(), bytes[..RecordHeader::LEN]);
        }
    }
    // With the right checksum, so that what is behind it is reached.
    let mut index = bytes.to_vec();
    index.extend_from_slice(Digest::of(bytes).as_bytes());
    if let Ok(read) = PackIndex::decode(&index, id) {
        assert!(
            read.entries
                .iter()
                .all(|entry| entry.end() <= read.pack_len)
        );
        assert_eq!(PackIndex::decode(&read.encode(), id), Ok(read));
    }
}
