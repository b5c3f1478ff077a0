//! What others restore a disk with: each makes its backup first, and restores over the same cable as ours.
//!
//! nginx serves their files. restic has no way of its own to read from a web server, so it reads its repository
//! from the local disk, and no line slows it down.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::store::disks::BenchDisk;
use crate::lab::namespace::Place;
use crate::lab::tool;

/// A tool that others restore disks with.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Whether it is measured with the line held back: not when the line is not its way, or not what it waits for.
    pub(super) waits_for_the_line: bool,
    /// A shell script that backs `$2` up into the folder `$1`; `$3…` are file system, first byte and length of
    /// each volume.
    prepare: &'static str,
    /// A shell script that restores what is at the address `$1` (files: `$2`) to `$3`; `$4…` are the volumes. It
    /// ends when the bytes are on the medium.
    restore: &'static str,
}

pub(super) const PEERS: [Peer; 4] = [
    Peer {
        name: "zstd | dd over HTTP",
        waits_for_the_line: true,
        prepare: "zstd -q -3 -T0 -o \"$1/raw.zst\" \"$2\"",
        restore: "curl -sSf \"$1/raw.zst\" | zstd -q -d |
            dd of=\"$3\" bs=1M iflag=fullblock oflag=direct conv=notrunc,fdatasync status=none",
    },
    Peer {
        name: "partclone + zstd over HTTP",
        waits_for_the_line: true,
        prepare: "store=$1 image=$2; shift 2
            while [ $# -gt 0 ]; do
                device=$(losetup --find --show --read-only --offset \"$2\" --sizelimit \"$3\" \"$image\")
                status=0
                partclone.\"$1\" -c -L /dev/null -q -s \"$device\" -o - 2>/dev/null |
                    zstd -q -3 -T0 >\"$store/$1.zst\" || status=1
                losetup --detach \"$device\"
                [ $status = 0 ]
                shift 3
            done",
        restore: "address=$1 image=$3; shift 3
            while [ $# -gt 0 ]; do
                device=$(losetup --find --show --direct-io=on --offset \"$2\" --sizelimit \"$3\" \"$image\")
                status=0
                curl -sSf \"$address/$1.zst\" | zstd -q -d |
                    partclone.\"$1\" -r -L /dev/null -q -s - -o \"$device\" 2>/dev/null || status=1
                blockdev --flushbufs \"$device\"
                losetup --detach \"$device\"
                [ $status = 0 ]
                shift 3
            done
            sync --data \"$image\"",
    },
    Peer {
        name: "restic from the local disk",
        waits_for_the_line: false,
        prepare: "export RESTIC_PASSWORD=bench
            restic init --quiet --no-cache --repo \"$1/restic\"
            restic backup --quiet --no-cache --repo \"$1/restic\" \"$2\"",
        restore: "export RESTIC_PASSWORD=bench
            restic restore latest --quiet --no-cache --repo \"$2/restic\" --target \"$3.restic\"
            find \"$3.restic\" -type f -exec sync --data {} \\;
            rm -r \"$3.restic\"",
    },
    Peer {
        name: "casync over HTTP",
        // It does, but takes minutes with no line to wait for.
        waits_for_the_line: false,
        prepare: "casync make --compression=zstd --store=\"$1/store.castr\" \"$1/first.caibx\" \"$2\" >/dev/null",
        restore: "casync extract --seed-output=no --store=\"$1/store.castr\" \"$1/first.caibx\" \"$3.casync\"
            sync --data \"$3.casync\"
            rm \"$3.casync\"",
    },
];

impl Peer {
    /// Makes its backup of a disk in the folder that the web server serves.
    pub(super) fn prepare(&self, files: &Path, disk: &BenchDisk) -> anyhow::Result<()> {
        let arguments = [files.as_os_str().to_owned(), disk.image.clone().into()];
        run(Command::new("bash"), self.prepare, files, &arguments, disk)?;
        Ok(())
    }

    /// Restores it to a target.
    pub(super) fn restore(
        &self,
        (place, address): (&Place, &str),
        files: &Path,
        target: &Path,
        disk: &BenchDisk,
    ) -> anyhow::Result<Duration> {
        let arguments = [address.into(), files.into(), target.as_os_str().to_owned()];
        let began = Instant::now();
        run(place.command("bash"), self.restore, files, &arguments, disk)?;
        Ok(began.elapsed())
    }
}

fn run(
    mut command: Command,
    script: &str,
    home: &Path,
    arguments: &[OsString],
    disk: &BenchDisk,
) -> anyhow::Result<()> {
    let script = format!("set -euo pipefail\n{script}");
    command.args(["-c", &script, "bench"]).args(arguments);
    for (kind, start, len) in &disk.volumes {
        command.args([*kind, &start.to_string(), &len.to_string()]);
    }
    command.env("HOME", home);
    tool::run(&mut command)?;
    Ok(())
}

/// The folder with the peers' backups, made once a run.
pub(super) fn files(scratch: &Path) -> std::io::Result<PathBuf> {
    let files = scratch.join("peers");
    fs::create_dir_all(&files)?;
    Ok(files)
}
