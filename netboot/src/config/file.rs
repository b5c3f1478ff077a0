//! The TOML file: its keys, and the checks that need to know where a value stands.
//!
//! Not here: what holds without a file (`config`).

use std::{
    fmt,
    net::Ipv4Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use protocol::upkeep::RetentionRules;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Config, ConfigError, DEFAULT_DATA_DIR, Listen, Overrides, SubnetConfig,
    dhcp::{RawProxyClient, dhcp},
    is_within, parse_range, pool_option,
};
use crate::boot_policy::{BootPolicy, UnknownMachines};
use crate::dhcp::{
    boot_table::{BiosLoader, LoaderChoice, UefiLoader},
    reservations::{Reservation, Who},
};

/// Where Debian's package `ipxe` puts its loaders.
const DEFAULT_LOADERS: &str = "/usr/lib/ipxe";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    data_dir: Option<PathBuf>,
    boot_files: Option<PathBuf>,
    loaders: Option<PathBuf>,
    network: RawNetwork,
    dhcp: RawDhcp,
    tftp: RawTftp,
    http: RawHttp,
    subnet: Vec<RawSubnet>,
    proxy_client: Vec<RawProxyClient>,
    reservation: Vec<RawReservation>,
    boot: RawBoot,
    retention: RetentionRules,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    interface: Option<Spanned<OneOrMany>>,
    listen: Option<Spanned<String>>,
}

#[derive(Deserialize, Clone)]
#[serde(
    untagged,
    expecting = "expected the name of an interface, or a list of names"
)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDhcp {
    pub(super) mode: Option<Spanned<String>>,
    pub(super) port: Option<u16>,
    pub(super) lease_seconds: Option<Spanned<u32>>,
    pub(super) proxy_offer: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawTftp {
    port: Option<u16>,
    block_size: Option<Spanned<u16>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawHttp {
    port: Option<u16>,
    advertised_port: Option<Spanned<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubnet {
    network: Spanned<String>,
    pool: Spanned<String>,
    server: Option<Spanned<String>>,
    router: Option<Spanned<String>>,
    #[serde(default)]
    dns: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReservation {
    mac: Option<Spanned<String>>,
    uuid: Option<Spanned<String>>,
    client_id: Option<Spanned<String>>,
    address: Spanned<String>,
    name: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawBoot {
    unknown_machines: UnknownMachines,
    menu_seconds: Option<Spanned<u16>>,
    uefi_loader: UefiLoader,
    bios_loader: BiosLoader,
}

impl Config {
    /// Reads and checks the text of a file, with the command line on top.
    pub(crate) fn parse(
        text: &str,
        path: &Path,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: one_line(error.message()),
        })?;
        let check = Check { text, path };
        let subnets = subnets(&check, &raw.subnet)?;
        let dhcp = dhcp(&check, &raw.dhcp, &raw.proxy_client, overrides.mode)?;
        let mut reservations = Vec::new();
        for reservation in &raw.reservation {
            let reservation = check.reservation(reservation, &subnets, &reservations)?;
            reservations.push(reservation);
        }
        let tftp_block_size = check.number(
            raw.tftp.block_size.as_ref(),
            "tftp.block_size",
            512..=65464,
            // The largest that fits 1500 bytes with every header: fragments get lost, and ROMs
            // cannot put them together.
            1468,
        )?;
        let advertised_port = match &raw.http.advertised_port {
            None => None,
            Some(_) => Some(check.number(
                raw.http.advertised_port.as_ref(),
                "http.advertised_port",
                1..=u16::MAX,
                0,
            )?),
        };
        let data_dir = overrides
            .data_dir
            .or(raw.data_dir)
            .unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        Ok(Self {
            boot_files: overrides
                .boot_files
                .or(raw.boot_files)
                .unwrap_or_else(|| data_dir.join("boot")),
            data_dir,
            loaders: raw.loaders.unwrap_or_else(|| DEFAULT_LOADERS.into()),
            listen: listen(&check, &raw.network, overrides.interfaces)?,
            dhcp,
            tftp_port: raw.tftp.port.unwrap_or(protocol::tftp::PORT),
            tftp_block_size,
            http_port: raw.http.port.unwrap_or(8080),
            advertised_port,
            pool: pool_option(overrides.pool, &subnets)?,
            subnets,
            reservations,
            retention: raw.retention,
            boot: BootPolicy {
                unknown: raw.boot.unknown_machines,
                menu_seconds: check.number(
                    raw.boot.menu_seconds.as_ref(),
                    "boot.menu_seconds",
                    0..=3600,
                    30,
                )?,
                loaders: LoaderChoice {
                    uefi: raw.boot.uefi_loader,
                    bios: raw.boot.bios_loader,
                },
            },
        })
    }
}

pub(super) struct Check<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Check<'_> {
    pub(super) fn error<T>(
        &self,
        at: &Spanned<T>,
        key: &'static str,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            line: line_of(self.text, at.span().start),
            key,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn address(&self, value: &Spanned<String>, key: &'static str) -> Result<Ipv4Addr, ConfigError> {
        let text = value.get_ref();
        text.parse()
            .map_err(|_| self.error(value, key, text, "an IPv4 address such as 10.77.0.1"))
    }

    fn address_in(
        &self,
        value: Option<&Spanned<String>>,
        key: &'static str,
        network: Ipv4Net,
    ) -> Result<Option<Ipv4Addr>, ConfigError> {
        let Some(value) = value else {
            return Ok(None);
        };
        let address = self.address(value, key)?;
        if network.contains(&address) {
            Ok(Some(address))
        } else {
            Err(self.error(value, key, address, format!("an address of {network}")))
        }
    }

    pub(super) fn number<N: PartialOrd + fmt::Display + Copy>(
        &self,
        value: Option<&Spanned<N>>,
        key: &'static str,
        allowed: RangeInclusive<N>,
        default: N,
    ) -> Result<N, ConfigError> {
        match value {
            None => Ok(default),
            Some(value) if allowed.contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => {
                let expected = format!("a number from {} to {}", allowed.start(), allowed.end());
                Err(self.error(value, key, value.get_ref(), expected))
            }
        }
    }

    fn reservation(
        &self,
        raw: &RawReservation,
        subnets: &[SubnetConfig],
        others: &[Reservation],
    ) -> Result<Reservation, ConfigError> {
        let who = self.who(raw)?;
        let address = self.address(&raw.address, "reservation.address")?;
        if !subnets
            .iter()
            .any(|subnet| subnet.network.contains(&address))
        {
            return Err(self.error(
                &raw.address,
                "reservation.address",
                address,
                "an address of one of the [[subnet]]s",
            ));
        }
        if others.iter().any(|other| other.address == address) {
            return Err(self.error(
                &raw.address,
                "reservation.address",
                address,
                "an address that is reserved once only",
            ));
        }
        let name = match &raw.name {
            None => None,
            Some(name) if is_host_name(name.get_ref()) => Some(name.get_ref().clone()),
            Some(name) => {
                let expected = "a host name: letters, digits, hyphens and dots, at most 253";
                return Err(self.error(name, "reservation.name", name.get_ref(), expected));
            }
        };
        Ok(Reservation { who, address, name })
    }

    fn who(&self, raw: &RawReservation) -> Result<Who, ConfigError> {
        match (&raw.mac, &raw.uuid, &raw.client_id) {
            (Some(mac), None, None) => {
                let expected = "six hexadecimal pairs such as 52:54:00:12:34:56";
                let text = mac.get_ref();
                let error = |_| self.error(mac, "reservation.mac", text, expected);
                text.parse().map(Who::Mac).map_err(error)
            }
            (None, Some(uuid), None) => {
                let expected = "a UUID such as 6f2d6d1c-90a4-4b6f-8d0c-1f8e9a7b5c3d";
                let text = uuid.get_ref();
                let error = |_| self.error(uuid, "reservation.uuid", text, expected);
                let uuid = uuid::Uuid::parse_str(text).map_err(error)?;
                Ok(Who::Uuid(uuid.into_bytes()))
            }
            (None, None, Some(id)) => {
                let expected =
                    "hexadecimal pairs with the type first, such as 01:52:54:00:12:34:56";
                let text = id.get_ref();
                client_id(text)
                    .map(Who::ClientId)
                    .ok_or_else(|| self.error(id, "reservation.client_id", text, expected))
            }
            _ => Err(self.error(
                &raw.address,
                "reservation.address",
                raw.address.get_ref(),
                "exactly one of mac, uuid and client_id beside the address",
            )),
        }
    }
}

/// The bytes of option 61 (RFC 2132 §9.14: a type and at least one more).
fn client_id(text: &str) -> Option<Vec<u8>> {
    let pair = |pair: &str| {
        let plain = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        plain.then(|| u8::from_str_radix(pair, 16).ok()).flatten()
    };
    let bytes: Vec<u8> = text.split(':').map(pair).collect::<Option<_>>()?;
    (2..=255).contains(&bytes.len()).then_some(bytes)
}

fn is_host_name(text: &str) -> bool {
    let allowed = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-' || letter == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}

fn listen(
    check: &Check<'_>,
    raw: &RawNetwork,
    interfaces: Vec<String>,
) -> Result<Listen, ConfigError> {
    if !interfaces.is_empty() {
        return Ok(Listen::Interfaces(interfaces));
    }
    match (&raw.interface, &raw.listen) {
        (Some(_), Some(listen)) => {
            let expected = "either network.interface or network.listen, not both";
            Err(check.error(listen, "network.listen", listen.get_ref(), expected))
        }
        (Some(names), None) => {
            let list = match names.get_ref().clone() {
                OneOrMany::One(name) => vec![name],
                OneOrMany::Many(list) => list,
            };
            if list.is_empty() || list.iter().any(String::is_empty) {
                return Err(check.error(
                    names,
                    "network.interface",
                    "",
                    "the name of an interface such as eth0",
                ));
            }
            Ok(Listen::Interfaces(list))
        }
        (None, Some(listen)) => Ok(Listen::Address(check.address(listen, "network.listen")?)),
        (None, None) => Err(ConfigError::NoNetwork),
    }
}

fn subnets(check: &Check<'_>, raw: &[RawSubnet]) -> Result<Vec<SubnetConfig>, ConfigError> {
    let mut subnets: Vec<SubnetConfig> = Vec::new();
    for raw in raw {
        let text = raw.network.get_ref();
        let network: Ipv4Net = text.parse().map_err(|_| {
            check.error(
                &raw.network,
                "subnet.network",
                text,
                "a network such as 10.77.0.0/24",
            )
        })?;
        if network.trunc() != network {
            let expected = format!("{}, without bits after the prefix", network.trunc());
            return Err(check.error(&raw.network, "subnet.network", text, expected));
        }
        if let Some(other) = subnets
            .iter()
            .find(|other| other.network.contains(&network) || network.contains(&other.network))
        {
            let expected = format!("a network that does not overlap {}", other.network);
            return Err(check.error(&raw.network, "subnet.network", text, expected));
        }
        let pool = pool(check, &raw.pool, network)?;
        subnets.push(SubnetConfig {
            network,
            pool,
            server: raw
                .server
                .as_ref()
                .map(|server| check.address(server, "subnet.server"))
                .transpose()?,
            router: check.address_in(raw.router.as_ref(), "subnet.router", network)?,
            dns: raw
                .dns
                .iter()
                .map(|server| check.address(server, "subnet.dns"))
                .collect::<Result<_, _>>()?,
        });
    }
    Ok(subnets)
}

fn pool(
    check: &Check<'_>,
    raw: &Spanned<String>,
    network: Ipv4Net,
) -> Result<RangeInclusive<u32>, ConfigError> {
    let text = raw.get_ref();
    let range = parse_range(text).ok_or_else(|| {
        let expected = "addresses as FIRST-LAST, such as 10.77.0.100-10.77.0.200";
        check.error(raw, "subnet.pool", text, expected)
    })?;
    if !is_within(&range, network) {
        return Err(check.error(raw, "subnet.pool", text, format!("addresses of {network}")));
    }
    Ok(range)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
