//! Files written into an archive: tar, with or without compression, or zip.
//!
//! Tar is written in the GNU form, which keeps names of any bytes and any length, with records of
//! POSIX.1-2001 for a time that has a fraction or lies before 1970, and for extended attributes. Zip keeps names as text, so bytes that are
//! no UTF-8 are written as `\xNN` there; links, permissions and times are kept, owners, the set-user-id bit,
//! extended attributes and devices are not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use backup::filesystem::tree::{Attribute, Node, NodeKind, Timestamp};
use clap::ValueEnum;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::content::Content;
use super::name::shown;
use super::take::{Sink, TakeError, Taken};
use super::{FilesError, attributes};

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchiveKind {
    /// tar
    Tar,
    /// tar, compressed by gzip
    TarGz,
    /// tar, compressed by Zstandard
    TarZst,
    /// zip
    Zip,
}

impl ArchiveKind {
    /// The kind that a file's name says.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let ends = [
            (".tar", Self::Tar),
            (".tar.gz", Self::TarGz),
            (".tgz", Self::TarGz),
            (".tar.zst", Self::TarZst),
            (".tzst", Self::TarZst),
            (".zip", Self::Zip),
        ];
        ends.into_iter()
            .find(|(end, _)| name.ends_with(end))
            .map(|(_, kind)| kind)
    }
}

/// An output that has something to write at its end.
trait Output: Write {
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl Output for BufWriter<File> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.into_inner()?.sync_all()
    }
}

impl Output for BufWriter<io::Stdout> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

impl Output for GzEncoder<Box<dyn Output>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        GzEncoder::finish(*self)?.finish()
    }
}

impl Output for zstd::Encoder<'static, Box<dyn Output>> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        zstd::Encoder::finish(*self)?.finish()
    }
}

/// A file that gets its name when it is whole.
struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    done: bool,
}

impl Unfinished {
    fn create(path: &Path, replace: bool) -> Result<(Self, File), FilesError> {
        let cannot = |source| FilesError::Output {
            what: "cannot make the archive",
            path: path.to_owned(),
            source,
        };
        if !replace && path.symlink_metadata().is_ok() {
            return Err(FilesError::Clashes {
                count: 1,
                names: vec![format!("  {}", path.display())],
            });
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = PathBuf::from(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(cannot)?;
        let unfinished = Self {
            path: path.to_owned(),
            temporary,
            done: false,
        };
        Ok((unfinished, file))
    }

    fn publish(&mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            // Half an archive must not pass for one.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Begins an archive; without a path, to standard output.
pub(super) fn create(
    path: Option<&Path>,
    kind: ArchiveKind,
    replace: bool,
) -> Result<Box<dyn Sink>, FilesError> {
    let (unfinished, file) = match path {
        Some(path) => {
            let (unfinished, file) = Unfinished::create(path, replace)?;
            (Some(unfinished), Some(file))
        }
        None => (None, None),
    };
    let place = path.map_or_else(
        || "standard output".to_owned(),
        |path| path.display().to_string(),
    );
    if kind == ArchiveKind::Zip {
        let zip = match file {
            Some(file) => ZipOutput::File(ZipWriter::new(file)),
            None => ZipOutput::Stream(ZipWriter::new_stream(io::stdout())),
        };
        return Ok(Box::new(Zip {
            zip,
            unfinished,
            place,
        }));
    }
    let plain: Box<dyn Output> = match file {
        Some(file) => Box::new(BufWriter::with_capacity(1 << 18, file)),
        None => Box::new(BufWriter::with_capacity(1 << 18, io::stdout())),
    };
    let output: Box<dyn Output> = match kind {
        ArchiveKind::TarGz => Box::new(GzEncoder::new(plain, flate2::Compression::default())),
        ArchiveKind::TarZst => {
            let encoder = zstd::Encoder::new(plain, 3);
            Box::new(encoder.map_err(|source| FilesError::Output {
                what: "cannot begin the archive",
                path: PathBuf::from(&place),
                source,
            })?)
        }
        ArchiveKind::Tar | ArchiveKind::Zip => plain,
    };
    Ok(Box::new(Tar {
        output,
        unfinished,
        place,
        records: Vec::new(),
    }))
}

fn fatal(error: &io::Error) -> TakeError {
    TakeError::Fatal(format!("cannot write the archive: {error}"))
}

struct Tar {
    output: Box<dyn Output>,
    unfinished: Option<Unfinished>,
    place: String,
    /// Records of the attributes of the next entry.
    records: Vec<u8>,
}

const BLOCK: u64 = 512;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

impl Tar {
    fn pad(&mut self, len: u64) -> io::Result<()> {
        let rest = (BLOCK - len % BLOCK) % BLOCK;
        self.output.write_all(&ZEROS[..rest as usize])
    }

    /// An entry that carries text for the one after it.
    fn carrier(&mut self, kind: EntryType, name: &[u8], body: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(body)?;
        self.pad(body.len() as u64)
    }

    fn header(&mut self, path: &[u8], node: &Node, kind: EntryType, link: &[u8]) -> io::Result<()> {
        let mut path = path.to_vec();
        let directory = kind == EntryType::Directory;
        if directory {
            path.push(b'/');
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(node.mode.unwrap_or(if directory { 0o755 } else { 0o644 }));
        header.set_uid(u64::from(node.uid.unwrap_or(0)));
        header.set_gid(u64::from(node.gid.unwrap_or(0)));
        header.set_size(if kind == EntryType::Regular {
            node.size
        } else {
            0
        });
        if let NodeKind::CharacterDevice { major, minor } | NodeKind::BlockDevice { major, minor } =
            node.kind
        {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let stamp = node.modified.unwrap_or(Timestamp {
            seconds: 0,
            nanoseconds: 0,
        });
        header.set_mtime(u64::try_from(stamp.seconds).unwrap_or(0));
        let mut records = std::mem::take(&mut self.records);
        if stamp.seconds < 0 || stamp.nanoseconds > 0 {
            records.extend(record(b"mtime", decimal(stamp).as_bytes()));
        }
        if !records.is_empty() {
            self.carrier(EntryType::XHeader, b"././@PaxHeader", &records)?;
        }
        // The fields of a name hold 100 bytes; longer ones precede the entry, with a NUL at their end.
        let bytes = header.as_mut_bytes();
        for (text, at, kind) in [
            (link, 157, EntryType::GNULongLink),
            (&path[..], 0, EntryType::GNULongName),
        ] {
            let short = text.len().min(100);
            bytes[at..at + short].copy_from_slice(&text[..short]);
            if text.len() > 100 {
                self.carrier(kind, b"././@LongLink", &[text, b"\0"].concat())?;
            }
        }
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }
}

/// A record of an extended header: its own length in front, in decimal.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds with their fraction.
fn decimal(stamp: Timestamp) -> String {
    let nanoseconds = stamp.nanoseconds.min(999_999_999);
    if stamp.seconds < 0 && nanoseconds > 0 {
        let whole = (stamp.seconds + 1).unsigned_abs();
        return format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{}.{nanoseconds:09}", stamp.seconds)
}

impl Sink for Tar {
    fn keeps_attributes(&self) -> bool {
        true
    }

    fn attributes(&mut self, attributes: &[Attribute]) {
        self.records.clear();
        for (key, value) in attributes::records(attributes) {
            self.records.extend(record(&key, &value));
        }
    }

    fn directory(&mut self, path: &[u8], node: &Node) -> Result<bool, TakeError> {
        self.header(path, node, EntryType::Directory, b"")
            .map_err(|error| fatal(&error))?;
        Ok(true)
    }

    fn left(&mut self, _: &[u8], _: &Node) -> Result<(), TakeError> {
        Ok(())
    }

    fn file(
        &mut self,
        path: &[u8],
        node: &Node,
        content: &mut Content<'_>,
    ) -> Result<Taken, TakeError> {
        self.header(path, node, EntryType::Regular, b"")
            .map_err(|error| fatal(&error))?;
        let mut written = 0;
        let outcome = loop {
            match content.piece() {
                Ok(Some(piece)) => {
                    self.output
                        .write_all(piece)
                        .map_err(|error| fatal(&error))?;
                    written += piece.len() as u64;
                }
                Ok(None) => break Ok(Taken::As(path.to_vec())),
                // Its length is written already, so that the rest must be something.
                Err(reason) => {
                    break Err(TakeError::Item(format!(
                        "{reason}; in the archive it is zeros from byte {written}"
                    )));
                }
            }
        };
        let mut rest = node.size - written;
        while rest > 0 {
            let step = rest.min(BLOCK);
            self.output
                .write_all(&ZEROS[..step as usize])
                .map_err(|error| fatal(&error))?;
            rest -= step;
        }
        self.pad(node.size).map_err(|error| fatal(&error))?;
        outcome
    }

    fn link(&mut self, path: &[u8], node: &Node, target: &[u8]) -> Result<Taken, TakeError> {
        self.header(path, node, EntryType::Symlink, target)
            .map_err(|error| fatal(&error))?;
        Ok(Taken::As(path.to_vec()))
    }

    fn hard_link(&mut self, path: &[u8], first: &[u8], node: &Node) -> Result<Taken, TakeError> {
        self.header(path, node, EntryType::Link, first)
            .map_err(|error| fatal(&error))?;
        Ok(Taken::As(path.to_vec()))
    }

    fn special(&mut self, path: &[u8], node: &Node) -> Result<Taken, TakeError> {
        let kind = match node.kind {
            NodeKind::CharacterDevice { .. } => EntryType::Char,
            NodeKind::BlockDevice { .. } => EntryType::Block,
            NodeKind::Fifo => EntryType::Fifo,
            _ => {
                let reason = "tar has no place for a socket; left out";
                return Err(TakeError::Item(reason.to_owned()));
            }
        };
        self.header(path, node, kind, b"")
            .map_err(|error| fatal(&error))?;
        Ok(Taken::As(path.to_vec()))
    }

    fn finish(self: Box<Self>) -> Result<(), FilesError> {
        let Self {
            mut output,
            mut unfinished,
            place,
            ..
        } = *self;
        let end = output
            .write_all(&[ZEROS, ZEROS].concat())
            .and_then(|()| output.finish())
            .and_then(|()| unfinished.as_mut().map_or(Ok(()), Unfinished::publish));
        end.map_err(|source| FilesError::Output {
            what: "cannot finish the archive",
            path: PathBuf::from(place),
            source,
        })
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

enum ZipOutput {
    File(ZipWriter<File>),
    Stream(ZipWriter<zip::write::StreamWriter<io::Stdout>>),
}

struct Zip {
    zip: ZipOutput,
    unfinished: Option<Unfinished>,
    place: String,
}

fn zip_error(error: zip::result::ZipError) -> TakeError {
    TakeError::Fatal(format!("cannot write the archive: {error}"))
}

/// A name as zip keeps it.
fn zip_name(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(name) => name.to_owned(),
        Err(_) => shown(path),
    }
}

fn zip_options(node: &Node, otherwise: u32) -> SimpleFileOptions {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .unix_permissions(node.mode.unwrap_or(otherwise))
        // Sizes are told behind the content; without this they could not pass 4 GiB.
        .large_file(node.size >= u64::from(u32::MAX));
    match node.modified.and_then(zip_time) {
        Some(time) => options.last_modified_time(time),
        None => options,
    }
}

/// Zip keeps local times of 1980 to 2107 in steps of two seconds.
fn zip_time(stamp: Timestamp) -> Option<zip::DateTime> {
    let time = jiff::Timestamp::from_second(stamp.seconds).ok()?;
    let local = time.to_zoned(jiff::tz::TimeZone::system());
    let part = |number: i8| u8::try_from(number).ok();
    zip::DateTime::from_date_and_time(
        u16::try_from(local.year()).ok()?,
        part(local.month())?,
        part(local.day())?,
        part(local.hour())?,
        part(local.minute())?,
        part(local.second())?,
    )
    .ok()
}

fn zip_file<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    path: &[u8],
    node: &Node,
    content: &mut Content<'_>,
) -> Result<Taken, TakeError> {
    zip.start_file(zip_name(path), zip_options(node, 0o644))
        .map_err(zip_error)?;
    loop {
        match content.piece() {
            Ok(Some(piece)) => zip.write_all(piece).map_err(|error| fatal(&error))?,
            Ok(None) => return Ok(Taken::As(path.to_vec())),
            Err(reason) => {
                return Err(TakeError::Item(format!(
                    "{reason}; in the archive it ends at byte {}",
                    content.at
                )));
            }
        }
    }
}

impl Sink for Zip {
    fn directory(&mut self, path: &[u8], node: &Node) -> Result<bool, TakeError> {
        let (name, options) = (zip_name(path), zip_options(node, 0o755));
        match &mut self.zip {
            ZipOutput::File(zip) => zip.add_directory(name, options),
            ZipOutput::Stream(zip) => zip.add_directory(name, options),
        }
        .map_err(zip_error)?;
        Ok(true)
    }

    fn left(&mut self, _: &[u8], _: &Node) -> Result<(), TakeError> {
        Ok(())
    }

    fn file(
        &mut self,
        path: &[u8],
        node: &Node,
        content: &mut Content<'_>,
    ) -> Result<Taken, TakeError> {
        match &mut self.zip {
            ZipOutput::File(zip) => zip_file(zip, path, node, content),
            ZipOutput::Stream(zip) => zip_file(zip, path, node, content),
        }
    }

    fn link(&mut self, path: &[u8], node: &Node, target: &[u8]) -> Result<Taken, TakeError> {
        let (name, target) = (zip_name(path), zip_name(target));
        let options = zip_options(node, 0o777).compression_method(CompressionMethod::Stored);
        match &mut self.zip {
            ZipOutput::File(zip) => zip.add_symlink(name, target, options),
            ZipOutput::Stream(zip) => zip.add_symlink(name, target, options),
        }
        .map_err(zip_error)?;
        Ok(Taken::As(path.to_vec()))
    }

    fn keeps_hard_links(&self) -> bool {
        false
    }

    fn hard_link(&mut self, _: &[u8], first: &[u8], _: &Node) -> Result<Taken, TakeError> {
        Err(TakeError::Item(format!(
            "zip has no place for another name of {}; left out",
            shown(first)
        )))
    }

    fn special(&mut self, _: &[u8], _: &Node) -> Result<Taken, TakeError> {
        let reason = "zip has no place for devices, pipes and sockets; left out";
        Err(TakeError::Item(reason.to_owned()))
    }

    fn finish(mut self: Box<Self>) -> Result<(), FilesError> {
        let place = PathBuf::from(&self.place);
        let end = match self.zip {
            ZipOutput::File(zip) => zip
                .finish()
                .map_err(io::Error::from)
                .and_then(|file| file.sync_all()),
            ZipOutput::Stream(zip) => zip
                .finish()
                .map_err(io::Error::from)
                .and_then(|_| io::stdout().flush()),
        };
        end.and_then(|()| self.unfinished.as_mut().map_or(Ok(()), Unfinished::publish))
            .map_err(|source| FilesError::Output {
                what: "cannot finish the archive",
                path: place,
                source,
            })
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}
