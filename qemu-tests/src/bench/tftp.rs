//! The bench `tftp`: our server, tftpd-hpa, atftpd and dnsmasq with the same client.
//!
//! Each case is a block size, a window and a way (loopback, or 1 ms in each direction). The servers take
//! turns, so that what else the computer does falls on all of them; of each the best turn counts for the
//! speed, and all turns for the processor time. A server that answers a smaller window is named with it.
//! On a busy computer a delayed case measures the scheduler: `chrt -f 1 target/release/lab bench tftp` keeps
//! everything else away.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::tftp_client::{self, Agreed, Fetch};
use super::tftp_servers::{self, OURS, SMALL_FILE, TftpServer};
use super::udp_delay::DelayedWay;
use super::{Report, Row};
use crate::lab::namespace::Namespace;
use crate::scenarios::Settings;

const NAME: &str = "tftp";
const WINDOWS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// What GRUB and shim ask, and what UEFI firmware asks.
const BLOCK_SIZES: [u16; 2] = [512, 1468];
/// The largest of RFC 2348.
const LARGEST: u16 = 65464;
const DELAY: Duration = Duration::from_millis(1);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Files to choose from, in bytes; the largest is that of a large initial file system.
const FILES: [usize; 8] = [
    16 * KIB,
    64 * KIB,
    MIB / 8,
    MIB / 2,
    2 * MIB,
    8 * MIB,
    16 * MIB,
    32 * MIB,
];
/// A turn lasts at least so long, however fast a fetch is.
const TURN: Duration = Duration::from_millis(100);
const TURNS: usize = 7;

/// Measures.
///
/// # Errors
/// When a server is missing, the rights are, or a fetch goes wrong.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir_in(&settings.work).context("no room for the bench's files")?;
    let folder = scratch.path().join("files");
    let contents = write_files(&folder)?;
    let namespace = Namespace::create().context("the servers need a network of their own")?;
    // in.tftpd finds no address at all in a network that has only the loopback's (getaddrinfo(3),
    // AI_ADDRCONFIG).
    namespace.ip(&["addr", "add", "10.79.0.1/32", "dev", "lo"])?;
    stay_on_one_processor();
    let servers = tftp_servers::start_all(settings, namespace.place(), &folder, scratch.path())?;
    for case in cases() {
        let measured = namespace
            .place()
            .inside(|| measure(&case, &servers, &contents).map_err(io::Error::other))?;
        for row in rows(&case, &measured) {
            report.row(row)?;
        }
    }
    Ok(())
}

/// Keeps this thread, and what it starts from now on, on one processor. On several, where the scheduler puts
/// client and server decides more than the servers do: a wake-up across processors costs a virtual machine
/// more than a packet. So speed is what client and server need together, the client always the same.
fn stay_on_one_processor() {
    let mut set = CpuSet::new();
    let kept = set
        .set(0)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = kept {
        log::warn!("not on one processor: {error}");
    }
}

/// The files by length, and one small one. Their bytes do not repeat within any block.
fn write_files(folder: &Path) -> anyhow::Result<BTreeMap<usize, Vec<u8>>> {
    let error = || format!("cannot write into {}", folder.display());
    fs::create_dir_all(folder).with_context(error)?;
    fs::write(folder.join(SMALL_FILE), SMALL_FILE).with_context(error)?;
    let mut contents = BTreeMap::new();
    for len in FILES {
        let mut content = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        fs::write(folder.join(len.to_string()), &content).with_context(error)?;
        contents.insert(len, content);
    }
    Ok(contents)
}

#[derive(Debug, Clone, Copy)]
struct Case {
    block_size: u16,
    window: u16,
    delayed: bool,
}

impl Case {
    /// The file: some tens of ways there and back with a delay, some tenths of a second without.
    fn file(&self) -> usize {
        let step = usize::from(self.block_size) * usize::from(self.window);
        let wanted = if self.delayed {
            40 * step
        } else {
            4096 * step.max(1024)
        };
        let fitting = FILES.iter().rev().find(|len| **len <= wanted);
        *fitting.unwrap_or(&FILES[0])
    }

    fn name(&self) -> String {
        let way = if self.delayed { "1 ms" } else { "no delay" };
        format!("block {}, window {}, {way}", self.block_size, self.window)
    }
}

fn cases() -> Vec<Case> {
    let usual = BLOCK_SIZES
        .iter()
        .flat_map(|block_size| WINDOWS.map(|window| (*block_size, window)));
    let sizes: Vec<_> = usual
        .chain([1, 4, 16].map(|window| (LARGEST, window)))
        .collect();
    [false, true]
        .iter()
        .flat_map(|delayed| {
            sizes.iter().map(|(block_size, window)| Case {
                block_size: *block_size,
                window: *window,
                delayed: *delayed,
            })
        })
        .collect()
}

/// What one server did in one case.
#[derive(Debug)]
struct Measured {
    server: &'static str,
    agreed: Agreed,
    /// Bytes a second in its best turn.
    speed: f64,
    /// Seconds of processor time a byte over all turns.
    cpu: f64,
}

fn measure(
    case: &Case,
    servers: &[TftpServer],
    contents: &BTreeMap<usize, Vec<u8>>,
) -> anyhow::Result<Vec<Measured>> {
    let content = &contents[&case.file()];
    let name = content.len().to_string();
    let mut totals: Vec<Option<Totals>> = servers.iter().map(|_| None).collect();
    for _ in 0..TURNS {
        for (server, total) in servers.iter().zip(&mut totals) {
            let way = case
                .delayed
                .then(|| DelayedWay::open(server.address.into(), DELAY))
                .transpose()?;
            let ask = Fetch {
                server: way
                    .as_ref()
                    .map_or(server.address.into(), DelayedWay::address),
                name: &name,
                block_size: case.block_size,
                window: case.window,
            };
            let turn = turn(&ask, content, server)
                .with_context(|| format!("{}, {}", server.name, case.name()))?;
            *total = Some(match total.take() {
                None => turn,
                Some(total) => total.with(&turn),
            });
        }
    }
    let measured = servers.iter().zip(totals).filter_map(|(server, total)| {
        let total = total?;
        Some(Measured {
            server: server.name,
            agreed: total.agreed,
            speed: total.speed,
            cpu: total.cpu.as_secs_f64() / total.bytes as f64,
        })
    });
    Ok(measured.collect())
}

struct Totals {
    agreed: Agreed,
    bytes: usize,
    speed: f64,
    cpu: Duration,
}

impl Totals {
    fn with(self, turn: &Self) -> Self {
        Self {
            agreed: Agreed {
                losses: self.agreed.losses + turn.agreed.losses,
                ..turn.agreed
            },
            bytes: self.bytes + turn.bytes,
            speed: self.speed.max(turn.speed),
            cpu: self.cpu + turn.cpu,
        }
    }
}

fn turn(ask: &Fetch<'_>, content: &[u8], server: &TftpServer) -> anyhow::Result<Totals> {
    let used_before = server.cpu.used()?;
    let (began, mut bytes, mut losses, mut speed) = (Instant::now(), 0, 0, 0.0_f64);
    let agreed = loop {
        let started = Instant::now();
        let agreed = tftp_client::fetch(ask, content)?;
        speed = speed.max(content.len() as f64 / started.elapsed().as_secs_f64());
        bytes += content.len();
        losses += agreed.losses;
        if began.elapsed() >= TURN {
            break agreed;
        }
    };
    Ok(Totals {
        agreed: Agreed { losses, ..agreed },
        bytes,
        speed,
        cpu: server.cpu.used()?.saturating_sub(used_before),
    })
}

fn rows(case: &Case, measured: &[Measured]) -> Vec<Row> {
    let Some(ours) = measured.iter().find(|one| one.server == OURS) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for peer in measured.iter().filter(|one| one.server != OURS) {
        let name = peer.name(case);
        let speed = Row::new(NAME, case.name(), ours.speed / 1e6, "MB/s");
        rows.push(speed.beside(&name, peer.speed / 1e6));
        let per_mib = |cpu: f64| cpu * 1e3 * MIB as f64;
        let cpu = Row::new(NAME, case.name(), per_mib(ours.cpu), "CPU ms/MiB");
        rows.push(cpu.beside(&name, per_mib(peer.cpu)));
    }
    if ours.agreed.losses > 0 {
        let losses = f64::from(ours.agreed.losses);
        rows.push(Row::new(NAME, case.name(), losses, "losses"));
    }
    rows
}

impl Measured {
    /// The server's name, and what it agreed to when that is not what was asked.
    fn name(&self, case: &Case) -> String {
        let mut name = self.server.to_owned();
        if self.agreed.block_size != case.block_size {
            name += &format!(", block {}", self.agreed.block_size);
        }
        if self.agreed.window != case.window {
            name += &format!(", window {}", self.agreed.window);
        }
        if self.agreed.losses > 0 {
            name += &format!(", {} losses", self.agreed.losses);
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_with_a_delay_takes_a_file_that_ends_in_seconds() {
        for case in cases().iter().filter(|case| case.delayed) {
            let step = usize::from(case.block_size) * usize::from(case.window);
            assert!(case.file() / step < 100, "{}", case.name());
        }
    }

    #[test]
    fn a_peer_with_a_smaller_window_is_named_with_it() {
        let case = Case {
            block_size: 512,
            window: 8,
            delayed: false,
        };
        let of = |server, window| Measured {
            server,
            agreed: Agreed {
                block_size: 512,
                window,
                losses: 0,
            },
            speed: 2e6,
            cpu: 1e-9,
        };
        let rows = rows(&case, &[of(OURS, 8), of("dnsmasq", 1)]);
        let text = serde_json::to_string(&rows).unwrap();
        assert!(
            text.contains("\"peer_name\":\"dnsmasq, window 1\""),
            "{text}"
        );
    }
}
