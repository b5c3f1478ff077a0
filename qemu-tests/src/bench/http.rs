//! The bench `http`: our server and nginx (sendfile) send a large boot file to one machine and to fifty.
//!
//! Both are on the loopback of one namespace; each client takes the file over and over on new connections,
//! as machines do, and compares every byte. The servers take turns; of each the best turn counts for the
//! speed, and all turns for the processor time.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::cpu::CpuAccount;
use super::peers::{self, Process};
use super::tftp_servers;
use super::{Report, Row};
use crate::lab::deadline::Deadline;
use crate::lab::namespace::{Namespace, Place};
use crate::scenarios::Settings;

const NAME: &str = "http";
/// An initial file system.
const FILE: &str = "initramfs";
const LEN: usize = 16 << 20;
const CLIENTS: [usize; 2] = [1, 50];
const TURNS: usize = 5;
/// Bytes that all clients together take in a turn.
const TURN_BYTES: usize = 50 * LEN;
const OUR_PORT: u16 = 8080;
const NGINX: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), 8080);
/// How long a client waits for the next bytes.
const SILENCE: Duration = Duration::from_secs(30);

struct Server {
    name: &'static str,
    address: SocketAddrV4,
    path: &'static str,
    // Killed before its account is closed.
    _process: Option<Process>,
    cpu: CpuAccount,
}

/// Measures.
///
/// # Errors
/// When nginx is missing, the rights are, or a fetch goes wrong.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir_in(&settings.work).context("no room for the bench's files")?;
    let folder = scratch.path().join("files");
    fs::create_dir_all(&folder)?;
    let mut content = vec![0; LEN];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    fs::write(folder.join(FILE), &content)?;
    let namespace = Namespace::create().context("the servers need a network of their own")?;
    let place = namespace.place();
    let ours = tftp_servers::start_ours(settings, place, &folder, scratch.path())?;
    let servers = [
        Server {
            name: tftp_servers::OURS,
            address: SocketAddrV4::new(*ours.address.ip(), OUR_PORT),
            path: "/boot/initramfs",
            _process: Some(ours.process),
            cpu: ours.cpu,
        },
        nginx(settings, place, &folder, scratch.path())?,
    ];
    let inside = |work: &(dyn Fn() -> anyhow::Result<Measured> + Sync)| {
        place.inside(|| work().map_err(io::Error::other))
    };
    for server in &servers {
        wait_until_it_serves(place, server.name, server.address)?;
        inside(&|| measure(server, 1, &content))?;
    }
    for clients in CLIENTS {
        let mut totals = [Measured::default(), Measured::default()];
        for _ in 0..TURNS {
            for (server, total) in servers.iter().zip(&mut totals) {
                let turn = inside(&|| measure(server, clients, &content))?;
                total.speed = total.speed.max(turn.speed);
                total.cpu += turn.cpu;
                total.bytes += turn.bytes;
            }
        }
        let [ours, nginx] = totals;
        let case = format!("{clients} clients");
        let peer = servers[1].name;
        let speed = Row::new(NAME, &case, ours.speed / 1e6, "MB/s");
        report.row(speed.beside(peer, nginx.speed / 1e6))?;
        let cpu = Row::new(NAME, &case, ours.cpu_per_mib(), "CPU ms/MiB");
        report.row(cpu.beside(peer, nginx.cpu_per_mib()))?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Measured {
    /// Bytes a second.
    speed: f64,
    bytes: usize,
    cpu: Duration,
}

impl Measured {
    fn cpu_per_mib(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / (self.bytes as f64 / f64::from(1 << 20))
    }
}

fn nginx(
    settings: &Settings,
    place: &Place,
    files: &Path,
    scratch: &Path,
) -> anyhow::Result<Server> {
    let process = start_nginx(settings, place, files, scratch, NGINX)?;
    Ok(Server {
        name: "nginx",
        address: NGINX,
        path: "/initramfs",
        cpu: CpuAccount::of(process.id())?,
        _process: Some(process),
    })
}

/// Starts nginx on the files of a folder and waits until it serves.
///
/// # Errors
/// When it is not there or does not serve.
pub(super) fn start_nginx(
    settings: &Settings,
    place: &Place,
    files: &Path,
    scratch: &Path,
    listen: SocketAddrV4,
) -> anyhow::Result<Process> {
    let home = scratch.join("nginx");
    fs::create_dir_all(&home)?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", home.join(kind).display()))
        .concat();
    // As a distribution sets it up for files: sendfile, whole packets, a worker for each processor.
    let text = format!(
        "user root;\ndaemon off;\nworker_processes auto;\npid {0}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nsendfile on;\ntcp_nopush on;\n{temporary}\
         server {{ listen {listen} backlog=1024; root \"{1}\"; }}\n}}\n",
        home.display(),
        files.display(),
    );
    let config = home.join("nginx.conf");
    fs::write(&config, text)?;
    let program = peers::find(settings, "nginx")?;
    let arguments = ["-e", "stderr", "-p"].map(Into::into);
    let arguments = [&arguments[..], &[home.into(), "-c".into(), config.into()]].concat();
    let process = program.start(place, &arguments, &scratch.join("nginx.log"))?;
    wait_until_it_serves(place, "nginx", listen)?;
    Ok(process)
}

fn wait_until_it_serves(place: &Place, name: &str, address: SocketAddrV4) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(20);
    while let Err(error) = place.inside(|| TcpStream::connect(address)) {
        if deadline.remaining().is_none() {
            let error = anyhow::Error::from(error);
            bail!("{name} does not serve within {deadline}: {error:#}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn measure(server: &Server, clients: usize, content: &[u8]) -> anyhow::Result<Measured> {
    let each = TURN_BYTES / LEN / clients;
    let before = server.cpu.used()?;
    let began = Instant::now();
    thread::scope(|scope| {
        let work = || (0..each).try_for_each(|_| fetch(server, content));
        let fetching: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        fetching.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
    .with_context(|| format!("fetching from {}", server.name))?;
    let bytes = each * clients * LEN;
    Ok(Measured {
        speed: bytes as f64 / began.elapsed().as_secs_f64(),
        bytes,
        cpu: server.cpu.used()?.saturating_sub(before),
    })
}

fn fetch(server: &Server, content: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(server.address)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.path, server.address
    );
    stream.write_all(request.as_bytes())?;
    let mut buffer = vec![0; 256 << 10];
    let mut filled = 0;
    let head = loop {
        let len = stream.read(&mut buffer[filled..])?;
        ensure!(len > 0, "the answer ends in its head");
        filled += len;
        if let Some(at) = buffer[..filled]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
        {
            break at + 4;
        }
    };
    ensure!(buffer.starts_with(b"HTTP/1.1 200 "), "no status 200");
    let mut rest = content;
    let mut part = &buffer[head..filled];
    loop {
        ensure!(rest.starts_with(part), "other bytes than the file has");
        rest = &rest[part.len()..];
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        part = &buffer[..len];
    }
    ensure!(rest.is_empty(), "{} bytes are missing", rest.len());
    Ok(())
}
