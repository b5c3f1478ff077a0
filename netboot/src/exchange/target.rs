//! What an export writes to: a raw file, a qcow2 file, parts of a raw file.
//!
//! Invariant: what was not written reads as zeros.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::nbd::NbdClient;
use super::new_file::NewFile;
use super::parts::Parts;
use super::qemu::QemuNbd;
use super::{ExchangeError, OnProgress, Stop};

/// A disk that is being written, by position.
pub(super) enum Target {
    /// A raw file with holes.
    Raw {
        /// What it becomes.
        new: NewFile,
        /// The file.
        file: File,
    },
    /// A qcow2 file.
    Qcow2 {
        /// What it becomes.
        new: NewFile,
        /// Who writes it.
        client: NbdClient,
        /// Ends when the client is gone.
        server: QemuNbd,
    },
    /// Parts of a raw file.
    Parts(Parts),
}

impl Target {
    /// A raw file of `size` bytes.
    ///
    /// # Errors
    /// [`ExchangeError::Output`].
    pub(super) fn raw(new: NewFile, size: u64) -> Result<Self, ExchangeError> {
        let file = new.create()?;
        file.set_len(size)
            .map_err(ExchangeError::output("cannot make room for", new.partial()))?;
        Ok(Self::Raw { new, file })
    }

    /// A qcow2 file for a disk of `size` bytes.
    ///
    /// # Errors
    /// [`ExchangeError::Output`], [`ExchangeError::Tool`].
    pub(super) fn qcow2(new: NewFile, size: u64) -> Result<Self, ExchangeError> {
        drop(new.create()?);
        super::qemu::create_qcow2(new.partial(), size)?;
        let mut server = QemuNbd::start("qcow2", new.partial(), false)?;
        let client = server.connect()?;
        Ok(Self::Qcow2 {
            new,
            client,
            server,
        })
    }

    /// Writes at byte `offset`.
    ///
    /// # Errors
    /// [`ExchangeError::Full`], [`ExchangeError::Output`].
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExchangeError> {
        match self {
            Self::Raw { new, file } => file
                .write_all_at(bytes, offset)
                .map_err(ExchangeError::output("cannot write", new.target())),
            Self::Qcow2 { new, client, .. } => client
                .write_at(offset, bytes)
                .map_err(ExchangeError::output("cannot write", new.target())),
            Self::Parts(parts) => parts.write_at(offset, bytes),
        }
    }

    /// Flushes everything: the files, whole but for their names.
    ///
    /// # Errors
    /// [`ExchangeError::Full`], [`ExchangeError::Output`].
    pub(super) fn finish(
        self,
        progress: OnProgress<'_>,
        stop: &Stop,
    ) -> Result<Vec<NewFile>, ExchangeError> {
        match self {
            Self::Raw { new, file } => {
                file.sync_all()
                    .map_err(ExchangeError::output("cannot flush", new.target()))?;
                Ok(vec![new])
            }
            Self::Qcow2 {
                new,
                client,
                server,
            } => {
                client
                    .finish()
                    .map_err(ExchangeError::output("cannot flush", new.target()))?;
                server.ended()?;
                new.flush()?;
                Ok(vec![new])
            }
            Self::Parts(parts) => parts.finish(progress, stop),
        }
    }
}
