//! What was gathered, as plain values: a test writes them down as it likes.

use std::{net::Ipv4Addr, path::PathBuf};

use crate::{
    config::DhcpMode, dhcp::other_servers::OtherServer, port_owner::Transport,
    serve::watch::LinkView,
};

/// Everything.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The configuration's file was given and is wrong: why.
    pub(super) config_error: Option<String>,
    /// The server on the data directory.
    pub(super) server: Server,
    /// Ports that a server needs.
    pub(super) ports: Vec<Port>,
    /// The interfaces that are or would be served.
    pub(super) interfaces: Vec<Link>,
    /// What the configuration wants to be.
    pub(super) mode: DhcpMode,
    /// Bytes of the largest TFTP block.
    pub(super) tftp_block_size: u16,
    /// The data directory.
    pub(super) data_dir: DataDir,
    /// The boot folder.
    pub(super) boot: BootFolder,
    /// Times.
    pub(super) clock: Clock,
    /// Ports that the host's firewall drops; `None` when its rules cannot be read.
    pub(super) firewall: Option<Vec<(Transport, u16, String)>>,
}

/// The server on the data directory.
#[derive(Debug, Clone)]
pub(super) enum Server {
    /// It answered.
    Running {
        /// Its version.
        version: String,
        /// Seconds since it started.
        uptime: u64,
        /// Its process.
        process: u32,
        /// Its own view of its links.
        links: Vec<LinkView>,
    },
    /// None runs.
    NotRunning,
    /// It cannot be asked: why.
    Unknown(String),
}

/// A port that a server needs.
#[derive(Debug, Clone)]
pub(super) struct Port {
    /// For what.
    pub(super) service: &'static str,
    /// Of which transport.
    pub(super) transport: Transport,
    /// Its number.
    pub(super) number: u16,
    /// Nobody's, or whose.
    pub(super) holder: Option<Holder>,
}

/// Who holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// The server that answered.
    Ours,
    /// Another process, such as `dnsmasq (process 812)`.
    Other(String),
    /// Somebody whom we may not see.
    Unknown,
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    /// Its name.
    pub(super) name: String,
    /// It is there.
    pub(super) present: bool,
    /// It is switched on.
    pub(super) up: bool,
    /// It has a cable; `None` when it does not say.
    pub(super) carrier: Option<bool>,
    /// Its addresses.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// Bytes of its largest packet.
    pub(super) mtu: Option<u32>,
    /// It is a radio.
    pub(super) wireless: bool,
    /// It is a VLAN of another one.
    pub(super) vlan: bool,
    /// Other DHCP and boot servers on it; `None` when that was not looked for, or why it could not.
    pub(super) others: Option<Result<Vec<OtherServer>, String>>,
}

/// The data directory.
#[derive(Debug, Clone)]
pub(super) struct DataDir {
    /// Where.
    pub(super) path: PathBuf,
    /// It is there.
    pub(super) present: bool,
    /// Why it cannot be written, if so.
    pub(super) not_writable: Option<String>,
    /// Bytes free for us.
    pub(super) free: Option<u64>,
    /// What kind of file system it is on.
    pub(super) filesystem: Option<String>,
}

/// The boot folder.
#[derive(Debug, Clone)]
pub(super) struct BootFolder {
    /// Where.
    pub(super) path: PathBuf,
    /// Why it cannot be read, if so.
    pub(super) unreadable: Option<String>,
    /// Files that are not as `manifest.json` of the boot folder lists them: name and why.
    pub(super) unlike_manifest: Vec<(String, String)>,
    /// The files that are looked for by name, as far as they are there.
    pub(super) files: Vec<BootFile>,
    /// When this program was made, in seconds since 1970-01-01 UTC.
    pub(super) program_made: Option<u64>,
}

/// A file of the boot folder.
#[derive(Debug, Clone)]
pub(super) struct BootFile {
    /// Its name.
    pub(super) name: &'static str,
    /// What is wrong with its content.
    pub(super) damage: Option<String>,
    /// An EFI program that carries a signature; `None` when it is none.
    pub(super) signed: Option<bool>,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub(super) made: Option<u64>,
}

/// Times, in seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// By the system's clock.
    pub(super) now: u64,
    /// By the clock that runs while the machine is off.
    pub(super) hardware: Option<u64>,
}
