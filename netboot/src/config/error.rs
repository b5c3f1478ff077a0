//! What can be wrong with a configuration, in words.

use std::{io, path::PathBuf};

use ipnet::Ipv4Net;

/// What is wrong with the configuration. Nothing was opened or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML, or has a key that does not exist, or a value of another type.
    #[error("{} line {line}: {message}", .path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the TOML reader says.
        message: String,
    },
    /// A value that cannot be.
    #[error("{} line {line}: {key} is \"{found}\", expected {expected}", .path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key with its table.
        key: &'static str,
        /// What is there.
        found: String,
        /// What belongs there.
        expected: String,
    },
    /// A value of the command line that cannot be.
    #[error("{option} is \"{found}\", expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// Neither interface nor address.
    #[error(
        "no network to serve: name an interface with --interface eth0, or in the configuration \
         as [network] interface = \"eth0\""
    )]
    NoNetwork,
    /// DHCP without anything to give.
    #[error(
        "no addresses to give to machines: add a [[subnet]] to the configuration, or name some of \
         the network's own that no other DHCP server gives with --pool FIRST-LAST (such as --pool \
         {example}), or set [dhcp] mode = \"off\""
    )]
    NoPool {
        /// A range that would do.
        example: String,
    },
    /// `--pool` outside the interface's network.
    #[error(
        "--pool {pool} is not within {network}, the network of {interface}: choose addresses of that network"
    )]
    PoolOutside {
        /// As given.
        pool: String,
        /// Of the interface.
        network: Ipv4Net,
        /// Its name.
        interface: String,
    },
    /// A subnet on no interface without `server`.
    #[error(
        "[[subnet]] {network} is on none of the interfaces served ({interfaces}): add server = \
         \"ADDRESS\", the address by which its machines reach this server"
    )]
    NoServerAddress {
        /// The subnet.
        network: Ipv4Net,
        /// Those served.
        interfaces: String,
    },
}
