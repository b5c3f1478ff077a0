//! The configuration: a TOML file, checked whole before anything is opened.
//!
//! Invariant: a [`Config`] can be served from. Every complaint names the file, the line, the key,
//! what is there and what belongs there.
//!
//! Not here: the command line's own syntax (`cli`), whether ports and interfaces can be had
//! (`sockets`).

mod dhcp;
mod error;
mod file;

use std::{
    fs,
    net::Ipv4Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use protocol::upkeep::RetentionRules;

use crate::{
    boot_policy::BootPolicy,
    dhcp::{proxy::WayPolicy, reservations::Reservation},
};
pub(crate) use error::ConfigError;

/// Where state is kept when nobody says otherwise; made when it is not there.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/netboot";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// State, store and control socket.
    pub(crate) data_dir: PathBuf,
    /// Kernel, initial file system, loaders.
    pub(crate) boot_files: PathBuf,
    /// Loaders that the boot folder lacks.
    pub(crate) loaders: PathBuf,
    /// Where it is reached.
    pub(crate) listen: Listen,
    /// DHCP, unless it is off.
    pub(crate) dhcp: Option<Dhcp>,
    /// Port of TFTP.
    pub(crate) tftp_port: u16,
    /// Largest TFTP block in bytes.
    pub(crate) tftp_block_size: u16,
    /// Port of HTTP.
    pub(crate) http_port: u16,
    /// Port of HTTP as machines see it; `None` for the same.
    pub(crate) advertised_port: Option<u16>,
    /// `--pool`: what may be given in the interface's own network, when there are no subnets.
    pub(crate) pool: Option<RangeInclusive<u32>>,
    /// Where machines are.
    pub(crate) subnets: Vec<SubnetConfig>,
    /// Addresses kept for machines.
    pub(crate) reservations: Vec<Reservation>,
    /// What machines boot.
    pub(crate) boot: BootPolicy,
    /// Which restore points `netboot prune` keeps.
    pub(crate) retention: RetentionRules,
}

/// Where the server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// On network interfaces, by name.
    Interfaces(Vec<String>),
    /// On one address: behind a relay, without root.
    Address(Ipv4Addr),
}

/// DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dhcp {
    /// Server or proxy.
    pub(crate) mode: DhcpMode,
    /// The servers' port.
    pub(crate) port: u16,
    /// Which firmware a proxy tells which way.
    pub(crate) ways: WayPolicy,
    /// How long a lease lasts.
    pub(crate) lease_seconds: u32,
}

/// What we are to machines that ask by DHCP (`dhcp.mode`, `--mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DhcpMode {
    /// The proxy where another DHCP server answers, else the server
    Auto,
    /// The DHCP server: gives addresses and boot files
    Server,
    /// Gives boot files only, beside another DHCP server
    Proxy,
    /// Neither
    Off,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubnetConfig {
    /// Its addresses.
    pub(crate) network: Ipv4Net,
    /// What may be given to any machine.
    pub(crate) pool: RangeInclusive<u32>,
    /// Our address as its machines see it; `None` for the interface's own.
    pub(crate) server: Option<Ipv4Addr>,
    /// Its way out.
    pub(crate) router: Option<Ipv4Addr>,
    /// Its name servers.
    pub(crate) dns: Vec<Ipv4Addr>,
}

/// What the command line says in place of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `--interface`, any number of times.
    pub(crate) interfaces: Vec<String>,
    /// `--data-dir`.
    pub(crate) data_dir: Option<PathBuf>,
    /// `--boot-files`.
    pub(crate) boot_files: Option<PathBuf>,
    /// `--pool FIRST-LAST`.
    pub(crate) pool: Option<String>,
    /// `--mode`.
    pub(crate) mode: Option<DhcpMode>,
}

impl Config {
    /// Reads and checks the file, or the defaults without one, with the command line on top.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?,
        };
        Self::parse(&text, file.unwrap_or(Path::new("the defaults")), overrides)
    }
}

/// `--pool` is for a start without a `[[subnet]]`. We do not guess a pool: another DHCP server may
/// give those addresses.
fn pool_option(
    text: Option<String>,
    subnets: &[SubnetConfig],
) -> Result<Option<RangeInclusive<u32>>, ConfigError> {
    let Some(found) = text else {
        return Ok(None);
    };
    let option = "--pool";
    if !subnets.is_empty() {
        let expected = "no such option beside a configuration that has a [[subnet]]";
        return Err(ConfigError::Option {
            option,
            found,
            expected,
        });
    }
    match parse_range(&found) {
        Some(range) => Ok(Some(range)),
        None => {
            let expected = "addresses as FIRST-LAST, such as 10.77.0.100-10.77.0.200";
            Err(ConfigError::Option {
                option,
                found,
                expected,
            })
        }
    }
}

/// Whether all addresses of the range are hosts' addresses of the network.
pub(crate) fn is_within(range: &RangeInclusive<u32>, network: Ipv4Net) -> bool {
    [range.start(), range.end()]
        .into_iter()
        .all(|end| network.contains(&Ipv4Addr::from(*end)))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-')?;
    let first: Ipv4Addr = first.trim().parse().ok()?;
    let last: Ipv4Addr = last.trim().parse().ok()?;
    (first <= last).then(|| u32::from(first)..=u32::from(last))
}

#[cfg(test)]
mod tests;
