//! `manifest.json`: what a set of boot files is made of, for people and for the server.
//!
//! Invariant: no time, no path of the building machine and no name of it, so that the same inputs give
//! the same bytes here too. `format` grows when the meaning of a field changes.

use serde::Serialize;

use crate::architecture::Architecture;
use crate::digest::blake3_hex;
use crate::modules::Selection;
use crate::packages::PackageId;
use crate::tools::ToolFile;

/// Version of this file's format.
const FORMAT: u32 = 2;

/// The whole file.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The kernel.
    pub(crate) kernel: KernelEntry,
    /// The processor, as the distribution names it.
    pub(crate) architecture: &'static str,
    /// The files that it speaks of, by their path in the boot folder. The unified kernel image is not among
    /// them: the operator may sign it later, which changes its bytes.
    pub(crate) files: Vec<FileEntry>,
    /// What the sizes come from.
    pub(crate) parts: Vec<PartEntry>,
    /// The program that is `/init`.
    pub(crate) agent: AgentEntry,
    /// Modules in the image, in an order in which they can be loaded.
    pub(crate) modules: Vec<ModuleEntry>,
    /// Modules of the base set that are part of this kernel.
    pub(crate) modules_built_in: Vec<String>,
    /// Modules of the base set that this kernel does not have.
    pub(crate) modules_not_in_this_kernel: Vec<String>,
    /// File system tools and their libraries.
    pub(crate) tools: Vec<ToolEntry>,
    /// The boot loaders.
    pub(crate) boot_loaders: Vec<LoaderEntry>,
    /// The unified kernel image, made of this kernel and initramfs.
    pub(crate) unified_image: UnifiedEntry,
}

/// A boot loader.
#[derive(Debug, Serialize)]
pub(crate) struct LoaderEntry {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its package; nothing when it was given as a file.
    pub(crate) package: Option<PackageId>,
}

/// The unified kernel image.
#[derive(Debug, Serialize)]
pub(crate) struct UnifiedEntry {
    /// Its name.
    pub(crate) name: &'static str,
    /// The kernel command line in it.
    pub(crate) command_line: String,
    /// Package of the EFI stub; nothing when it was given as a file.
    pub(crate) stub_package: Option<PackageId>,
}

/// The kernel.
#[derive(Debug, Serialize)]
pub(crate) struct KernelEntry {
    /// As `uname -r` says it.
    pub(crate) version: String,
    /// Its package; nothing when it was given as a file.
    pub(crate) package: Option<PackageId>,
}

/// A file of the set.
#[derive(Debug, Serialize)]
pub(crate) struct FileEntry {
    /// Its name.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// BLAKE3 digest of its content, in hexadecimal.
    pub(crate) blake3: String,
}

impl FileEntry {
    /// The entry for a file with this content.
    pub(crate) fn of(name: &str, content: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            bytes: content.len() as u64,
            blake3: blake3_hex(content),
        }
    }
}

/// A share of what a machine fetches.
#[derive(Debug, Serialize)]
pub(crate) struct PartEntry {
    /// `kernel`, or the name of a part of the initramfs.
    pub(crate) name: String,
    /// Bytes that go over the network.
    pub(crate) bytes: u64,
    /// Bytes of the files in it.
    pub(crate) unpacked_bytes: u64,
    /// Number of the files in it.
    pub(crate) files: usize,
}

/// The agent.
#[derive(Debug, Serialize)]
pub(crate) struct AgentEntry {
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// BLAKE3 digest of the program, in hexadecimal.
    pub(crate) blake3: String,
}

impl AgentEntry {
    /// The entry for this program.
    pub(crate) fn of(agent: &[u8]) -> Self {
        Self {
            bytes: agent.len() as u64,
            blake3: blake3_hex(agent),
        }
    }
}

/// A kernel module.
#[derive(Debug, Serialize)]
pub(crate) struct ModuleEntry {
    /// Its name, with `_`.
    pub(crate) name: String,
    /// Its path below `/lib/modules/VERSION`.
    pub(crate) path: String,
    /// Its size in bytes, not compressed.
    pub(crate) bytes: u64,
    /// What it is for; nothing when another module depends on it.
    pub(crate) why: Option<&'static str>,
}

/// A tool or library.
#[derive(Debug, Serialize)]
pub(crate) struct ToolEntry {
    /// Its path in the image.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// Name of the package it is from.
    pub(crate) package: String,
    /// Version of that package.
    pub(crate) version: String,
}

/// Entries for the modules of `selection`.
pub(crate) fn module_entries(selection: &Selection) -> Vec<ModuleEntry> {
    selection
        .modules
        .iter()
        .map(|module| ModuleEntry {
            name: module.name.clone(),
            path: module.path.clone(),
            bytes: module.data.len() as u64,
            why: module.why,
        })
        .collect()
}

/// Entries for `tools`.
pub(crate) fn tool_entries(tools: Vec<ToolFile>) -> Vec<ToolEntry> {
    tools
        .into_iter()
        .map(|tool| ToolEntry {
            path: tool.path,
            bytes: tool.bytes,
            package: tool.package.name,
            version: tool.package.version,
        })
        .collect()
}

impl Manifest {
    /// A manifest of the current format, with what a machine fetches not in it yet.
    pub(crate) fn new(
        architecture: Architecture,
        kernel: KernelEntry,
        agent: AgentEntry,
        unified_image: UnifiedEntry,
    ) -> Self {
        Self {
            format: FORMAT,
            architecture: architecture.debian(),
            unified_image,
            kernel,
            agent,
            files: Vec::new(),
            parts: Vec::new(),
            modules: Vec::new(),
            modules_built_in: Vec::new(),
            modules_not_in_this_kernel: Vec::new(),
            tools: Vec::new(),
            boot_loaders: Vec::new(),
        }
    }

    /// The file's text, ended by a line feed.
    ///
    /// # Errors
    /// None that these types can give; the serialiser's signature has one.
    pub(crate) fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }
}
