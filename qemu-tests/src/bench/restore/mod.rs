//! The bench `restore`: a bare restore and a differential one beside what line and disk can do, and beside what
//! others restore with.
//!
//! Server and agent are processes in network namespaces with one cable between them, once held to 1 Gbit/s by a
//! token bucket (`tc tbf`), once not at all. The target is an image file with old data, on a disk unless the case says
//! otherwise, spoilt anew before each turn and accessed past the page cache; the server's files are in its page cache, as are the peers'. Bounds are
//! measured in the same turns as ours: a parallel copy of the extents that have data, which knows where they are
//! ([`copier`]), and a parallel read of the used part of the disk. What else the computer does falls on whoever
//! runs, so times are those of the best turn.

mod copier;
mod extents;
mod ours;
mod peers;

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use backup::ByteRange;

use super::store::disks::{self, DiskSet, Kind};
use super::{Report, Row, http};
use crate::lab::disk;
use crate::lab::namespace::BRIDGE_ADDRESS;
use crate::scenarios::Settings;
use extents::Extents;
use ours::{Network, Ours, Turn};

const NAME: &str = "restore";
const MIB: f64 = (1u64 << 20) as f64;
/// The memory that a restore may take, whatever the disk.
const MEMORY_LIMIT: f64 = 256.0;
/// How often ours and the bounds are timed.
const TURNS: usize = 3;
/// What a line of 1 Gbit/s carries in a second of TCP with timestamps: 1448 bytes of each frame of 1514.
const LINE_MB: f64 = 125.0 * 1448.0 / 1514.0;
const NGINX_PORT: u16 = 8088;

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
    let set = disks::get_or_make(&folder, Kind::Ext4)?;
    let scratch = tempfile::tempdir_in(&folder)?;
    let bench = RestoreBench::prepare(settings, scratch.path(), &set)?;
    let (bare, copied) = bench.bare(report)?;
    bench.at_line_rate(copied, report)?;
    bench.differential(report)?;
    report.row(
        Row::new(
            NAME,
            "bare: most memory of the agent",
            bare.memory as f64 / MIB,
            "MiB",
        )
        .beside("the limit", MEMORY_LIMIT),
    )
}

/// What is there for all cases.
struct RestoreBench<'a> {
    settings: &'a Settings,
    set: &'a DiskSet,
    scratch: &'a Path,
    target: PathBuf,
    point: String,
    /// Bytes of the store that a bare restore needs: records and lists.
    needed: u64,
    first: Extents,
    later: Extents,
}

impl<'a> RestoreBench<'a> {
    fn prepare(
        settings: &'a Settings,
        scratch: &'a Path,
        set: &'a DiskSet,
    ) -> anyhow::Result<Self> {
        let network = Network::with_rate(None)?;
        let ours = Ours::start(settings, &network, scratch)?;
        let point = ours.capture(&set.first.image)?;
        let later = ours.capture(&set.month_later.image)?;
        let of = |id: &str| Extents::of(ours.data(), id);
        let (first, later) = (of(point.id.as_str())?, of(later.id.as_str())?);
        let files = peers::files(scratch)?;
        for peer in &peers::PEERS {
            peer.prepare(&files, &set.first)
                .with_context(|| format!("{} does not work", peer.name))?;
        }
        let target = scratch.join("target.raw");
        let size = std::fs::metadata(&set.first.image)?.len();
        disk::create_empty(&target, size)?;
        copier::spoil(&target, &later.all())?;
        Ok(Self {
            settings,
            set,
            scratch,
            target,
            needed: point.stored_bytes + first.list_bytes,
            point: point.id.to_string(),
            first,
            later,
        })
    }

    /// One bare restore: the target has other data.
    fn turn(&self, ours: &Ours, target: &Path) -> anyhow::Result<Turn> {
        let mut old = self.first.all();
        old.insert(0, ByteRange::between(0, 1 << 20));
        copier::spoil(target, &old)?;
        ours.restore(&self.point, target)
    }

    /// A line that nothing holds back; the best turn, and the time of the copy.
    fn bare(&self, report: &mut Report) -> anyhow::Result<(Turn, Duration)> {
        let network = Network::with_rate(None)?;
        let ours = Ours::start(self.settings, &network, self.scratch)?;
        let (source, extents) = (&self.set.first.image, self.first.data());
        let mut best: Option<Turn> = None;
        let mut copied = Duration::MAX;
        for _ in 0..TURNS {
            best = Some(better(best, self.turn(&ours, &self.target)?));
            copier::ensure_same(source, &self.target, &self.first.all())?;
            copier::spoil(&self.target, &extents)?;
            copied = copied.min(copier::copy(source, &self.target, &extents)?);
        }
        let best = best.context("no turn was measured")?;
        let time = best.time.as_secs_f64();
        let row = || Row::new(NAME, "unthrottled: restored in", time, "s");
        let limit = "O_DIRECT copy of the extents, 4 threads";
        report.row(row().beside(limit, copied.as_secs_f64()))?;
        for (name, time) in self.peers(&network, |_| true)? {
            report.row(row().beside(name, time.as_secs_f64()))?;
        }
        Ok((best, copied))
    }

    /// A line of 1 Gbit/s. The target is a file in memory once, because a disk may be slower than the line for the bytes that
    /// become of those that cross it, and then the disk.
    fn at_line_rate(&self, copied: Duration, report: &mut Report) -> anyhow::Result<()> {
        let network = Network::with_rate(Some("1gbit"))?;
        let ours = Ours::start(self.settings, &network, self.scratch)?;
        let memory = tempfile::tempdir_in("/dev/shm")?;
        let in_memory = memory.path().join("target.raw");
        disk::create_empty(&in_memory, std::fs::metadata(&self.target)?.len())?;
        let mut best: Option<Turn> = None;
        let mut received = u64::MAX;
        for _ in 0..TURNS {
            let before = network.received()?;
            best = Some(better(best, self.turn(&ours, &in_memory)?));
            received = received.min(network.received()? - before);
        }
        copier::ensure_same(&self.set.first.image, &in_memory, &self.first.all())?;
        drop(memory);
        let time = best.context("no turn was measured")?.time.as_secs_f64();
        let case = "1 Gbit/s, target in memory: bytes that must cross";
        let row = Row::new(NAME, case, self.needed as f64 / 1e6 / time, "MB/s");
        report.row(row.beside("what TCP carries there", LINE_MB))?;
        let case = "1 Gbit/s: bytes of all frames";
        let frames = Row::new(NAME, case, received as f64 / MIB, "MiB");
        report.row(frames.beside("bytes that must cross", self.needed as f64 / MIB))?;

        let mut best: Option<Turn> = None;
        for _ in 0..TURNS {
            best = Some(better(best, self.turn(&ours, &self.target)?));
        }
        let time = best.context("no turn was measured")?.time.as_secs_f64();
        let row = || Row::new(NAME, "1 Gbit/s: restored in", time, "s");
        let line = self.needed as f64 / 1e6 / LINE_MB;
        report.row(row().beside("the line's time", line))?;
        report.row(row().beside("O_DIRECT copy of the extents", copied.as_secs_f64()))?;
        for (name, time) in self.peers(&network, |peer| peer.waits_for_the_line)? {
            report.row(row().beside(name, time.as_secs_f64()))?;
        }
        Ok(())
    }

    /// The disk as it is a month later, set back.
    fn differential(&self, report: &mut Report) -> anyhow::Result<()> {
        let network = Network::with_rate(None)?;
        let ours = Ours::start(self.settings, &network, self.scratch)?;
        let differing = self.first.differing(&self.set.month_later.image)?;
        let later = &self.set.month_later.image;
        let (mut best, mut read): (Option<Turn>, _) = (None, Duration::MAX);
        for _ in 0..TURNS {
            copier::copy(later, &self.target, &self.later.all())?;
            copier::copy(later, &self.target, &[ByteRange::between(0, 1 << 20)])?;
            read = read.min(copier::read(&self.target, &self.later.data())?);
            best = Some(better(best, ours.restore(&self.point, &self.target)?));
            copier::ensure_same(&self.set.first.image, &self.target, &self.first.all())?;
        }
        let best = best.context("no turn was measured")?;
        let row = Row::new(
            NAME,
            "a month back: restored in",
            best.time.as_secs_f64(),
            "s",
        );
        report.row(row.beside("reading the used part, 4 threads", read.as_secs_f64()))?;
        let row = Row::new(
            NAME,
            "a month back: plain bytes fetched",
            best.fetched as f64 / MIB,
            "MiB",
        );
        report.row(row.beside("those of chunks that differ", differing as f64 / MIB))?;
        let memory = Row::new(
            NAME,
            "a month back: most memory of the agent",
            best.memory as f64 / MIB,
            "MiB",
        );
        report.row(memory.beside("the limit", MEMORY_LIMIT))
    }

    fn peers(
        &self,
        network: &Network,
        which: impl Fn(&peers::Peer) -> bool,
    ) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let files = peers::files(self.scratch)?;
        let listen = SocketAddrV4::new(BRIDGE_ADDRESS, NGINX_PORT);
        let place = network.bridge.place();
        let _nginx = http::start_nginx(self.settings, place, &files, self.scratch, listen)?;
        let address = format!("http://{listen}");
        let mut times = Vec::new();
        for peer in peers::PEERS.iter().filter(|peer| which(peer)) {
            let way = (network.client.place(), address.as_str());
            let time = peer
                .restore(way, &files, &self.target, &self.set.first)
                .with_context(|| format!("{} does not work", peer.name))?;
            times.push((peer.name, time));
        }
        Ok(times)
    }
}

/// The better time, the worse memory.
fn better(before: Option<Turn>, now: Turn) -> Turn {
    let Some(before) = before else { return now };
    Turn {
        time: before.time.min(now.time),
        memory: before.memory.max(now.memory),
        ..now
    }
}
