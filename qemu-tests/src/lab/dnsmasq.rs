//! An independent DHCP server: dnsmasq in a namespace of its own, plugged into the bridge.
//!
//! It stands for the server that a network has already. Invariant: it never outlives its [`Dnsmasq`]. It
//! answers no DNS and, unless it is told which files to serve, no TFTP.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;
use thiserror::Error;

use super::deadline::Deadline;
use super::namespace::{
    BRIDGE_NETWORK, BRIDGE_PREFIX, Bridge, CLIENT_INTERFACE, Namespace, NamespaceError,
};
use super::tool;

/// Its address on the bridge.
pub(crate) const DNSMASQ_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Where the program is, search path or not.
const PATHS: [&str; 3] = [
    "/usr/sbin/dnsmasq",
    "/usr/local/sbin/dnsmasq",
    "/usr/bin/dnsmasq",
];
/// What it says when it is ready to give addresses.
const READY: &str = "DHCP, IP range";
const TICK: Duration = Duration::from_millis(50);

/// What it says about booting.
#[derive(Debug, Clone, Default)]
pub(crate) struct BootAdvice {
    /// The file; empty for none.
    pub(crate) file: String,
    /// The next server (siaddr), if it is not dnsmasq itself.
    pub(crate) next_server: Option<Ipv4Addr>,
    /// Files that it serves by TFTP.
    pub(crate) tftp_root: Option<PathBuf>,
}

/// dnsmasq could not be started.
#[derive(Debug, Error)]
pub(crate) enum DnsmasqError {
    /// Not installed; a reason to skip.
    #[error("there is no dnsmasq here; install the package dnsmasq-base")]
    NotInstalled,
    /// Its namespace could not be made.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A file or the process failed.
    #[error("cannot start dnsmasq with its files in {folder}")]
    Start {
        /// Where its files are.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not serve.
    #[error("dnsmasq does not serve within {allowed}; it said: {said}")]
    NotReady {
        /// How long was waited.
        allowed: String,
        /// Its log.
        said: String,
    },
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Dnsmasq {
    process: Child,
    log: PathBuf,
    // Removed after the process.
    _namespace: Namespace,
}

impl Dnsmasq {
    /// Starts the server beside what is on the bridge; its files are made in `folder`. It gives addresses
    /// 100 to 200 of the bridge's network.
    pub(crate) fn start(
        bridge: &mut Bridge,
        folder: &Path,
        advice: &BootAdvice,
    ) -> Result<Self, DnsmasqError> {
        let program = PATHS.iter().find(|path| Path::new(path).is_file());
        let program = program.ok_or(DnsmasqError::NotInstalled)?;
        let namespace = Namespace::create()?;
        bridge.connect(&namespace)?;
        let address = format!("{DNSMASQ_ADDRESS}/{BRIDGE_PREFIX}");
        namespace.ip(&["addr", "add", &address, "brd", "+", "dev", CLIENT_INTERFACE])?;

        let log = folder.join("dnsmasq.log");
        let start = || -> io::Result<Child> {
            fs::create_dir_all(folder)?;
            let words = File::create(&log)?;
            let mut command = namespace.place().command(program);
            command.args(arguments(folder, advice));
            tool::bound_to_us(&command)
                .stdin(Stdio::null())
                .stdout(words.try_clone()?)
                .stderr(words)
                .spawn()
        };
        let process = start().map_err(|source| DnsmasqError::Start {
            folder: folder.to_owned(),
            source,
        })?;
        let mut server = Self {
            process,
            log,
            _namespace: namespace,
        };
        server.wait_until_ready(Deadline::seconds(30))?;
        Ok(server)
    }

    /// Everything that it said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_until_ready(&mut self, deadline: Deadline) -> Result<(), DnsmasqError> {
        while !self.log().contains(READY) {
            let ended = !matches!(self.process.try_wait(), Ok(None));
            if ended || deadline.remaining().is_none() {
                return Err(DnsmasqError::NotReady {
                    allowed: deadline.to_string(),
                    said: self.log(),
                });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn arguments(folder: &Path, advice: &BootAdvice) -> Vec<String> {
    let [a, b, c, _] = BRIDGE_NETWORK.octets();
    let mut words = vec![
        "--keep-in-foreground".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--log-facility=-".to_owned(),
        "--log-dhcp".to_owned(),
        "--user=root".to_owned(),
        // No DNS.
        "--port=0".to_owned(),
        format!("--interface={CLIENT_INTERFACE}"),
        "--bind-interfaces".to_owned(),
        // It would ping each address for three seconds before it offers it.
        "--no-ping".to_owned(),
        format!("--dhcp-range={a}.{b}.{c}.100,{a}.{b}.{c}.200,1h"),
        format!("--dhcp-leasefile={}", folder.join("leases").display()),
    ];
    if !advice.file.is_empty() || advice.next_server.is_some() {
        let next = advice.next_server.map(|server| format!(",,{server}"));
        words.push(format!(
            "--dhcp-boot={}{}",
            advice.file,
            next.unwrap_or_default()
        ));
    }
    if let Some(root) = &advice.tftp_root {
        words.push("--enable-tftp".to_owned());
        words.push(format!("--tftp-root={}", root.display()));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_server_may_be_named_without_a_file() {
        let advice = BootAdvice {
            next_server: Some(Ipv4Addr::new(10, 78, 0, 1)),
            ..BootAdvice::default()
        };
        let words = arguments(Path::new("/x"), &advice);
        assert!(words.contains(&"--dhcp-boot=,,10.78.0.1".to_owned()));
        assert!(!words.iter().any(|word| word.contains("tftp")), "{words:?}");
        let plain = arguments(Path::new("/x"), &BootAdvice::default()).join(" ");
        assert!(!plain.contains("dhcp-boot"), "{plain}");
    }

    #[test]
    fn it_gives_addresses_on_a_bridge() {
        let mut bridge = match Bridge::up() {
            Ok(bridge) => bridge,
            Err(NamespaceError::Unavailable { reason }) => {
                eprintln!("skipped: {reason}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let folder = tempfile::tempdir().unwrap();
        match Dnsmasq::start(&mut bridge, folder.path(), &BootAdvice::default()) {
            Ok(server) => assert!(server.log().contains("10.78.0.200"), "{}", server.log()),
            Err(DnsmasqError::NotInstalled) => eprintln!("skipped: no dnsmasq"),
            Err(error) => panic!("{error}"),
        }
    }
}
