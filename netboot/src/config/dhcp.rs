//! `[dhcp]` and `[[proxy_client]]`.

use serde::Deserialize;
use toml::Spanned;

use super::{
    ConfigError, Dhcp, DhcpMode,
    file::{Check, RawDhcp},
};
use crate::dhcp::proxy::{Way, WayChoice, WayPolicy, WayRule};

/// A rule for machines that want to be told their file in another way by the proxy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProxyClient {
    mac: Option<Spanned<String>>,
    vendor_class: Option<String>,
    architecture: Option<u16>,
    proxy_offer: Spanned<String>,
}

/// Checks the tables; the command line's mode comes first.
pub(super) fn dhcp(
    check: &Check<'_>,
    raw: &RawDhcp,
    clients: &[RawProxyClient],
    mode: Option<DhcpMode>,
) -> Result<Option<Dhcp>, ConfigError> {
    let written = match &raw.mode {
        None => DhcpMode::Auto,
        Some(at) => match at.get_ref().as_str() {
            "auto" => DhcpMode::Auto,
            "server" => DhcpMode::Server,
            "proxy" => DhcpMode::Proxy,
            "off" => DhcpMode::Off,
            other => {
                let expected = "\"auto\", \"server\", \"proxy\" or \"off\"";
                return Err(check.error(at, "dhcp.mode", other, expected));
            }
        },
    };
    let lease_seconds = check.number(
        raw.lease_seconds.as_ref(),
        "dhcp.lease_seconds",
        60..=31_536_000,
        3600,
    )?;
    let otherwise = match &raw.proxy_offer {
        None => WayChoice::Auto,
        Some(at) => way(check, at, "dhcp.proxy_offer")?,
    };
    let rules = clients.iter().map(|client| rule(check, client));
    let ways = WayPolicy {
        rules: rules.collect::<Result<_, _>>()?,
        otherwise,
    };
    let mode = mode.unwrap_or(written);
    Ok((mode != DhcpMode::Off).then(|| Dhcp {
        mode,
        port: raw.port.unwrap_or(protocol::dhcp::SERVER_PORT),
        ways,
        lease_seconds,
    }))
}

fn rule(check: &Check<'_>, raw: &RawProxyClient) -> Result<WayRule, ConfigError> {
    let mac = match &raw.mac {
        None => None,
        Some(at) => {
            let expected = "the beginning of a MAC address such as 52:54:00, or a whole one";
            let bytes = mac_prefix(at.get_ref())
                .ok_or_else(|| check.error(at, "proxy_client.mac", at.get_ref(), expected))?;
            Some(bytes)
        }
    };
    if mac.is_none() && raw.vendor_class.is_none() && raw.architecture.is_none() {
        let at = &raw.proxy_offer;
        let expected =
            "beside mac, vendor_class or architecture; for all machines it is dhcp.proxy_offer";
        return Err(check.error(at, "proxy_client.proxy_offer", at.get_ref(), expected));
    }
    Ok(WayRule {
        mac,
        vendor_class: raw.vendor_class.clone(),
        architecture: raw.architecture,
        choice: way(check, &raw.proxy_offer, "proxy_client.proxy_offer")?,
    })
}

fn way(
    check: &Check<'_>,
    at: &Spanned<String>,
    key: &'static str,
) -> Result<WayChoice, ConfigError> {
    match at.get_ref().as_str() {
        "auto" => Ok(WayChoice::Auto),
        "direct" => Ok(WayChoice::Always(Way::Direct)),
        "port-4011" => Ok(WayChoice::Always(Way::Port4011)),
        other => {
            let expected = "\"auto\", \"direct\" or \"port-4011\"";
            Err(check.error(at, key, other, expected))
        }
    }
}

/// One to six bytes of a MAC address.
fn mac_prefix(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|pair| {
            let plain = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(pair, 16).ok())?
        })
        .collect();
    bytes.filter(|bytes| bytes.len() <= 6)
}
