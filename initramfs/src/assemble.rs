//! From inputs to a set of boot files: the order of the work, and nothing of its details.
//!
//! What fails early and cheaply comes first: the output directory, the agent, the loaders; then packages,
//! and compression last.

use std::path::PathBuf;

use crate::agent::{self, AgentError};
use crate::archive::{self, ArchiveError};
use crate::base_modules::{GROUPS, RUNTIME_NEEDS};
use crate::boot_loaders::{self, LOADERS, LoaderError};
use crate::kernel::{Kernel, KernelError};
use crate::manifest::{self, AgentEntry, FileEntry, KernelEntry, Manifest, PartEntry};
use crate::modules::{ModuleError, ModuleFiles};
use crate::output::{self, OutputError};
use crate::packages::Packages;
use crate::tools::{self, ToolError};

/// What a machine with virtio devices may fetch in all before the agent runs: 25 MB.
pub(crate) const BUDGET_BYTES: u64 = 25_000_000;

/// What to build from, and where to.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The static agent.
    pub(crate) agent: PathBuf,
    /// The directory for the set.
    pub(crate) output: PathBuf,
    /// Kernel image and `lib/modules/VERSION`; nothing for the distribution's.
    pub(crate) kernel: Option<(PathBuf, PathBuf)>,
    /// A directory of `.deb` files in the place of apt.
    pub(crate) packages: Option<PathBuf>,
    /// A directory with the boot loaders in the place of the package.
    pub(crate) loaders: Option<PathBuf>,
    /// Where fetched, unpacked and compressed files are kept.
    pub(crate) cache: PathBuf,
    /// Whether modules of the base set may be absent from the kernel.
    pub(crate) allow_missing: bool,
}

/// Why there is no set of boot files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel's modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The file system tools.
    #[error(transparent)]
    Tools(#[from] ToolError),
    /// The boot loaders.
    #[error(transparent)]
    Loaders(#[from] LoaderError),
    /// The cache directory.
    #[error("{path}: cannot use the directory as cache; --cache names another one")]
    Cache {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Compression.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The manifest.
    #[error("the manifest cannot be written as JSON")]
    Manifest(#[from] serde_json::Error),
    /// The output directory.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Builds the set, writes it, and returns its manifest.
///
/// # Errors
/// [`AssembleError`]; the output directory is as it was then.
pub(crate) fn assemble(inputs: &Inputs, progress: fn(&str)) -> Result<Manifest, AssembleError> {
    let mut names = vec!["vmlinuz", "initramfs", "manifest.json"];
    names.extend(LOADERS);
    output::check(&inputs.output, &names)?;
    let agent = agent::read(&inputs.agent)?;
    let given_loaders = inputs
        .loaders
        .as_deref()
        .map(boot_loaders::from_directory)
        .transpose()?;

    let cache_error = |source| AssembleError::Cache {
        path: inputs.cache.clone(),
        source,
    };
    std::fs::create_dir_all(&inputs.cache).map_err(cache_error)?;
    // Programs are run in other directories, so the paths given to them must not depend on that.
    let cache = inputs.cache.canonicalize().map_err(cache_error)?;
    let mut packages = Packages::new(inputs.packages.clone(), cache.clone(), progress);
    let kernel = match &inputs.kernel {
        Some((image, modules)) => Kernel::from_files(image, modules)?,
        None => Kernel::from_packages(&mut packages)?,
    };
    let (tool_tree, tool_files) = tools::from_packages(&mut packages)?;
    let loaders = match given_loaders {
        Some(loaders) => loaders,
        None => boot_loaders::from_packages(&mut packages)?,
    };

    progress(&format!("choosing modules of kernel {}", kernel.version));
    let selection = ModuleFiles::scan(&kernel.version, &kernel.modules)?.select(
        GROUPS,
        RUNTIME_NEEDS,
        inputs.allow_missing,
    )?;
    for name in &selection.absent {
        progress(&format!("module {name} is not in this kernel"));
    }

    let mut manifest = Manifest::new(
        KernelEntry {
            version: kernel.version.clone(),
            package: kernel.package.clone(),
        },
        AgentEntry::of(&agent),
    );
    manifest.modules = manifest::module_entries(&selection);
    let trees = [
        ("agent", agent::tree(agent)),
        ("modules", selection.tree(&kernel.version)),
        ("tools", tool_tree),
    ];
    let unpacked: u64 = trees.iter().map(|(_, tree)| tree.file_bytes()).sum();
    progress(&format!(
        "compressing {:.1} MB (parts that did not change come from the cache)",
        megabytes(unpacked)
    ));
    let parts = archive::compress(&trees, &cache)?;

    let mut initramfs = Vec::new();
    let image_bytes = kernel.image.len() as u64;
    manifest.parts.push(PartEntry {
        name: "kernel".to_owned(),
        bytes: image_bytes,
        unpacked_bytes: image_bytes,
        files: 1,
    });
    for part in &parts {
        initramfs.extend_from_slice(&part.data);
        manifest.parts.push(PartEntry {
            name: part.name.to_owned(),
            bytes: part.data.len() as u64,
            unpacked_bytes: part.unpacked,
            files: part.files,
        });
    }
    manifest.modules_built_in = selection.built_in;
    manifest.modules_not_in_this_kernel = selection.absent;
    manifest.tools = manifest::tool_entries(tool_files);
    manifest.boot_loaders_package = loaders.package;

    let mut files: Vec<(&str, &[u8])> = vec![("vmlinuz", &kernel.image), ("initramfs", &initramfs)];
    files.extend(
        loaders
            .files
            .iter()
            .map(|(name, data)| (*name, data.as_slice())),
    );
    manifest.files = files
        .iter()
        .map(|(name, content)| FileEntry::of(name, content))
        .collect();
    let text = manifest.to_json()?;
    files.push(("manifest.json", text.as_bytes()));
    progress(&format!("writing {}", inputs.output.display()));
    output::replace(&inputs.output, &files)?;
    Ok(manifest)
}

/// What one machine fetches at most: kernel, initramfs, and the larger of the loaders that the server
/// gives out by itself.
pub(crate) fn fetched_bytes(manifest: &Manifest) -> u64 {
    let size = |name: &str| {
        manifest
            .files
            .iter()
            .find(|file| file.name == name)
            .map_or(0, |file| file.bytes)
    };
    size("vmlinuz") + size("initramfs") + size("undionly.kpxe").max(size("snponly.efi"))
}

/// `bytes` in millions.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
