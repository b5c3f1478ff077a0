//! The TFTP servers of the bench, each on an address of its own in one namespace.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::tftp;

use super::cpu::CpuAccount;
use super::peers::{self, Process};
use super::tftp_client::{self, Fetch};
use crate::lab::deadline::Deadline;
use crate::lab::namespace::Place;
use crate::lab::tool;
use crate::scenarios::Settings;

/// The name of ours in the list.
pub(crate) const OURS: &str = "netboot";
/// A file that every server has, to ask whether it serves.
pub(crate) const SMALL_FILE: &str = "small";

const TICK: Duration = Duration::from_millis(20);

/// A server that serves.
#[derive(Debug)]
pub(crate) struct TftpServer {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Where it is asked.
    pub(crate) address: SocketAddrV4,
    /// It, killed before its account is closed.
    pub(crate) process: Process,
    /// Its processor time.
    pub(crate) cpu: CpuAccount,
}

/// Starts ours and all peers on the files of one folder.
///
/// # Errors
/// When one is missing or does not serve: a comparison without one of them is none.
pub(crate) fn start_all(
    settings: &Settings,
    place: &Place,
    files: &Path,
    scratch: &Path,
) -> anyhow::Result<Vec<TftpServer>> {
    let log = |name: &str| scratch.join(format!("{name}.log"));
    let start = |name: &'static str,
                 program: &str,
                 last: u8,
                 arguments: &dyn Fn(SocketAddrV4) -> Vec<OsString>| {
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), tftp::PORT);
        let program = peers::find(settings, program)?;
        let process = program.start(place, &arguments(address), &log(name))?;
        anyhow::Ok(TftpServer {
            name,
            address,
            cpu: CpuAccount::of(process.id())?,
            process,
        })
    };
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let folder = || files.as_os_str().to_owned();
    let servers = vec![
        start_ours(settings, place, files, scratch)?,
        // It goes below its folder by itself (chroot) and serves from there as a user who must be named.
        start("tftpd-hpa", "in.tftpd", 3, &|address| {
            let address = address.to_string();
            let mut all = words(&["-L", "-u", "root", "-a", &address, "-s"]);
            all.push(folder());
            all
        })?,
        start("atftpd", "atftpd", 4, &|address| {
            let ip = address.ip().to_string();
            let mut all = words(&["--daemon", "--no-fork", "--user", "root", "--group", "root"]);
            all.extend(words(&[
                "--logfile",
                "-",
                "--verbose=1",
                "--bind-address",
                &ip,
                "--port",
                "69",
            ]));
            all.push(folder());
            all
        })?,
        start("dnsmasq", "dnsmasq", 5, &|address| {
            let ip = format!("--listen-address={}", address.ip());
            let mut all = words(&[
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--user=root",
            ]);
            all.extend(words(&[
                "--pid-file=",
                "--log-facility=-",
                "--bind-interfaces",
                &ip,
                "--enable-tftp",
            ]));
            let mut root = OsString::from("--tftp-root=");
            root.push(files);
            all.push(root);
            all
        })?,
    ];
    for server in &servers {
        wait_until_it_serves(place, server, &log(server.name))?;
    }
    Ok(servers)
}

/// Starts ours alone; HTTP is on its usual port.
pub(crate) fn start_ours(
    settings: &Settings,
    place: &Place,
    files: &Path,
    scratch: &Path,
) -> anyhow::Result<TftpServer> {
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), tftp::PORT);
    let data = scratch.join("data");
    fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let text = format!(
        "data_dir = {}\nboot_files = {}\n\n[network]\nlisten = \"{}\"\n\n[dhcp]\nmode = \"off\"\n\n\
         [tftp]\nport = {}\nblock_size = 65464\n",
        quoted(&data),
        quoted(files),
        address.ip(),
        address.port(),
    );
    let config: PathBuf = scratch.join("netboot.toml");
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let mut command = place.command(settings.bin_dir.join("netboot"));
    command.args(["serve", "--config"]).arg(&config);
    let process = Process::start(tool::bound_to_us(&command), &scratch.join("netboot.log"))
        .with_context(|| {
            format!(
                "{} cannot be started",
                settings.bin_dir.join("netboot").display()
            )
        })?;
    Ok(TftpServer {
        name: OURS,
        address,
        cpu: CpuAccount::of(process.id())?,
        process,
    })
}

fn wait_until_it_serves(place: &Place, server: &TftpServer, log: &Path) -> anyhow::Result<()> {
    let deadline = Deadline::seconds(20);
    let ask = Fetch {
        server: server.address.into(),
        name: SMALL_FILE,
        block_size: tftp::DEFAULT_BLOCK_SIZE,
        window: 1,
    };
    loop {
        let content = SMALL_FILE.as_bytes();
        match place.inside(|| tftp_client::fetch(&ask, content).map_err(std::io::Error::other)) {
            Ok(_) => return Ok(()),
            Err(error) if deadline.remaining().is_none() => {
                let said = fs::read_to_string(log).unwrap_or_default();
                let error = anyhow::Error::from(error);
                bail!(
                    "{} does not serve ({error:#}); its words: {said}",
                    server.name
                );
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}
