//! Which target disk each source disk goes to.
//!
//! Invariant: never a guess. A disk is taken because a person named it, because it is the very disk
//! of the backup, or because there is no other; anything else is refused with the candidates.

use crate::hardware::Disk;
use crate::manifest::DiskImage;
use crate::plan::restore::refusal;
use crate::plan::{Choices, ReasonCode, Refusal};

/// One target for each source disk, in the order of `sources`.
pub(super) fn assign<'a>(
    sources: &[DiskImage],
    targets: &'a [Disk],
    choices: &Choices,
) -> Result<Vec<&'a Disk>, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut given: Vec<Option<&Disk>> = vec![None; sources.len()];
    let mut failed = vec![false; sources.len()];
    for choice in &choices.disks {
        let source = choice.source as usize;
        let Some(slot) = given.get_mut(source) else {
            refusals.push(refusal(
                ReasonCode::DiskNotFound,
                format!(
                    "The backup has no disk {} (it has {}, counted from 0).",
                    choice.source,
                    sources.len()
                ),
            ));
            continue;
        };
        match chosen(targets, &choice.target) {
            Ok(disk) if slot.is_some_and(|before| before != disk) => {
                failed[source] = true;
                refusals.push(refusal(
                    ReasonCode::AmbiguousDisk,
                    format!("Two target disks were chosen for disk {source} of the backup."),
                ));
            }
            Ok(disk) => *slot = Some(disk),
            Err(refusal) => {
                failed[source] = true;
                refusals.push(refusal);
            }
        }
    }
    // The same hardware, before any rule about what is left.
    for (source, slot) in sources.iter().zip(&mut given) {
        if slot.is_none() && !failed[source.number as usize] {
            *slot = same_disk(source, targets);
        }
    }
    refusals.extend(given_twice(&given));
    let open: Vec<usize> = (0..sources.len())
        .filter(|source| given[*source].is_none() && !failed[*source])
        .collect();
    let free: Vec<&Disk> = targets
        .iter()
        .filter(|disk| usable(disk) && !given.iter().flatten().any(|taken| *taken == *disk))
        .collect();
    match (&open[..], &free[..]) {
        ([], _) => {}
        ([source], [disk]) => given[*source] = Some(disk),
        (open, free) if free.len() < open.len() => {
            refusals.push(no_disk(open, free, targets));
        }
        (open, free) => refusals.push(ambiguous(open, free)),
    }
    for disk in given.iter().flatten().filter(|disk| disk.read_only) {
        refusals.push(refusal(
            ReasonCode::ReadOnly,
            format!(
                "{} is write-protected. Take the protection off, or choose another disk.",
                disk.describe()
            ),
        ));
    }
    let disks: Vec<&Disk> = given.into_iter().flatten().collect();
    if refusals.is_empty() {
        Ok(disks)
    } else {
        Err(refusals)
    }
}

fn usable(disk: &Disk) -> bool {
    !disk.removable && !disk.read_only && disk.size > 0
}

fn list(disks: &[&Disk]) -> String {
    let names: Vec<String> = disks.iter().map(|disk| disk.describe()).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join("; ")
    }
}

pub(super) fn chosen<'a>(targets: &'a [Disk], text: &str) -> Result<&'a Disk, Refusal> {
    let matches: Vec<&Disk> = targets
        .iter()
        .filter(|disk| {
            disk.name == text
                || disk.serial.as_deref() == Some(text)
                || disk.wwn.as_deref() == Some(text)
        })
        .collect();
    match matches[..] {
        [disk] => Ok(disk),
        [] => Err(refusal(
            ReasonCode::DiskNotFound,
            format!(
                "No disk has the serial number, WWN or name `{text}`. The machine's disks: {}.",
                list(&targets.iter().collect::<Vec<_>>())
            ),
        )),
        _ => Err(refusal(
            ReasonCode::AmbiguousDisk,
            format!(
                "`{text}` names more than one disk: {}. Choose by another of serial number, WWN and name.",
                list(&matches)
            ),
        )),
    }
}

/// The disk of the backup itself: by WWN, else by serial number, if exactly one has it.
fn same_disk<'a>(source: &DiskImage, targets: &'a [Disk]) -> Option<&'a Disk> {
    let only = |same: &dyn Fn(&Disk) -> bool| {
        let mut matches = targets.iter().filter(|disk| same(disk));
        let first = matches.next();
        first.filter(|_| matches.next().is_none())
    };
    let by = |mine: &Option<String>, theirs: fn(&Disk) -> &Option<String>| {
        let text = mine.as_deref().filter(|text| !text.trim().is_empty())?;
        only(&|disk| theirs(disk).as_deref() == Some(text))
    };
    by(&source.wwn, |disk| &disk.wwn).or_else(|| by(&source.serial, |disk| &disk.serial))
}

fn given_twice(given: &[Option<&Disk>]) -> Option<Refusal> {
    let taken: Vec<&Disk> = given.iter().flatten().copied().collect();
    let twice = taken
        .iter()
        .enumerate()
        .find(|(index, disk)| taken[..*index].contains(disk))?;
    Some(refusal(
        ReasonCode::DiskNotFound,
        format!(
            "{} was given to more than one disk of the backup. Choose another for each.",
            twice.1.describe()
        ),
    ))
}

fn numbers(open: &[usize]) -> String {
    let texts: Vec<String> = open.iter().map(usize::to_string).collect();
    texts.join(", ")
}

fn no_disk(open: &[usize], free: &[&Disk], targets: &[Disk]) -> Refusal {
    refusal(
        ReasonCode::NoDisk,
        format!(
            "Disk {} of the backup has no disk to go to: {} fixed and writable. The machine's disks: {}. Missing ones may need a driver; a removable one must be chosen by name.",
            numbers(open),
            match free.len() {
                0 => "none is".to_owned(),
                count => format!("only {count} of the machine's disks are"),
            },
            list(&targets.iter().collect::<Vec<_>>())
        ),
    )
}

fn ambiguous(open: &[usize], free: &[&Disk]) -> Refusal {
    refusal(
        ReasonCode::AmbiguousDisk,
        format!(
            "Disk {} of the backup could go to more than one disk: {}. Choose one by serial number, WWN or name.",
            numbers(open),
            list(free)
        ),
    )
}
