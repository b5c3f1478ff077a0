//! Taking files and folders out of a volume, into a folder or an archive.

use std::collections::HashMap;
use std::path::PathBuf;

use backup::filesystem::tree::{Attribute, FileTree, Node, NodeId, NodeKind};
use serde::Serialize;

use super::archive::{self, ArchiveKind};
use super::content::Content;
use super::folder::{Folder, OnClash};
use super::name::{shown, split};
use super::tree_walk::{Step, walk};
use super::volumes::OpenVolume;
use super::{FilesError, find};

/// Problems that are kept to be told; the others are counted.
const MAX_PROBLEMS: usize = 1000;
/// Clashing names that are listed.
const MAX_CLASHES: usize = 20;

/// Where files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Into a folder.
    Folder {
        /// Which.
        path: PathBuf,
        /// What happens to what is there; `None` refuses before anything is written.
        on_clash: Option<OnClash>,
    },
    /// Into an archive; `None` is standard output.
    Archive {
        /// The file.
        path: Option<PathBuf>,
        /// Its kind.
        kind: ArchiveKind,
        /// Whether it takes the place of a file that is there.
        replace: bool,
    },
}

/// What was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// Its path, harmless to a terminal.
    pub(crate) path: String,
    /// Why.
    pub(crate) reason: String,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Bytes taken.
    pub(crate) bytes: u64,
    /// Bytes to take.
    pub(crate) of_bytes: u64,
}

/// What was taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Summary {
    /// Files with content.
    pub(crate) files: u64,
    /// Folders.
    pub(crate) folders: u64,
    /// Symbolic links.
    pub(crate) links: u64,
    /// Further names of a file.
    pub(crate) hard_links: u64,
    /// Devices and pipes.
    pub(crate) devices: u64,
    /// What was there already and stayed.
    pub(crate) skipped: u64,
    /// Bytes of content.
    pub(crate) bytes: u64,
    /// Where it went.
    pub(crate) place: String,
    /// How many could not be taken.
    pub(crate) failed: u64,
    /// Which, the first thousand.
    pub(crate) problems: Vec<Problem>,
}

impl Summary {
    fn problem(&mut self, path: &[u8], reason: String) {
        self.failed += 1;
        if self.problems.len() < MAX_PROBLEMS {
            let path = shown(path);
            self.problems.push(Problem { path, reason });
        }
    }
}

/// Why a sink did not take something.
pub(super) enum TakeError {
    /// Only this one.
    Item(String),
    /// Nothing more can be written.
    Fatal(String),
}

/// What a sink did.
pub(super) enum Taken {
    /// Written, under this path.
    As(Vec<u8>),
    /// What was there stays.
    Skipped,
}

/// What files are written to. Folders come before what is in them.
pub(super) trait Sink {
    /// A folder begins; whether its content is wanted.
    fn directory(&mut self, path: &[u8], node: &Node) -> Result<bool, TakeError>;
    /// A folder's content is over.
    fn left(&mut self, path: &[u8], node: &Node) -> Result<(), TakeError>;
    fn file(
        &mut self,
        path: &[u8],
        node: &Node,
        content: &mut Content<'_>,
    ) -> Result<Taken, TakeError>;
    fn link(&mut self, path: &[u8], node: &Node, target: &[u8]) -> Result<Taken, TakeError>;
    /// Another name of the file that was written as `first`.
    fn hard_link(&mut self, path: &[u8], first: &[u8], node: &Node) -> Result<Taken, TakeError>;
    /// Whether it can keep two names of one file; if not, the file is written twice.
    fn keeps_hard_links(&self) -> bool {
        true
    }
    /// Whether it can keep extended attributes; then it is told them before each file, folder, link or
    /// device.
    fn keeps_attributes(&self) -> bool {
        false
    }
    /// The attributes of what comes next.
    fn attributes(&mut self, _attributes: &[Attribute]) {}
    /// A device, pipe or socket.
    fn special(&mut self, path: &[u8], node: &Node) -> Result<Taken, TakeError>;
    /// All is written.
    fn finish(self: Box<Self>) -> Result<(), FilesError>;
    /// Where it goes, for people.
    fn place(&self) -> String;
}

/// Takes `paths` of a volume, each under its last name; a volume's top folder without a name.
///
/// # Errors
/// [`FilesError`] when a path is not there, names clash, or writing is not possible; what is wrong with
/// single files is in the summary.
pub(crate) fn take(
    volume: &OpenVolume,
    paths: &[Vec<u8>],
    destination: &Destination,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Summary, FilesError> {
    let tree = volume.tree.as_ref();
    let mut starts: Vec<(NodeId, &[u8])> = Vec::new();
    for path in paths {
        let id = find(tree, path).map_err(|error| FilesError::Path {
            path: format!("/{}", shown(path)),
            reason: error.to_string(),
        })?;
        let name = split(path).1;
        if starts.iter().any(|(_, other)| *other == name) {
            return Err(FilesError::Path {
                path: format!("/{}", shown(path)),
                reason:
                    "another one with the same last name is to be taken too; take them one by one"
                        .to_owned(),
            });
        }
        starts.push((id, name));
    }
    let mut progress = Progress::default();
    let mut sink: Box<dyn Sink> = match destination {
        Destination::Folder { path, on_clash } => {
            let mut folder = Folder::open(path, *on_clash)?;
            progress.of_bytes = look_ahead(tree, &starts, |path, node| {
                on_clash.is_none() && folder.clashes(path, node)
            })?;
            Box::new(folder)
        }
        Destination::Archive {
            path,
            kind,
            replace,
        } => {
            progress.of_bytes = look_ahead(tree, &starts, |_, _| false)?;
            archive::create(path.as_deref(), *kind, *replace)?
        }
    };
    let mut taker = Taker {
        volume,
        sink: sink.as_mut(),
        summary: Summary::default(),
        first_names: HashMap::new(),
        buffer: Vec::new(),
        progress,
        on_progress,
    };
    for (id, name) in starts {
        walk(tree, id, name, &mut |step| taker.step(step))?;
    }
    let mut summary = taker.summary;
    summary.place = sink.place();
    sink.finish()?;
    Ok(summary)
}

/// Bytes that will be read; refuses when names clash.
fn look_ahead(
    tree: &dyn FileTree,
    starts: &[(NodeId, &[u8])],
    mut clashes: impl FnMut(&[u8], &Node) -> bool,
) -> Result<u64, FilesError> {
    let (mut bytes, mut count, mut names) = (0u64, 0u64, Vec::new());
    let mut counted = std::collections::HashSet::new();
    for (id, name) in starts {
        walk(tree, *id, name, &mut |step| {
            let Step::Node { path, id, node } = step else {
                return Ok(true);
            };
            if node.kind == NodeKind::File && (node.links < 2 || counted.insert(id)) {
                bytes = bytes.saturating_add(node.size);
            }
            if !path.is_empty() && clashes(path, node) {
                count += 1;
                if names.len() < MAX_CLASHES {
                    names.push(format!("  {}", shown(path)));
                }
            }
            Ok(true)
        })?;
    }
    if count == 0 {
        return Ok(bytes);
    }
    if count > names.len() as u64 {
        names.push(format!("  and {} more", count - names.len() as u64));
    }
    Err(FilesError::Clashes { count, names })
}

struct Taker<'a> {
    volume: &'a OpenVolume,
    sink: &'a mut dyn Sink,
    summary: Summary,
    /// What files with several names were written as.
    first_names: HashMap<NodeId, Vec<u8>>,
    buffer: Vec<u8>,
    progress: Progress,
    on_progress: &'a mut dyn FnMut(Progress),
}

impl Taker<'_> {
    fn step(&mut self, step: Step<'_>) -> Result<bool, FilesError> {
        let (path, result) = match step {
            Step::Problem { path, reason } => {
                self.summary.problem(path, reason);
                return Ok(false);
            }
            Step::Left { path: b"", .. } => return Ok(true),
            Step::Left { path, node } => (path, self.sink.left(path, node).map(|()| true)),
            // The top folder of the volume: what is in it is written, it is not.
            Step::Node {
                path: b"", node, ..
            } if node.kind == NodeKind::Directory => return Ok(true),
            Step::Node { path, id, node } => (path, self.node(path, id, node)),
        };
        match result {
            Ok(wanted) => Ok(wanted),
            Err(TakeError::Item(reason)) => {
                self.summary.problem(path, reason);
                Ok(false)
            }
            Err(TakeError::Fatal(reason)) => Err(FilesError::Path {
                path: shown(path),
                reason: format!("{reason}; nothing more was written"),
            }),
        }
    }

    fn node(&mut self, path: &[u8], id: NodeId, node: &Node) -> Result<bool, TakeError> {
        self.attributes(path, id);
        if node.kind == NodeKind::Directory {
            let wanted = self.sink.directory(path, node)?;
            self.summary.folders += u64::from(wanted);
            return Ok(wanted);
        }
        if let Some(reason) = node.sealed {
            return Err(TakeError::Item(format!("it is {reason}; left out")));
        }
        let several = node.links > 1 && self.sink.keeps_hard_links();
        if let Some(first) = self.first_names.get(&id).filter(|_| several) {
            let taken = self.sink.hard_link(path, first, node)?;
            match taken {
                Taken::As(_) => self.summary.hard_links += 1,
                Taken::Skipped => self.summary.skipped += 1,
            }
            return Ok(false);
        }
        let taken = match node.kind {
            NodeKind::File => self.file(path, id, node)?,
            NodeKind::SymbolicLink => {
                let target = self.volume.tree.link_target(id);
                let target = target.map_err(|error| TakeError::Item(error.to_string()))?;
                if target.is_empty() || target.contains(&0) {
                    let reason = "the link's target is none that a link can have; left out";
                    return Err(TakeError::Item(reason.to_owned()));
                }
                self.sink.link(path, node, &target)?
            }
            _ => self.sink.special(path, node)?,
        };
        let Taken::As(name) = taken else {
            self.summary.skipped += 1;
            return Ok(false);
        };
        match node.kind {
            NodeKind::File => {
                self.summary.files += 1;
                self.summary.bytes += node.size;
            }
            NodeKind::SymbolicLink => self.summary.links += 1,
            _ => self.summary.devices += 1,
        }
        if several {
            self.first_names.insert(id, name);
        }
        Ok(false)
    }

    /// Tells the sink the attributes of what comes next. Without them it is taken all the same, and that
    /// is said.
    fn attributes(&mut self, path: &[u8], id: NodeId) {
        if !self.sink.keeps_attributes() {
            return;
        }
        match self.volume.tree.attributes(id) {
            Ok(attributes) => self.sink.attributes(&attributes),
            Err(error) => {
                self.sink.attributes(&[]);
                let reason = format!("taken without its extended attributes: {error}");
                self.summary.problem(path, reason);
            }
        }
    }

    fn file(&mut self, path: &[u8], id: NodeId, node: &Node) -> Result<Taken, TakeError> {
        let (progress, on_progress) = (&mut self.progress, &mut self.on_progress);
        let mut content = Content {
            tree: self.volume.tree.as_ref(),
            file: id,
            size: node.size,
            at: 0,
            unsaved: &self.volume.unsaved,
            buffer: &mut self.buffer,
            on_piece: &mut |len| {
                progress.bytes += len;
                on_progress(*progress);
            },
        };
        self.sink.file(path, node, &mut content)
    }
}
