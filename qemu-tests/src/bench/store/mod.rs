//! The bench `store`: what a machine's disk costs in our store and in the peers', the same disk a month later,
//! and a second machine with the same packages.
//!
//! Each tool backs up the three disks of a set, one after the other, into a store of its own; what counts is what
//! its folder has grown by. restic, borg, casync get the raw disk, as the disk tools that they are used for get
//! it; partclone knows the file systems, and each of its volumes goes through `zstd -3`. Every tool uses all
//! processors it can. Each first capture is timed beside `zstd -3` of the raw disk; what else the computer does
//! falls on whoever runs, so times are those of the better of two turns.

pub(super) mod disks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{Report, Row, tftp_servers};
use crate::lab::deadline::Deadline;
use crate::lab::namespace::Namespace;
use crate::lab::tool;
use crate::scenarios::Settings;
use disks::{BenchDisk, DiskSet, Kind};

const NAME: &str = "store";
const MIB: f64 = (1u64 << 20) as f64;
/// The memory that a capture may take, whatever the disk.
const MEMORY_LIMIT: f64 = 256.0;
/// What `zstd`, and whoever leaves it the choice, compresses with.
const LEVEL: &str = "-3";
/// How often a first capture is timed.
const TURNS: usize = 2;

/// Measures.
///
/// # Errors
/// When a tool is missing or fails, or there is no root.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let folder = settings
        .work
        .parent()
        .unwrap_or(&settings.work)
        .join("bench");
    for kind in [Kind::Ext4, Kind::Ntfs] {
        let set = disks::get_or_make(&folder, kind)?;
        measure_set(settings, &folder, kind, &set, report)?;
    }
    Ok(())
}

/// One of the figures of a tool.
type Bytes = fn(&Costs) -> u64;

/// What one tool made of a set.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Bytes of the store after the first disk, and what the two others added.
    first: u64,
    month_later: u64,
    second_machine: u64,
    /// The first capture.
    time: Duration,
    /// Most memory of the capturing process; `None` where it is many processes.
    memory: Option<u64>,
}

fn measure_set(
    settings: &Settings,
    folder: &Path,
    kind: Kind,
    set: &DiskSet,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut ours: Option<Costs> = None;
    for _ in 0..TURNS {
        let scratch = tempfile::tempdir_in(folder)?;
        let turn = better(ours, measure_ours(settings, scratch.path(), set)?);
        ours = Some(turn);
    }
    let ours = ours.context("no turn was measured")?;
    let mut all = Vec::new();
    for peer in PEERS {
        let mut costs: Option<Costs> = None;
        for turn in 0..TURNS {
            let scratch = tempfile::tempdir_in(folder)?;
            // The sizes are the same each time; only the first capture is timed again.
            let measured = measure_peer(&peer, scratch.path(), set, turn == 0)
                .with_context(|| format!("{} does not work", peer.name))?;
            costs = Some(better(costs, measured));
        }
        all.push((peer.name, costs.context("no turn was measured")?));
    }
    let row = |what: &str, ours: f64, unit| {
        Row::new(NAME, format!("{}, {what}", kind.name()), ours, unit)
    };
    let mib = |bytes: u64| bytes as f64 / MIB;
    let figures: [(&str, Bytes); 3] = [
        ("first: stored", |costs| costs.first),
        ("a month later: added", |costs| costs.month_later),
        ("second machine: added", |costs| costs.second_machine),
    ];
    for (what, of) in figures {
        for (name, peer) in &all {
            report.row(row(what, mib(of(&ours)), "MiB").beside(*name, mib(of(peer))))?;
        }
    }
    let unique = compressed(&set.unique)?;
    let bound = mib(unique) + mib(ours.first) / 100.0;
    report.row(
        row("second machine: added", mib(ours.second_machine), "MiB")
            .beside("its unique data (zstd -3) + 1 % of the first", bound),
    )?;
    for (name, peer) in &all {
        let case = row("first: captured in", ours.time.as_secs_f64(), "s");
        report.row(case.beside(*name, peer.time.as_secs_f64()))?;
    }
    let raw = (0..TURNS)
        .map(|_| time_zstd(&set.first.image))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let raw = raw.into_iter().min().unwrap_or_default();
    report.row(
        row("first: captured in", ours.time.as_secs_f64(), "s")
            .beside("zstd -3 -T0 of the raw disk", raw.as_secs_f64()),
    )?;
    let memory = ours.memory.unwrap_or_default();
    report
        .row(row("most memory of the agent", mib(memory), "MiB").beside("the limit", MEMORY_LIMIT))
}

/// The figures of two turns: sizes of the one that has them, the better time, the worse memory.
fn better(before: Option<Costs>, now: Costs) -> Costs {
    let Some(before) = before else { return now };
    Costs {
        time: before.time.min(now.time),
        memory: before.memory.max(now.memory),
        ..before
    }
}

fn measure_ours(settings: &Settings, scratch: &Path, set: &DiskSet) -> anyhow::Result<Costs> {
    let namespace = Namespace::create().context("the server needs a network of its own")?;
    let place = namespace.place();
    let files = scratch.join("files");
    fs::create_dir_all(&files)?;
    let server = tftp_servers::start_ours(settings, place, &files, scratch)?;
    let log = scratch.join("netboot.log");
    let deadline = Deadline::seconds(60);
    while !fs::read_to_string(&log)
        .unwrap_or_default()
        .contains("serving on")
    {
        ensure!(
            deadline.remaining().is_some(),
            "the server does not come up: {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        thread::sleep(Duration::from_millis(20));
    }
    let url = format!("http://{}:8080", server.address.ip());
    let store = scratch.join("data/store");
    let capture = |disk: &BenchDisk| {
        let mut command = place.command(settings.bin_dir.join("agent"));
        command
            .args(["backup", "--server", &url, "--disk"])
            .arg(&disk.image);
        let log = scratch.join("agent.log");
        let before = size_of(&store)?;
        let (time, memory) = watched(command, &log).with_context(|| {
            format!(
                "agent backup: {}",
                fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        anyhow::Ok((size_of(&store)? - before, time, memory))
    };
    let (first, time, memory) = capture(&set.first)?;
    let (month_later, ..) = capture(&set.month_later)?;
    let (second_machine, _, second_memory) = capture(&set.second_machine)?;
    Ok(Costs {
        first,
        month_later,
        second_machine,
        time,
        memory: Some(memory.max(second_memory)),
    })
}

/// Runs a command to its end; its time, and the most memory its process had (`VmHWM`, proc(5)).
fn watched(mut command: Command, log: &Path) -> anyhow::Result<(Duration, u64)> {
    let file = fs::File::create(log)?;
    let errors = file.try_clone()?;
    let began = Instant::now();
    let mut child = tool_bound(&mut command)
        .stdout(file)
        .stderr(errors)
        .spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        peak = peak.max(high_water(&text).unwrap_or(0));
        thread::sleep(Duration::from_millis(10));
    };
    let time = began.elapsed();
    ensure!(ended.success(), "{ended}");
    Ok((time, peak))
}

fn tool_bound(command: &mut Command) -> Command {
    let mut bound = tool::bound_to_us(command);
    bound.stdin(Stdio::null());
    bound
}

/// The most memory a process had, from the kernel's words about it (`VmHWM`, proc(5)).
pub(super) fn high_water(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// A tool that others back disks up with.
struct Peer {
    name: &'static str,
    /// A shell script that makes its store in `$1`.
    prepare: &'static str,
    /// A shell script that backs `$2` up as `$3` into `$1`. For partclone `$4…` are file system, first byte and
    /// length of each volume.
    capture: &'static str,
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "restic",
        prepare: "RESTIC_PASSWORD=bench restic init --quiet --no-cache --repo \"$1\"",
        capture: "RESTIC_PASSWORD=bench restic backup --quiet --no-cache --repo \"$1\" --tag \"$3\" \"$2\"",
    },
    Peer {
        name: "borg",
        prepare: "borg init --encryption none \"$1\"",
        capture: "borg create --compression zstd,3 \"$1::$3\" \"$2\"",
    },
    Peer {
        name: "casync",
        prepare: "mkdir \"$1\"",
        capture: "casync make --compression=zstd --store=\"$1/store.castr\" \"$1/$3.caibx\" \"$2\" >/dev/null",
    },
    Peer {
        name: "partclone + zstd",
        prepare: "mkdir \"$1\"",
        capture: "store=$1 image=$2 name=$3; shift 3
            while [ $# -gt 0 ]; do
                device=$(losetup --find --show --read-only --offset \"$2\" --sizelimit \"$3\" \"$image\")
                status=0
                partclone.\"$1\" -c -L /dev/null -q -s \"$device\" -o - 2>/dev/null | zstd -q -3 -T0 >\"$store/$name.$1.zst\" || status=1
                losetup --detach \"$device\"
                [ $status = 0 ]
                shift 3
            done",
    },
];

fn measure_peer(peer: &Peer, scratch: &Path, set: &DiskSet, all: bool) -> anyhow::Result<Costs> {
    let store = scratch.join("store");
    let run = |script: &str, arguments: &[&std::ffi::OsStr]| -> anyhow::Result<Duration> {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -euo pipefail\n{script}"), "bench"]);
        command.arg(&store).args(arguments);
        // Caches and keys of the tools stay in the bench's folder.
        command
            .env("HOME", scratch)
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        let began = Instant::now();
        tool::run(&mut command)?;
        Ok(began.elapsed())
    };
    run(peer.prepare, &[])?;
    let capture = |disk: &BenchDisk, name: &str| {
        let before = size_of(&store)?;
        let mut arguments: Vec<std::ffi::OsString> = vec![disk.image.clone().into(), name.into()];
        for (kind, start, len) in &disk.volumes {
            arguments.extend([
                (*kind).into(),
                start.to_string().into(),
                len.to_string().into(),
            ]);
        }
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let time = run(peer.capture, &arguments)?;
        anyhow::Ok((size_of(&store)?.saturating_sub(before), time))
    };
    let (first, time) = capture(&set.first, "first")?;
    let (mut month_later, mut second_machine) = (0, 0);
    if all {
        month_later = capture(&set.month_later, "month-later")?.0;
        second_machine = capture(&set.second_machine, "second-machine")?.0;
    }
    Ok(Costs {
        first,
        month_later,
        second_machine,
        time,
        memory: None,
    })
}

/// Bytes of all files below a folder.
fn size_of(folder: &Path) -> anyhow::Result<u64> {
    if !folder.exists() {
        return Ok(0);
    }
    let said = tool::run(
        Command::new("du")
            .args(["--bytes", "--summarize"])
            .arg(folder),
    )?;
    let bytes = said.split_whitespace().next().unwrap_or_default();
    bytes.parse().with_context(|| format!("du said {said}"))
}

/// What zstd makes of a folder's files, each for itself.
fn compressed(folder: &Path) -> anyhow::Result<u64> {
    let script = "set -euo pipefail; find \"$1\" -type f -exec zstd -q -c \"$2\" {} \\; | wc -c";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bench"]).arg(folder).arg(LEVEL);
    let said = tool::run(&mut command)?;
    said.trim()
        .parse()
        .with_context(|| format!("wc said {said}"))
}

fn time_zstd(image: &Path) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut command = Command::new("zstd");
    tool::run(
        command
            .args(["-q", "-f", LEVEL, "-T0", "-o", "/dev/null"])
            .arg(image),
    )?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_memory_is_read_from_the_kernels_words() {
        let status = "Name:\tagent\nVmPeak:\t  900 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 1000 kB\n";
        assert_eq!(high_water(status), Some(1234 << 10));
        assert_eq!(high_water("Name:\tgone\n"), None);
    }
}
