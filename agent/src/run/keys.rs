//! Keys of encrypted volumes that are given to a backup of a running system.
//!
//! Invariant: a key is in no argument, no message and no log.

use std::fs::{self, File};
use std::io::{self, Read};

use anyhow::Context as _;
use protocol::unlock::{self, MAX_KEY, Secret, VolumeKey, VolumePlace};

/// Reads `DISK:PARTITION=FILE` and the file, for each volume.
///
/// # Errors
/// Words that name no volume, and a file that cannot be read.
pub(crate) fn read(words: &[String]) -> anyhow::Result<Vec<VolumeKey>> {
    let mut keys = Vec::with_capacity(words.len());
    for words in words {
        let (place, file) = VolumePlace::parse(words).context("--unlock")?;
        let mut bytes = Vec::new();
        let most = MAX_KEY as u64 + 1;
        let read = if file == "-" {
            io::stdin().lock().take(most).read_to_end(&mut bytes)
        } else {
            File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes))
        };
        read.with_context(|| format!("the key for {place} cannot be read from {file}"))?;
        keys.push(VolumeKey {
            place: VolumePlace {
                disk: real_name(place.disk),
                ..place
            },
            key: Secret::new(bytes),
        });
    }
    unlock::check(&keys).context("--unlock")?;
    Ok(keys)
}

/// A disk that was named by a path, by the path that the inventory has: without links.
fn real_name(named: String) -> String {
    let path = if named.contains('/') {
        fs::canonicalize(&named).ok()
    } else {
        None
    };
    path.and_then(|path| path.to_str().map(str::to_owned))
        .unwrap_or(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_an_image_file_is_named_by_its_real_path() {
        let folder = tempfile::tempdir().unwrap();
        let (image, link) = (folder.path().join("image"), folder.path().join("link"));
        let key = folder.path().join("key");
        fs::write(&image, "").unwrap();
        fs::write(&key, "word").unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let words = format!("{}:3={}", link.display(), key.display());
        let keys = read(&[words]).unwrap();
        let real = fs::canonicalize(&image).unwrap();
        assert_eq!(keys[0].place.disk, real.to_str().unwrap());
        assert_eq!(keys[0].place.partition, Some(3));
        assert_eq!(keys[0].key.bytes(), b"word");
        assert!(read(&["sda".to_owned()]).is_err());
        assert!(read(&[format!("sda:1={}.none", key.display())]).is_err());
    }
}
