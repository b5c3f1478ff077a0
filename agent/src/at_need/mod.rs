//! Tools and modules that only some jobs need: fetched from the server when such a job comes, and unpacked into
//! the environment.
//!
//! Invariant: nothing is unpacked whose digest is not the one that the image of this environment has for it, so
//! that they are of one build. A running system has no such list: there its own tools are used.
//!
//! What is *not* here: what is in it (the crate `initramfs`); who needs it (restores and captures).

mod cpio;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use backup::Digest;
use backup::manifest::FileSystemKind;
use backup::plan::RestorePlan;
use backup::units::HumanBytes;

use crate::job::error::Fault;
use crate::job::server::ChunkServer;

/// Names, lengths and digests of what there is, a line each.
const LIST: &str = "/etc/netboot-at-need";
/// More than this is not fetched, nor unpacked, whatever the list says.
const MOST: u64 = 64 << 20;
const MOST_UNPACKED: u64 = 256 << 20;

/// One file beside the image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    name: String,
    len: u64,
    digest: Digest,
}

fn parse(list: &str) -> Result<Vec<Listed>, String> {
    let line = |line: &str| {
        let [name, len, digest] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("`{line}` is not a name, a length and a digest"));
        };
        let len: u64 = len.parse().map_err(|_| format!("`{len}` is no length"))?;
        if len > MOST {
            return Err(format!(
                "{name} has {len} bytes (at most {MOST} are fetched)"
            ));
        }
        Ok(Listed {
            name: name.to_owned(),
            len,
            digest: digest
                .parse()
                .map_err(|_| format!("`{digest}` is no digest"))?,
        })
    };
    list.lines().map(line).collect()
}

/// Whether a restore resizes something that the image has no tool for, or makes a boot loader.
pub(crate) fn is_needed_by(plan: &RestorePlan) -> bool {
    let only_mounted =
        |kind: FileSystemKind| matches!(kind, FileSystemKind::Xfs | FileSystemKind::Btrfs);
    let mut disks = plan.disks.iter();
    disks.any(|disk| {
        disk.conversion.is_some()
            || !disk.shrink.is_empty()
            || disk.grow.iter().any(|grow| only_mounted(grow.file_system))
    })
}

/// Fetches and unpacks what this environment has beside its image, unless that was done.
///
/// # Errors
/// A server that does not have it, or has another build's.
pub(crate) fn bring(server: &dyn ChunkServer) -> Result<(), Fault> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !*done {
        bring_to(server, Path::new(LIST), Path::new("/"))?;
        *done = true;
    }
    Ok(())
}

fn bring_to(server: &dyn ChunkServer, list: &Path, root: &Path) -> Result<(), Fault> {
    let fault = |reason: String| Fault::Tool {
        tool: format!("the tools beside the image ({})", list.display()),
        reason,
    };
    let text = match fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault(error.to_string())),
    };
    for listed in parse(&text).map_err(fault)? {
        let doing = format!("fetching {} of the boot files", listed.name);
        let bytes = server
            .boot_file(&listed.name, listed.len)
            .map_err(Fault::server(doing))?;
        let found = Digest::of(&bytes);
        if found != listed.digest {
            return Err(fault(format!(
                "the server's {} has digest {found} (expected {}): it is of another build than this \
                 environment; start the machine from the network again",
                listed.name, listed.digest
            )));
        }
        let plain = zstd::Decoder::new(bytes.as_slice())
            .map_err(|error| fault(format!("{}: {error}", listed.name)))?;
        let files = cpio::unpack(plain, MOST_UNPACKED, root)
            .map_err(|error| fault(format!("{}: {error}", listed.name)))?;
        log::info!(
            "{}: {files} files unpacked ({} fetched)",
            listed.name,
            HumanBytes(listed.len)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::job::fake::FakeServer;

    /// A tree as an archive of the form of an initramfs, and the line that lists it.
    fn archive(folder: &Path) -> (Vec<u8>, String) {
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("usr/sbin")).unwrap();
        fs::write(tree.join("usr/sbin/tool"), vec![7; 100_001]).unwrap();
        fs::write(tree.join("usr/empty"), "").unwrap();
        let script = format!(
            "cd {} && find usr | sort | cpio -o -H newc --quiet",
            tree.display()
        );
        let output = Command::new("sh")
            .args(["-c", &script])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "this test needs the command cpio");
        let bytes = zstd::encode_all(output.stdout.as_slice(), 3).unwrap();
        let line = format!("at-need {} {}\n", bytes.len(), Digest::of(&bytes));
        (bytes, line)
    }

    #[test]
    fn what_is_listed_is_fetched_checked_and_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, line) = archive(folder.path());
        let (list, root) = (folder.path().join("list"), folder.path().join("root"));
        fs::create_dir(&root).unwrap();
        let server = FakeServer::default();
        // A running system has no list.
        bring_to(&server, &list, &root).unwrap();
        fs::write(&list, &line).unwrap();
        let error = bring_to(&server, &list, &root).unwrap_err();
        assert!(matches!(error, Fault::Server { .. }), "{error}");
        server.put_boot_file("at-need", &bytes);
        bring_to(&server, &list, &root).unwrap();
        assert!(fs::read(root.join("usr/sbin/tool")).unwrap() == vec![7; 100_001]);
        assert_eq!(fs::read(root.join("usr/empty")).unwrap(), b"");
        // Again, over what is there.
        bring_to(&server, &list, &root).unwrap();

        let mut other = bytes;
        *other.last_mut().unwrap() ^= 1;
        server.put_boot_file("at-need", &other);
        let error = bring_to(&server, &list, &root).unwrap_err().to_string();
        assert!(error.contains("another build"), "{error}");
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for text in [
            "at-need 5",
            "at-need x 00",
            "at-need 99999999999 00",
            "a 5 zz",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
