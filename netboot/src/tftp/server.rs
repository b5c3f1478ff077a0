//! What a TFTP request gets, and how a transfer is told of.
//!
//! Not here: the protocol's rules (`transfer`), sockets and threads (`driver`), which files there
//! are and who gets which (`boot_desk`).

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use protocol::{
    dhcp::MacAddress,
    tftp::{ErrorCode, Packet},
};

use super::{
    driver,
    transfer::{Limits, Outcome},
};
use crate::{
    boot_content::Content,
    boot_desk::{BootDesk, NotSent},
    boot_policy::tftp_name,
    flight_recorder::{Fact, FlightRecorder, Over, Stopped, printable},
};

/// Characters of a file's name that go to logs and time lines.
const MAX_NAME: usize = 100;

/// What all transfers share.
pub(crate) struct TftpServer {
    desk: Arc<BootDesk>,
    recorder: Arc<FlightRecorder>,
    /// What is agreed to at most.
    pub(super) limits: Limits,
}

/// What a client fetches.
pub(super) struct Fetch {
    machine: Option<MacAddress>,
    /// The file's name, fit for logs.
    file: String,
    /// Its bytes.
    pub(super) content: Content,
}

/// A transfer that came to its end.
pub(super) struct Ended {
    /// How.
    pub(super) outcome: Outcome,
    /// Bytes that the client has.
    pub(super) bytes: u64,
    /// Bytes of a block, when any was sent.
    pub(super) block_size: Option<u16>,
}

/// A request that gets an ERROR packet.
pub(super) struct Refusal {
    code: ErrorCode,
    /// Why, in words.
    pub(super) message: String,
}

impl Refusal {
    /// With these words.
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The packet.
    pub(super) fn packet(&self) -> Vec<u8> {
        Packet::Error {
            code: self.code,
            message: self.message.as_bytes(),
        }
        .emit()
    }
}

impl TftpServer {
    /// A server of what the desk has.
    pub(crate) fn new(desk: Arc<BootDesk>, recorder: Arc<FlightRecorder>, limits: Limits) -> Self {
        Self {
            desk,
            recorder,
            limits,
        }
    }

    /// Serves the requests of sockets for ever, on the calling thread and one more.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(crate) fn run(self: Arc<Self>, sockets: Vec<UdpSocket>) -> io::Result<()> {
        driver::run(self, sockets)
    }

    /// What a read request gets. It may wait for the disk.
    ///
    /// # Errors
    /// What the client is told instead.
    pub(super) fn open(&self, request: &[u8], client: SocketAddr) -> Result<Fetch, Refusal> {
        let Ok(Packet::Read(request)) = Packet::parse(request) else {
            return Err(Refusal::new(ErrorCode::IllegalOperation, "no read request"));
        };
        let name = String::from_utf8_lossy(request.name).into_owned();
        if !request.is_octet() {
            return Err(Refusal::new(
                ErrorCode::IllegalOperation,
                "boot files are binary: ask in octet mode",
            ));
        }
        let asked = tftp_name::parse(&name);
        let machine = asked.machine.or_else(|| match client.ip() {
            IpAddr::V4(address) => self.recorder.machine_at(address),
            IpAddr::V6(_) => None,
        });
        let machine = machine.or_else(|| self.recorder.machine_told(&name));
        let (over, file) = (Over::Tftp, printable(&asked.file_name(), MAX_NAME));
        let content = match self.desk.open(&asked) {
            Ok(content) => content,
            Err(NotSent::NotHere) => {
                self.note(machine, Fact::NotHere { over, file });
                return Err(Refusal::new(ErrorCode::FileNotFound, "no such boot file"));
            }
            // Firmware shows the words and goes on to its next boot entry.
            Err(NotSent::LocalDisk) => {
                let words = "nothing to do for this machine: it starts its local disk";
                return Err(Refusal::new(ErrorCode::FileNotFound, words));
            }
            Err(NotSent::Unreadable(error)) => {
                return Err(Refusal::new(ErrorCode::Other, error.to_string()));
            }
        };
        let begun = Fact::FetchBegun {
            over,
            file: file.clone(),
            bytes: content.len(),
        };
        self.note(machine, begun);
        Ok(Fetch {
            machine,
            file,
            content,
        })
    }

    /// Tells how a transfer ended, or why its file could not be read.
    pub(super) fn report(&self, fetch: Fetch, took: Duration, result: io::Result<Ended>) {
        let Fetch {
            machine,
            file,
            content,
        } = fetch;
        let (over, len) = (Over::Tftp, content.len());
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let stopped = |file, bytes, why| Fact::FetchStopped {
            over,
            file,
            bytes,
            of: len,
            milliseconds,
            why,
        };
        let whole = result.as_ref().is_ok_and(|ended| {
            matches!(
                ended.outcome,
                Outcome::Complete | Outcome::CompleteUnconfirmed
            )
        });
        if let Some(mac) = machine.filter(|_| whole) {
            self.desk.fetched(mac, &file);
        }
        let fact = match result {
            Ok(ended) => {
                let bytes = ended.bytes;
                match ended.outcome {
                    Outcome::Complete | Outcome::CompleteUnconfirmed => Fact::Fetched {
                        over,
                        file,
                        bytes: len,
                        milliseconds,
                        part_of: None,
                    },
                    Outcome::Probe => Fact::Probed { file, bytes: len },
                    Outcome::ClientError { code, message } => {
                        let (code, message) = (code.to_u16(), printable(&message, 100));
                        stopped(file, bytes, Stopped::ByClient { code, message })
                    }
                    Outcome::GaveUp => {
                        let block_size = ended.block_size;
                        stopped(file, bytes, Stopped::Silent { block_size })
                    }
                }
            }
            Err(error) => {
                let reason = error.to_string();
                stopped(file, 0, Stopped::ByServer { reason })
            }
        };
        self.note(machine, fact);
    }

    fn note(&self, machine: Option<MacAddress>, fact: Fact) {
        match machine {
            Some(mac) => self.recorder.record(mac, fact),
            None if matches!(fact, Fact::FetchBegun { .. }) => {}
            None => log::info!("{fact}"),
        }
    }
}
