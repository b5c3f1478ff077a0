//! The network cards.

use std::net::Ipv4Addr;
use std::path::Path;

use backup::hardware::Nic;

use crate::net::link;

/// Every physical card, Wi-Fi too: a restored system may want it.
pub(crate) fn nics(sysfs: &Path) -> Vec<Nic> {
    let addresses = addresses();
    link::cards(sysfs)
        .into_iter()
        .map(|card| Nic {
            link: link::has_link(sysfs, &card.name),
            address: addresses
                .iter()
                .find(|(name, _)| *name == card.name)
                .map(|(_, address)| *address),
            mac: card.mac.to_string(),
            driver: card.driver,
            name: card.name,
        })
        .collect()
}

fn addresses() -> Vec<(String, Ipv4Addr)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    all.filter_map(|interface| {
        let address = interface.address?;
        Some((interface.interface_name, address.as_sockaddr_in()?.ip()))
    })
    .collect()
}
