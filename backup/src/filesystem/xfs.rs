//! XFS.

use std::sync::Arc;

use super::tree::{FileTree, TreeError};
use super::{Doubt, ReadAt, Usage};

/// The used ranges of a volume of `size` bytes, and where its files lie.
pub(super) fn usage(_volume: &dyn ReadAt, _size: u64) -> Result<Usage, Doubt> {
    Err(Doubt::Untrusted("XFS is saved whole".to_owned()))
}

/// The files of a volume of `size` bytes.
pub(super) fn open(
    _volume: Arc<dyn ReadAt + Send + Sync>,
    _size: u64,
) -> Result<Box<dyn FileTree>, TreeError> {
    Err(TreeError::Unsupported("the files of XFS".to_owned()))
}
