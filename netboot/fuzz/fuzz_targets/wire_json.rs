//! Every type that crosses the network as JSON: read without a panic, and alike after writing. The
//! first byte chooses the type.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::api::{ApiError, JobRequest, JobView, MachineView, RestorePointView};
use protocol::beacon::{Beacon, BeaconReply};
use protocol::job::{Job, JobReport, JobReportReply};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, json)) = bytes.split_first() else {
        return;
    };
    match kind % 10 {
        0 => round_trip::<Beacon>(json),
        1 => round_trip::<BeaconReply>(json),
        2 => round_trip::<Job>(json),
        3 => round_trip::<JobReport>(json),
        4 => round_trip::<JobReportReply>(json),
        5 => round_trip::<JobRequest>(json),
        6 => round_trip::<JobView>(json),
        7 => round_trip::<MachineView>(json),
        8 => round_trip::<RestorePointView>(json),
        _ => round_trip::<ApiError>(json),
    }
});

fn round_trip<T: Serialize + DeserializeOwned>(json: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(json) {
        let written = serde_json::to_vec(&read).expect("what was read is written");
        let again: T = serde_json::from_slice(&written).expect("what was written is read");
        assert_eq!(serde_json::to_vec(&again).expect("and written"), written);
    }
}
