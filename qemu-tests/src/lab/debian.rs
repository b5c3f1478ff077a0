//! Where the host gets its Debian 12 packages from.
//!
//! The lab uses the mirrors that the host's apt is set up with, and names none itself.

use std::process::Command;
use thiserror::Error;

use super::tool::{self, ToolError};

/// Code name of the release that the source machine runs.
pub(crate) const RELEASE: &str = "bookworm";

/// The host has no way to Debian packages.
#[derive(Debug, Error)]
pub(crate) enum DebianError {
    /// apt could not be asked.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// apt knows no source of the release.
    #[error(
        "the apt of this computer has no source for Debian {RELEASE}; add one to its sources list"
    )]
    NoSource,
}

/// Lines for a sources list, one for each part of the release.
pub(crate) fn sources() -> Result<String, DebianError> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let said = tool::run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let sources = sources_list(&said);
    if sources.is_empty() {
        Err(DebianError::NoSource)
    } else {
        Ok(sources)
    }
}

fn sources_list(targets: &str) -> String {
    let mut lines = Vec::new();
    for target in targets.lines() {
        let mut words = target.split_whitespace();
        let (Some(uri), Some(release), Some(component)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let part = release.strip_prefix(RELEASE);
        let wanted = matches!(part, Some("" | "-updates" | "-security")) && component == "main";
        let line = format!("deb {uri} {release} main\n");
        if wanted && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_release_itself_its_updates_and_fixes_are_taken() {
        let targets = "\
            http://a/debian/ bookworm main\n\
            http://a/debian/ bookworm main\n\
            http://a/debian/ bookworm contrib\n\
            http://a/security/ bookworm-security main\n\
            http://b/tools/ tools-bookworm main\n\
            http://b/node/ nodistro main\n";
        assert_eq!(
            sources_list(targets),
            "deb http://a/debian/ bookworm main\ndeb http://a/security/ bookworm-security main\n"
        );
    }
}
