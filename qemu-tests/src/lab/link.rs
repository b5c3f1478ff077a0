//! A virtual network link: guest ports, a switch, and the gateway to the server's loopback ports.
//!
//! [`Link`] is the handle; one thread runs the wire in `wire`. Nothing needs root: guests reach a port
//! through a Unix socket (`-netdev stream`), the server through loopback sockets. A port outlives its
//! guest: when a virtual machine is killed and started again, it finds the same port.

use mio::net::UnixListener;
use mio::{Poll, Waker};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use thiserror::Error;

use super::fault::Faults;
use super::port_map::PortMap;
use super::switch::PortId;
use super::wire::{Command, WAKE, Wire};

/// What a link is like.
#[derive(Debug, Clone)]
pub(crate) struct LinkConfig {
    /// Network address of the guests' subnet.
    pub(crate) network: Ipv4Addr,
    /// Prefix length of the guests' subnet.
    pub(crate) prefix: u8,
    /// The gateway's address: what guests see as the server.
    pub(crate) gateway: Ipv4Addr,
    /// Where the gateway's ports lead.
    pub(crate) ports: PortMap,
    /// Loopback port of the DHCP server; without it nobody answers DHCP.
    pub(crate) dhcp: Option<u16>,
    /// Whether the gateway says "no IPv6 router here" when asked, which saves iPXE 16 s.
    pub(crate) answers_router_solicitations: bool,
    /// Where the capture of the link goes.
    pub(crate) pcap: Option<PathBuf>,
    /// Decides which frames are lost, duplicated and so on.
    pub(crate) seed: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 77, 0, 0),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 77, 0, 1),
            ports: PortMap::default(),
            dhcp: None,
            answers_router_solicitations: true,
            pcap: None,
            seed: 1,
        }
    }
}

/// One way through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// What the guest sends.
    FromGuest,
    /// What the guest receives.
    ToGuest,
}

/// A link could not be made or used.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// The operating system refused something.
    #[error("cannot {what} for the virtual link")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The thread of the link has ended; its reason is in the log.
    #[error("the virtual link is down")]
    Down,
}

/// A socket on the link that one guest's network card is plugged into.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    /// Its number on the switch.
    pub(crate) id: PortId,
    /// The Unix socket to give to QEMU.
    pub(crate) socket: PathBuf,
}

/// Traffic of a port since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortCounters {
    /// Frames that the guest has sent.
    pub(crate) frames_from_guest: u64,
    /// Bytes in those frames.
    pub(crate) bytes_from_guest: u64,
    /// Frames written to the guest.
    pub(crate) frames_to_guest: u64,
    /// Bytes in those frames.
    pub(crate) bytes_to_guest: u64,
    /// Frames lost by faults or because the guest did not read.
    pub(crate) dropped: u64,
}

/// A running link. Dropping it takes it down.
#[derive(Debug)]
pub(crate) struct Link {
    directory: PathBuf,
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    guest_ports: usize,
}

impl Link {
    /// Brings a link up; the sockets of its ports are made in `directory`.
    pub(crate) fn start(config: LinkConfig, directory: &Path) -> Result<Self, LinkError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| LinkError::Io { what, source }
        };
        let poll = Poll::new().map_err(io("make a poll set"))?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).map_err(io("make a waker"))?);
        let (commands, receiver) = mpsc::channel();
        let wire = Wire::new(config, poll, receiver)
            .map_err(io("open the relay socket and the capture"))?;
        let thread = std::thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || wire.run())
            .map_err(io("start a thread"))?;
        Ok(Self {
            directory: directory.to_owned(),
            commands,
            waker,
            thread: Some(thread),
            guest_ports: 0,
        })
    }

    /// Adds a port for one guest.
    pub(crate) fn add_port(&mut self) -> Result<Port, LinkError> {
        let id = PortId(self.guest_ports + 1);
        let socket = self.directory.join(format!("port{}.sock", id.0));
        let listener = UnixListener::bind(&socket).map_err(|source| LinkError::Io {
            what: format!("listen on {}", socket.display()),
            source,
        })?;
        self.send(Command::AddPort { id, listener })?;
        self.guest_ports += 1;
        Ok(Port { id, socket })
    }

    /// Changes the faults of a port from now on.
    pub(crate) fn set_faults(
        &self,
        port: PortId,
        direction: Direction,
        faults: Faults,
    ) -> Result<(), LinkError> {
        self.send(Command::SetFaults {
            port,
            direction,
            faults,
        })
    }

    /// Traffic of a port so far.
    pub(crate) fn counters(&self, port: PortId) -> Result<PortCounters, LinkError> {
        let (answer, receiver) = mpsc::channel();
        self.send(Command::Counters { port, answer })?;
        receiver.recv().map_err(|_| LinkError::Down)
    }

    fn send(&self, command: Command) -> Result<(), LinkError> {
        self.commands.send(command).map_err(|_| LinkError::Down)?;
        self.waker.wake().map_err(|source| LinkError::Io {
            what: "wake the thread".to_owned(),
            source,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A link that is down already needs no order to stop.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}
