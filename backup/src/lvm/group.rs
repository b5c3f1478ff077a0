//! A volume group, from the text that describes it.
//!
//! Source: what `vgcfgbackup` writes, described in `lvm.conf(5)`, `vgcfgbackup(8)` and LVM2's
//! `lib/format_text/export.c`. A logical volume is mapped when every segment of it is `striped` over
//! physical volumes, it is visible, and nothing else is built on it. Everything else (mirrors, RAID, thin
//! and cache pools, snapshots, VDO, integrity) is named and not mapped; the extents it has allocated are
//! known, because at the bottom of it there are striped volumes.
//!
//! Invariant: extents of a [`VolumeGroup`] lie within their physical volumes and belong to one logical
//! volume each. Whatever is not known for sure is a [`Doubt`].

use std::collections::{BTreeMap, BTreeSet};

use super::doubt;
use super::text::{Entry, Section, parse};
use crate::ByteRange;
use crate::filesystem::Doubt;

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeGroup {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) sequence: i64,
    /// In bytes.
    pub(super) extent_size: u64,
    pub(super) physical_volumes: Vec<PhysicalVolume>,
    /// In order of their names.
    pub(super) logical_volumes: Vec<LogicalVolume>,
}

/// A physical volume as its group describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PhysicalVolume {
    pub(super) uuid: String,
    /// Where its extents are, in bytes from its start.
    pub(super) extents: ByteRange,
}

/// A logical volume as its group describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogicalVolume {
    pub(super) name: String,
    pub(super) uuid: String,
    /// Its striped segments.
    pub(super) segments: Vec<Stripes>,
    /// Why it is not mapped, if it is not.
    pub(super) unmapped: Option<String>,
}

/// A striped segment: bytes in a stripe, and its areas, by number of the physical volume and range in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stripes {
    pub(super) stripe: u64,
    pub(super) areas: Vec<(usize, ByteRange)>,
}

/// Statuses of logical volumes that change nothing of where their bytes are.
const PLAIN: [&str; 4] = ["READ", "WRITE", "VISIBLE", "FIXED_MINOR"];
/// The same for flags of groups and logical volumes.
const PLAIN_FLAGS: [&str; 2] = ["ACTIVATION_SKIP", "NOAUTOACTIVATE"];
/// Members of a segment that are understood.
const MEMBERS: [&str; 7] = [
    "start_extent",
    "extent_count",
    "type",
    "stripe_count",
    "stripe_size",
    "stripes",
    "tags",
];

/// Reads the text of a metadata area.
///
/// # Errors
/// [`Doubt`] when it is not understood.
pub(super) fn read(text: &[u8]) -> Result<VolumeGroup, Doubt> {
    let top = parse(text).map_err(|error| doubt(format!("the volume group's text: {error}")))?;
    if string(&top, "contents")? != "Text Format Volume Group" || number(&top, "version")? != 1 {
        return Err(doubt("the volume group's text is of another format"));
    }
    let mut sections = top.iter().filter_map(|(name, entry)| match entry {
        Entry::Section(section) => Some((name, section)),
        _ => None,
    });
    match (sections.next(), sections.next()) {
        (Some((name, group)), None) => Reader { name, group }.read(),
        _ => Err(doubt("the volume group's text has not one group")),
    }
}

struct Reader<'a> {
    name: &'a str,
    group: &'a Section,
}

impl<'a> Reader<'a> {
    fn read(&self) -> Result<VolumeGroup, Doubt> {
        for status in strings(self.group, "status")? {
            if !["RESIZEABLE", "READ", "WRITE", "EXPORTED"].contains(&status) {
                return Err(doubt(format!("volume group `{}` is {status}", self.name)));
            }
        }
        if let Some(flag) = strings(self.group, "flags")?
            .iter()
            .find(|flag| !PLAIN_FLAGS.contains(flag))
        {
            return Err(doubt(format!("volume group `{}` is {flag}", self.name)));
        }
        let extent_size = sectors(self.group, "extent_size")?;
        if extent_size == 0 || !is_name(self.name) {
            return Err(doubt("a volume group that is not possible"));
        }
        let (names, physical_volumes) = self.physical_volumes(extent_size)?;
        let mut group = VolumeGroup {
            name: self.name.to_owned(),
            uuid: string(self.group, "id")?.to_owned(),
            sequence: number(self.group, "seqno")?,
            extent_size,
            physical_volumes,
            logical_volumes: Vec::new(),
        };
        let empty = Section::new();
        let volumes = section_of(self.group, "logical_volumes")?.unwrap_or(&empty);
        let mut inner = BTreeSet::new();
        for (name, entry) in volumes {
            if !is_name(name) {
                return Err(doubt("a logical volume with an impossible name"));
            }
            let Entry::Section(volume) = entry else {
                return Err(doubt(format!("logical volume `{name}` is no section")));
            };
            let reader = VolumeReader {
                physical: &names,
                extents: group
                    .physical_volumes
                    .iter()
                    .map(|one| one.extents)
                    .collect(),
                extent_size,
            };
            let read = reader.read(name, volume, &mut inner)?;
            group.logical_volumes.push(read);
        }
        for volume in &mut group.logical_volumes {
            if volume.unmapped.is_none() && inner.contains(&volume.name) {
                volume.unmapped = Some("another logical volume is built on it".to_owned());
            }
        }
        check_apart(&group)?;
        Ok(group)
    }

    fn physical_volumes(
        &self,
        extent_size: u64,
    ) -> Result<(BTreeMap<&'a str, usize>, Vec<PhysicalVolume>), Doubt> {
        let (mut names, mut volumes) = (BTreeMap::new(), Vec::new());
        let section = section_of(self.group, "physical_volumes")?
            .ok_or_else(|| doubt("a volume group without physical volumes"))?;
        for (name, entry) in section {
            let Entry::Section(volume) = entry else {
                return Err(doubt(format!("physical volume `{name}` is no section")));
            };
            if let Some(flag) = strings(volume, "flags")?.first() {
                return Err(doubt(format!("physical volume `{name}` is {flag}")));
            }
            let start = sectors(volume, "pe_start")?;
            let len = unsigned(volume, "pe_count")?.checked_mul(extent_size);
            let extents = len
                .and_then(|len| ByteRange::new(start, len).ok())
                .ok_or_else(|| doubt(format!("physical volume `{name}` is too long")))?;
            names.insert(name.as_str(), volumes.len());
            volumes.push(PhysicalVolume {
                uuid: string(volume, "id")?.to_owned(),
                extents,
            });
        }
        Ok((names, volumes))
    }
}

/// Reads logical volumes.
struct VolumeReader<'a> {
    /// Numbers of the physical volumes by their names.
    physical: &'a BTreeMap<&'a str, usize>,
    /// Where their extents are.
    extents: Vec<ByteRange>,
    extent_size: u64,
}

impl VolumeReader<'_> {
    /// Adds the names of logical volumes that this one is built on to `inner`.
    fn read(
        &self,
        name: &str,
        volume: &Section,
        inner: &mut BTreeSet<String>,
    ) -> Result<LogicalVolume, Doubt> {
        let status = strings(volume, "status")?;
        let odd = status.iter().find(|status| !PLAIN.contains(status));
        let flags = strings(volume, "flags")?;
        let mut unmapped = odd
            .or(flags.iter().find(|flag| !PLAIN_FLAGS.contains(flag)))
            .map(|odd| format!("its status {odd} is not known here"));
        let (mut segments, mut at) = (Vec::new(), 0u64);
        for number in 1..=unsigned(volume, "segment_count")? {
            let segment = section_of(volume, &format!("segment{number}"))?
                .ok_or_else(|| doubt(format!("logical volume `{name}` lacks a segment")))?;
            if unsigned(segment, "start_extent")? != at {
                return Err(doubt(format!("logical volume `{name}` has a gap")));
            }
            let count = unsigned(segment, "extent_count")?;
            at = at
                .checked_add(count)
                .filter(|_| count > 0)
                .ok_or_else(|| doubt(format!("logical volume `{name}` is not possible")))?;
            let kind = string(segment, "type")?;
            if kind == "striped" {
                match self.striped(name, segment, count, inner)? {
                    Ok(stripes) => segments.push(stripes),
                    Err(reason) => unmapped = unmapped.or(Some(reason)),
                }
            } else {
                self.built_on(name, segment, inner)?;
                unmapped = unmapped.or_else(|| Some(format!("a segment of type {kind}")));
            }
        }
        if !status.contains(&"VISIBLE") {
            unmapped = unmapped.or_else(|| Some("a part of another logical volume".to_owned()));
        }
        if segments.is_empty() {
            unmapped = unmapped.or_else(|| Some("it has no segments".to_owned()));
        }
        Ok(LogicalVolume {
            name: name.to_owned(),
            uuid: string(volume, "id")?.to_owned(),
            segments,
            unmapped,
        })
    }

    /// A striped segment; or why its volume is not mapped, when it is built on logical volumes.
    fn striped(
        &self,
        name: &str,
        segment: &Section,
        count: u64,
        inner: &mut BTreeSet<String>,
    ) -> Result<Result<Stripes, String>, Doubt> {
        let wrong = || {
            doubt(format!(
                "a segment of logical volume `{name}` is not possible"
            ))
        };
        if let Some(member) = segment.keys().find(|key| !MEMBERS.contains(&key.as_str())) {
            return Err(doubt(format!(
                "a segment of logical volume `{name}` has `{member}`"
            )));
        }
        let Some(Entry::List(list)) = segment.get("stripes") else {
            return Err(wrong());
        };
        let (pairs, rest) = list.as_chunks::<2>();
        let stripes = pairs.len() as u64;
        let fits = rest.is_empty()
            && stripes > 0
            && stripes == unsigned(segment, "stripe_count")?
            && count.is_multiple_of(stripes);
        if !fits {
            return Err(wrong());
        }
        let len = (count / stripes)
            .checked_mul(self.extent_size)
            .ok_or_else(wrong)?;
        let stripe = if stripes == 1 {
            len
        } else {
            sectors(segment, "stripe_size")?
        };
        if stripe == 0 || !len.is_multiple_of(stripe) {
            return Err(wrong());
        }
        let (mut areas, mut on_volumes) = (Vec::new(), false);
        for pair in pairs {
            let [Entry::Text(place), Entry::Number(first)] = pair else {
                return Err(wrong());
            };
            let Some(number) = self.physical.get(place.as_str()).copied() else {
                inner.insert(place.clone());
                on_volumes = true;
                continue;
            };
            let extents = self.extents[number];
            let range = u64::try_from(*first)
                .ok()
                .and_then(|first| first.checked_mul(self.extent_size))
                .and_then(|offset| extents.start().checked_add(offset))
                .and_then(|start| ByteRange::new(start, len).ok())
                .filter(|range| extents.contains(*range))
                .ok_or_else(wrong)?;
            areas.push((number, range));
        }
        match (on_volumes, areas.is_empty()) {
            (false, _) => Ok(Ok(Stripes { stripe, areas })),
            (true, true) => Ok(Err("it is built on other logical volumes".to_owned())),
            // Extents would be allocated that no segment names.
            (true, false) => Err(wrong()),
        }
    }

    /// Notes every name in a segment of another type. One that lies on a physical volume itself has
    /// extents whose places are not understood.
    fn built_on(
        &self,
        name: &str,
        segment: &Section,
        inner: &mut BTreeSet<String>,
    ) -> Result<(), Doubt> {
        let mut entries: Vec<&Entry> = segment.values().collect();
        while let Some(entry) = entries.pop() {
            match entry {
                Entry::Number(_) => {}
                Entry::List(list) => entries.extend(list),
                Entry::Section(section) => entries.extend(section.values()),
                Entry::Text(text) if self.physical.contains_key(text.as_str()) => {
                    return Err(doubt(format!(
                        "a segment of logical volume `{name}` lies on physical volume `{text}` in a \
                         way that is not known here"
                    )));
                }
                Entry::Text(text) => {
                    inner.insert(text.clone());
                }
            }
        }
        Ok(())
    }
}

/// What LVM allows in names (`lvm(8)`, "valid names"); they are shown to people.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    (1..=127).contains(&name.len()) && name.bytes().all(allowed)
}

/// No extent may belong to two segments.
fn check_apart(group: &VolumeGroup) -> Result<(), Doubt> {
    let mut areas: Vec<(usize, ByteRange)> = group
        .logical_volumes
        .iter()
        .flat_map(|volume| &volume.segments)
        .flat_map(|segment| segment.areas.iter().copied())
        .collect();
    areas.sort_unstable();
    let overlap = areas.windows(2).any(|pair| {
        let ((one, range), (other, next)) = (pair[0], pair[1]);
        one == other && range.overlaps(next)
    });
    if overlap {
        return Err(doubt(format!(
            "extents of volume group `{}` overlap",
            group.name
        )));
    }
    Ok(())
}

fn missing(name: &str) -> Doubt {
    doubt(format!("the volume group's text lacks a sound `{name}`"))
}

fn string<'a>(section: &'a Section, name: &str) -> Result<&'a str, Doubt> {
    match section.get(name) {
        Some(Entry::Text(text)) => Ok(text),
        _ => Err(missing(name)),
    }
}

fn number(section: &Section, name: &str) -> Result<i64, Doubt> {
    match section.get(name) {
        Some(Entry::Number(number)) => Ok(*number),
        _ => Err(missing(name)),
    }
}

fn unsigned(section: &Section, name: &str) -> Result<u64, Doubt> {
    u64::try_from(number(section, name)?).map_err(|_| missing(name))
}

/// A number of sectors of 512 bytes, in bytes.
fn sectors(section: &Section, name: &str) -> Result<u64, Doubt> {
    unsigned(section, name)?
        .checked_mul(512)
        .ok_or_else(|| missing(name))
}

fn section_of<'a>(section: &'a Section, name: &str) -> Result<Option<&'a Section>, Doubt> {
    match section.get(name) {
        None => Ok(None),
        Some(Entry::Section(inner)) => Ok(Some(inner)),
        Some(_) => Err(missing(name)),
    }
}

/// A list of texts; empty when it is not there.
fn strings<'a>(section: &'a Section, name: &str) -> Result<Vec<&'a str>, Doubt> {
    match section.get(name) {
        None => Ok(Vec::new()),
        Some(Entry::List(list)) => list
            .iter()
            .map(|entry| match entry {
                Entry::Text(text) => Ok(text.as_str()),
                _ => Err(missing(name)),
            })
            .collect(),
        Some(_) => Err(missing(name)),
    }
}
