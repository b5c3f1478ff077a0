//! What operators ask of the store: room, pins, retention, damage. Over the control socket only.
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | [`COLLECTION`] | POST a [`GcRequest`] | 202 and a [`GcView`]: it runs |
//! | [`COLLECTION`] | GET | the [`GcView`] of the one that runs or ran last |
//! | [`STORE`] | GET | a [`StoreView`] |
//! | [`DAMAGE`] | POST a list of [`DamagedPlace`]; each is looked at again | a [`DamageView`] |
//! | [`PRUNE`] | POST a [`PruneRequest`] | a [`PruneView`] |
//! | [`pin`] | POST, DELETE, without a body | the restore point |
//! | [`forget`] | DELETE, without a body | the restore point that was |

use backup::manifest::RestorePointId;
use serde::{Deserialize, Serialize};

/// Garbage collection.
pub const COLLECTION: &str = "/api/v1/store/collection";
/// How much is in the store.
pub const STORE: &str = "/api/v1/store";
/// Damage that `netboot verify` found.
pub const DAMAGE: &str = "/api/v1/store/damage";
/// Removal by rules.
pub const PRUNE: &str = "/api/v1/store/prune";

/// The pin of a restore point, by its id or the beginning of its id.
#[must_use]
pub fn pin(restore_point: &str) -> String {
    format!("/api/v1/restore-points/{restore_point}/pin")
}

/// A restore point, by its id or the beginning of its id.
#[must_use]
pub fn forget(restore_point: &str) -> String {
    format!("/api/v1/restore-points/{restore_point}")
}

/// How a garbage collection is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what it would do.
    pub dry_run: bool,
    /// Rewrite packs of which less than this share is needed, in percent; 0 rewrites none.
    pub rewrite_below: u8,
}

/// How far a garbage collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcProgress {
    /// Restore points whose chunks are marked.
    pub restore_points: u64,
    /// Of how many.
    pub of_restore_points: u64,
    /// Packs that are done.
    pub packs: u64,
    /// Of how many that are to be removed or rewritten.
    pub of_packs: u64,
}

/// What a garbage collection did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Chunks in the store before it.
    pub chunks: u64,
    /// Chunks that nothing needs.
    pub dead_chunks: u64,
    /// Bytes in packs that nothing needs, of chunks and of records that were replaced.
    pub dead_bytes: u64,
    /// Packs before it.
    pub packs: u64,
    /// Packs removed because nothing in them is needed.
    pub removed_packs: u64,
    /// Packs removed after what is needed of them was written to new ones.
    pub rewritten_packs: u64,
    /// Bytes that were written again for that.
    pub rewritten_bytes: u64,
    /// Bytes of disk that are free now and were not before.
    pub freed_bytes: u64,
    /// What a person should know: damaged records that were left alone, captures that hold everything.
    pub notes: Vec<String>,
}

/// The garbage collection that runs, or that ran last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcView {
    /// Whether it runs.
    pub running: bool,
    /// How far it is.
    pub progress: GcProgress,
    /// What it did, when it is over and went well.
    pub report: Option<GcReport>,
    /// Why it did not go well.
    pub error: Option<String>,
}

/// How much is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreView {
    /// Bytes of data in all restore points, before deduplication and compression.
    pub logical_bytes: u64,
    /// Bytes of all packs.
    pub stored_bytes: u64,
    /// Bytes of chunks that one restore point alone uses.
    pub unique_bytes: u64,
    /// Bytes of chunks that several restore points use.
    pub shared_bytes: u64,
    /// Bytes of chunks that only running captures need so far.
    pub captures_bytes: u64,
    /// Bytes that a garbage collection can free.
    pub dead_bytes: u64,
    /// Bytes that can still be written on the disk.
    pub free_bytes: u64,
    /// Chunks in the store.
    pub chunks: u64,
    /// Packs.
    pub packs: u64,
    /// Chunks known to be damaged.
    pub damaged_chunks: u64,
    /// Each restore point.
    pub restore_points: Vec<RestorePointSize>,
}

/// What one restore point takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePointSize {
    /// Its id.
    pub id: RestorePointId,
    /// The machine's name at the time.
    pub machine_name: String,
    /// Bytes of data in it.
    pub logical_bytes: u64,
    /// Bytes in packs of its chunks, each counted once.
    pub stored_bytes: u64,
    /// Bytes in packs of chunks that no other restore point uses: what removing it makes dead.
    pub unique_bytes: u64,
}

/// A record that a verification found damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedPlace {
    /// The chunk.
    pub digest: backup::Digest,
    /// The number of its pack.
    pub pack: u32,
    /// Byte offset of its record in the pack.
    pub offset: u32,
}

/// What became of damage that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageView {
    /// Chunks that are damaged, looked at again: the next capture that has them sends them again.
    pub noted: u64,
}

/// Which restore points stay. A rule that is 0 keeps none by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionRules {
    /// The newest ones.
    pub keep_last: u32,
    /// The newest one of each of so many days.
    pub keep_daily: u32,
    /// The newest one of each of so many weeks (Monday to Sunday).
    pub keep_weekly: u32,
    /// The newest one of each of so many months.
    pub keep_monthly: u32,
    /// The newest one of each of so many years.
    pub keep_yearly: u32,
}

impl RetentionRules {
    /// Whether they keep none at all.
    #[must_use]
    pub fn are_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Removal by rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Only of this machine: host name, Ethernet address, serial number, or beginning of its id.
    pub machine: Option<String>,
    /// The rules; without them those of the server's configuration.
    pub rules: Option<RetentionRules>,
    /// The rules are for factory images, too, counted apart from backups.
    #[serde(default)]
    pub factory: bool,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What becomes of one restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its id.
    pub id: RestorePointId,
    /// The machine's name at the time.
    pub machine_name: String,
    /// Seconds since 1970-01-01 UTC.
    pub captured_at: u64,
    /// Whether it stays.
    pub keep: bool,
    /// What keeps it: rules, a pin, a job.
    pub reasons: Vec<String>,
}

/// What a removal by rules did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PruneView {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The rules that were used.
    pub rules: RetentionRules,
    /// Each restore point, machine by machine, the newest first.
    pub restore_points: Vec<Verdict>,
    /// Restore points that could not be removed, and why.
    pub failed: Vec<String>,
}
