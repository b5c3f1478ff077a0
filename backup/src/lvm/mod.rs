//! LVM2: which logical volumes lie on the disks, and where their bytes are.
//!
//! A physical volume has a `label`, one or more areas with the text that describes its group
//! (`metadata`, `text`), and extents. [`survey`] reads all physical volumes of a machine together:
//! linear and striped logical volumes become volumes of their own ([`MappedVolume`]), surveyed as
//! partitions are; of the physical volume itself remain what is before its first extent, its metadata
//! areas and the extents of logical volumes that are not mapped.
//!
//! Invariant: every allocated extent is either part of a mapped logical volume or saved with its
//! physical volume. Any doubt (a checksum, a missing or doubled physical volume, descriptions that
//! differ, a member that is not known) is given as a reason, and those physical volumes are saved whole.
//! What is *not* here: whether logical volumes are active, which changes nothing on the disks.

use std::collections::BTreeMap;

use crate::ByteRange;
use crate::filesystem::detect::{detect, is_raid_member};
use crate::filesystem::{Doubt, ReadAt, Section, Survey, survey_volume};

mod group;
mod label;
mod mapping;
mod metadata;
mod text;

pub use mapping::{Area, MappedVolume, Mapping, MappingError, Place, Segment};

use group::VolumeGroup;
use label::Label;

/// Where a physical volume may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The disk's number.
    pub disk: u32,
    /// The partition, or the whole disk.
    pub range: ByteRange,
    /// The disk's logical sector size in bytes.
    pub sector: u64,
}

/// What a machine's physical volumes hold.
#[derive(Debug)]
pub struct GroupSurvey {
    /// For each candidate: what is saved of the physical volume itself, relative to it and in order; or
    /// why it is saved whole.
    pub physical_volumes: Vec<Result<Vec<ByteRange>, String>>,
    /// All logical volumes of the groups that are understood.
    pub logical_volumes: Vec<SurveyedVolume>,
}

/// A logical volume.
#[derive(Debug)]
pub struct SurveyedVolume {
    /// Its name.
    pub name: String,
    /// Its group's name.
    pub group: String,
    /// Its UUID, as LVM shows it.
    pub uuid: String,
    /// Where it lies and what is in it; or why it is kept with its physical volumes.
    pub content: Result<(Mapping, Survey), String>,
}

/// Surveys the physical volumes among `candidates`. `disks` are the machine's disks by their numbers.
#[must_use]
pub fn survey(candidates: &[Candidate], disks: &[&dyn ReadAt]) -> GroupSurvey {
    let mut physical: Vec<Physical> = candidates
        .iter()
        .map(|candidate| Physical::read(*candidate, disks))
        .collect();
    let mut groups: BTreeMap<(String, String), Result<VolumeGroup, String>> = BTreeMap::new();
    for one in &physical {
        for group in one.groups.iter().flatten() {
            let key = (group.name.clone(), group.uuid.clone());
            let same = groups.entry(key).or_insert_with(|| Ok(group.clone()));
            if same.as_ref().is_ok_and(|same| same != group) {
                *same = Err(format!(
                    "the metadata areas of volume group `{}` differ (sequence numbers {} and {})",
                    group.name,
                    same.as_ref().map_or(0, |same| same.sequence),
                    group.sequence
                ));
            }
        }
    }
    let mut logical_volumes = Vec::new();
    for ((name, uuid), group) in groups {
        let placed = group.and_then(|group| {
            let places = place(&group, &physical)?;
            let mapped = map(&group, &places, &physical)?;
            Ok((group, places, mapped))
        });
        match placed {
            Ok((group, places, mapped)) => {
                keep(&group, &places, &mut physical);
                let volumes = group.logical_volumes.into_iter().zip(mapped);
                let survey = |(volume, mapped)| survey_one(volume, &group.name, mapped, disks);
                logical_volumes.extend(volumes.map(survey));
            }
            Err(reason) => {
                for one in &mut physical {
                    one.refuse(&uuid, &name, &reason);
                }
            }
        }
    }
    GroupSurvey {
        physical_volumes: physical.into_iter().map(|one| one.saved).collect(),
        logical_volumes,
    }
}

/// A physical volume that was read.
struct Physical {
    at: Candidate,
    label: Option<Label>,
    /// The groups that its metadata areas describe; one, or none.
    groups: Vec<Option<VolumeGroup>>,
    saved: Result<Vec<ByteRange>, String>,
}

impl Physical {
    fn read(at: Candidate, disks: &[&dyn ReadAt]) -> Self {
        let unused = Err("LVM: it belongs to no volume group that was found".to_owned());
        let mut physical = Self {
            at,
            label: None,
            groups: Vec::new(),
            saved: unused,
        };
        let Some(disk) = disks.get(at.disk as usize) else {
            return physical;
        };
        let volume = Section::new(*disk, at.range);
        let read = || -> Result<(Label, Vec<Option<VolumeGroup>>), Doubt> {
            match &detect(&volume, at.range.len())?[..] {
                [_] if !is_raid_member(&volume, at.range.len())? => {}
                _ => return Err(doubt("it bears signs of something else too")),
            }
            let label = label::read(&volume, at.range.len())?;
            let mut groups = Vec::new();
            for area in &label.metadata_areas {
                let text = metadata::read(&volume, *area)?;
                groups.push(text.map(|text| group::read(&text)).transpose()?);
            }
            Ok((label, groups))
        };
        match read() {
            Ok((label, groups)) => {
                physical.label = Some(label);
                physical.groups = groups;
            }
            Err(error) => physical.saved = Err(format!("LVM: {error}")),
        }
        physical
    }

    /// Its metadata and boot loader areas.
    fn own_areas(&self) -> Vec<ByteRange> {
        let areas = self
            .label
            .iter()
            .flat_map(|label| label.metadata_areas.iter().chain(&label.boot_loader_areas));
        areas.copied().collect()
    }

    /// Notes why the group that it names, or that names it, is not mapped.
    fn refuse(&mut self, uuid: &str, name: &str, reason: &str) {
        let named = self
            .groups
            .iter()
            .flatten()
            .any(|group| (group.uuid.as_str(), group.name.as_str()) == (uuid, name));
        if named {
            self.saved = Err(format!("LVM: {reason}"));
        }
    }
}

/// The numbers of the candidates that are the group's physical volumes, in their order.
fn place(group: &VolumeGroup, physical: &[Physical]) -> Result<Vec<usize>, String> {
    let mut places: Vec<usize> = Vec::with_capacity(group.physical_volumes.len());
    for wanted in &group.physical_volumes {
        let mut found = physical.iter().enumerate().filter(|(_, one)| {
            one.label
                .as_ref()
                .is_some_and(|label| label.uuid == wanted.uuid)
        });
        let (number, one) = found.next().ok_or_else(|| {
            format!(
                "physical volume {} of volume group `{}` is missing",
                wanted.uuid, group.name
            )
        })?;
        if found.next().is_some() || places.contains(&number) {
            return Err(format!(
                "physical volume {} of volume group `{}` is there more than once",
                wanted.uuid, group.name
            ));
        }
        let starts = one.label.as_ref().map(|label| label.data_start);
        let sector = one.at.sector;
        let own = one.own_areas();
        let fits = starts == Some(wanted.extents.start())
            && !own.iter().any(|area| area.overlaps(wanted.extents))
            && wanted.extents.end() <= one.at.range.len()
            && wanted.extents.start().is_multiple_of(sector)
            && group.extent_size.is_multiple_of(sector);
        if !fits {
            return Err(format!(
                "the extents of physical volume {} of volume group `{}` do not fit its label or size",
                wanted.uuid, group.name
            ));
        }
        let other = one
            .groups
            .iter()
            .flatten()
            .find(|other| (&other.uuid, &other.name) != (&group.uuid, &group.name));
        if let Some(other) = other {
            return Err(format!(
                "physical volume {} is of volume group `{}` and of `{}`",
                wanted.uuid, group.name, other.name
            ));
        }
        places.push(number);
    }
    // Stripes that are no whole sectors could not be saved and restored apart.
    let sector = physical
        .iter()
        .map(|one| one.at.sector)
        .max()
        .unwrap_or(512);
    let stripes = group
        .logical_volumes
        .iter()
        .flat_map(|volume| &volume.segments);
    if stripes
        .into_iter()
        .any(|one| !one.stripe.is_multiple_of(sector))
    {
        return Err(format!(
            "volume group `{}` has stripes that are no whole sectors",
            group.name
        ));
    }
    Ok(places)
}

/// Notes what is saved of the group's physical volumes.
fn keep(group: &VolumeGroup, places: &[usize], physical: &mut [Physical]) {
    for (number, (one, place)) in group.physical_volumes.iter().zip(places).enumerate() {
        let own = physical[*place].own_areas();
        let kept = group
            .logical_volumes
            .iter()
            .filter(|volume| volume.unmapped.is_some())
            .flat_map(|volume| &volume.segments)
            .flat_map(|segment| &segment.areas)
            .filter(|(on, _)| *on == number)
            .map(|(_, range)| *range);
        let mut ranges = vec![ByteRange::between(0, one.extents.start())];
        ranges.extend(own.into_iter().chain(kept));
        physical[*place].saved = Ok(joined(ranges));
    }
}

fn survey_one(
    volume: group::LogicalVolume,
    group: &str,
    mapped: Option<Mapping>,
    disks: &[&dyn ReadAt],
) -> SurveyedVolume {
    let content = match (mapped, volume.unmapped) {
        (Some(mapping), None) => {
            let reader = MappedVolume::new(&mapping, disks);
            let survey = survey_volume(&reader, mapping.size());
            Ok((mapping, survey))
        }
        (_, reason) => Err(reason.unwrap_or_default()),
    };
    SurveyedVolume {
        name: volume.name,
        group: group.to_owned(),
        uuid: volume.uuid,
        content,
    }
}

/// Where the group's logical volumes lie on the disks; none for those that are not mapped.
fn map(
    group: &VolumeGroup,
    places: &[usize],
    physical: &[Physical],
) -> Result<Vec<Option<Mapping>>, String> {
    let area = |(number, range): &(usize, ByteRange)| {
        let at = physical[places[*number]].at;
        Area {
            disk: at.disk,
            range: ByteRange::between(
                at.range.start() + range.start(),
                at.range.start() + range.end(),
            ),
        }
    };
    let map_one = |volume: &group::LogicalVolume| {
        if volume.unmapped.is_some() {
            return Ok(None);
        }
        let segments = volume.segments.iter().map(|segment| Segment {
            stripe: segment.stripe,
            areas: segment.areas.iter().map(area).collect(),
        });
        let mapping = Mapping::new(segments.collect());
        mapping.map(Some).map_err(|error| {
            format!(
                "logical volume `{}` of `{}`: {error}",
                volume.name, group.name
            )
        })
    };
    group.logical_volumes.iter().map(map_one).collect()
}

/// In order; those that touch or overlap become one.
fn joined(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable();
    let mut joined: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn doubt(reason: impl Into<String>) -> Doubt {
    Doubt::Untrusted(reason.into())
}

/// LVM's checksum (`lib/misc/crc.c`): the CRC-32 of zlib from another beginning, not inverted.
fn crc(bytes: &[u8]) -> u32 {
    const INITIAL: u32 = 0xf597_a6cf;
    let mut hasher = crc32fast::Hasher::new_with_initial(!INITIAL);
    hasher.update(bytes);
    !hasher.finalize()
}

/// 32 letters and digits as LVM shows a UUID.
fn uuid_text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let sound = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    sound.then(|| {
        [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32]
            .map(|group| &text[group])
            .join("-")
    })
}
