//! SSH host keys of the same kinds as there were, made by `ssh-keygen`.
//!
//! Invariant: a private key is on the copy's own disk and, until it is there, in memory only.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::rooted::Root;
use super::{at, fault};
use crate::job::error::Fault;
use crate::job::kernel::{failed, run_tool};

/// The program.
pub(super) const TOOL: &str = "ssh-keygen";
/// Where sshd looks for its keys (sshd(8)).
const FOLDER: &str = "etc/ssh";

/// A folder in memory, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let name = format!("netboot-keys-{}", Uuid::new_v4());
        let path = Path::new("/run").join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::error!("{} is left: {error}", self.0.display());
        }
    }
}

/// Replaces the host keys below a system's root. Returns the kinds that were replaced.
///
/// # Errors
/// A file that cannot be changed, or a tool that fails.
pub(super) fn replace(root: &Root, called: &str, place: &str) -> Result<Vec<String>, Fault> {
    let names = root.names(FOLDER).map_err(fault(at(FOLDER, place)))?;
    let mut kinds = Vec::new();
    for name in &names {
        let key = name
            .strip_prefix("ssh_host_")
            .and_then(|name| name.strip_suffix("_key"));
        let Some(kind) = key else {
            continue;
        };
        replace_one(root, name, called, place)?;
        kinds.push(kind.to_owned());
    }
    for name in names.iter().filter(|name| is_certificate(name)) {
        // It vouches for a key that is no more.
        root.remove(FOLDER, name)
            .map_err(fault(at(&format!("{FOLDER}/{name}"), place)))?;
    }
    Ok(kinds)
}

fn is_certificate(name: &str) -> bool {
    name.starts_with("ssh_host_") && name.ends_with("_key-cert.pub")
}

fn replace_one(root: &Root, name: &str, called: &str, place: &str) -> Result<(), Fault> {
    let path = format!("{FOLDER}/{name}");
    let public = format!("{path}.pub");
    let failed_at = |path: &str| fault(at(path, place));
    let scratch = Scratch::new().map_err(fault("a folder for new keys".to_owned()))?;
    let old = root.read(&public).map_err(failed_at(&public))?;
    let (kind, bits) = match &old {
        Some(old) => kind_of(&scratch.0, old)?,
        None => None,
    }
    .or_else(|| by_name(name))
    .ok_or_else(|| {
        Fault::NotAsPlanned(format!("{place}: /{path} is a host key of an unknown kind"))
    })?;
    let new = scratch.0.join("new");
    let (bits, comment) = (bits.to_string(), format!("root@{called}"));
    let arguments: [&OsStr; 11] = [
        "-q".as_ref(),
        "-t".as_ref(),
        kind.as_ref(),
        "-b".as_ref(),
        bits.as_ref(),
        "-N".as_ref(),
        "".as_ref(),
        "-C".as_ref(),
        comment.as_ref(),
        "-f".as_ref(),
        new.as_os_str(),
    ];
    let (code, output) = run_tool(TOOL, &arguments)?;
    if code != Some(0) {
        return Err(failed(TOOL, code, &output));
    }
    let made = |path: &Path| std::fs::read(path).map_err(fault("a new key".to_owned()));
    let private = made(&new)?;
    root.replace(&path, &private).map_err(failed_at(&path))?;
    if old.is_some() {
        let key = made(&new.with_extension("pub"))?;
        root.replace(&public, &key).map_err(failed_at(&public))?;
    }
    Ok(())
}

/// Kind and length of a public key, as `ssh-keygen -l` says: `3072 SHA256:… comment (RSA)`.
fn kind_of(scratch: &Path, public: &[u8]) -> Result<Option<(&'static str, u32)>, Fault> {
    let file = scratch.join("old.pub");
    std::fs::write(&file, public).map_err(fault("a copy of a key".to_owned()))?;
    let (code, said) = run_tool(TOOL, &["-l".as_ref(), "-f".as_ref(), file.as_os_str()])?;
    Ok(if code == Some(0) { parse(&said) } else { None })
}

fn parse(said: &str) -> Option<(&'static str, u32)> {
    let (bits, _) = said.split_once(' ')?;
    let bits: u32 = bits.parse().ok()?;
    let kind = said.trim_end().strip_suffix(')')?.rsplit_once('(')?.1;
    match kind {
        // As strong as it was, within what is made today and in reasonable time.
        "RSA" => Some(("rsa", bits.clamp(2048, 8192))),
        "ECDSA" => Some(("ecdsa", bits)),
        "ED25519" => Some(("ed25519", 256)),
        _ => None,
    }
}

/// What a key is by its name, with the length that `ssh-keygen` takes by itself.
fn by_name(name: &str) -> Option<(&'static str, u32)> {
    match name {
        "ssh_host_rsa_key" => Some(("rsa", 3072)),
        "ssh_host_ecdsa_key" => Some(("ecdsa", 256)),
        "ssh_host_ed25519_key" => Some(("ed25519", 256)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_key_is_read() {
        for (said, kind) in [
            ("3072 SHA256:abc root@a (b) (RSA)", Some(("rsa", 3072))),
            ("1024 SHA256:abc x (RSA)", Some(("rsa", 2048))),
            ("384 SHA256:abc x (ECDSA)", Some(("ecdsa", 384))),
            (
                "256 SHA256:abc no comment (ED25519)",
                Some(("ed25519", 256)),
            ),
            ("1024 SHA256:abc x (DSA)", None),
            ("", None),
        ] {
            assert_eq!(parse(said), kind, "{said}");
        }
    }
}
