//! The bench `dhcp`: our server and Kea with the same client, perfdhcp, which is Kea's own.
//!
//! 10,000 clients take addresses from a pool of 65,000 over a cable between two network namespaces, at
//! more and more exchanges (DISCOVER, OFFER, REQUEST, ACK) a second. Both servers keep their leases in a
//! file on the same disk; ours answers when the lease is safe there (`fdatasync`), Kea when it is written.
//! Each server has a run of its own on an empty lease file, one after the other at each rate.
//!
//! The last case asks whether an exchange costs more when there are many leases already.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rusqlite::{Connection, params};

use super::cpu::CpuAccount;
use super::peers::{self, Process};
use super::{Report, Row};
use crate::lab::deadline::Deadline;
use crate::lab::namespace::{CLIENT_INTERFACE, Namespace};
use crate::lab::tool;
use crate::scenarios::Settings;

const NAME: &str = "dhcp";
const SERVER: &str = "10.64.0.1";
const CLIENTS: &str = "10000";
/// Exchanges a second that are asked for.
const RATES: [u32; 6] = [2_500, 5_000, 7_500, 10_000, 15_000, 20_000];
/// The rate that has to be served without a drop.
const REQUIRED: u32 = 5_000;
const SECONDS: u32 = 4;
/// How long perfdhcp goes on listening after its last message, in microseconds. Without it the exchange that
/// is on its way when the time is over counts as dropped, whoever serves.
const LAST_ANSWERS: &str = "1000000";
/// How often each server is measured at each rate; the best counts, for both.
const TURNS: usize = 2;
/// Leases that are there already.
const FEW: u32 = 10_000;
const MANY: u32 = 1_000_000;
const TICK: Duration = Duration::from_millis(50);

/// Measures.
///
/// # Errors
/// When a program is missing or a server does not serve.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let site = Site::open(settings)?;
    let mut peaks = [0.0_f64; 2];
    for rate in RATES {
        let [ours, kea] = [Kind::Ours(0), Kind::Kea].map(|kind| {
            let turns = (0..TURNS).map(|_| site.measure(kind, rate));
            turns.collect::<anyhow::Result<Vec<_>>>().map(best)
        });
        let (ours, kea) = (ours?, kea?);
        for (peak, figures) in peaks.iter_mut().zip([&ours, &kea]) {
            *peak = peak.max(figures.rate);
        }
        let row = |what: &str, of: fn(&Figures) -> f64, unit| {
            Row::new(NAME, format!("{rate}/s asked: {what}"), of(&ours), unit)
                .beside("Kea", of(&kea))
        };
        report.row(row("served", |figures| figures.rate, "exchanges/s"))?;
        report.row(row(
            "dropped",
            |figures| figures.dropped,
            "% of the messages",
        ))?;
        if rate == REQUIRED {
            report.row(row(
                "processor time",
                |figures| figures.cpu,
                "us an exchange",
            ))?;
        }
    }
    let [ours, kea] = peaks;
    report.row(Row::new(NAME, "the most served", ours, "exchanges/s").beside("Kea", kea))?;
    let many = best(vec![
        site.measure(Kind::Ours(MANY), RATES[0])?,
        site.measure(Kind::Ours(MANY), RATES[0])?,
    ]);
    let few = best(vec![
        site.measure(Kind::Ours(FEW), RATES[0])?,
        site.measure(Kind::Ours(FEW), RATES[0])?,
    ]);
    let case = "processor time with 1,000,000 leases";
    report.row(Row::new(NAME, case, many.cpu, "us an exchange").beside("with 10,000", few.cpu))
}

/// What perfdhcp and the server's account say.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Completed exchanges, of each second in which they were asked for. perfdhcp's own rate counts the time
    /// in which it only listens.
    rate: f64,
    /// Messages without an answer within a second, in percent.
    dropped: f64,
    /// Processor time of the server, microseconds an exchange.
    cpu: f64,
}

/// What else the computer does only ever makes it worse.
fn best(turns: Vec<Figures>) -> Figures {
    let least = |of: fn(&Figures) -> f64| turns.iter().map(of).fold(f64::INFINITY, f64::min);
    Figures {
        rate: -least(|figures| -figures.rate),
        dropped: least(|figures| figures.dropped),
        cpu: least(|figures| figures.cpu),
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// netboot, with so many leases of other clients.
    Ours(u32),
    Kea,
}

struct Site<'a> {
    settings: &'a Settings,
    server: Namespace,
    client: Namespace,
}

impl<'a> Site<'a> {
    fn open(settings: &'a Settings) -> anyhow::Result<Self> {
        let need = "the bench needs network namespaces";
        let (server, client) = (
            Namespace::create().context(need)?,
            Namespace::create().context(need)?,
        );
        server.connect(&client)?;
        for (namespace, address) in [(&server, SERVER), (&client, "10.64.0.2")] {
            let address = format!("{address}/10");
            namespace.ip(&["addr", "add", &address, "brd", "+", "dev", CLIENT_INTERFACE])?;
        }
        Ok(Self {
            settings,
            server,
            client,
        })
    }

    fn measure(&self, kind: Kind, rate: u32) -> anyhow::Result<Figures> {
        let scratch = tempfile::tempdir_in(&self.settings.work).context("no room for leases")?;
        let log = scratch.path().join("log");
        let process = match kind {
            Kind::Ours(leases) => self.start_ours(scratch.path(), &log, leases)?,
            Kind::Kea => self.start_kea(scratch.path(), &log)?,
        };
        // The last to go: an account closes when its server has ended.
        let account = CpuAccount::of(process.id())?;
        wait_until_it_hears(kind, &process, &log)?;
        let before = account.used()?;
        let said = self.perfdhcp(scratch.path(), rate)?;
        let used = account.used()?.saturating_sub(before);
        drop(process);
        let counts = counts(&said).with_context(|| format!("perfdhcp said: {said}"))?;
        ensure!(
            counts.exchanges > 0,
            "no exchange: {said}\nthe server's log: {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        Ok(Figures {
            rate: counts.exchanges as f64 / f64::from(SECONDS),
            dropped: 100.0 * counts.drops as f64 / counts.sent as f64,
            cpu: used.as_secs_f64() * 1e6 / counts.exchanges as f64,
        })
    }

    fn start_ours(&self, folder: &Path, log: &Path, leases: u32) -> anyhow::Result<Process> {
        if leases > 0 {
            fill(&folder.join("leases.sqlite"), leases).context("leases cannot be made up")?;
        }
        let quoted = serde_json::Value::from(folder.to_string_lossy());
        let text = format!(
            "data_dir = {quoted}\nboot_files = {quoted}\n\n[network]\ninterface = \"{CLIENT_INTERFACE}\"\n\n\
             [dhcp]\nmode = \"server\"\n\n[[subnet]]\nnetwork = \"10.64.0.0/10\"\npool = \"{}-10.127.255.250\"\n",
            Ipv4Addr::from(first_address()),
        );
        let config = folder.join("netboot.toml");
        fs::write(&config, text)?;
        let program = self.settings.bin_dir.join("netboot");
        let mut command = self.server.place().command(&program);
        command.args(["serve", "--config"]).arg(&config);
        Process::start(tool::bound_to_us(&command), log)
            .with_context(|| format!("{} cannot be started", program.display()))
    }

    fn start_kea(&self, folder: &Path, log: &Path) -> anyhow::Result<Process> {
        let config = serde_json::json!({ "Dhcp4": {
            "interfaces-config": { "interfaces": [CLIENT_INTERFACE], "dhcp-socket-type": "udp" },
            "lease-database": {
                "type": "memfile", "persist": true, "lfc-interval": 3600,
                "name": folder.join("leases.csv"),
            },
            "valid-lifetime": 3600,
            "subnet4": [{
                "id": 1, "subnet": "10.64.0.0/10",
                "pools": [{ "pool": "10.64.1.0-10.64.255.250" }],
            }],
            "loggers": [{
                "name": "kea-dhcp4", "severity": "WARN",
                "output_options": [{ "output": "stdout" }],
            }],
        }});
        let path = folder.join("kea.conf");
        fs::write(&path, config.to_string())?;
        let kea = peers::find(self.settings, "kea-dhcp4")?;
        let cleaner = peers::find(self.settings, "kea-lfc")?;
        let mut command = kea.command(self.server.place(), &["-c".into(), path.into()]);
        command
            .env("KEA_LFC_EXECUTABLE", cleaner.path())
            .env("KEA_PIDFILE_DIR", folder)
            .env("KEA_LOCKFILE_DIR", folder);
        Process::start(command, log).context("kea-dhcp4 cannot be started")
    }

    fn perfdhcp(&self, folder: &Path, rate: u32) -> anyhow::Result<String> {
        let program = peers::find(self.settings, "perfdhcp")?;
        let (rate, seconds) = (rate.to_string(), SECONDS.to_string());
        let words = [
            "-4",
            "-l",
            CLIENT_INTERFACE,
            "-R",
            CLIENTS,
            "-r",
            &rate,
            "-p",
            &seconds,
            "-W",
            LAST_ANSWERS,
            SERVER,
        ];
        let words = words.map(Into::into);
        let mut command = program.command(self.client.place(), &words);
        command.env("KEA_LOCKFILE_DIR", folder);
        let output = command.output().context("perfdhcp cannot be started")?;
        // It ends with 3 when something was dropped, which is a figure, not a fault.
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Kea is ready when the port is bound, ours when it says so: it opens its ports before its files.
fn wait_until_it_hears(kind: Kind, process: &Process, log: &Path) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(60);
    let sockets = format!("/proc/{}/net/udp", process.id());
    // Port 67 as the kernel prints it, among the local addresses (proc_net_udp(5)).
    let hears = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|at| at.ends_with(":0043"))
    };
    let says_so = || {
        let said = || fs::read_to_string(log).unwrap_or_default();
        matches!(kind, Kind::Kea) || said().contains("serving on")
    };
    loop {
        let list = fs::read_to_string(&sockets);
        match &list {
            Ok(list) if list.lines().any(hears) && says_so() => return Ok(()),
            Ok(_) if deadline.remaining().is_some() => thread::sleep(TICK),
            _ => {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("a DHCP server does not come up; its log: {said}");
            }
        }
    }
}

/// The pool's first address.
fn first_address() -> u32 {
    u32::from(Ipv4Addr::new(10, 64, 1, 0))
}

/// A lease file with bound leases from the pool's first address on, of cards that never ask.
fn fill(path: &Path, leases: u32) -> rusqlite::Result<()> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch(
        "CREATE TABLE lease (number INTEGER PRIMARY KEY, address TEXT NOT NULL, mac TEXT NOT NULL,
             state TEXT NOT NULL, until INTEGER NOT NULL) STRICT",
    )?;
    let transaction = connection.transaction()?;
    {
        let mut insert =
            transaction.prepare("INSERT INTO lease VALUES (?1, ?2, ?3, 'bound', 4000000000)")?;
        for index in 0..leases {
            let number = first_address() + index;
            let [a, b, c, d] = index.to_be_bytes();
            let mac = format!("06:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
            insert.execute(params![number, Ipv4Addr::from(number).to_string(), mac])?;
        }
    }
    transaction.commit()
}

/// perfdhcp's figures.
#[derive(Debug, PartialEq)]
struct Counts {
    exchanges: u64,
    sent: u64,
    drops: u64,
}

/// Reads what perfdhcp prints: a block for DISCOVER–OFFER and one for REQUEST–ACK.
fn counts(said: &str) -> Option<Counts> {
    let values = |name: &str| -> Vec<u64> {
        said.lines()
            .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .collect()
    };
    let received = values("received packets:");
    Some(Counts {
        exchanges: *received.get(1)?,
        sent: values("sent packets:").iter().sum(),
        drops: values("drops:").iter().sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_perfdhcp_are_read() {
        let said = "Running: perfdhcp\n***Rate statistics***\n\
            Rate: 4996.95 4-way exchanges/second, expected rate: 5000\n\n\
            ***Statistics for: DISCOVER-OFFER***\nsent packets: 14999\nreceived packets: 14998\n\
            drops: 1\ndrops ratio: 0.01 %\norphans: 0\n\n\
            ***Statistics for: REQUEST-ACK***\nsent packets: 14998\nreceived packets: 14996\n\
            drops: 2\ndrops ratio: 0.02 %\n";
        let expected = Counts {
            exchanges: 14996,
            sent: 29997,
            drops: 3,
        };
        assert_eq!(counts(said), Some(expected));
        assert_eq!(counts("nothing"), None);
    }
}
