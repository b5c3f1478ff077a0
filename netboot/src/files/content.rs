//! The content of one file, in pieces.

use std::sync::atomic::{AtomicU64, Ordering};

use backup::filesystem::tree::{FileTree, NodeId};

/// How much is read at once: the length of a long chunk.
pub(super) const PIECE: usize = 256 << 10;

/// A file being read, and how far it is.
pub(super) struct Content<'a> {
    pub(super) tree: &'a dyn FileTree,
    pub(super) file: NodeId,
    pub(super) size: u64,
    pub(super) at: u64,
    /// Counts bytes that the backup does not have.
    pub(super) unsaved: &'a AtomicU64,
    pub(super) buffer: &'a mut Vec<u8>,
    /// Told of each piece's length.
    pub(super) on_piece: &'a mut dyn FnMut(u64),
}

impl Content<'_> {
    /// The next piece; `None` at the end. An error names what is wrong with the file.
    pub(super) fn piece(&mut self) -> Result<Option<&[u8]>, String> {
        let left = self.size.saturating_sub(self.at);
        let want = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        if want == 0 {
            return Ok(None);
        }
        self.buffer.resize(PIECE, 0);
        let before = self.unsaved.load(Ordering::Relaxed);
        let found = self
            .tree
            .read(self.file, self.at, &mut self.buffer[..want])
            .map_err(|error| error.to_string())?;
        let unsaved = self.unsaved.load(Ordering::Relaxed).wrapping_sub(before);
        if unsaved > 0 {
            return Err(format!(
                "{unsaved} bytes of it at byte {} are not in the backup",
                self.at
            ));
        }
        if found < want {
            return Err(format!(
                "it ends at byte {} (expected {})",
                self.at + found as u64,
                self.size
            ));
        }
        self.at += found as u64;
        (self.on_piece)(found as u64);
        Ok(Some(&self.buffer[..found]))
    }
}
