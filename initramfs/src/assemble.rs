//! From inputs to a set of boot files: the order of the work, and nothing of its details.
//!
//! What fails early and cheaply comes first: the output directory, the agent, the loaders; then packages,
//! and compression last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::agent::{self, AgentError};
use crate::architecture::{AT_NEED, Architecture};
use crate::archive::{self, ArchiveError};
use crate::base_modules::{self, Group, RUNTIME_NEEDS, groups};
use crate::boot_loaders::{self, LoaderError, LoaderFile};
use crate::kernel::{Kernel, KernelError};
use crate::manifest::{
    self, AgentEntry, FileEntry, KernelEntry, LoaderEntry, Manifest, PartEntry, UnifiedEntry,
};
use crate::modules::{ModuleError, ModuleFiles};
use crate::other_firmware;
use crate::output::{self, Names, OutputError};
use crate::packages::Packages;
use crate::signing::{Signer, SigningError};
use crate::tools::{self, ToolError};
use crate::unified::{self, Contents, UnifiedError};

/// What to build from, and where to.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The machines' processor.
    pub(crate) architecture: Architecture,
    /// The static agent.
    pub(crate) agent: PathBuf,
    /// The directory for the set.
    pub(crate) output: PathBuf,
    /// Kernel image and `lib/modules/VERSION`; nothing for the distribution's.
    pub(crate) kernel: Option<(PathBuf, PathBuf)>,
    /// A directory of `.deb` files in the place of apt.
    pub(crate) packages: Option<PathBuf>,
    /// A directory with boot loaders that win over the packages'.
    pub(crate) loaders: Option<PathBuf>,
    /// The EFI stub of the unified kernel image; nothing for the distribution's.
    pub(crate) stub: Option<PathBuf>,
    /// The kernel command line of the unified kernel image.
    pub(crate) command_line: String,
    /// Who signs the unified kernel image.
    pub(crate) signer: Option<Signer>,
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
    /// The unified kernel image.
    #[error(transparent)]
    Unified(#[from] UnifiedError),
    /// Its signature.
    #[error(transparent)]
    Signing(#[from] SigningError),
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
    let architecture = inputs.architecture;
    let names = Names {
        replaced: architecture.boot_files(),
        kept: Architecture::ALL
            .into_iter()
            .filter(|other| *other != architecture)
            .flat_map(Architecture::boot_files)
            .collect(),
    };
    output::check(&inputs.output, &names)?;
    let agent = agent::read(&inputs.agent, architecture)?;
    if let Some(directory) = &inputs.loaders {
        boot_loaders::check(directory, architecture)?;
    }

    let cache = usable_cache(&inputs.cache)?;
    let mut packages = Packages::new(
        architecture,
        inputs.packages.clone(),
        cache.clone(),
        progress,
    );
    let kernel = match &inputs.kernel {
        Some((image, modules)) => Kernel::from_files(architecture, image, modules)?,
        None => Kernel::from_packages(architecture, &mut packages)?,
    };
    let mut tools = tools::from_packages(&mut packages, architecture)?;
    let (other_firmware, files) = other_firmware::from_packages(
        &mut packages,
        architecture,
        inputs.loaders.is_some(),
        progress,
    )?;
    tools.files.extend(files);
    tools.at_need = tools.at_need.with(other_firmware);
    let loaders = boot_loaders::gather(inputs.loaders.as_deref(), &mut packages, architecture)?;
    let stub = unified::stub(inputs.stub.as_ref(), &mut packages, architecture)?;

    progress(&format!("choosing modules of kernel {}", kernel.version));
    let files = ModuleFiles::scan(architecture, &kernel.version, &kernel.modules)?;
    let choose = |groups: &[Group]| files.select(groups, RUNTIME_NEEDS, inputs.allow_missing);
    let base: BTreeSet<_> = choose(&groups(architecture))?
        .modules
        .into_iter()
        .map(|module| module.name)
        .collect();
    // The indexes know all modules, so that those that come later are found.
    let selection = choose(&[groups(architecture), base_modules::AT_NEED.to_vec()].concat())?;
    let at_need = selection.files(&kernel.version, |name| !base.contains(name));
    for name in &selection.absent {
        progress(&format!("module {name} is not in this kernel"));
    }

    let mut manifest = Manifest::new(
        architecture,
        KernelEntry {
            version: kernel.version.clone(),
            package: kernel.package.clone(),
        },
        AgentEntry::of(&agent),
        UnifiedEntry {
            name: architecture.unified_image(),
            command_line: inputs.command_line.clone(),
            stub_package: stub.package.clone(),
        },
    );
    manifest.modules = manifest::module_entries(&selection);
    let path = |name: &str| format!("{}{name}", architecture.directory());
    let module_tree = selection.tree(&kernel.version).without(&at_need);
    let beside = archive::compress(&[(AT_NEED, at_need.with(tools.at_need))], &cache)?;
    let beside = beside.into_iter().next();
    let listed = beside
        .as_ref()
        .map(|part| (path(AT_NEED), part.data.as_slice()));
    let trees = [
        ("agent", agent::tree(agent, listed)),
        ("modules", module_tree),
        ("tools", tools.base),
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
    manifest.tools = manifest::tool_entries(tools.files);

    let mut image = unified::image(
        &stub,
        architecture,
        &Contents {
            kernel: &kernel.image,
            version: &kernel.version,
            initramfs: &initramfs,
            command_line: &inputs.command_line,
        },
    )?;
    if let Some(signer) = &inputs.signer {
        progress(&format!("signing {}", architecture.unified_image()));
        image = signer.sign(&image, &cache)?;
    }

    let mut files: Vec<(String, &[u8])> = vec![
        (path("vmlinuz"), &kernel.image),
        (path("initramfs"), &initramfs),
    ];
    files.extend(
        beside
            .iter()
            .map(|part| (path(AT_NEED), part.data.as_slice())),
    );
    files.extend(
        loaders
            .iter()
            .map(|loader| (loader.name.to_owned(), loader.data.as_slice())),
    );
    manifest.boot_loaders = loaders.iter().map(loader_entry).collect();
    manifest.files = files
        .iter()
        .map(|(name, content)| FileEntry::of(name, content))
        .collect();
    let text = manifest.to_json()?;
    files.push((path("manifest.json"), text.as_bytes()));
    files.push((architecture.unified_image().to_owned(), &image));
    progress(&format!("writing {}", inputs.output.display()));
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (name.as_str(), *content))
        .collect();
    output::replace(&inputs.output, &files, &names.kept)?;
    Ok(manifest)
}

/// `path` as a directory that exists; absolute, because programs are run in other directories.
///
/// # Errors
/// [`AssembleError::Cache`].
pub(crate) fn usable_cache(path: &Path) -> Result<PathBuf, AssembleError> {
    let cache = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
    cache.map_err(|source| AssembleError::Cache {
        path: path.to_owned(),
        source,
    })
}

fn loader_entry(loader: &LoaderFile) -> LoaderEntry {
    LoaderEntry {
        name: loader.name,
        package: loader.package.clone(),
    }
}

/// What one machine fetches at most: kernel, initramfs, and the loaders of the longest chain that the
/// server gives out by itself.
pub(crate) fn fetched_bytes(manifest: &Manifest) -> u64 {
    let size = |wanted: &[&str]| -> u64 {
        manifest
            .files
            .iter()
            .filter(|file| {
                let name = file.name.rsplit('/').next().unwrap_or_default();
                wanted.contains(&name)
            })
            .map(|file| file.bytes)
            .sum()
    };
    let chains = [
        size(&["undionly.kpxe"]),
        size(&["snponly.efi"]),
        size(&["shimx64.efi", "grubx64.efi"]),
        size(&["shimaa64.efi", "grubaa64.efi"]),
    ];
    size(&["vmlinuz", "initramfs"]) + chains.into_iter().max().unwrap_or_default()
}

/// `bytes` in millions.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
