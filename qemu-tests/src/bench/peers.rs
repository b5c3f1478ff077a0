//! Where the peers' programs are, and how they are started.
//!
//! `scripts/bench` unpacks Debian's packages of them into `target/bench/peers`, so that nothing is installed
//! and no service of theirs is ever started. A program of the system is taken when it is not there.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use crate::lab::namespace::Place;
use crate::lab::tool;
use crate::scenarios::Settings;

const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program and the libraries that were unpacked with it.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    libraries: PathBuf,
}

/// Finds a peer's program.
///
/// # Errors
/// When it is not there; the text says what to do.
pub(crate) fn find(settings: &Settings, name: &str) -> anyhow::Result<Program> {
    let unpacked = folder(settings);
    let own = ["usr/sbin", "usr/bin"].map(|sub| unpacked.join(sub));
    let path = own
        .iter()
        .map(PathBuf::as_path)
        .chain(SYSTEM_FOLDERS.iter().map(Path::new))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("the program {name} is not here; `scripts/bench` fetches it"))?;
    Ok(Program {
        path,
        libraries: unpacked.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)),
    })
}

/// Where `scripts/bench` unpacks peers: beside the lab's own folder.
fn folder(settings: &Settings) -> PathBuf {
    let target = settings.work.parent().unwrap_or(&settings.work);
    target.join("bench/peers")
}

impl Program {
    /// Starts it in a namespace, bound to our life, its words in a file.
    pub(crate) fn start(
        &self,
        place: &Place,
        arguments: &[OsString],
        log: &Path,
    ) -> anyhow::Result<Process> {
        Process::start(self.command(place, arguments), log)
            .with_context(|| format!("{} cannot be started", self.path.display()))
    }

    /// What starts it in a namespace, bound to our life.
    pub(crate) fn command(&self, place: &Place, arguments: &[OsString]) -> Command {
        let mut command = place.command(&self.path);
        command.args(arguments);
        let mut command = tool::bound_to_us(&command);
        command.env("LD_LIBRARY_PATH", &self.libraries);
        command
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A server that runs. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts a command with its words in a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let file = File::create(log)?;
        let errors = file.try_clone()?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        command.spawn().map(Self)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
