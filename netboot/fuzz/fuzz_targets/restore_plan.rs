//! A manifest, a machine and maybe choices, as JSON with a NUL between: planned or refused without a panic;
//! nothing in the plan leaves the target, and what it copies does not overlap.

#![no_main]

use backup::hardware::Inventory;
use backup::manifest::Manifest;
use backup::plan::Choices;
use backup::plan::restore::plan_restore;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let (Some(manifest), Some(target)) = (parts.next(), parts.next()) else {
        return;
    };
    let (Ok(manifest), Ok(target)) = (
        serde_json::from_slice::<Manifest>(manifest),
        serde_json::from_slice::<Inventory>(target),
    ) else {
        return;
    };
    let choices = parts.next().and_then(|text| serde_json::from_slice(text).ok());
    let choices: Choices = choices.unwrap_or_default();
    match plan_restore(&manifest, &target, &choices) {
        Err(refusals) => assert!(!refusals.is_empty(), "a refusal without a reason"),
        Ok(plan) => {
            for disk in &plan.disks {
                let mut end = 0;
                let mut copies: Vec<_> = disk.copies.iter().map(|copy| copy.destination).collect();
                copies.sort();
                for copy in copies {
                    assert!(copy.start() >= end && copy.end() <= disk.target.size);
                    end = copy.end();
                }
                for write in &disk.commit {
                    assert!(write.offset + write.bytes.0.len() as u64 <= disk.target.size);
                }
            }
            let _ = plan.picture(&manifest);
        }
    }
});
