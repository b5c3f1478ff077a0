//! The part of an answer that makes a machine boot: next server, file, and what firmware and iPXE
//! want to read beside them.
//!
//! Invariant: `file` and `siaddr` are filled as well as the options; some firmware reads only the
//! ones, some only the others.
//!
//! Not here: which file (`boot_table`).

use protocol::dhcp::{BootClient, BootProtocol, Message, client_uuid, code, vendor_class_prefix};

use super::{
    boot_table::{FirstFile, NoFirstFile, first_file},
    exchange::Exchange,
    server::Subnet,
};
use crate::boot_policy::{Platform, loader_url, script_url};

/// What a client was told to fetch.
pub(super) struct Told {
    /// A name for TFTP, or a URL.
    pub(super) name: String,
    /// The loader, if it goes by TFTP.
    pub(super) loader: Option<&'static str>,
}

/// Adds the boot file to a reply and returns its name. Nothing is added for a client that did not
/// ask for one.
///
/// # Errors
/// When nothing here serves the client's architecture.
pub(super) fn add_boot_file(
    exchange: &Exchange<'_>,
    subnet: &Subnet,
    reply: &mut Message,
    file_exists: impl Fn(&str) -> bool,
) -> Result<Option<Told>, NoFirstFile> {
    let Some(client) = BootClient::of(exchange.request) else {
        return Ok(None);
    };
    let base = format!("http://{}:{}", subnet.server, subnet.http_port);
    let first = first_file(&client, file_exists)?;
    let name = match first {
        FirstFile::Tftp(file) => {
            reply
                .options
                .set_c_string(code::TFTP_SERVER, &subnet.server.to_string());
            file.to_owned()
        }
        FirstFile::Http(file) => loader_url(&base, exchange.mac, file),
        FirstFile::Script => script_url(
            &base,
            exchange.mac,
            client_uuid(exchange.request),
            Platform::of(client.architectures[0]),
        ),
    };
    if client.protocol == BootProtocol::Http {
        let prefix = vendor_class_prefix(BootProtocol::Http);
        reply.options.set(code::VENDOR_CLASS, prefix);
    }
    if client.ipxe.is_some() {
        // no-pxedhcp (176): do not wait three seconds for a proxyDHCP offer.
        reply.options.set(code::IPXE, [176, 1, 1]);
    }
    reply.server_address = subnet.server;
    reply.options.set_c_string(code::BOOT_FILE, &name);
    // Some firmware reads only the field, others only the option.
    if name.len() < 128 {
        reply.file = name.clone().into_bytes();
    }
    let loader = match first {
        FirstFile::Tftp(file) => Some(file),
        FirstFile::Http(_) | FirstFile::Script => None,
    };
    Ok(Some(Told { name, loader }))
}
