//! A raw disk in parts that fit on FAT32, with checksums and how to put them together.
//!
//! Invariant: the parts one after another are the disk; each but the last has the same size, a multiple of
//! 1 MiB. The file of checksums gets its name last.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::new_file::NewFile;
use super::{ExchangeError, OnProgress, Progress, Stop};

/// The largest part in MiB. FAT32 counts bytes of a file in 32 bits: at most 4 GiB - 1.
pub(crate) const MAX_PART_MIB: u64 = 4095;
const MIB: u64 = 1 << 20;

/// The name of the file of checksums.
const CHECKSUMS: &str = "SHA256SUMS";
/// The name of the file that says how the parts are put together.
const README: &str = "README.txt";

/// A disk in parts.
pub(super) struct Parts {
    parts: Vec<(NewFile, File)>,
    part_len: u64,
    size: u64,
    /// For people: whose disk it is.
    title: String,
    checksums: NewFile,
    readme: NewFile,
}

/// How parts are to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartSize(pub(super) u64);

impl Parts {
    /// Parts in `folder` for a disk of `size` bytes.
    ///
    /// # Errors
    /// [`ExchangeError::Output`], [`ExchangeError::Exists`].
    pub(super) fn create(
        folder: &Path,
        title: String,
        size: u64,
        PartSize(mib): PartSize,
        force: bool,
    ) -> Result<Self, ExchangeError> {
        let part_len = mib.clamp(1, MAX_PART_MIB) * MIB;
        let count = size.div_ceil(part_len);
        let digits = count.to_string().len().max(3);
        let checksums = NewFile::new(&folder.join(CHECKSUMS), force)?;
        let readme = NewFile::new(&folder.join(README), force)?;
        let mut parts = Vec::new();
        for number in 0..count {
            let name = format!("disk.raw.{:0digits$}", number + 1);
            let new = NewFile::new(&folder.join(name), force)?;
            let file = new.create()?;
            file.set_len(part_len.min(size - number * part_len))
                .map_err(ExchangeError::output("cannot make room for", new.partial()))?;
            parts.push((new, file));
        }
        Ok(Self {
            parts,
            part_len,
            size,
            title,
            checksums,
            readme,
        })
    }

    /// Writes at byte `offset` of the disk.
    ///
    /// # Errors
    /// [`ExchangeError::Full`], [`ExchangeError::Output`].
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ExchangeError> {
        let (mut at, mut left) = (offset, bytes);
        while !left.is_empty() {
            let number = usize::try_from(at / self.part_len).unwrap_or(usize::MAX);
            let (new, file) = self.parts.get(number).ok_or_else(|| {
                ExchangeError::Internal(format!("byte {at} is past the last part"))
            })?;
            let inside = at % self.part_len;
            let room = usize::try_from(self.part_len - inside).unwrap_or(usize::MAX);
            let (now, later) = left.split_at(room.min(left.len()));
            file.write_all_at(now, inside)
                .map_err(ExchangeError::output("cannot write", new.target()))?;
            at += now.len() as u64;
            left = later;
        }
        Ok(())
    }

    /// Flushes the parts, reads them back and writes their checksums.
    ///
    /// # Errors
    /// [`ExchangeError::Full`], [`ExchangeError::Output`].
    pub(super) fn finish(
        self,
        progress: OnProgress<'_>,
        stop: &Stop,
    ) -> Result<Vec<NewFile>, ExchangeError> {
        let (mut sums, mut done) = (String::new(), 0);
        let mut names = Vec::new();
        let mut kept = Vec::new();
        let mut buffer = vec![0; MIB as usize];
        for (new, file) in self.parts {
            file.sync_all()
                .map_err(ExchangeError::output("cannot flush", new.target()))?;
            drop(file);
            let cannot = |source| ExchangeError::output("cannot read back", new.target())(source);
            let mut file = File::open(new.partial()).map_err(cannot)?;
            let mut hasher = Sha256::new();
            loop {
                stop.check()?;
                let len = file.read(&mut buffer).map_err(cannot)?;
                if len == 0 {
                    break;
                }
                hasher.update(&buffer[..len]);
                done += len as u64;
                progress(Progress {
                    stage: "computing checksums",
                    done,
                    total: self.size,
                });
            }
            let name = new.target().file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            let digest: String = hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            sums.push_str(&format!("{digest}  {name}\n"));
            names.push(name);
            kept.push(new);
        }
        let text = how_to_join(&self.title, self.size, &names);
        for (new, text) in [(self.readme, text), (self.checksums, sums)] {
            let mut file = new.create()?;
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(ExchangeError::output("cannot write", new.target()))?;
            kept.push(new);
        }
        Ok(kept)
    }
}

fn how_to_join(title: &str, size: u64, names: &[String]) -> String {
    let all = "disk.raw.*";
    let windows = names.join("+");
    // A command line of Windows has at most 8191 characters.
    let windows = if windows.len() < 8000 {
        format!("    copy /b {windows} disk.raw\r\n")
    } else {
        "    (too many parts for one copy command; use `cat` of a Linux system)\r\n".to_owned()
    };
    format!(
        "{title}\r\n\r\n\
         The parts disk.raw.* one after another are the disk, {size} bytes.\r\n\r\n\
         Check them:\r\n\r\n    sha256sum -c {CHECKSUMS}\r\n\r\n\
         Put them together to a raw disk image, on Linux:\r\n\r\n    cat {all} > disk.raw\r\n\r\n\
         on Windows:\r\n\r\n{windows}\r\n\
         Or write them to a disk (all that is on it is lost), on Linux:\r\n\r\n    \
         cat {all} | dd of=/dev/DISK bs=4M iflag=fullblock conv=fsync\r\n\r\n\
         Or take the image into a netboot server again:\r\n\r\n    netboot import disk.raw\r\n"
    )
}
