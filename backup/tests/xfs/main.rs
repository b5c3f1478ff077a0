//! C1, F1: XFS by used blocks, and its files. Images are made by mkfs.xfs, filled and aged by the kernel
//! through loop mounts, and judged by xfs_repair, xfs_db and the kernel, none of which shares code with
//! this crate. Mounts need root; without it those tests say so and skip. Kernels that no longer know
//! version 4 cannot age it: it is filled by mkfs from a prototype, and read back by this crate alone.
#![allow(clippy::disallowed_methods, reason = "tests work on real image files")]

#[path = "../images/mod.rs"]
mod images;

mod damage;
mod files;
mod log;
mod made;
mod used;
