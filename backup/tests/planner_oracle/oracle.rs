//! What is possible, by rules of its own: written from `docs/reason-codes.md`, not from the planner.
//!
//! Counts in bytes and `i128`, names no function of `backup::plan`.

use backup::SectorSize;
use backup::hardware::{Disk, FirmwareKind};
use backup::manifest::FileSystemKind::{
    self, Bitlocker, Btrfs, Exfat, Ext2, Ext3, Ext4, Fat12, Fat16, Fat32, Ntfs, Swap, Xfs,
};
use backup::plan::ReasonCode;

use super::source::{ENTRIES, MIB, Part, Role, Source, Table};

/// A partition as it comes to the target, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) number: u32,
    pub(crate) start: i128,
    pub(crate) end: i128,
    /// Whether something finds it by its place.
    pub(crate) stays: bool,
    /// The most that it can become; none when it cannot grow.
    pub(crate) most: Option<i128>,
    /// The least that it can become; none when it keeps its size.
    pub(crate) least: Option<i128>,
}

/// A source on a target that takes it.
#[derive(Debug)]
pub(crate) struct Fit {
    pub(crate) parts: Vec<Placed>,
    /// Where partitions may end.
    pub(crate) usable: i128,
    /// By how much they end behind that.
    pub(crate) excess: i128,
}

fn mib(bytes: i128) -> i128 {
    bytes.div_euclid(i128::from(MIB)) * i128::from(MIB)
}

fn up(bytes: i128, unit: i128) -> i128 {
    -(-bytes).div_euclid(unit) * unit
}

fn is_windows(kind: Option<FileSystemKind>) -> bool {
    matches!(kind, Some(Ntfs | Bitlocker | Exfat | Fat12 | Fat16 | Fat32))
}

/// Bytes of a partition that were saved.
fn saved(source: &Source, part: &Part) -> i128 {
    let len = i128::from(part.sectors * source.sector.bytes());
    if part.whole || part.kind.is_none() {
        return len;
    }
    up(i128::from(part.used), i128::from(source.sector.bytes())).min(len)
}

impl Placed {
    fn new(source: &Source, part: &Part, target: SectorSize) -> Self {
        let old = i128::from(source.sector.bytes());
        let start = i128::from(part.first) * old;
        let end = up(i128::from(part.end()) * old, i128::from(target.bytes()));
        let known = !part.whole && start >= i128::from(MIB);
        let most = match part.kind {
            Some(Ext2 | Ext3 | Ext4 | Ntfs) if known => {
                Some((i128::from(part.block) << 32) - i128::from(part.block))
            }
            Some(Xfs | Btrfs) if known => Some(i128::MAX),
            _ => None,
        };
        let used = saved(source, part);
        let least = match part.kind {
            Some(Ext2 | Ext3 | Ext4 | Ntfs) if known => Some(used + used / 16 + 16 * MIB as i128),
            Some(Btrfs) if known => Some(used + used / 16 * 2 + 272 * MIB as i128),
            _ => None,
        };
        let stays = match source.table {
            Table::Gpt => matches!(part.role, Role::Esp | Role::BiosBoot),
            _ => {
                matches!(part.role, Role::Esp | Role::Active)
                    || (is_windows(part.kind) && part.role != Role::Recovery)
            }
        };
        Self {
            number: part.number,
            start,
            end,
            stays,
            most,
            least,
        }
    }

    pub(crate) fn len(&self) -> i128 {
        self.end - self.start
    }

    /// By how much it can be made smaller, in whole MiB.
    pub(crate) fn slack(&self) -> Option<i128> {
        self.least.map(|least| mib(self.len() - least).max(0))
    }
}

/// What goes to the target; the reason when it does not.
pub(crate) fn fit(
    source: &Source,
    target: &Disk,
    firmware: FirmwareKind,
) -> Result<Fit, ReasonCode> {
    let sector = target.logical_sector;
    if sector != source.sector && !works_with(source, sector, firmware) {
        return Err(ReasonCode::SectorSize);
    }
    let unit = i128::from(sector.bytes());
    let size = i128::from(target.size) / unit * unit;
    let table = up(i128::from(ENTRIES), unit);
    let usable = match source.table {
        Table::None => size,
        Table::Mbr { .. } => size.min(unit << 32),
        // Protective MBR, two headers, two copies of the entries, and something between them.
        Table::Gpt if size < 3 * unit + 2 * table + unit => 0,
        Table::Gpt => size - unit - table,
    };
    let whole = Table::None == source.table;
    let parts: Vec<_> = source
        .parts
        .iter()
        .map(|part| Placed::new(source, part, sector))
        .collect();
    let mut needed = parts.last().map_or(0, |part| part.end);
    if let Table::Mbr {
        extended: Some((base, _)),
        empty_record: true,
    } = source.table
    {
        // The record of an extended partition with nothing in it belongs to the table.
        needed = needed.max(i128::from(base + 1) * unit);
    }
    if needed <= usable && usable > 0 {
        return Ok(Fit {
            parts,
            usable,
            excess: 0,
        });
    }
    let excess = up(needed - usable, i128::from(MIB));
    let candidates = candidates(&parts);
    if whole || parts.is_empty() || usable == 0 {
        return Err(ReasonCode::TooSmall);
    }
    let slack: i128 = candidates.iter().filter_map(|part| part.slack()).sum();
    if candidates.is_empty() {
        Err(ReasonCode::CannotShrink)
    } else if slack < excess {
        Err(ReasonCode::TooSmall)
    } else {
        Ok(Fit {
            parts,
            usable,
            excess,
        })
    }
}

/// Those that can be made smaller: none before the last one that stays.
pub(crate) fn candidates(parts: &[Placed]) -> Vec<&Placed> {
    let after = parts.iter().rposition(|part| part.stays).unwrap_or(0);
    let behind = parts[after..].iter();
    behind.filter(|part| part.least.is_some()).collect()
}

/// Whether everything on the disk works with sectors of another size.
fn works_with(source: &Source, to: SectorSize, firmware: FirmwareKind) -> bool {
    let unit = to.bytes();
    if firmware == FirmwareKind::Bios && unit > 512 {
        return false;
    }
    if matches!(source.table, Table::Mbr { .. }) {
        return false;
    }
    source.parts.iter().all(|part| {
        let start = part.first * source.sector.bytes();
        let in_table =
            source.table == Table::Gpt && start < 2 * unit + ENTRIES.next_multiple_of(unit);
        if !start.is_multiple_of(unit) || in_table {
            return false;
        }
        let empty = saved(source, part) == 0;
        let own = source.sector.bytes();
        empty
            || match part.kind {
                Some(Ext2 | Ext3 | Ext4 | Btrfs) => u64::from(part.block) >= unit,
                Some(Xfs) => own >= unit,
                Some(Swap) => true,
                Some(Fat12 | Fat16 | Fat32) => {
                    u64::from(part.block) >= unit && start >= MIB && source.table != Table::None
                }
                Some(_) => false,
                None => source.table == Table::Gpt && part.role == Role::BiosBoot,
            }
    })
}

/// Which target each source goes to, by what people chose: index and name.
pub(crate) fn assigned(
    sources: &[Source],
    targets: &[Disk],
    choices: &[(u32, &'static str)],
) -> Result<Vec<usize>, Vec<ReasonCode>> {
    use ReasonCode::{AmbiguousDisk, DiskNotFound, NoDisk, ReadOnly};
    let mut codes = Vec::new();
    // For each source: open, taken by a target, or out of the game.
    let mut place: Vec<Result<Option<usize>, ()>> = vec![Ok(None); sources.len()];
    let mut given: Vec<Option<usize>> = vec![None; sources.len()];
    for (source, text) in choices {
        let source = *source as usize;
        if source >= sources.len() {
            codes.push(DiskNotFound);
            continue;
        }
        let named: Vec<usize> = (0..targets.len())
            .filter(|at| targets[*at].name == *text || targets[*at].serial.as_deref() == Some(text))
            .collect();
        match (&named[..], given[source]) {
            ([one], None) => given[source] = Some(*one),
            ([one], Some(before)) if *one == before => {}
            ([], _) => {
                codes.push(DiskNotFound);
                place[source] = Err(());
            }
            _ => {
                codes.push(AmbiguousDisk);
                place[source] = Err(());
            }
        }
    }
    for (source, slot) in sources.iter().zip(0..) {
        let slot: usize = slot;
        let Some(serial) = source.serial else {
            continue;
        };
        if given[slot].is_none() && place[slot].is_ok() {
            let same =
                (0..targets.len()).filter(|at| targets[*at].serial.as_deref() == Some(serial));
            let same: Vec<_> = same.collect();
            given[slot] = same.first().copied().filter(|_| same.len() == 1);
        }
    }
    let mut taken: Vec<usize> = given.iter().flatten().copied().collect();
    let all_read_only = taken.iter().filter(|at| targets[**at].read_only).count();
    let all = taken.len();
    taken.sort_unstable();
    taken.dedup();
    if taken.len() < all {
        codes.push(DiskNotFound);
    }
    let open: Vec<usize> = (0..sources.len())
        .filter(|slot| given[*slot].is_none() && place[*slot].is_ok())
        .collect();
    let free: Vec<usize> = (0..targets.len())
        .filter(|at| {
            let disk = &targets[*at];
            !taken.contains(at) && !disk.removable && !disk.read_only && disk.size > 0
        })
        .collect();
    match (open.len(), free.len()) {
        (0, _) => {}
        (1, 1) => given[open[0]] = Some(free[0]),
        (open, free) if free < open => codes.push(NoDisk),
        _ => codes.push(AmbiguousDisk),
    }
    codes.extend(vec![ReadOnly; all_read_only]);
    if codes.is_empty() {
        Ok(given.into_iter().flatten().collect())
    } else {
        Err(codes)
    }
}
