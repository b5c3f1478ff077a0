//! Disks that are not captured because they are members of something larger.
//!
//! Invariant: nothing is read here; who captures asks [`crate::member::find`] for every disk before
//! anything of any disk is saved or sent.

use crate::hardware::Disk;
use crate::member::Found;
use crate::plan::{ReasonCode, Refusal};

/// Why a disk is not captured; none when it is no member of anything.
#[must_use]
pub fn refuse(disk: &Disk, found: &[Found]) -> Option<Refusal> {
    let first = found.first()?;
    let place = first
        .partition
        .map_or_else(String::new, |number| format!("partition {number} of "));
    let others = match found.len() {
        1 => String::new(),
        2 => " (and another part of this disk is one too)".to_owned(),
        count => format!(" (and {} other parts of this disk are)", count - 1),
    };
    Some(Refusal {
        code: ReasonCode::MemberDisk,
        text: format!(
            "{place}{} is a member of {}{others}, which is not supported: a copy of one member is no copy of the whole. {}",
            disk.describe(),
            first.member,
            first.member.advice()
        ),
    })
}
