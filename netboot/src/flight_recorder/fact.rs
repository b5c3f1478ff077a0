//! What can happen to a machine on its way, as facts, and the sentence made from them.
//!
//! Invariant: a diagnosis looks at facts, never at a sentence. Facts are kept as JSON in the
//! database: a variant or field may be added, none may change its meaning. What a later program
//! wrote and this one does not know is read as its sentence ([`Fact::Remark`]).
//!
//! Not here: when it happened and to whom (`super`), what follows from it (`diagnosis`).

use std::{fmt, net::Ipv4Addr};

use protocol::dhcp::{ArchitectureCode, BootClient, BootProtocol, MacAddress, Message, code};
use serde::{Deserialize, Serialize};

/// Which part of a boot an event belongs to, in the order of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// An address and a file name.
    Dhcp,
    /// Files by TFTP.
    Tftp,
    /// Files and scripts by HTTP.
    Http,
    /// The agent speaks.
    Beacon,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Dhcp, Self::Tftp, Self::Http, Self::Beacon];

    /// Its word in the database and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Beacon => "beacon",
        }
    }

    /// Back from its word.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

/// Over what a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Over {
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tftp => "TFTP",
            Self::Http => "HTTP",
        })
    }
}

/// Which program of a machine asks by DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "program")]
pub(crate) enum Asker {
    /// Its firmware, for a boot file.
    Firmware {
        /// As it listed them in option 93 (RFC 4578 §2.1).
        architectures: Vec<u16>,
        /// UEFI HTTP Boot.
        http: bool,
    },
    /// An iPXE: in the card's ROM, or one that was sent.
    Ipxe {
        /// As it listed them.
        architectures: Vec<u16>,
    },
    /// A system that wants an address and no boot file.
    System {
        /// What it says it is (option 60).
        class: Option<String>,
    },
}

impl Asker {
    /// Who sent a message.
    pub(crate) fn of(request: &Message) -> Self {
        let Some(client) = BootClient::of(request) else {
            let class = request.options.text(code::VENDOR_CLASS);
            let class = class.filter(|class| !class.is_empty());
            return Self::System {
                class: class.map(|class| printable(&class, 40)),
            };
        };
        let architectures = client.architectures.iter().map(|code| code.0).collect();
        if client.ipxe.is_some() {
            Self::Ipxe { architectures }
        } else {
            Self::Firmware {
                architectures,
                http: client.protocol == BootProtocol::Http,
            }
        }
    }

    /// It asked for a boot file.
    pub(crate) fn boots(&self) -> bool {
        !matches!(self, Self::System { .. })
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware { architectures, .. } => {
                write!(f, "firmware of architecture {}", names(architectures))
            }
            Self::Ipxe { architectures } => {
                write!(f, "iPXE of architecture {}", names(architectures))
            }
            Self::System { class: None } => f.write_str("a system"),
            Self::System { class: Some(class) } => write!(f, "a system, {class}"),
        }
    }
}

/// What a machine that asks is told to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Decided {
    /// The recovery environment.
    Recovery,
    /// Its own disk.
    LocalDisk,
    /// The menu, from which it or a person chooses.
    Menu,
}

/// Why a fetch ended before the file's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub(crate) enum Stopped {
    /// The client acknowledges no more.
    Silent {
        /// Bytes of a block that went unanswered, when known.
        block_size: Option<u16>,
    },
    /// The client said so (RFC 1350 §7).
    ByClient {
        /// Its error number.
        code: u16,
        /// Its words.
        message: String,
    },
    /// The connection ended.
    Dropped,
    /// This server could not go on.
    ByServer {
        /// Why.
        reason: String,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum Fact {
    /// A DISCOVER was answered.
    Offered {
        /// Who asked.
        by: Asker,
        /// The address held for it.
        address: Ipv4Addr,
        /// The file name or URL it was told.
        file: Option<String>,
    },
    /// A REQUEST was answered with an ACK.
    Granted {
        /// Who asked.
        by: Asker,
        /// Its address.
        address: Ipv4Addr,
        /// The file name or URL it was told.
        file: Option<String>,
    },
    /// An INFORM was answered.
    ToldParameters {
        /// Who asked.
        by: Asker,
        /// The file name or URL it was told.
        file: Option<String>,
    },
    /// The proxy answered a DISCOVER; the address comes from another server.
    ProxyOffered {
        /// Who asked.
        by: Asker,
        /// The file name or URL it was told; `None` when it has to ask on port 4011 for it.
        file: Option<String>,
    },
    /// The proxy answered a request on port 67 or 4011.
    ProxyTold {
        /// Who asked.
        by: Asker,
        /// The address it has, when it said so.
        address: Option<Ipv4Addr>,
        /// The file name or URL it was told.
        file: String,
    },
    /// The proxy tells it its file another way from now on.
    ProxyWay {
        /// On port 4011, not in the offer.
        port_4011: bool,
        /// After so many boots without a fetch.
        boots: u32,
    },
    /// Nothing serves what the firmware is.
    ArchitectureNotServed {
        /// As it listed them.
        architectures: Vec<u16>,
    },
    /// Its loader is not in the boot folder.
    LoaderMissing {
        /// What it said it is.
        architecture: u16,
        /// The loader.
        file: String,
    },
    /// No address is left.
    PoolExhausted {
        /// In this subnet.
        network: String,
    },
    /// It asked on a link that no subnet is for.
    NoSubnet {
        /// The link's address.
        link: Ipv4Addr,
    },
    /// It asked for an address that it may not have.
    Refused {
        /// The address.
        address: Ipv4Addr,
        /// Why not.
        reason: String,
    },
    /// It found its address in use.
    Declined {
        /// The address.
        address: Ipv4Addr,
    },
    /// Another machine answers for an address that it was offered, or that would be offered next.
    AddressInUse {
        /// The address.
        address: Ipv4Addr,
        /// The card that answers.
        by: MacAddress,
    },
    /// It gave its address back.
    Released {
        /// The address.
        address: Ipv4Addr,
    },
    /// It took the offer of another DHCP server.
    OtherServerTaken {
        /// That server.
        server: Ipv4Addr,
    },
    /// It asked how long a file is and did not take it (RFC 2349).
    Probed {
        /// The file.
        file: String,
        /// Its length.
        bytes: u64,
    },
    /// A fetch began; kept in memory until it ends.
    FetchBegun {
        /// By what.
        over: Over,
        /// The file.
        file: String,
        /// Its length.
        bytes: u64,
    },
    /// A file, or the part that was asked for, was fetched.
    Fetched {
        /// By what.
        over: Over,
        /// The file.
        file: String,
        /// Bytes sent.
        bytes: u64,
        /// How long it took.
        milliseconds: u64,
        /// The file's length, when only a part was asked for.
        part_of: Option<u64>,
    },
    /// A fetch ended before its end.
    FetchStopped {
        /// By what.
        over: Over,
        /// The file.
        file: String,
        /// Bytes that arrived, as far as known.
        bytes: u64,
        /// Bytes asked for.
        of: u64,
        /// How long it went.
        milliseconds: u64,
        /// Why.
        why: Stopped,
    },
    /// It asked for a file that is not here.
    NotHere {
        /// By what.
        over: Over,
        /// The file.
        file: String,
    },
    /// It asked what to boot, or its loader was kept from it so that it boots its disk.
    Told {
        /// By what it asked.
        over: Over,
        /// What it boots.
        boots: Decided,
    },
    /// The first beacon of a boot.
    Beacon {
        /// What the machine is called.
        name: String,
        /// Milliseconds from the link being up, as the agent says.
        since_link_ms: Option<u64>,
    },
    /// The agent spoke and was refused.
    BeaconRefused {
        /// Why.
        reason: String,
    },
    /// A job was handed to the agent.
    JobBegins {
        /// `capture`, `restore`.
        job_kind: String,
        /// Of which restore point.
        restore_point: String,
        /// The job.
        job: String,
    },
    /// A job is over.
    JobEnded {
        /// `capture`, `restore`.
        job_kind: String,
        /// Of which restore point.
        restore_point: String,
        /// The job.
        job: String,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// Anything else, and events that another version wrote.
    Remark {
        /// Which part.
        stage: Stage,
        /// The machine cannot go on from here.
        trouble: bool,
        /// A sentence.
        text: String,
    },
}

impl Fact {
    /// Which part of a boot it belongs to.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Offered { .. }
            | Self::Granted { .. }
            | Self::ToldParameters { .. }
            | Self::ProxyOffered { .. }
            | Self::ProxyTold { .. }
            | Self::ProxyWay { .. }
            | Self::ArchitectureNotServed { .. }
            | Self::LoaderMissing { .. }
            | Self::PoolExhausted { .. }
            | Self::NoSubnet { .. }
            | Self::Refused { .. }
            | Self::Declined { .. }
            | Self::AddressInUse { .. }
            | Self::Released { .. }
            | Self::OtherServerTaken { .. } => Stage::Dhcp,
            Self::Probed { .. } => Stage::Tftp,
            Self::FetchBegun { over, .. }
            | Self::Fetched { over, .. }
            | Self::FetchStopped { over, .. }
            | Self::NotHere { over, .. }
            | Self::Told { over, .. } => match over {
                Over::Tftp => Stage::Tftp,
                Over::Http => Stage::Http,
            },
            Self::Beacon { .. }
            | Self::BeaconRefused { .. }
            | Self::JobBegins { .. }
            | Self::JobEnded { .. } => Stage::Beacon,
            Self::Remark { stage, .. } => *stage,
        }
    }

    /// True when the machine cannot go on from here, or not well.
    pub(crate) fn trouble(&self) -> bool {
        match self {
            Self::ArchitectureNotServed { .. }
            | Self::LoaderMissing { .. }
            | Self::PoolExhausted { .. }
            | Self::NoSubnet { .. }
            | Self::Declined { .. }
            | Self::AddressInUse { .. }
            | Self::FetchStopped { .. }
            | Self::BeaconRefused { .. } => true,
            Self::JobEnded { error, .. } => error.is_some(),
            Self::Remark { trouble, .. } => *trouble,
            _ => false,
        }
    }

    /// Who asked by DHCP, if it is about that.
    pub(crate) fn asker(&self) -> Option<&Asker> {
        match self {
            Self::Offered { by, .. }
            | Self::Granted { by, .. }
            | Self::ToldParameters { by, .. }
            | Self::ProxyOffered { by, .. }
            | Self::ProxyTold { by, .. } => Some(by),
            _ => None,
        }
    }

    /// The file name or URL that the machine was told.
    pub(crate) fn told_file(&self) -> Option<&str> {
        match self {
            Self::Offered { file, .. }
            | Self::Granted { file, .. }
            | Self::ToldParameters { file, .. }
            | Self::ProxyOffered { file, .. } => file.as_deref(),
            Self::ProxyTold { file, .. } => Some(file),
            _ => None,
        }
    }

    /// The address that the machine has from here on.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Granted { address, .. } => Some(*address),
            Self::ProxyTold { address, .. } => *address,
            _ => None,
        }
    }

    /// How long it took, in milliseconds: it began that long before it was recorded.
    pub(crate) fn took(&self) -> u64 {
        match self {
            Self::Fetched { milliseconds, .. } | Self::FetchStopped { milliseconds, .. } => {
                *milliseconds
            }
            _ => 0,
        }
    }

    /// Bytes that it moved.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Fetched { bytes, .. } | Self::FetchStopped { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered { by, address, file } => {
                write!(f, "DHCP: offered {address}{} to {by}", and_file(file))
            }
            Self::Granted { by, address, file } => {
                write!(f, "DHCP: granted {address}{} to {by}", and_file(file))
            }
            Self::ToldParameters { by, file } => {
                write!(
                    f,
                    "DHCP: told the network's parameters{} to {by}",
                    and_file(file)
                )
            }
            Self::ProxyOffered {
                by,
                file: Some(file),
            } => write!(f, "proxyDHCP: offered the file {file} to {by}"),
            Self::ProxyOffered { by, file: None } => {
                write!(f, "proxyDHCP: told {by} to ask on port 4011")
            }
            Self::ProxyTold { by, address, file } => {
                write!(f, "proxyDHCP: told the file {file} to {by}")?;
                address.map_or(Ok(()), |address| write!(f, " at {address}"))
            }
            Self::ProxyWay { port_4011, boots } => {
                let (way, before) = if *port_4011 {
                    ("on port 4011", "in the offer")
                } else {
                    ("in the offer", "on port 4011")
                };
                write!(
                    f,
                    "proxyDHCP: told its file {before} in {boots} boots it fetched nothing, so it \
                     is told {way} now"
                )
            }
            Self::ArchitectureNotServed { architectures } => write!(
                f,
                "DHCP: the firmware asked for architecture {} and nothing here serves that",
                names(architectures)
            ),
            Self::LoaderMissing { architecture, file } => write!(
                f,
                "DHCP: the firmware asked for architecture {}, whose file {file} is not in the boot folder",
                ArchitectureCode(*architecture)
            ),
            Self::PoolExhausted { network } => {
                write!(
                    f,
                    "DHCP: got no address: the pool of {network} is exhausted"
                )
            }
            Self::NoSubnet { link } => write!(
                f,
                "DHCP: asked for an address on the link of {link}, for which there is no [[subnet]]"
            ),
            Self::Refused { address, reason } => write!(f, "DHCP: refused {address}: {reason}"),
            Self::Declined { address } => write!(
                f,
                "DHCP: found {address} in use by another machine; it is given to nobody for an hour"
            ),
            Self::AddressInUse { address, by } => write!(
                f,
                "DHCP: {address} of the pool is in use by the card {by}; it is given to nobody for an \
                 hour. Take it out of the pool, or reserve it for that card"
            ),
            Self::Released { address } => write!(f, "DHCP: gave {address} back"),
            Self::OtherServerTaken { server } => {
                write!(f, "DHCP: took the offer of another DHCP server, {server}")
            }
            Self::Probed { file, bytes } => {
                write!(f, "TFTP: asked for the size of {file} ({bytes} bytes)")
            }
            Self::FetchBegun { over, file, bytes } => {
                write!(f, "{over}: began to fetch {file}, {bytes} bytes")
            }
            Self::Fetched {
                over,
                file,
                bytes,
                milliseconds,
                part_of,
            } => {
                write!(f, "{over}: fetched {file}, {bytes} bytes")?;
                if let Some(len) = part_of {
                    write!(f, " of {len}")?;
                }
                write!(f, " in {}", Seconds(*milliseconds))
            }
            Self::FetchStopped {
                over,
                file,
                bytes,
                of,
                why,
                ..
            } => write_stopped(f, *over, file, (*bytes, *of), why),
            Self::NotHere { over, file } => {
                write!(f, "{over}: asked for {file}, which is not here")
            }
            Self::Told { over, boots } => write!(
                f,
                "{over}: asked what to boot: {}",
                match (boots, over) {
                    (Decided::Recovery, _) => "the recovery environment",
                    (Decided::LocalDisk, Over::Tftp) => "its local disk (no loader is sent)",
                    (Decided::LocalDisk, Over::Http) => "its local disk",
                    (Decided::Menu, _) => "the menu",
                }
            ),
            Self::Beacon {
                name,
                since_link_ms,
            } => {
                write!(f, "the agent's first beacon, as {name}")?;
                since_link_ms.map_or(Ok(()), |ms| write!(f, ", {ms} ms after link"))
            }
            Self::BeaconRefused { reason } => write!(f, "the agent's beacon was refused: {reason}"),
            Self::JobBegins {
                job_kind,
                restore_point,
                job,
            } => write!(f, "{} begins (job {job})", work_on(job_kind, restore_point)),
            Self::JobEnded {
                job_kind,
                restore_point,
                job,
                error: None,
            } => write!(
                f,
                "{} succeeded (job {job})",
                work_on(job_kind, restore_point)
            ),
            Self::JobEnded {
                job_kind,
                restore_point,
                job,
                error: Some(error),
            } => write!(
                f,
                "{} failed (job {job}): {}",
                work_on(job_kind, restore_point),
                error.trim_end_matches('.')
            ),
            Self::Remark { text, .. } => f.write_str(text),
        }
    }
}

/// What a job does with a restore point, in words.
fn work_on(job_kind: &str, restore_point: &str) -> String {
    match job_kind {
        "reset" => format!("reset to factory image {restore_point}"),
        _ => format!("{job_kind} of restore point {restore_point}"),
    }
}

fn write_stopped(
    f: &mut fmt::Formatter<'_>,
    over: Over,
    file: &str,
    (bytes, of): (u64, u64),
    why: &Stopped,
) -> fmt::Result {
    match why {
        Stopped::Silent { block_size } => {
            write!(
                f,
                "{over}: fell silent after {bytes} of {of} bytes of {file}"
            )?;
            block_size.map_or(Ok(()), |size| write!(f, ", sent in blocks of {size}"))
        }
        Stopped::ByClient { code, message } => write!(
            f,
            "{over}: ended {file} after {bytes} of {of} bytes with error {code}: {message}"
        ),
        Stopped::Dropped => {
            write!(
                f,
                "{over}: stopped fetching {file} after {bytes} of {of} bytes"
            )
        }
        Stopped::ByServer { reason } => {
            write!(
                f,
                "{over}: {file} could not be sent after {bytes} of {of} bytes: {reason}"
            )
        }
    }
}

/// Architecture numbers with their names.
pub(super) fn names(architectures: &[u16]) -> String {
    let names: Vec<_> = architectures
        .iter()
        .map(|code| ArchitectureCode(*code).to_string())
        .collect();
    names.join(", ")
}

fn and_file(file: &Option<String>) -> String {
    file.as_ref()
        .map_or_else(String::new, |file| format!(" and the file {file}"))
}

/// Milliseconds, shown as seconds.
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

/// A client's text, cut and freed of control characters: it goes to terminals.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(limit)
        .collect()
}
