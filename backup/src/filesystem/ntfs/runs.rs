//! Data runs: the encoded list of where the clusters of an attribute are.
//!
//! Each run is a byte with the lengths of two numbers, the count of clusters, and the signed distance from
//! the run before; no distance is a hole. A zero byte ends the list.
//!
//! Invariant: every run given out lies within the volume, and the runs of a part fill exactly the clusters
//! that the part says to have.

use super::Fault;
use super::record::Mapping;

/// The most clusters of an attribute: 2^63 bytes of the largest ones.
const MAX_CLUSTERS: u64 = 1 << 42;

/// Consecutive clusters of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First cluster, counted in the attribute.
    pub(super) at: u64,
    /// First cluster, counted in the volume; `None` is a hole.
    pub(super) start: Option<u64>,
    /// How many.
    pub(super) len: u64,
}

impl Run {
    pub(super) const fn end(&self) -> u64 {
        self.at + self.len
    }
}

/// Gives the runs of a part in order to `take`. The volume has `clusters` clusters.
pub(super) fn each(
    mapping: &Mapping<'_>,
    clusters: u64,
    mut take: impl FnMut(Run) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = mapping.pairs;
    let mut at = mapping.first;
    let mut place = 0_i64;
    while let Some((run, after)) = next(rest, at, &mut place, clusters)? {
        at = run.end();
        rest = after;
        take(run)?;
    }
    if at == mapping.end {
        Ok(())
    } else {
        Err(Fault::Damaged(format!(
            "data runs end at cluster {at} of their attribute, which says {}",
            mapping.end
        )))
    }
}

fn next<'a>(
    bytes: &'a [u8],
    at: u64,
    place: &mut i64,
    clusters: u64,
) -> Result<Option<(Run, &'a [u8])>, Fault> {
    let cut = || Fault::damaged("data runs are cut off");
    let (head, rest) = bytes.split_first().ok_or_else(cut)?;
    if *head == 0 {
        return Ok(None);
    }
    let (count_len, distance_len) = (usize::from(head & 0xf), usize::from(head >> 4));
    if count_len == 0 || count_len > 8 || distance_len > 8 || rest.len() < count_len + distance_len
    {
        return Err(cut());
    }
    let (count, rest) = rest.split_at(count_len);
    let (distance, rest) = rest.split_at(distance_len);
    let len = u64::try_from(signed(count)).unwrap_or(0);
    let fits = len > 0 && at.checked_add(len).is_some_and(|end| end <= MAX_CLUSTERS);
    let start = if distance_len == 0 {
        Some(None)
    } else {
        place.checked_add(signed(distance)).and_then(|start| {
            *place = start;
            // NTFS before version 3 wrote a hole as cluster -1.
            if start == -1 {
                return Some(None);
            }
            let start = u64::try_from(start).ok()?;
            (start.checked_add(len)? <= clusters).then_some(Some(start))
        })
    };
    match start {
        Some(start) if fits => Ok(Some((Run { at, start, len }, rest))),
        _ => Err(Fault::Damaged(format!(
            "a data run of {len} clusters lies outside of the volume's {clusters}"
        ))),
    }
}

/// A signed little-endian number of up to 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let fill = match bytes.last() {
        Some(byte) if byte & 0x80 != 0 => 0xff,
        _ => 0,
    };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn mapping(first: u64, end: u64, pairs: &[u8]) -> Mapping<'_> {
        Mapping {
            first,
            end,
            unit: 0,
            size: 0,
            initialized: 0,
            pairs,
        }
    }

    fn runs(mapping: &Mapping<'_>, clusters: u64) -> Result<Vec<Run>, Fault> {
        let mut runs = Vec::new();
        each(mapping, clusters, |run| {
            runs.push(run);
            Ok(())
        })?;
        Ok(runs)
    }

    #[test]
    fn runs_go_forward_back_and_over_holes() {
        let pairs = [
            0x21, 0x18, 0x34, 0x56, // 24 clusters at 0x5634
            0x01, 0x10, // a hole of 16
            0x11, 0x08, 0xe0, // 8 clusters, 32 before
            0x00, 0xff,
        ];
        let expected = [
            (100, Some(0x5634), 24),
            (124, None, 16),
            (140, Some(0x5614), 8),
        ]
        .map(|(at, start, len)| Run { at, start, len });
        assert_eq!(runs(&mapping(100, 148, &pairs), 0x8000).unwrap(), expected);
        assert!(runs(&mapping(100, 149, &pairs), 0x8000).is_err());
        assert!(runs(&mapping(100, 148, &pairs), 0x5640).is_err());
        assert!(runs(&mapping(100, 148, &pairs[..9]), 0x8000).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_runs_inside_the_volume_or_a_fault(
            pairs in proptest::collection::vec(any::<u8>(), 0..40),
            first in any::<u64>(),
            end in any::<u64>(),
        ) {
            let mut seen = Vec::new();
            let _ = each(&mapping(first, end, &pairs), 1000, |run| {
                seen.push(run);
                Ok(())
            });
            for run in seen {
                prop_assert!(run.len > 0);
                prop_assert!(run.start.is_none_or(|start| start + run.len <= 1000));
            }
        }
    }
}
