//! Any manifest is read or refused without a panic; one that was read is alike after writing.

#![no_main]

use backup::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(manifest) = Manifest::from_json(json) {
        let _ = manifest.data_bytes();
        let written = serde_json::to_vec(&manifest).expect("what was read is written");
        let again = Manifest::from_json(&written).expect("what was written is read");
        assert_eq!(again, manifest);
    }
});
