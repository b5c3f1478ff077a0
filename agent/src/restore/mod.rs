//! Restoring: manifest and plan to disks that start.
//!
//! Invariant: the order of writes. First the ranges that could make a disk start are made zero and
//! flushed, and a marker says which restore is under way; then the data, flushed; then superblocks
//! and boot sectors, flushed; then file systems are made smaller or larger, and a copy gets its own identity; the partition table, or the first sector of a
//! disk without one, is the last write. A power cut at any instant leaves a disk that does not start, and the same restore goes on where it was.
//!
//! Every byte is checked against its digest before it is written. Superblocks, boot sectors and tables
//! are always read again; reading everything again costs as much time as reading the disk and is off.
//! A disk that holds some of the data already, after an interruption or from an earlier time, is compared, and only
//! what differs is fetched. Memory does not grow with the disk: see [`lists`], [`pipeline`] and [`mod@write`].

use backup::hardware::FirmwareKind;
use backup::manifest::{Manifest, RestorePointId};
use backup::plan::{Choices, DiskPlan, RestorePlan};
use backup::units::HumanBytes;
use backup::{ByteRange, Digest};
use protocol::progress::Stage;

use crate::at_need;
use crate::boot_repair;
use crate::device::{Access, io_error};
use crate::job::error::{Fault, Touched, report};
use crate::job::firmware;
use crate::job::identity::{self, Renewed};
use crate::job::platform::Loader;
use crate::job::{Engine, JobError};
use commit::Writes;
use covered::Covered;
use fetch::Fetched;
use held::{Held, before_commit, contents};
use lists::{KEPT, Lists};
pub(crate) use marker::{place as marker_place, unfinished};
use pipeline::{Pipeline, Purpose};
use shrink::Tail;
use sources::{Pieces, Source};
use work::Batches;
use write::{Target, Writer};
use written::Written;

mod batch;
mod commit;
mod compare;
mod covered;
mod discard;
mod fetch;
mod held;
mod lists;
mod marker;
mod pipeline;
mod sectors;
mod shrink;
mod sources;
mod work;
mod write;
mod written;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod mapping_crash_tests;
#[cfg(test)]
mod mapping_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume_tests;

/// Rebuilds the machine's disks from a restore point. Returns sentences for people.
///
/// # Errors
/// [`JobError`]; it says whether a disk was touched.
pub(crate) fn restore(
    engine: &Engine<'_>,
    restore_point: &RestorePointId,
    choices: &Choices,
) -> Result<Vec<String>, JobError> {
    let mut touched = Touched::Nothing;
    Restore::prepare(engine, restore_point, choices)
        .and_then(|restore| restore.run(&mut touched))
        .map_err(|fault| report(&fault, touched))
}

/// A restore whose plan is made and whose inputs are checked.
struct Restore<'a> {
    engine: &'a Engine<'a>,
    manifest: Manifest,
    plan: RestorePlan,
    choices: Choices,
    lists: Lists<'a>,
    sources: Vec<Source>,
    tails: Vec<Tail>,
}

impl<'a> Restore<'a> {
    /// Everything that can be refused, before any disk is opened.
    fn prepare(
        engine: &'a Engine<'a>,
        restore_point: &RestorePointId,
        choices: &Choices,
    ) -> Result<Self, Fault> {
        let json = engine
            .server
            .manifest(restore_point)
            .map_err(Fault::server(format!(
                "fetching the manifest of {restore_point}"
            )))?;
        engine.tracker.network(json.len() as u64);
        let unusable = |source| Fault::Manifest {
            restore_point: restore_point.to_string(),
            source,
        };
        let manifest = Manifest::from_json(&json).map_err(unusable)?;
        if manifest.id != *restore_point {
            return Err(Fault::OtherAnswer {
                found: format!("restore point {}", manifest.id),
                expected: restore_point.to_string(),
            });
        }
        let plan = backup::plan::restore::plan_restore(&manifest, engine.inventory, choices)
            .map_err(Fault::Refused)?;
        plan.picture(&manifest)
            .lines()
            .for_each(|line| log::info!("{line}"));
        plan.notes.iter().for_each(|note| log::info!("{note}"));
        if at_need::is_needed_by(&plan) || choices.is_copy() {
            at_need::bring(engine.server)?;
        }
        engine.platform.check_tools(&plan)?;
        shrink::check(&plan)?;
        if choices.is_copy() {
            identity::check(&manifest, &plan)?;
        }
        firmware::check(engine, &manifest, &plan)?;
        let (sources, needed) = sources::sources(&plan, &manifest)?;
        let lists = Lists::fetch(engine, restore_point, &needed, KEPT)?;
        drop(needed);
        sources::check_places(&lists, &sources)?;
        let tails = shrink::tails(&plan, &manifest, &lists)?;
        Ok(Self {
            engine,
            manifest,
            plan,
            choices: choices.clone(),
            lists,
            sources,
            tails,
        })
    }

    fn run(self, touched: &mut Touched) -> Result<Vec<String>, Fault> {
        let targets = self.open()?;
        let marked = self.read_markers(&targets)?;
        self.engine.check_cancelled()?;

        let only_volumes = self.plan.disks.iter().all(|plan| plan.keeps_table);
        *touched = if only_volumes {
            Touched::Volumes
        } else {
            Touched::Begun
        };
        for ((target, plan), marked) in targets.iter().zip(&self.plan.disks).zip(&marked) {
            invalidate(target, plan, &self.plan.restore_point, marked)?;
        }
        let compares = self.compares(&targets, &marked)?;
        let fetched = Fetched::default();
        let held = self.write(&targets, &compares, &fetched)?;
        self.write_held(&targets, &held)?;
        self.verify(&targets, &held)?;
        // Not before: what a restore that ends here has not overwritten can still be looked for.
        let pieces = Pieces::new(&self.lists, &self.sources);
        discard::discard(self.engine, &targets, &self.plan.disks, pieces)?;

        let covered = covered::disks(&targets, &held);
        let mut sentences = shrink::shrink(self.engine, &covered, &self.tails)?;
        sentences.extend(sectors::change(self.engine, &covered, &self.plan.disks)?);
        covered.iter().try_for_each(Covered::uncover)?;
        drop(covered);
        if only_volumes {
            *touched = Touched::VolumesWhole;
        }
        let mut writes = self.commit_writes(&targets, &held);
        drop(targets);
        let codes = firmware::convert(self.engine, &self.manifest, &self.plan, &mut sentences)?;
        for (writes, code) in writes.iter_mut().zip(codes) {
            writes.put_boot_code(code.as_deref());
        }
        self.finish_volumes(&mut sentences)?;
        let renewed = self.renew(&mut sentences)?;
        for (writes, tables) in writes.iter_mut().zip(&renewed.commits) {
            writes.put_tables(tables);
        }

        self.engine.tracker.stage(Stage::Committing, 0);
        let targets = self.open()?;
        let devices = targets.iter().map(|target| target.device.as_ref());
        commit::commit(&devices.zip(writes).collect::<Vec<_>>(), touched)?;
        drop(targets);
        for plan in &self.plan.disks {
            if let Err(error) = self.engine.platform.reread_table(&plan.target) {
                // The restored system reads the table itself when it starts.
                log::warn!(
                    "{}: the kernel does not read the new table: {error}",
                    plan.target.name
                );
            }
        }
        self.repair_entries(&renewed, &mut sentences)?;
        Ok(self.summary(&fetched, sentences))
    }

    /// What the commit writes to each disk: tables, and what was held back until then.
    fn commit_writes(&self, targets: &[Target], held: &[Held]) -> Vec<Writes> {
        let disks = self.plan.disks.iter().zip(targets).enumerate();
        disks
            .map(|(disk, (plan, target))| {
                let place = target.marker;
                let reserved =
                    place.map(|place| contents(held, disk, place, "the marker's sector"));
                let first = target
                    .first
                    .map(|first| contents(held, disk, first, "the first sector"));
                Writes::new(plan, reserved, first)
            })
            .collect()
    }

    /// Opens the targets for writing and checks that they are the disks of the plan.
    fn open(&self) -> Result<Vec<Target>, Fault> {
        let mut targets = Vec::with_capacity(self.plan.disks.len());
        for plan in &self.plan.disks {
            let device = self.engine.platform.open(&plan.target, Access::Write)?;
            let expected = (plan.target.size, plan.target.logical_sector);
            let found = (device.size(), device.sector());
            if found != expected {
                return Err(Fault::NotAsPlanned(format!(
                    "{} has {} bytes in sectors of {} (the plan expects {} in sectors of {}); it \
                     is another disk",
                    device.name(),
                    found.0,
                    found.1.bytes(),
                    expected.0,
                    expected.1.bytes()
                )));
            }
            let first = ByteRange::between(0, device.sector().bytes());
            let first = (plan.commit.is_empty() && !plan.keeps_table).then_some(first);
            // Where other partitions stay, no place of the disk is surely nobody's: there each volume has its own.
            let marker = marker::place(device.size()).filter(|_| !plan.keeps_table);
            let volumes = covered::heads_of(plan, device.sector().bytes());
            let last = work::last_ranges(plan, marker, first);
            targets.push(Target {
                device,
                last,
                first,
                marker,
                volumes,
            });
        }
        Ok(targets)
    }

    /// For each disk the markers that say that this very restore was under way: their places, in order.
    fn read_markers(&self, targets: &[Target]) -> Result<Vec<Vec<ByteRange>>, Fault> {
        let mut marked = Vec::with_capacity(targets.len());
        for (target, plan) in targets.iter().zip(&self.plan.disks) {
            let device = target.device.as_ref();
            let mut places = Vec::new();
            for place in target.markers() {
                let mut bytes = vec![0; place.len() as usize];
                device
                    .read_at(place.start(), &mut bytes)
                    .map_err(io_error("reading", device, place))?;
                if marker::is_of(&bytes, &self.plan.restore_point, digest_of(plan)?) {
                    places.push(place);
                }
            }
            if !places.is_empty() {
                log::info!(
                    "{}: this restore was interrupted; it goes on",
                    device.name()
                );
            }
            marked.push(places);
        }
        Ok(marked)
    }

    /// For each disk whether it is compared: after an interruption, and when it holds some of the data.
    fn compares(&self, targets: &[Target], marked: &[Vec<ByteRange>]) -> Result<Vec<bool>, Fault> {
        let mut compares = Vec::with_capacity(targets.len());
        for (disk, (target, marked)) in targets.iter().zip(marked).enumerate() {
            let known = !marked.is_empty();
            let holds_some = known || {
                let samples = sources::samples(&self.lists, &self.sources, disk)?;
                compare::holds_some(target, &samples)
            };
            if holds_some && !known {
                log::info!(
                    "{}: it holds some of the data; only what differs is fetched",
                    target.device.name()
                );
            }
            compares.push(holds_some);
        }
        Ok(compares)
    }

    fn batches(&self) -> Batches<'_> {
        Batches::new(Pieces::new(&self.lists, &self.sources))
    }

    /// Bytes of all pieces, data and zeros.
    fn totals(&self) -> (u64, u64) {
        let regions = self.plan.disks.iter().flat_map(|plan| {
            let image = self.manifest.disks.get(plan.source as usize);
            let regions = image.map_or(&[][..], |image| &image.regions);
            let copies = plan.copies.iter();
            copies.filter_map(|copy| regions.get(copy.region as usize))
        });
        let volumes = self.manifest.logical_volumes.iter().enumerate();
        // Of chosen volumes none is a logical one.
        let is_planned = |number: usize| {
            let mut areas = self.plan.disks.iter().flat_map(|plan| &plan.areas);
            areas.any(|area| area.volume as usize == number)
        };
        let volumes = volumes.filter(|(number, _)| is_planned(*number));
        let contents = regions
            .map(|region| &region.content)
            .chain(volumes.map(|(_, volume)| &volume.content));
        contents.fold((0, 0), |(data, zeros), content| {
            (data + content.data_bytes, zeros + content.zero_bytes)
        })
    }

    /// Fetches, checks and writes what the disks lack; returns what is held back, after a flush.
    fn write(
        &self,
        targets: &[Target],
        compares: &[bool],
        fetched: &Fetched,
    ) -> Result<Vec<Held>, Fault> {
        let (data, zeros) = self.totals();
        if compares.contains(&true) {
            self.engine.tracker.stage(Stage::Comparing, data + zeros);
        } else {
            self.engine.tracker.stage(Stage::Writing, data);
        }
        let writer = Writer::new(targets);
        let pipeline = Pipeline {
            engine: self.engine,
            targets,
            purpose: Purpose::Write { compares },
            fetched,
            written: Written::default(),
        };
        pipeline.run(self.batches(), &writer)?;
        let held = writer.finish();
        targets.iter().try_for_each(flush)?;
        let (bytes, chunks) = fetched.so_far();
        log::info!("fetched {bytes} bytes of data in {chunks} chunks");
        Ok(held)
    }

    /// Superblocks and boot sectors, and what lies in the first MiB; flushed. The marker stays, and a
    /// disk without a table gets its first sector, from which it starts, with the commit.
    fn write_held(&self, targets: &[Target], held: &[Held]) -> Result<(), Fault> {
        for (part, range) in before_commit(targets, held) {
            let device = targets[part.disk].device.as_ref();
            device
                .write_at(range.start(), part.bytes_of(range))
                .map_err(io_error("writing", device, range))?;
        }
        targets.iter().try_for_each(flush)
    }

    /// Reads again what was held back, and everything when the engine is told to.
    fn verify(&self, targets: &[Target], held: &[Held]) -> Result<(), Fault> {
        let (data, zeros) = self.totals();
        self.engine.tracker.stage(
            Stage::Verifying,
            if self.engine.read_back {
                data + zeros
            } else {
                0
            },
        );
        for (part, range) in before_commit(targets, held) {
            let device = targets[part.disk].device.as_ref();
            let mut found = vec![0; range.len() as usize];
            device
                .read_at(range.start(), &mut found)
                .map_err(io_error("reading", device, range))?;
            if found != part.bytes_of(range) {
                return Err(Fault::ReadBack {
                    device: device.name().to_owned(),
                    what: "a superblock or boot sector".to_owned(),
                    offset: range.start(),
                });
            }
        }
        if !self.engine.read_back {
            return Ok(());
        }
        let pipeline = Pipeline {
            engine: self.engine,
            targets,
            purpose: Purpose::Verify,
            fetched: &Fetched::default(),
            written: Written::default(),
        };
        pipeline.run(self.batches(), &Writer::new(targets))
    }

    fn finish_volumes(&self, sentences: &mut Vec<String>) -> Result<(), Fault> {
        self.engine.tracker.stage(Stage::Growing, 0);
        let loaders = if self.engine.inventory.firmware == FirmwareKind::Uefi {
            boot_repair::loaders(&self.manifest.firmware)
        } else {
            Vec::new()
        };
        for plan in &self.plan.disks {
            let on_this_disk = |loader: &&Loader| {
                let mut guids = plan.partitions.iter().filter_map(|one| one.guid.as_deref());
                guids.any(|guid| guid == loader.partition)
            };
            let loaders: Vec<_> = loaders.iter().filter(on_this_disk).cloned().collect();
            sentences.extend(self.engine.platform.finish_volumes(plan, &loaders)?);
        }
        Ok(())
    }

    /// Gives a copy an identity of its own.
    fn renew(&self, sentences: &mut Vec<String>) -> Result<Renewed, Fault> {
        if !self.choices.is_copy() {
            return Ok(Renewed::default());
        }
        self.engine.tracker.stage(Stage::Identity, 0);
        let renewed = identity::renew(self.engine, &self.manifest, &self.plan, &self.choices)?;
        sentences.extend(renewed.sentences.iter().cloned());
        Ok(renewed)
    }

    fn repair_entries(&self, renewed: &Renewed, sentences: &mut Vec<String>) -> Result<(), Fault> {
        let Some(variables) = self.engine.platform.variables() else {
            return Ok(());
        };
        self.engine.tracker.stage(Stage::BootRepair, 0);
        sentences.extend(boot_repair::repair_entries(
            variables,
            &self.manifest,
            &self.plan,
            &renewed.partitions,
        )?);
        Ok(())
    }

    fn summary(&self, fetched: &Fetched, details: Vec<String>) -> Vec<String> {
        let tracker = &self.engine.tracker;
        let seconds = tracker.seconds();
        let (restored, _) = self.totals();
        let (bytes, _) = fetched.so_far();
        let disks: Vec<_> = self
            .plan
            .disks
            .iter()
            .map(|plan| plan.target.describe())
            .collect();
        let rate = restored as f64 / seconds.max(0.001);
        let mut sentences = vec![
            format!(
                "Restored {} to {}.",
                self.plan.restore_point,
                disks.join(" and ")
            ),
            format!(
                "{} of data in {seconds:.1} s ({}/s); {} of it fetched, {} crossed the network.",
                HumanBytes(restored),
                HumanBytes(rate as u64),
                HumanBytes(bytes),
                HumanBytes(tracker.network_bytes())
            ),
        ];
        sentences.extend(details);
        sentences.extend(self.plan.notes.iter().cloned());
        sentences
    }
}

fn digest_of(plan: &DiskPlan) -> Result<Digest, Fault> {
    marker::plan_digest(plan)
        .map_err(|error| Fault::Internal(format!("the plan cannot be written down: {error}")))
}

fn flush(target: &Target) -> Result<(), Fault> {
    let device = target.device.as_ref();
    Ok(device
        .flush()
        .map_err(io_error("flushing", device, ByteRange::between(0, 0)))?)
}

/// Makes the disk one that does not start, and says with a marker which restore is under way. A
/// marker that is there already stays, so that a second power cut does not forget it.
fn invalidate(
    target: &Target,
    plan: &DiskPlan,
    restore_point: &RestorePointId,
    marked: &[ByteRange],
) -> Result<(), Fault> {
    let device = target.device.as_ref();
    // The one sector without which nothing is found first and alone: a power cut leaves what was there to the
    // letter, or nothing that starts or looks whole.
    let signs = if plan.keeps_table {
        covered::signs_there(device, plan)
    } else {
        vec![ByteRange::between(0, device.sector().bytes())]
    };
    // What starts the disk is gone before anything else of it is.
    for ranges in [&signs, &plan.invalidate, &target.last] {
        for range in ranges {
            let parts = work::split(*range, marked).into_iter();
            for (part, _) in parts.filter(|(_, is_marked)| !is_marked) {
                device
                    .zero(part)
                    .map_err(io_error("zeroing", device, part))?;
            }
        }
        flush(target)?;
    }
    for place in target.markers().filter(|place| !marked.contains(place)) {
        let bytes = marker::encode(restore_point, digest_of(plan)?);
        device
            .write_at(place.start(), &bytes)
            .map_err(io_error("writing", device, place))?;
    }
    flush(target)
}
