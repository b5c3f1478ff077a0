//! A network of the kernel's own: a network namespace with a bridge, and cables into it.
//!
//! The other mode of the lab: here the server opens its real ports and sends its real frames. It needs root,
//! so whoever uses it has to be ready to be told that it is [`NamespaceError::Unavailable`]. Invariant: a
//! namespace is removed with its [`Namespace`]; what a killed lab left behind is removed by the next one.
//! Nothing outside is touched: no interface, address or route of the computer itself.

use nix::sched::{CloneFlags, setns};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use thiserror::Error;

use super::tool::{self, ToolError};

/// The bridge's interface, which the server serves.
pub(crate) const BRIDGE: &str = "br0";
/// The server's address on the bridge.
pub(crate) const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// Network address of the bridge's network.
pub(crate) const BRIDGE_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 0);
/// Prefix length of the bridge's network.
pub(crate) const BRIDGE_PREFIX: u8 = 24;
/// The bridge's own Ethernet address: without one of its own it changes with every cable.
pub(crate) const BRIDGE_MAC: &str = "02:78:00:00:00:01";
/// The interface of a namespace that is plugged into a bridge.
pub(crate) const CLIENT_INTERFACE: &str = "eth0";

/// Names begin with this, then the process and a number.
const PREFIX: &str = "netboot-lab-";
const TUN: &str = "/dev/net/tun";
/// Where iproute2 is, search path or not.
const IP_PATHS: [&str; 4] = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];
/// Where `ip netns` keeps the handles of namespaces (ip-netns(8)).
const HANDLES: &str = "/run/netns";
/// What the work needs, by bit (linux/capability.h).
const CAPABILITIES: [(u8, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
];

/// A namespace or something in it could not be made.
#[derive(Debug, Error)]
pub(crate) enum NamespaceError {
    /// This computer or user cannot have one; a reason to skip, not a fault.
    #[error("network namespaces are not to be had: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// iproute2 said no.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The operating system said no.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// Where programs of a namespace are started; it says nothing about how long the namespace is there.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    name: String,
    ip: PathBuf,
}

impl Place {
    /// A program that will run in the namespace. What is started becomes that program, with its process id.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.ip);
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// The same for a program that has to see this computer's hardware: `ip netns exec` puts a `/sys` of the
    /// namespace there, which has none, and so no machine to recognise.
    pub(crate) fn command_on_this_computer(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={HANDLES}/{}", self.name))
            .arg(program);
        command
    }

    /// Runs work in a thread that is in the namespace. Sockets opened there stay in it.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, NamespaceError> {
        let error = |source| NamespaceError::Io {
            what: format!("work in the network namespace {}", self.name),
            source,
        };
        let handle = File::open(Path::new(HANDLES).join(&self.name)).map_err(error)?;
        let enter_and_work = || {
            setns(handle, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_work).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(error)
    }
}

/// A network namespace. Dropping it removes it with every interface in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    place: Place,
}

impl Namespace {
    /// Makes a namespace in which only `lo` is up.
    pub(crate) fn create() -> Result<Self, NamespaceError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let ip = check_requirements()?;
        remove_leftovers(&ip)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        tool::run(Command::new(&ip).args(["netns", "add", &name])).map_err(refusal)?;
        let namespace = Self {
            place: Place { name, ip },
        };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Where its programs are started.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Answers ARP for addresses that an interface has, not for others that a local route covers.
    pub(crate) fn answer_for_own_addresses_only(&self) -> Result<(), NamespaceError> {
        let mut command = self.place.command("sh");
        command.args(["-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore"]);
        tool::run(&mut command).map(drop).map_err(refusal)
    }

    /// Lays a cable straight to another namespace; both ends are [`CLIENT_INTERFACE`].
    pub(crate) fn connect(&self, other: &Self) -> Result<(), NamespaceError> {
        let near = ["link", "add", CLIENT_INTERFACE, "type", "veth"];
        let far = ["peer", "name", CLIENT_INTERFACE, "netns", &other.place.name];
        self.ip(&[&near[..], &far].concat())?;
        bring_up(self, CLIENT_INTERFACE)?;
        bring_up(other, CLIENT_INTERFACE)
    }

    /// Runs `ip` on the namespace's interfaces and returns what it says.
    pub(crate) fn ip(&self, words: &[&str]) -> Result<String, NamespaceError> {
        let mut command = Command::new(&self.place.ip);
        tool::run(command.args(["-n", &self.place.name]).args(words)).map_err(refusal)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed =
            tool::run(Command::new(&self.place.ip).args(["netns", "del", &self.place.name]));
        if let Err(error) = removed {
            log::warn!("the network namespace {} stays: {error}", self.place.name);
        }
    }
}

/// One end of a cable into a bridge, for the network card of a virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    /// Where the machine emulator has to be started.
    pub(crate) place: Place,
    /// Name of the interface there.
    pub(crate) device: String,
}

/// A bridge in a namespace of its own, with the server's address.
#[derive(Debug)]
pub(crate) struct Bridge {
    namespace: Namespace,
    cables: usize,
}

impl Bridge {
    /// Makes the namespace and brings the bridge up.
    pub(crate) fn up() -> Result<Self, NamespaceError> {
        let namespace = Namespace::create()?;
        // No spanning tree: its ports would be silent for 30 s. No snooping: there is no querier here.
        let kind = [
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ];
        namespace.ip(&[&["link", "add", BRIDGE, "address", BRIDGE_MAC][..], &kind].concat())?;
        let address = format!("{BRIDGE_ADDRESS}/{BRIDGE_PREFIX}");
        // With "brd +" the broadcast address is set, as distributions do it.
        namespace.ip(&["addr", "add", &address, "brd", "+", "dev", BRIDGE])?;
        bring_up(&namespace, BRIDGE)?;
        Ok(Self {
            namespace,
            cables: 0,
        })
    }

    /// Adds a cable for a virtual machine.
    pub(crate) fn add_tap(&mut self) -> Result<Tap, NamespaceError> {
        let device = format!("tap{}", self.cables);
        self.cables += 1;
        self.namespace
            .ip(&["tuntap", "add", &device, "mode", "tap"])?;
        self.plug_in(&device)?;
        Ok(Tap {
            place: self.namespace.place.clone(),
            device,
        })
    }

    /// Lays a cable to another namespace, where it ends in [`CLIENT_INTERFACE`].
    pub(crate) fn connect(&mut self, other: &Namespace) -> Result<(), NamespaceError> {
        let device = format!("cable{}", self.cables);
        self.cables += 1;
        let near = ["link", "add", &device, "type", "veth"];
        let far = ["peer", "name", CLIENT_INTERFACE, "netns", &other.place.name];
        self.namespace.ip(&[&near[..], &far].concat())?;
        self.plug_in(&device)?;
        bring_up(other, CLIENT_INTERFACE)
    }

    /// Limits what the bridge sends down the last cable, such as to `1gbit`. The queue is a plain one, as
    /// a switch has it, of at most 50 ms.
    pub(crate) fn limit_last_cable(&self, rate: &str) -> Result<(), NamespaceError> {
        let device = format!("cable{}", self.cables.saturating_sub(1));
        let mut command = self.place().command("tc");
        command.args(["qdisc", "add", "dev", &device, "root", "tbf"]);
        command.args(["rate", rate, "burst", "256kb", "latency", "50ms"]);
        tool::run(&mut command).map(drop).map_err(refusal)
    }

    /// Sends what is for a network to the one machine that stands for all of it.
    pub(crate) fn route(&self, network: &str, machine: &str) -> Result<(), NamespaceError> {
        let route = ["route", "add", network, "via", machine, "dev", BRIDGE];
        self.namespace.ip(&route).map(drop)
    }

    /// Where the bridge is.
    pub(crate) fn place(&self) -> &Place {
        &self.namespace.place
    }

    fn plug_in(&self, device: &str) -> Result<(), NamespaceError> {
        self.namespace
            .ip(&["link", "set", device, "master", BRIDGE])?;
        bring_up(&self.namespace, device)
    }
}

fn bring_up(namespace: &Namespace, device: &str) -> Result<(), NamespaceError> {
    // No IPv6 addresses: their solicitations would only be in the way of reading a capture.
    namespace.ip(&["link", "set", device, "addrgenmode", "none"])?;
    namespace.ip(&["link", "set", device, "up"])?;
    Ok(())
}

/// Finds `ip` when everything that is needed is there.
fn check_requirements() -> Result<PathBuf, NamespaceError> {
    let unavailable = |reason: String| NamespaceError::Unavailable { reason };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(missing) = missing_capability(&status) {
        return Err(unavailable(format!("{missing} is needed; run as root")));
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(|error| unavailable(format!("{TUN} cannot be opened: {error}")))?;
    let ip = IP_PATHS.iter().map(Path::new).find(|path| path.is_file());
    ip.map(Path::to_owned)
        .ok_or_else(|| unavailable("there is no ip program; install iproute2".to_owned()))
}

/// The first capability that this process lacks, by `/proc/self/status` (proc(5)).
fn missing_capability(status: &str) -> Option<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .find(|(bit, _)| effective & (1 << bit) == 0)
        .map(|&(_, name)| name)
}

/// A kernel or container that does not have something is a reason to skip.
fn refusal(error: ToolError) -> NamespaceError {
    let words = [
        "not supported",
        "not permitted",
        "Unknown device type",
        "qdisc kind is unknown",
    ];
    match &error {
        ToolError::Failed { said, .. } if words.iter().any(|word| said.contains(word)) => {
            NamespaceError::Unavailable {
                reason: said.clone(),
            }
        }
        _ => error.into(),
    }
}

/// Removes namespaces of labs that were killed.
fn remove_leftovers(ip: &Path) -> Result<(), NamespaceError> {
    let names = match fs::read_dir(HANDLES) {
        Ok(names) => names,
        // `ip netns` makes the directory when it first needs it.
        Err(_) => return Ok(()),
    };
    for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(process) = process_of(&name) else {
            continue;
        };
        if !Path::new("/proc").join(process.to_string()).exists() {
            log::info!("removing the network namespace {name} of a lab that is no more");
            // Another lab may have been faster.
            let _ = tool::run(Command::new(ip).args(["netns", "del", &name]));
        }
    }
    Ok(())
}

/// The process that a namespace of the lab belongs to.
fn process_of(name: &str) -> Option<u32> {
    let (process, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_capability_is_named() {
        assert_eq!(missing_capability("CapEff:\t000001ffffffffff\n"), None);
        assert_eq!(
            missing_capability("CapEff:\t0000000000002000\n"),
            Some("CAP_NET_ADMIN")
        );
        assert_eq!(
            missing_capability("CapEff:\t0000000000003000\n"),
            Some("CAP_SYS_ADMIN")
        );
        assert_eq!(missing_capability("Name:\tlab\n"), Some("CAP_NET_ADMIN"));
    }

    #[test]
    fn only_namespaces_of_the_lab_name_a_process() {
        assert_eq!(process_of("netboot-lab-4711-3"), Some(4711));
        assert_eq!(process_of("netboot-lab-4711"), None);
        assert_eq!(process_of("netboot-lab-x-3"), None);
        assert_eq!(process_of("somebody-elses-1-3"), None);
    }

    #[test]
    fn a_bridge_is_up_in_its_namespace_and_gone_when_dropped() {
        let mut bridge = match Bridge::up() {
            Ok(bridge) => bridge,
            Err(NamespaceError::Unavailable { reason }) => {
                eprintln!("skipped: {reason}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let tap = bridge.add_tap().unwrap();
        let client = Namespace::create().unwrap();
        bridge.connect(&client).unwrap();
        let links = bridge.namespace.ip(&["-br", "link"]).unwrap();
        assert!(
            links.contains(&tap.device) && links.contains("cable1"),
            "{links}"
        );
        let said = tool::run(client.place().command("ip").args(["-br", "link"])).unwrap();
        assert!(said.contains(CLIENT_INTERFACE), "{said}");
        let taken = bridge
            .place()
            .inside(|| std::net::UdpSocket::bind((BRIDGE_ADDRESS, 67)))
            .unwrap();
        assert_eq!(taken.local_addr().unwrap().port(), 67);
        let handle = Path::new(HANDLES).join(&bridge.place().name);
        assert!(handle.exists());
        drop((taken, bridge));
        assert!(!handle.exists());
    }
}
