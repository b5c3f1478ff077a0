//! A file system in memory that knows what a power cut leaves of it. For tests only.
//!
//! What is live and what is durable are two things: writes wait until their file is synced, names
//! until their directory is. Each operation that changes or syncs something has a number; a
//! [`Fault`] happens at one of them. [`MemoryStorage::after_cut`] is the disk as the next start finds
//! it: what is durable, and of what waited as much as [`Survival`] says, in halves too.
//!
//! Harder than real file systems: names in one directory may survive in any combination, and a file
//! that was renamed before it was synced may be empty.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{Listed, OpenFile, Storage, StoredFile};

/// What goes wrong, at the operation with this number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The power fails: this operation and all later ones do not return well.
    Cut(u64),
    /// The disk is full from here on, until [`MemoryStorage::make_room`].
    Full(u64),
    /// This operation, if it is a sync, fails, and what waited for it is lost (fsync(2), `EIO`).
    SyncFails(u64),
}

/// What a power cut leaves of what was not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survival {
    Nothing,
    Everything,
    /// What came first, up to this percentage of all operations.
    First(u64),
    /// Some of it, by this seed: whole, in half, or not.
    Some(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Directory(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Self::Length(len) => content.resize(*len, 0),
        }
    }

    fn half(&self) -> Option<Self> {
        match self {
            Self::Write { at, bytes } => Some(Self::Write {
                at: *at,
                bytes: bytes[..bytes.len() / 2].to_vec(),
            }),
            Self::Length(_) => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct FileState {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(u64, Change)>,
}

#[derive(Debug, Clone, Default)]
struct DirectoryState {
    live: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
}

/// A change of names, in one step: what is taken from one place and what is put into another.
#[derive(Debug, Clone)]
struct NameChange {
    number: u64,
    node: Node,
    from: Option<(usize, String)>,
    to: Option<(usize, String)>,
}

impl NameChange {
    fn concerns(&self, directory: usize) -> bool {
        let in_it = |place: &Option<(usize, String)>| {
            place.as_ref().is_some_and(|(found, _)| *found == directory)
        };
        in_it(&self.from) || in_it(&self.to)
    }

    fn apply(&self, directories: &mut [DirectoryState]) {
        if let Some((directory, name)) = &self.from
            && directories[*directory].durable.get(name) == Some(&self.node)
        {
            directories[*directory].durable.remove(name);
        }
        if let Some((directory, name)) = &self.to {
            directories[*directory]
                .durable
                .insert(name.clone(), self.node);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct State {
    files: Vec<FileState>,
    directories: Vec<DirectoryState>,
    unsynced: Vec<NameChange>,
    operations: u64,
    fault: Option<Fault>,
    cut: bool,
    full: bool,
}

fn cut() -> io::Error {
    io::Error::other("the power was cut")
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// What the next operation may do.
enum Turn {
    Go,
    /// It is under way when the power fails.
    Last,
    Full,
    SyncFails,
}

impl State {
    fn turn(&mut self) -> io::Result<Turn> {
        if self.cut {
            return Err(cut());
        }
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some(Fault::Cut(at)) if at == number => {
                self.cut = true;
                return Ok(Turn::Last);
            }
            Some(Fault::Full(at)) if at == number => self.full = true,
            Some(Fault::SyncFails(at)) if at == number => return Ok(Turn::SyncFails),
            _ => {}
        }
        Ok(if self.full { Turn::Full } else { Turn::Go })
    }

    fn alive(&self) -> io::Result<()> {
        if self.cut { Err(cut()) } else { Ok(()) }
    }

    fn find(&self, path: &Path) -> io::Result<Node> {
        let mut at = 0;
        let mut node = Node::Directory(0);
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            let entries = match node {
                Node::Directory(_) => &self.directories[at].live,
                Node::File(_) => return Err(missing()),
            };
            node = *entries.get(name.to_str().unwrap()).ok_or_else(missing)?;
            if let Node::Directory(number) = node {
                at = number;
            }
        }
        Ok(node)
    }

    fn directory(&self, path: &Path) -> io::Result<usize> {
        match self.find(path)? {
            Node::Directory(number) => Ok(number),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let parent = self.directory(path.parent().unwrap())?;
        Ok((
            parent,
            path.file_name().unwrap().to_str().unwrap().to_owned(),
        ))
    }

    fn rename(&mut self, node: Node, from: Option<(usize, String)>, to: Option<(usize, String)>) {
        if let Some((directory, name)) = &from {
            self.directories[*directory].live.remove(name);
        }
        if let Some((directory, name)) = &to {
            self.directories[*directory].live.insert(name.clone(), node);
        }
        let number = self.operations;
        self.unsynced.push(NameChange {
            number,
            node,
            from,
            to,
        });
    }

    fn change(&mut self, file: usize, change: Change) {
        let number = self.operations;
        let file = &mut self.files[file];
        change.apply(&mut file.live);
        file.unsynced.push((number, change));
    }
}

/// The file system; copies of it are the same one.
#[derive(Clone, Default)]
pub(super) struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

impl MemoryStorage {
    pub(super) fn new() -> Self {
        let storage = Self::default();
        storage.lock().directories.push(DirectoryState::default());
        storage
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk of its own with the same content, on which this goes wrong; operations count from 0.
    pub(super) fn copy(&self, fault: Option<Fault>) -> Self {
        let mut state = self.lock().clone();
        (state.operations, state.fault) = (0, fault);
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How many operations there were.
    pub(super) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The disk is not full any more.
    pub(super) fn make_room(&self) {
        let mut state = self.lock();
        (state.full, state.fault) = (false, None);
    }

    /// Turns a bit of a file over, live and durable.
    pub(super) fn flip(&self, path: &Path, byte: usize) {
        let mut state = self.lock();
        let Ok(Node::File(file)) = state.find(path) else {
            panic!("{} is no file", path.display());
        };
        state.files[file].live[byte] ^= 4;
        state.files[file].durable[byte] ^= 4;
    }

    /// The disk as it is found after the power was cut.
    pub(super) fn after_cut(&self, survival: Survival) -> Self {
        let state = self.lock().clone();
        let last = state.operations;
        // `Some(false)`: half of it.
        let keep = |number: u64, salt: u64| match survival {
            Survival::Nothing => None,
            Survival::Everything => Some(true),
            Survival::First(percent) => (number * 100 <= last * percent).then_some(true),
            Survival::Some(seed) => {
                let draw = backup::Digest::of(&[seed, number, salt].map(u64::to_le_bytes).concat())
                    .as_bytes()[0];
                match draw % 4 {
                    0 | 1 => Some(true),
                    2 => None,
                    _ => Some(false),
                }
            }
        };
        let mut found = Self::default().lock().clone();
        for file in &state.files {
            let mut content = file.durable.clone();
            for (number, change) in &file.unsynced {
                match keep(*number, 0) {
                    Some(true) => change.apply(&mut content),
                    Some(false) => {
                        if let Some(half) = change.half() {
                            half.apply(&mut content);
                        }
                    }
                    None => {}
                }
            }
            found.files.push(FileState {
                live: content.clone(),
                durable: content,
                unsynced: Vec::new(),
            });
        }
        found.directories = state.directories.clone();
        for change in &state.unsynced {
            if keep(change.number, 1) == Some(true) {
                change.apply(&mut found.directories);
            }
        }
        for directory in &mut found.directories {
            directory.live = directory.durable.clone();
        }
        Self {
            state: Arc::new(Mutex::new(found)),
        }
    }
}

struct MemoryFile {
    storage: MemoryStorage,
    file: usize,
}

impl StoredFile for MemoryFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.storage.lock();
        state.alive()?;
        let offset = usize::try_from(offset).unwrap();
        let found = state.files[self.file].live.get(offset..offset + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.storage.lock();
        let at = usize::try_from(offset).unwrap();
        let write = |bytes: &[u8]| Change::Write {
            at,
            bytes: bytes.to_vec(),
        };
        match state.turn()? {
            Turn::Full => {
                state.change(self.file, write(&bytes[..bytes.len() / 2]));
                Err(io::ErrorKind::StorageFull.into())
            }
            turn => {
                state.change(self.file, write(bytes));
                done(&turn)
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.storage.lock();
        let turn = state.turn()?;
        state.change(self.file, Change::Length(usize::try_from(len).unwrap()));
        done(&turn)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.storage.lock();
        state.alive()?;
        Ok(state.files[self.file].live.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.storage.lock();
        let turn = state.turn()?;
        let file = &mut state.files[self.file];
        match turn {
            Turn::Last => return Err(cut()),
            Turn::SyncFails => {
                file.unsynced.clear();
                return Err(io::Error::other("input/output error"));
            }
            Turn::Go | Turn::Full => {}
        }
        for (_, change) in std::mem::take(&mut file.unsynced) {
            change.apply(&mut file.durable);
        }
        Ok(())
    }
}

/// What an operation returns that was done.
fn done(turn: &Turn) -> io::Result<()> {
    match turn {
        Turn::Last => Err(cut()),
        _ => Ok(()),
    }
}

impl MemoryStorage {
    fn file(&self, file: usize) -> OpenFile {
        Box::new(MemoryFile {
            storage: self.clone(),
            file,
        })
    }

    fn make(&self, path: &Path, new: bool) -> io::Result<OpenFile> {
        let mut state = self.lock();
        let turn = state.turn()?;
        if let Ok(found) = state.find(path) {
            let Node::File(file) = found else {
                return Err(io::ErrorKind::IsADirectory.into());
            };
            if new {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.change(file, Change::Length(0));
            done(&turn)?;
            return Ok(self.file(file));
        }
        if matches!(turn, Turn::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let place = state.place(path)?;
        let file = state.files.len();
        state.files.push(FileState::default());
        state.rename(Node::File(file), None, Some(place));
        done(&turn)?;
        Ok(self.file(file))
    }
}

impl Storage for MemoryStorage {
    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        self.make(path, false)
    }

    fn create_new(&self, path: &Path) -> io::Result<OpenFile> {
        self.make(path, true)
    }

    fn open(&self, path: &Path) -> io::Result<OpenFile> {
        let state = self.lock();
        state.alive()?;
        match state.find(path)? {
            Node::File(file) => Ok(self.file(file)),
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn open_to_write(&self, path: &Path) -> io::Result<OpenFile> {
        self.open(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let turn = state.turn()?;
        if matches!(turn, Turn::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let place = state.place(path)?;
        let directory = state.directories.len();
        state.directories.push(DirectoryState::default());
        state.rename(Node::Directory(directory), None, Some(place));
        done(&turn)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let turn = state.turn()?;
        if matches!(turn, Turn::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let node = state.find(from)?;
        if let Ok(Node::Directory(there)) = state.find(to)
            && !state.directories[there].live.is_empty()
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (from, to) = (state.place(from)?, state.place(to)?);
        state.rename(node, Some(from), Some(to));
        done(&turn)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let turn = state.turn()?;
        if matches!(turn, Turn::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let node = state.find(from)?;
        if state.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let to = state.place(to)?;
        state.rename(node, None, Some(to));
        done(&turn)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let node = state.find(path)?;
        let turn = state.turn()?;
        let place = state.place(path)?;
        state.rename(node, Some(place), None);
        done(&turn)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let directory = state.directory(path)?;
        if !state.directories[directory].live.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let turn = state.turn()?;
        let place = state.place(path)?;
        state.rename(Node::Directory(directory), Some(place), None);
        done(&turn)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let directory = state.directory(path)?;
        let turn = state.turn()?;
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut state.unsynced)
            .into_iter()
            .partition(|change| change.concerns(directory));
        if matches!(turn, Turn::Last) {
            state.unsynced = [now, later].concat();
            state.unsynced.sort_by_key(|change| change.number);
            return Err(cut());
        }
        state.unsynced = later;
        if matches!(turn, Turn::SyncFails) {
            return Err(io::Error::other("input/output error"));
        }
        for change in now {
            change.apply(&mut state.directories);
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Listed>> {
        let state = self.lock();
        state.alive()?;
        let entries = &state.directories[state.directory(path)?].live;
        let each = |(name, node): (&String, &Node)| Listed {
            name: name.clone(),
            directory: matches!(node, Node::Directory(_)),
        };
        Ok(entries.iter().map(each).collect())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        state.alive()?;
        Ok(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_survives_a_cut_with_nothing_else() {
        let storage = MemoryStorage::new();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let file = storage.create(a).unwrap();
        file.write_all_at(b"durable", 0).unwrap();
        file.sync().unwrap();
        storage.sync_directory(Path::new("/")).unwrap();
        file.write_all_at(b"LOST", 0).unwrap();
        storage.rename(a, b).unwrap();
        let content = |storage: &MemoryStorage, path: &Path| {
            let mut bytes = [0; 7];
            let file = storage.open(path).ok()?;
            file.read_exact_at(&mut bytes, 0).unwrap();
            Some(bytes)
        };
        let nothing = storage.after_cut(Survival::Nothing);
        assert_eq!(content(&nothing, a), Some(*b"durable"));
        assert_eq!(content(&nothing, b), None);
        let everything = storage.after_cut(Survival::Everything);
        assert_eq!(content(&everything, a), None);
        assert_eq!(content(&everything, b), Some(*b"LOSTble"));
        let kinds: std::collections::HashSet<_> = (0..64)
            .map(|seed| {
                let found = storage.after_cut(Survival::Some(seed));
                (content(&found, a), content(&found, b))
            })
            .collect();
        // Two names, three contents.
        assert_eq!(kinds.len(), 6);
    }
}
