//! DHCP as it is on the wire: RFC 2131 messages, RFC 2132 options, and the parts of PXE, UEFI and
//! iPXE that ride in them.
//!
//! Invariants: no sequence of bytes makes the parser panic or allocate more than a small multiple
//! of its input; whatever [`Message::emit`] writes, [`Message::parse`] reads back to the same
//! values.
//!
//! The option walk is our own and tolerant: firmware sends what it likes, and a machine that can
//! be read at all should be booted. `dhcproto`, which stops silently at the first malformed option
//! and keeps only the first architecture of option 93, is the independent reader in the tests.
//!
//! Not here: leases, pools and what to answer (`netboot::dhcp`), sockets, clocks.

mod mac;
mod message;
mod options;
mod pxe;
mod relay;

pub use mac::{MacAddress, ParseMacError};
pub use message::{
    BOOTREPLY, BOOTREQUEST, CLIENT_PORT, Message, MessageType, ParseError, SERVER_PORT,
};
pub use options::{Options, code};
pub use pxe::{
    ArchitectureCode, BootClient, BootProtocol, IpxeFeatures, client_uuid, vendor_class_prefix,
};
pub use relay::RelayInformation;

/// The vendor class (option 60) by which the recovery agent asks for [`code::NETBOOT_SERVER`]: the whole
/// option, without a NUL, in a DHCPINFORM to everybody.
pub const AGENT_CLASS: &str = "netboot-agent";
