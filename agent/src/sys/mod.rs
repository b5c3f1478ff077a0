//! The kernel's interfaces: the only place with `unsafe` code.
//!
//! Invariant: each function is safe to call with any arguments; one operation in an `unsafe` block,
//! with the reason why it is sound. What is *not* here: decisions.

pub(crate) mod block;
pub(crate) mod console;
pub(crate) mod inode_flags;
pub(crate) mod link;
pub(crate) mod loop_device;
pub(crate) mod module;
pub(crate) mod mount;
pub(crate) mod partition;
pub(crate) mod reboot;
