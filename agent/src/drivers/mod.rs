//! Drivers: finds every device and loads the modules for it, network first.
//!
//! Invariant: a module that does not load is said and remembered, and never stops the others. What is
//! *not* here: drivers from the server, from a stick or from a backup (function E1, later).

pub(crate) mod dependencies;
pub(crate) mod modalias;
pub(crate) mod scan;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dependencies::{Dependencies, DependencyError, canonical};
use modalias::Aliases;

/// Modules to load whatever the hardware, a name a line; `#` begins a comment.
const FORCED: &str = "/etc/netboot-modules";
/// How long devices are looked for often: buses appear after their host's driver.
const SETTLING: Duration = Duration::from_secs(30);

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It is not there.
    #[error(transparent)]
    Dependency(#[from] DependencyError),
    /// It is one that comes from the server when a job needs it.
    #[error("module {path} is not here yet")]
    NotYet {
        /// The module's file.
        path: String,
    },
    /// The kernel refused it.
    #[error("the kernel refused module {path}")]
    Refused {
        /// The module's file.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

/// The modules of the running kernel.
#[derive(Debug)]
struct Modules {
    directory: PathBuf,
    dependencies: Dependencies,
    aliases: Aliases,
    /// Files that were loaded or refused: neither is tried again.
    tried: Mutex<HashSet<String>>,
}

impl Modules {
    fn read(directory: PathBuf) -> Self {
        // A kernel without modules has no such files: everything is built in, or missing by name.
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        Self {
            dependencies: Dependencies::parse(&text("modules.dep"), &text("modules.builtin")),
            aliases: Aliases::parse(&text("modules.alias")),
            tried: Mutex::default(),
            directory,
        }
    }

    fn load(&self, name: &str) -> Result<(), LoadError> {
        for path in self.dependencies.order(name)? {
            if !self.directory.join(path).exists() {
                // Not tried: it may be there the next time.
                let path = path.to_owned();
                return Err(LoadError::NotYet { path });
            }
            let first = {
                let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
                tried.insert(path.to_owned())
            };
            if first {
                crate::sys::module::load(&self.directory.join(path), c"").map_err(|source| {
                    LoadError::Refused {
                        path: path.to_owned(),
                        source,
                    }
                })?;
                log::debug!("module {path} loaded");
            }
        }
        Ok(())
    }
}

/// The modules of the running kernel, read at the first use.
fn modules() -> &'static Modules {
    static MODULES: OnceLock<Modules> = OnceLock::new();
    MODULES.get_or_init(|| {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Modules::read(Path::new("/lib/modules").join(release))
    })
}

/// Loads a module and what it needs. Success when the kernel has it already or built in.
///
/// # Errors
/// [`LoadError`] when it is not in this environment or the kernel refuses it.
pub(crate) fn load(name: &str) -> Result<(), LoadError> {
    if Path::new("/sys/module").join(canonical(name)).exists() {
        return Ok(());
    }
    modules().load(name)
}

/// Loads what `alias` stands for: a module's name, or an alias such as `fs-vfat` by which the kernel
/// asks for one.
///
/// # Errors
/// The last [`LoadError`] when nothing that it stands for could be loaded.
pub(crate) fn load_alias(alias: &str) -> Result<(), LoadError> {
    let named = modules().aliases.modules(alias);
    if named.is_empty() {
        return load(alias);
    }
    let mut result = Ok(());
    for name in named {
        result = load(name);
        if result.is_ok() {
            return Ok(());
        }
    }
    result
}

/// When every device that was found had been given its modules once.
static SETTLED: OnceLock<Instant> = OnceLock::new();

/// How long ago the first search for devices ended: a disk that is missing is late from then on, not
/// waiting for its turn. `None` while the search goes on.
pub(crate) fn settled_for() -> Option<Duration> {
    SETTLED.get().map(Instant::elapsed)
}

/// Loads drivers for every device, then goes on looking for new ones. Never returns.
pub(crate) fn watch(sysfs: &Path) -> ! {
    let began = Instant::now();
    let mut seen = HashSet::new();
    let mut forced = Some(PathBuf::from(FORCED));
    loop {
        let found = round(sysfs, &mut seen);
        if found == 0 {
            if let Some(list) = forced.take() {
                load_listed(&list);
                continue;
            }
            SETTLED.get_or_init(|| {
                log::debug!("devices searched in {} ms", began.elapsed().as_millis());
                Instant::now()
            });
            // A stick or a dock that is plugged in later is found too, at leisure.
            let often = began.elapsed() < SETTLING;
            std::thread::sleep(Duration::from_millis(if often { 200 } else { 3000 }));
        }
    }
}

/// Loads the modules of the most urgent kind of device that is new; returns how many there were.
///
/// One kind at a time: a driver for a network card can reveal the device that needs the next driver,
/// and that one goes before any storage.
fn round(sysfs: &Path, seen: &mut HashSet<String>) -> usize {
    let mut fresh: Vec<_> = scan::devices(sysfs)
        .into_iter()
        .filter(|device| !seen.contains(&device.modalias))
        .collect();
    let Some(first) = fresh.first().map(|device| scan::purpose(&device.modalias)) else {
        return 0;
    };
    fresh.retain(|device| scan::purpose(&device.modalias) == first);
    for device in &fresh {
        seen.insert(device.modalias.clone());
        for name in modules().aliases.modules(&device.modalias) {
            if let Err(error) = modules().load(name) {
                log::warn!(
                    "driver for {}: {}",
                    device.modalias,
                    crate::log::chain(&error)
                );
            }
        }
    }
    fresh.len()
}

fn load_listed(list: &Path) {
    let text = fs::read_to_string(list).unwrap_or_default();
    for line in text.lines() {
        let name = line.split('#').next().unwrap_or("").trim();
        if name.is_empty() {
            continue;
        }
        if let Err(error) = load(name) {
            log::warn!("{}: {}", list.display(), crate::log::chain(&error));
        }
    }
}

/// The devices that a restore could need and that have no driver, for people. While drivers are being
/// loaded, only those that nothing in this environment serves.
pub(crate) fn without_driver(sysfs: &Path) -> Vec<String> {
    let settled = settled_for().is_some();
    let mut names: Vec<String> = scan::devices(sysfs)
        .iter()
        .filter(|device| !device.bound)
        .filter_map(|device| {
            let name = scan::describe(&device.modalias)?;
            match modules().aliases.modules(&device.modalias)[..] {
                [] => Some(name),
                [module, ..] if settled => Some(format!("{name}: {module} does not drive it")),
                _ => None,
            }
        })
        .collect();
    names.sort();
    names.dedup();
    names
}
