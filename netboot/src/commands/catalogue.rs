//! `show`, `compare`, `versions`.

use std::path::Path;

use super::file_options::{CompareArgs, ItemsArgs, VersionsArgs};
use super::{CommandError, open_store, print_json};

pub(super) fn show(_: &Path, _: &ItemsArgs) -> Result<(), CommandError> {
    Ok(())
}

pub(super) fn compare(_: &Path, _: &CompareArgs) -> Result<(), CommandError> {
    Ok(())
}

pub(super) fn versions(data_directory: &Path, args: &VersionsArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let _ = args;
    print_json(&store.restore_points.list())
}
