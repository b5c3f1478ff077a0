//! Chunk lists and record headers: read without a panic, written to the bytes they were read from.

#![no_main]

use backup::ByteRange;
use backup::chunk::{ChunkList, RecordHeader};
use fuzz_support::assert_in_order;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk()
        && let Ok(read) = RecordHeader::decode(header)
    {
        assert_eq!(&read.encode(), header);
    }
    let Some((len, list)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let region_len = u64::from_le_bytes(*len);
    if let Ok(read) = ChunkList::decode(list, region_len) {
        assert_eq!(read.encode(), list);
        assert!(read.data_bytes() <= region_len && read.zero_bytes() <= region_len);
        let ranges: Vec<ByteRange> = read.chunks().iter().map(|chunk| chunk.range).collect();
        assert_in_order(&ranges, region_len);
    }
});
