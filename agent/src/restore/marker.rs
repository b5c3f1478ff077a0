//! The marker: a sector on a target disk that says which restore is under way.
//!
//! It lies in the last 4096 bytes of the first MiB, where no firmware looks for anything to start. Where only chosen
//! volumes are written, each has one in place of the bytes by which its file system is recognised
//! ([`super::covered`]): nothing takes the volume for one that is whole, and the same restore knows it.
//! The bytes are described in `docs/formats/marker.md`:
//!
//! ```text
//! "NBMARKER" version:u32 state:u32 (1 in progress) restore point:[u8; 64] (padded with zeros)
//! plan digest:[u8; 32] | digest of all before:[u8; 32] | zeros to 4096
//! ```
//!
//! Invariant: a marker that does not check out is no marker; a resume is then a restore from the
//! beginning, which is slower but never wrong.

use backup::manifest::{RegionKind, RestorePointId};
use backup::plan::DiskPlan;
use backup::{ByteRange, Digest};

use crate::device::BlockDevice;

/// Length of a marker in bytes: a sector of any size.
pub(crate) const LEN: u64 = 4096;

const MAGIC: &[u8; 8] = b"NBMARKER";
const VERSION: u32 = 1;
const IN_PROGRESS: u32 = 1;
const BODY: usize = 8 + 4 + 4 + 64 + 32;

/// Where the marker is on a disk of `size` bytes; none on a disk that has no room for one.
pub(crate) fn place(size: u64) -> Option<ByteRange> {
    const MIB: u64 = 1 << 20;
    (size >= 2 * MIB).then(|| ByteRange::between(MIB - LEN, MIB))
}

/// The digest of what a plan does to a disk. The kernel's name for the disk is left out: it can
/// change from one start of the environment to the next.
pub(crate) fn plan_digest(plan: &DiskPlan) -> Result<Digest, serde_json::Error> {
    let mut plan = plan.clone();
    plan.target.name.clear();
    Ok(Digest::of(&serde_json::to_vec(&plan)?))
}

/// The bytes of the marker.
pub(crate) fn encode(restore_point: &RestorePointId, plan: Digest) -> [u8; LEN as usize] {
    let mut bytes = [0; LEN as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&IN_PROGRESS.to_le_bytes());
    // At most 64 bytes by construction.
    let id = restore_point.as_str().as_bytes();
    bytes[16..16 + id.len()].copy_from_slice(id);
    bytes[80..BODY].copy_from_slice(plan.as_bytes());
    let check = Digest::of(&bytes[..BODY]);
    bytes[BODY..BODY + Digest::LEN].copy_from_slice(check.as_bytes());
    bytes
}

/// Whether the bytes are the marker of exactly this restore.
pub(crate) fn is_of(bytes: &[u8], restore_point: &RestorePointId, plan: Digest) -> bool {
    bytes == encode(restore_point, plan)
}

/// The restore point of a marker, whichever restore left it.
fn restore_point_of(bytes: &[u8]) -> Option<RestorePointId> {
    let id = bytes.get(16..80)?.split(|byte| *byte == 0).next()?;
    let id = RestorePointId::try_from(String::from_utf8(id.to_vec()).ok()?).ok()?;
    let plan: [u8; Digest::LEN] = bytes.get(80..BODY)?.try_into().ok()?;
    is_of(bytes, &id, Digest::from_bytes(plan)).then_some(id)
}

/// The restore point of which a region holds only a part, because its restore was interrupted. A disk that cannot
/// be read has none; whoever reads it next says why.
pub(crate) fn unfinished(
    device: &dyn BlockDevice,
    kind: &RegionKind,
    region: ByteRange,
) -> Option<RestorePointId> {
    let at = |offset: u64| Some(region.start() + offset);
    let places = match kind {
        RegionKind::WholeDisk => [place(device.size()).map(|place| place.start()), None],
        // Where file systems are recognised; Btrfs at 64 KiB.
        RegionKind::Partition { .. } => [at(0), at(64 << 10)],
        RegionKind::Gap => [None, None],
    };
    let places = places.into_iter().flatten();
    let mut inside = places.filter(|start| start + LEN <= region.end());
    inside.find_map(|start| {
        let mut bytes = vec![0; LEN as usize];
        device.read_at(start, &mut bytes).ok()?;
        restore_point_of(&bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RestorePointId {
        RestorePointId::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn only_the_same_restore_is_recognised() {
        let (plan, other) = (Digest::of(b"plan"), Digest::of(b"other"));
        let longest = "a".repeat(64);
        for name in ["rp-1", &longest] {
            let marker = encode(&id(name), plan);
            assert!(is_of(&marker, &id(name), plan));
            assert!(!is_of(&marker, &id("rp-2"), plan));
            assert!(!is_of(&marker, &id(name), other));
            assert_eq!(restore_point_of(&marker), Some(id(name)));
        }
    }

    #[test]
    fn no_flipped_bit_is_accepted() {
        let (name, plan) = (id("rp-1"), Digest::of(b"plan"));
        let marker = encode(&name, plan);
        for at in (0..200).chain([4095]) {
            let mut damaged = marker;
            damaged[at] ^= 1;
            assert!(!is_of(&damaged, &name, plan), "byte {at}");
            assert_eq!(restore_point_of(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn it_ends_where_the_first_mebibyte_ends() {
        assert_eq!(
            place(8 << 30),
            Some(ByteRange::between(1_044_480, 1_048_576))
        );
        assert_eq!(place(1 << 20), None);
    }
}
