//! The lab: a network and machines in userspace, and the files that they need.

pub(crate) mod deadline;
pub(crate) mod debian;
pub(crate) mod dhcp_relay;
pub(crate) mod disk;
pub(crate) mod fault;
pub(crate) mod firmware;
pub(crate) mod framing;
pub(crate) mod gateway;
pub(crate) mod guest;
pub(crate) mod guest_port;
pub(crate) mod link;
pub(crate) mod namespace;
pub(crate) mod packet;
pub(crate) mod pcap;
pub(crate) mod port_map;
pub(crate) mod qmp;
pub(crate) mod serial;
pub(crate) mod source_machine;
pub(crate) mod switch;
pub(crate) mod terminal_text;
pub(crate) mod test_files;
pub(crate) mod tool;
pub(crate) mod tree;
pub(crate) mod udp_flows;
pub(crate) mod wire;
