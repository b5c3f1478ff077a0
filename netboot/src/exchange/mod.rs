//! Exchange: disk images become restore points, and restore points disk images.
//!
//! An import plans, cuts and names chunks by the same code as a capture (`backup::plan`, `backup::chunk`) and
//! gives them to the store by the same operations; only the disk is a file. Formats other than raw are read
//! and written by QEMU's `qemu-nbd`, over a socket, so that no second copy of a disk is ever made
//! (`docs/decisions/0018-exchange.md`).
//!
//! Invariant: a source is opened read only, and no file that it merely names is read; a target appears under
//! its name only when it is whole and flushed, and what is there already is replaced only when that was asked
//! for. What is *not* here: options and what is printed (`commands::exchange`), the server's side of an import
//! (`http::import_api`).

mod error;
mod export;
mod image;
mod import;
mod nbd;
mod new_file;
mod parts;
mod qemu;
mod stop;
mod target;

pub(crate) use error::ExchangeError;
pub(crate) use export::{Export, ExportSummary, Format, export};
pub(crate) use image::{Image, ImageFormat};
pub(crate) use import::{ImportSummary, Origin, import};
pub(crate) use parts::MAX_PART_MIB;
pub(crate) use stop::Stop;

/// How far it is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// What is being done.
    pub(crate) stage: &'static str,
    /// Done of it.
    pub(crate) done: u64,
    /// All of it.
    pub(crate) total: u64,
}

/// Who is told of progress.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);
