//! The part of an answer that makes a machine boot: next server, file, and what firmware and iPXE
//! want to read beside them.
//!
//! Invariant: `file` and `siaddr` are filled as well as the options; some firmware reads only the
//! ones, some only the others.
//!
//! Not here: which file (`boot_table`).

use std::net::Ipv4Addr;

use protocol::dhcp::{
    BootClient, BootProtocol, MacAddress, Message, client_uuid, code, vendor_class_prefix,
};

use super::boot_table::{BootRequest, FirstFile, FirstFiles, NoFirstFile, Role};
use crate::boot_policy::{Platform, loader_url, script_url};

/// Who a client's files come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// What we are to the client.
    pub(super) role: Role,
    /// Our address as it sees it.
    pub(super) address: Ipv4Addr,
    /// Port of our HTTP server as it sees it.
    pub(super) http_port: u16,
}

/// Adds the boot file to the reply to a request and returns its name. Nothing is added for a client
/// that did not ask for one.
///
/// # Errors
/// When nothing here serves the client's architecture.
pub(super) fn add_boot_file(
    request: &Message,
    mac: MacAddress,
    source: Source,
    reply: &mut Message,
    files: &dyn FirstFiles,
) -> Result<Option<String>, NoFirstFile> {
    let Some(client) = BootClient::of(request) else {
        return Ok(None);
    };
    let base = format!("http://{}:{}", source.address, source.http_port);
    let (protocol, platform) = (client.protocol, Platform::of(client.architectures[0]));
    let is_ipxe = client.ipxe.is_some();
    let uuid = client_uuid(request);
    let first = files.first_file(&BootRequest {
        client,
        mac,
        uuid,
        role: source.role,
    })?;
    let name = match first {
        FirstFile::Tftp(file) => {
            reply
                .options
                .set_c_string(code::TFTP_SERVER, &source.address.to_string());
            file
        }
        FirstFile::Http(file) => loader_url(&base, mac, &file),
        FirstFile::Script => script_url(&base, mac, uuid, platform),
    };
    if protocol == BootProtocol::Http {
        let prefix = vendor_class_prefix(BootProtocol::Http);
        reply.options.set(code::VENDOR_CLASS, prefix);
    }
    if is_ipxe && source.role == Role::Server {
        // no-pxedhcp (176): do not wait three seconds for a proxyDHCP offer. Our own offer ends that
        // wait when we are the proxy.
        reply.options.set(code::IPXE, [176, 1, 1]);
    }
    reply.server_address = source.address;
    reply.options.set_c_string(code::BOOT_FILE, &name);
    // Some firmware reads only the field, others only the option.
    if name.len() < 128 {
        reply.file = name.clone().into_bytes();
    }
    Ok(Some(name))
}
