//! How `apt-get` is asked for packages of another processor than this system's.
//!
//! Invariant: this system's apt is only read: its sources and the keys it trusts. Lists, status and locks
//! are in the cache, so no root is needed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::architecture::Architecture;
use crate::command;
use crate::packages::{PackageError, io_error};

/// Lists older than this are fetched again.
const LIST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Options for `apt-get` before its command; none for packages of this system's own processor. Fetches
/// the package lists when there are none, or old ones.
///
/// # Errors
/// [`PackageError`].
pub(crate) fn options(
    architecture: Architecture,
    cache: &Path,
    progress: fn(&str),
) -> Result<Vec<OsString>, PackageError> {
    let own = command::run("dpkg", &["--print-architecture"], Path::new("."))?;
    if own.trim() == architecture.debian() {
        return Ok(Vec::new());
    }
    let home = cache.join(format!("apt-{}", architecture.debian()));
    for part in ["lists/partial", "cache/archives/partial"] {
        let directory = home.join(part);
        fs::create_dir_all(&directory).map_err(io_error("create the cache", &directory))?;
    }
    let status = home.join("status");
    if !status.exists() {
        fs::write(&status, b"").map_err(io_error("write", &status))?;
    }
    let options = options_for(architecture, &home);
    let stamp = home.join("fetched");
    let fresh = fs::metadata(&stamp)
        .and_then(|stamp| stamp.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LIST_AGE));
    if !fresh {
        progress(&format!(
            "fetching the package lists for {}",
            architecture.name()
        ));
        let mut arguments = options.clone();
        arguments.extend(["-o", "APT::Sandbox::User=root", "update"].map(OsString::from));
        command::run("apt-get", &arguments, Path::new(".")).map_err(|source| {
            PackageError::ForeignLists {
                architecture,
                source,
            }
        })?;
        fs::write(&stamp, b"").map_err(io_error("write", &stamp))?;
    }
    Ok(options)
}

/// apt.conf(5): one processor, and everything that apt writes below `home`.
fn options_for(architecture: Architecture, home: &Path) -> Vec<OsString> {
    let debian = architecture.debian();
    let mut options = vec![
        OsString::from(format!("--option=APT::Architecture={debian}")),
        OsString::from(format!("--option=APT::Architectures={debian}")),
    ];
    for (name, part) in [
        ("Dir::State", ""),
        ("Dir::State::lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
    ] {
        let mut option = OsString::from(format!("--option={name}="));
        option.push(home.join(part));
        options.push(option);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_apt_writes_is_in_the_cache() {
        let options = options_for(Architecture::Arm64, Path::new("/cache/apt-arm64"));
        let texts: Vec<_> = options
            .iter()
            .map(|option| option.to_string_lossy())
            .collect();
        assert!(texts.contains(&"--option=APT::Architectures=arm64".into()));
        let places = texts.iter().filter(|text| text.contains("Dir::"));
        assert!(places.clone().count() == 4);
        assert!(
            places
                .into_iter()
                .all(|text| text.contains("=/cache/apt-arm64/"))
        );
    }
}
