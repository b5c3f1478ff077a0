//! What fuzzing sees of the store's formats. Compiled for tests and fuzzing only.

use backup::Digest;
use backup::chunk::RecordHeader;

use super::pack::{PackId, PackIndex, check_pack_header};
use super::record::{Checker, pack_record_at, record_at};

/// Reads bytes as a record, as the head of a pack and as an index.
///
/// # Panics
/// When what was read is not written to the same bytes.
pub(crate) fn store_files(bytes: &[u8]) {
    let id = PackId(1);
    let _ = check_pack_header(bytes, id);
    if let Ok((header, frame)) = record_at(bytes, 0) {
        let mut checker = Checker::new().expect("a decoder");
        if checker.decode(&header, frame).is_ok() {
            assert_eq!(header.encode(), bytes[..RecordHeader::LEN]);
        }
    }
    if let Ok(record) = pack_record_at(bytes, 0) {
        let mut checker = Checker::new().expect("a decoder");
        assert_eq!(record.header.encode(), bytes[..RecordHeader::LEN]);
        assert_eq!(record.base.is_some(), record.header.stored.is_difference());
        if checker.set_base(&record.header, record.frame).is_ok() {
            let _ = checker.decode_difference(&record.header, record.frame);
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
        let again = PackIndex::decode(&read.encode(), id).expect("what was just encoded");
        assert_eq!(
            (again.pack_len, again.entries),
            (read.pack_len, read.entries)
        );
    }
}
