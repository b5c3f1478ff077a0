//! A capture of a bridge: every frame between its server and its machines goes to a file, and DHCP is kept
//! to be judged.
//!
//! A packet socket of our own instead of tcpdump: nothing to install, nothing in the way of knowing that
//! the capture has begun. On the bridge's own interface frames between two machines are not seen, the
//! bridge does not show them to it; on one machine's cable everything is seen that concerns it.

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt,
};
use socket2::Socket;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::dhcp_sighting::{self, DhcpSighting};
use super::namespace::{BRIDGE, Bridge, NamespaceError, Place, Tap};
use super::pcap::PcapWriter;
use super::traffic::Traffic;

/// How often the thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);
/// Frames that may wait to be read: what a fast restore sends in some milliseconds.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Segmentation is left to the network card, so the kernel shows TCP in pieces of up to 64 KiB.
const LARGEST_FRAME: usize = 14 + (64 << 10);
/// Kept of a long frame: the headers and the beginning of an HTTP request or answer.
const SNAPLEN: usize = 256;

/// A running capture. Dropping it ends and completes the file.
#[derive(Debug)]
pub(crate) struct BridgeCapture {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What a capture keeps in memory.
#[derive(Debug, Default)]
struct Seen {
    dhcp: Vec<DhcpSighting>,
    traffic: Traffic,
}

impl BridgeCapture {
    /// Begins to capture the bridge; everything sent after this call is in the file.
    pub(crate) fn start(bridge: &Bridge, file: &Path) -> Result<Self, NamespaceError> {
        Self::start_on(bridge.place(), BRIDGE, file)
    }

    /// Begins to capture one machine's cable, wherever its frames come from and go to.
    pub(crate) fn start_on_tap(tap: &Tap, file: &Path) -> Result<Self, NamespaceError> {
        Self::start_on(&tap.place, &tap.device, file)
    }

    fn start_on(place: &Place, interface: &str, file: &Path) -> Result<Self, NamespaceError> {
        let socket = place.inside(|| open(interface))?;
        let start = || -> io::Result<Self> {
            let pcap = PcapWriter::new(BufWriter::new(File::create(file)?), SNAPLEN)?;
            let stop = Arc::new(AtomicBool::new(false));
            let seen = Arc::default();
            let work = Work {
                socket,
                pcap,
                file: file.to_owned(),
                stop: Arc::clone(&stop),
                seen: Arc::clone(&seen),
            };
            let thread = std::thread::Builder::new().name("capture".to_owned());
            Ok(Self {
                stop,
                seen,
                thread: Some(thread.spawn(move || work.run())?),
            })
        };
        start().map_err(|source| NamespaceError::Io {
            what: format!("capture {interface} to {}", file.display()),
            source,
        })
    }

    /// Ends the capture and returns the DHCP messages in it, in order.
    pub(crate) fn finish(&mut self) -> Vec<DhcpSighting> {
        self.end();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut seen.dhcp)
    }

    /// What was counted so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.traffic.clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for BridgeCapture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Opens a socket that gets every frame of an interface (packet(7)).
fn open(name: &str) -> io::Result<Socket> {
    let of_interface = |address: nix::ifaddrs::InterfaceAddress| -> Option<LinkAddr> {
        (address.interface_name == name).then_some(())?;
        address.address?.as_link_addr().copied()
    };
    let interface = nix::ifaddrs::getifaddrs()?.find_map(of_interface);
    let interface = interface.ok_or(io::ErrorKind::NotFound)?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    bind(socket.as_raw_fd(), &interface)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let socket = Socket::from(socket);
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

struct Work {
    socket: Socket,
    pcap: PcapWriter<BufWriter<File>>,
    file: PathBuf,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Work {
    fn run(mut self) {
        if let Err(error) = self.capture() {
            log::warn!("the capture {} ends here: {error}", self.file.display());
        }
        if let Err(error) = self.pcap.flush() {
            log::warn!("the capture {} is cut: {error}", self.file.display());
        }
    }

    fn capture(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST_FRAME];
        loop {
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    // Nothing is waiting: what was sent before the order to stop has been read.
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        if self.stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        self.pcap.flush()?;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let frame = &buffer[..length];
            let now = SystemTime::now();
            self.pcap.record(now, frame)?;
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.traffic.count(now, frame);
            seen.dhcp.extend(dhcp_sighting::dhcp_in_frame(frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::namespace::BRIDGE_ADDRESS;
    use std::net::UdpSocket;

    #[test]
    fn what_is_sent_on_the_bridge_is_in_the_file() {
        let mut bridge = match Bridge::up() {
            Ok(bridge) => bridge,
            Err(NamespaceError::Unavailable { reason }) => {
                eprintln!("skipped: {reason}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let far_end = crate::lab::namespace::Namespace::create().unwrap();
        bridge.connect(&far_end).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("br0.pcap");
        let mut capture = BridgeCapture::start(&bridge, &file).unwrap();
        let mut message = vec![0; 300];
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let send = || {
            let socket = UdpSocket::bind((BRIDGE_ADDRESS, 67))?;
            socket.set_broadcast(true)?;
            socket.send_to(&message, ("255.255.255.255", 68))
        };
        bridge.place().inside(send).unwrap();
        let seen = capture.finish();
        assert!(seen.len() == 1 && seen[0].to.is_broadcast(), "{seen:?}");
        let recorded = std::fs::read(&file).unwrap();
        assert!(recorded.windows(300).any(|bytes| bytes == message));
    }
}
