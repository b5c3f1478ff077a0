//! Plans of regions that are kept until their region is read, or made again then.
//!
//! Invariant: the used ranges and file extents of a large volume are large themselves (up to 16 and 48 MiB):
//! those of all regions together are kept up to a limit; a region whose plan does not fit is surveyed again
//! when its turn comes, and must be what it was.

use crate::ByteRange;
use crate::filesystem::ReadAt;
use crate::layout::LayoutRegion;
use crate::plan::capture::{Place, RegionPlan, survey_region};

/// What is read of a region.
#[derive(Debug, Clone)]
pub struct KeptPlan {
    place: Place,
    read_bytes: u64,
    /// `None` when it is too large to be kept.
    plan: Option<RegionPlan>,
}

/// A region that is not what it was when it was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the volume in {range} uses {found} bytes (expected {expected}, as before); something writes to it"
)]
pub struct Changed {
    /// Where it is on its disk.
    pub range: ByteRange,
    /// Bytes that would have been read.
    pub expected: u64,
    /// Bytes that would be read now.
    pub found: u64,
}

impl KeptPlan {
    /// A plan for the region at `place`; it is kept when that takes no more memory than `left`, which is
    /// lowered by it.
    #[must_use]
    pub fn new(place: Place, plan: RegionPlan, left: &mut usize) -> Self {
        let memory = plan.memory();
        let fits = memory <= *left;
        *left -= if fits { memory } else { 0 };
        Self {
            place,
            read_bytes: plan.read_bytes(),
            plan: fits.then_some(plan),
        }
    }

    /// A plan that is kept whatever its size.
    #[must_use]
    pub fn always(plan: RegionPlan) -> Self {
        Self {
            place: Place::from(LayoutRegion {
                kind: plan.kind.clone(),
                range: plan.range,
                left_out: None,
            }),
            read_bytes: plan.read_bytes(),
            plan: Some(plan),
        }
    }

    /// Bytes that will be read.
    #[must_use]
    pub const fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The plan for the region, made again when it was not kept; to be dropped when the region is read.
    ///
    /// # Errors
    /// [`Changed`] when the region is not what it was.
    pub fn take(&mut self, disk: &dyn ReadAt, sector: u64) -> Result<RegionPlan, Changed> {
        if let Some(plan) = self.plan.take() {
            return Ok(plan);
        }
        let plan = survey_region(disk, self.place.clone(), sector);
        let found = plan.read_bytes();
        if found != self.read_bytes {
            return Err(Changed {
                range: self.place.layout.range,
                expected: self.read_bytes,
                found,
            });
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::ReadError;
    use crate::manifest::RegionKind;

    struct Zeros;

    impl ReadAt for Zeros {
        fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            buffer.fill(0);
            Ok(())
        }
    }

    fn layout() -> LayoutRegion {
        LayoutRegion {
            kind: RegionKind::WholeDisk,
            range: ByteRange::between(0, 1 << 20),
            left_out: None,
        }
    }

    #[test]
    fn a_plan_without_room_is_made_again_and_one_of_a_changed_region_is_refused() {
        let plan = survey_region(&Zeros, layout().into(), 512);
        let mut left = 0;
        let mut kept = KeptPlan::new(layout().into(), plan.clone(), &mut left);
        assert!(kept.plan.is_none());
        assert_eq!(kept.take(&Zeros, 512), Ok(plan.clone()));

        left = plan.memory();
        let mut kept = KeptPlan::new(layout().into(), plan.clone(), &mut left);
        assert!(left == 0 && kept.plan.is_some());
        assert_eq!(kept.take(&Zeros, 512), Ok(plan.clone()));

        let mut other = plan;
        other.ranges = vec![ByteRange::between(0, 4096)];
        let mut kept = KeptPlan::new(layout().into(), other, &mut 0);
        let changed = kept.take(&Zeros, 512).unwrap_err();
        assert_eq!((changed.expected, changed.found), (4096, 1 << 20));
    }
}
