//! A restore plan as a person wants to see it before confirming: both disks drawn in ASCII, 80
//! columns at most, so that it also fits a serial console.
//!
//! What is *not* here: any decision. The picture shows a plan's values and changes none.

use std::fmt;

use crate::manifest::{DiskImage, Manifest, PartitionTable, RegionKind};
use crate::plan::{DiskPlan, PlannedPartition, RestorePlan};
use crate::units::HumanBytes;

/// Columns of the longest line.
const COLUMNS: usize = 80;
/// The least columns inside a cell: `1023 MiB`.
const CELL: usize = 8;
/// More cells than this do not fit; the rest becomes one.
const MAX_CELLS: usize = 8;
/// Free space smaller than one part in this many of a disk is not drawn.
const SMALLEST_SHARE: u64 = 50;

/// One box of a drawn disk.
struct Cell {
    lines: [String; 2],
    bytes: u64,
}

impl RestorePlan {
    /// Draws each disk of the backup above the disk that it goes to. `manifest` is the one that the
    /// plan was made from.
    #[must_use]
    pub fn picture(&self, manifest: &Manifest) -> String {
        let mut lines = Vec::new();
        for plan in &self.disks {
            let Some(image) = manifest.disks.get(plan.source as usize) else {
                continue;
            };
            let widest = image.size.max(plan.target.size);
            lines.push(fit(&describe_source(image), COLUMNS));
            lines.extend(draw(&source_cells(image), image.size, widest));
            lines.push("      |".to_owned());
            lines.push("      v".to_owned());
            lines.push(fit(&plan.target.describe(), COLUMNS));
            lines.extend(draw(&target_cells(plan), plan.target.size, widest));
            lines.push(if plan.keeps_table {
                "  What is not named \"new\" stays as it is.".to_owned()
            } else {
                "  Everything on this disk is overwritten.".to_owned()
            });
            for grow in &plan.grow {
                lines.push(format!(
                    "  Partition {}: {} grows from {} to {}.",
                    grow.partition,
                    grow.file_system,
                    HumanBytes(grow.from),
                    HumanBytes(grow.to)
                ));
            }
            for shrink in &plan.shrink {
                lines.push(format!(
                    "  Partition {}: {} is made smaller, from {} to {}.",
                    shrink.partition,
                    shrink.file_system,
                    HumanBytes(shrink.from),
                    HumanBytes(shrink.to)
                ));
            }
            for change in &plan.sectors {
                lines.push(format!(
                    "  Partition {}: {} gets sectors of {} bytes.",
                    change.partition,
                    change.file_system,
                    change.to.bytes()
                ));
            }
            lines.push(String::new());
        }
        for note in &self.notes {
            lines.extend(wrap(&format!("Note: {note}")));
        }
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restore of {}", self.restore_point)?;
        for plan in &self.disks {
            writeln!(
                f,
                "disk {} goes to {}{}",
                plan.source,
                plan.target.describe(),
                if plan.keeps_table {
                    ", of which these partitions are overwritten"
                } else {
                    ", which is overwritten"
                }
            )?;
            for partition in &plan.partitions {
                let grow = plan
                    .grow
                    .iter()
                    .find(|grow| grow.partition == partition.number);
                write!(
                    f,
                    "  partition {:<3} {:<9} {:>9}",
                    partition.number,
                    contents(partition),
                    HumanBytes(partition.range.len()).to_string()
                )?;
                let shrunk = plan
                    .shrink
                    .iter()
                    .find(|shrink| shrink.partition == partition.number);
                let before = grow.map(|grow| grow.from);
                match before.or(shrunk.map(|shrink| shrink.from)) {
                    Some(before) => writeln!(f, " (was {})", HumanBytes(before))?,
                    None => writeln!(f)?,
                }
            }
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

impl DiskImage {
    /// Draws the disk as it was when it was captured, to scale.
    #[must_use]
    pub fn picture(&self) -> String {
        let mut lines = vec![fit(&describe_source(self), COLUMNS)];
        lines.extend(draw(&source_cells(self), self.size, self.size));
        lines.push(String::new());
        lines.join("\n")
    }
}

fn contents(partition: &PlannedPartition) -> String {
    partition
        .file_system
        .map_or_else(|| "data".to_owned(), |kind| kind.to_string())
}

fn describe_source(image: &DiskImage) -> String {
    let mut text = format!("disk {} of the backup", image.number);
    if let Some(model) = &image.model {
        text.push_str(&format!(" \"{model}\""));
    }
    if let Some(serial) = &image.serial {
        text.push_str(&format!(" serial {serial}"));
    }
    let table = match image.table {
        PartitionTable::Gpt(_) => "GPT",
        PartitionTable::Mbr(_) => "MBR",
        PartitionTable::None => "no partition table",
    };
    text.push_str(&format!(", {}, {table}", HumanBytes(image.size)));
    text
}

fn source_cells(image: &DiskImage) -> Vec<Cell> {
    let parts = image.regions.iter().filter_map(|region| {
        let name = match region.kind {
            RegionKind::Partition { number } => number.to_string(),
            RegionKind::WholeDisk => String::new(),
            RegionKind::Gap => return None,
        };
        let kind = region.volume.as_ref().map_or_else(
            || "data".to_owned(),
            |volume| volume.file_system.to_string(),
        );
        Some((region.range, format!("{name} {kind}").trim().to_owned()))
    });
    with_free_space(parts.collect(), image.size)
}

fn target_cells(plan: &DiskPlan) -> Vec<Cell> {
    let new = if plan.keeps_table { " new" } else { "" };
    let mut parts: Vec<_> = plan
        .partitions
        .iter()
        .map(|partition| {
            let text = format!("{}{new} {}", partition.number, contents(partition));
            (partition.range, text)
        })
        .collect();
    let is_planned = |range| plan.partitions.iter().any(|one| one.range == range);
    let kept = plan.target.partitions.iter().filter(|_| plan.keeps_table);
    for partition in kept.filter(|one| !is_planned(one.range)) {
        parts.push((partition.range, partition.number.to_string()));
    }
    if parts.is_empty() {
        // A disk without a table: its copies are all there is.
        parts = plan
            .copies
            .iter()
            .map(|copy| (copy.destination, "data".to_owned()))
            .collect();
    }
    parts.sort();
    with_free_space(parts, plan.target.size)
}

fn with_free_space(parts: Vec<(crate::ByteRange, String)>, size: u64) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut at = 0;
    let free = |cells: &mut Vec<Cell>, bytes: u64| {
        if bytes > size / SMALLEST_SHARE {
            cells.push(Cell {
                lines: ["free".to_owned(), HumanBytes(bytes).to_string()],
                bytes,
            });
        }
    };
    for (range, text) in parts {
        free(&mut cells, range.start().saturating_sub(at));
        cells.push(Cell {
            lines: [text, HumanBytes(range.len()).to_string()],
            bytes: range.len(),
        });
        at = range.end();
    }
    free(&mut cells, size.saturating_sub(at));
    if cells.len() > MAX_CELLS {
        let rest = cells.split_off(MAX_CELLS - 1);
        let bytes = rest
            .iter()
            .map(|cell| cell.bytes)
            .fold(0, u64::saturating_add);
        cells.push(Cell {
            lines: [
                format!("{} more", rest.len()),
                HumanBytes(bytes).to_string(),
            ],
            bytes,
        });
    }
    cells
}

/// Draws a disk as a row of boxes; a disk of `widest` bytes takes all columns.
fn draw(cells: &[Cell], size: u64, widest: u64) -> Vec<String> {
    let share = |part: u64, whole: u64, columns: usize| {
        let columns = u128::from(part) * columns as u128 / u128::from(whole.max(1));
        usize::try_from(columns).unwrap_or(0)
    };
    let least = cells.len() * (CELL + 1) + 1;
    let columns = share(size, widest, COLUMNS).clamp(least.min(COLUMNS), COLUMNS);
    let spare = columns.saturating_sub(least);
    let total = cells
        .iter()
        .map(|cell| cell.bytes)
        .fold(0, u64::saturating_add);
    let widths: Vec<usize> = cells
        .iter()
        .map(|cell| CELL + share(cell.bytes, total, spare))
        .collect();
    let mut rule = "+".to_owned();
    let mut rows = ["|".to_owned(), "|".to_owned()];
    for (cell, width) in cells.iter().zip(widths) {
        rule.push_str(&format!("{:-<width$}+", ""));
        for (row, line) in rows.iter_mut().zip(&cell.lines) {
            row.push_str(&format!("{:^width$}|", fit(line, width)));
        }
    }
    let [first, second] = rows;
    vec![rule.clone(), first, second, rule]
}

/// At most `columns` characters of a text.
fn fit(text: &str, columns: usize) -> String {
    text.chars().take(columns).collect()
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COLUMNS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(fit(word, COLUMNS)),
        }
    }
    lines
}
