//! Where the server is: its links, and the subnets behind them.
//!
//! Not here: opening anything.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ServeError;
use crate::{
    config::{Config, ConfigError, DhcpMode, Listen, SubnetConfig, is_within},
    dhcp::server::{Settings, Subnet},
    sockets::{self, Interface},
};

/// A link to serve: an interface, or the lab's address.
pub(super) struct Link {
    /// The interface; `None` for an address without one.
    pub(super) interface: Option<Interface>,
    /// Our address on it.
    pub(super) address: Ipv4Addr,
}

impl Link {
    /// What people call it.
    pub(super) fn name(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{} ({})", interface.name, self.address),
            None => self.address.to_string(),
        }
    }

    /// Our addresses on it with their networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = Ipv4Net> {
        match &self.interface {
            None => vec![Ipv4Net::from(self.address)],
            Some(known) => known.addresses.clone(),
        }
        .into_iter()
    }

    /// Its interface, if other machines can be on it.
    pub(super) fn ethernet(&self) -> Option<&Interface> {
        self.interface
            .as_ref()
            .filter(|interface| interface.is_ethernet())
    }
}

/// The links that the configuration names.
///
/// # Errors
/// An interface that is not there or has no address.
pub(super) fn links(config: &Config) -> Result<Vec<Link>, ServeError> {
    match &config.listen {
        Listen::Address(address) => Ok(vec![Link {
            interface: None,
            address: *address,
        }]),
        Listen::Interfaces(names) => names
            .iter()
            .map(|name| {
                let interface = sockets::interface(name)?;
                let address = interface
                    .addresses
                    .first()
                    .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Net::addr);
                Ok(Link {
                    interface: Some(interface),
                    address,
                })
            })
            .collect(),
    }
}

/// The DHCP server's settings, every subnet with the address its machines reach us at.
///
/// # Errors
/// A subnet on no link, or nothing to give addresses from.
pub(super) fn settings(config: &Config, links: &[Link]) -> Result<Settings, ServeError> {
    let networks = || links.iter().flat_map(Link::networks);
    let names = || links.iter().map(Link::name).collect::<Vec<_>>().join(", ");
    let mut subnets = Vec::new();
    for subnet in with_own_network(config, links)? {
        let own = networks()
            .map(|net| net.addr())
            .find(|address| subnet.network.contains(address));
        let server = subnet
            .server
            .or(own)
            .ok_or_else(|| ConfigError::NoServerAddress {
                network: subnet.network,
                interfaces: names(),
            })?;
        subnets.push(Subnet {
            network: subnet.network,
            pool: vec![subnet.pool],
            server,
            router: subnet.router,
            dns: subnet.dns,
            http_port: config.advertised_port.unwrap_or(config.http_port),
        });
    }
    Ok(Settings {
        subnets,
        reservations: config.reservations.clone(),
        lease_seconds: config.dhcp.as_ref().map_or(3600, |dhcp| dhcp.lease_seconds),
    })
}

/// The subnets of the configuration or, without any, the interface's network with `--pool`. A proxy needs
/// none, and in `auto` mode another server may turn out to give the addresses.
fn with_own_network(config: &Config, links: &[Link]) -> Result<Vec<SubnetConfig>, ServeError> {
    if !config.subnets.is_empty() || config.dhcp.is_none() {
        return Ok(config.subnets.clone());
    }
    let own: Vec<(String, Ipv4Net)> = links
        .iter()
        .filter_map(|link| link.interface.as_ref())
        .flat_map(|known| {
            known
                .addresses
                .iter()
                .map(|network| (known.name.clone(), *network))
        })
        .collect();
    let needed = match config.dhcp.as_ref().map(|dhcp| dhcp.mode) {
        Some(DhcpMode::Server) => true,
        Some(DhcpMode::Auto) => links.iter().any(|link| link.ethernet().is_none()),
        Some(DhcpMode::Proxy | DhcpMode::Off) | None => false,
    };
    if config.pool.is_none() && !needed {
        return Ok(Vec::new());
    }
    let Some(pool) = &config.pool else {
        let example = own.first().map_or_else(
            || "10.77.0.100-10.77.0.200".to_owned(),
            |(_, network)| example_pool(*network),
        );
        return Err(ConfigError::NoPool { example }.into());
    };
    let text = format!(
        "{}-{}",
        Ipv4Addr::from(*pool.start()),
        Ipv4Addr::from(*pool.end())
    );
    match own.iter().find(|(_, network)| is_within(pool, *network)) {
        Some((_, network)) => Ok(vec![SubnetConfig {
            network: network.trunc(),
            pool: pool.clone(),
            server: Some(network.addr()),
            router: None,
            dns: Vec::new(),
        }]),
        None => match own.into_iter().next() {
            Some((interface, network)) => Err(ConfigError::PoolOutside {
                pool: text,
                network: network.trunc(),
                interface,
            }
            .into()),
            None => Err(ConfigError::NoPool { example: text }.into()),
        },
    }
}

/// The third quarter of a network, to be written into a sentence.
pub(super) fn example_pool(network: Ipv4Net) -> String {
    let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
    let quarter = (last - first) / 4;
    let (from, to) = (first + 2 * quarter, first + 3 * quarter);
    format!("{}-{}", Ipv4Addr::from(from), Ipv4Addr::from(to))
}
