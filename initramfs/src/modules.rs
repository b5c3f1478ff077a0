//! The kernel modules of the image: found, closed over their dependencies, and indexed.
//!
//! The index files are computed from the modules themselves (`.modinfo`), because the kernel package has
//! no `modules.dep`, and limited to the modules that are in the image:
//!
//! - `modules.dep`: `MODULE: DEPENDENCIES`, all of them, to be loaded **from right to left**, as `depmod`
//!   writes it (`modules.dep(5)`);
//! - `modules.alias`: `alias PATTERN NAME`; `modules.softdep`: `softdep NAME pre: … post: …`;
//! - `modules.builtin`: what the kernel has built in, as its package says.
//!
//! Invariant: a module's dependencies are in the image or built into the kernel, and the list of modules
//! is in an order in which they can be loaded one after the other.
//!
//! Not here: which modules are wanted ([`crate::base_modules`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::architecture::Architecture;
use crate::base_modules::{Group, Need};
use crate::elf::{self, ElfError};
use crate::tree::Tree;

/// Why the modules cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// A directory or file could not be read.
    #[error("{path}: cannot read")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no module in the directories.
    #[error(
        "{directories}: no kernel modules found (*.ko, *.ko.xz, *.ko.zst, *.ko.gz). Give --modules the \
         directory lib/modules/VERSION of the kernel"
    )]
    Empty {
        /// Where they were looked for.
        directories: String,
    },
    /// Modules that the base set requires are not in this kernel.
    #[error(
        "kernel {kernel} lacks required modules: {modules}. Take the distribution's full kernel (not \
         its cloud flavour), or say --allow-missing when these machines do not need them"
    )]
    Required {
        /// The kernel's version.
        kernel: String,
        /// Each with what it is for.
        modules: String,
    },
    /// A dependency is neither there nor built in.
    #[error(
        "module {module} depends on {dependency}, which kernel {kernel} has neither as a file nor \
         built in. The modules directory is not complete"
    )]
    Dependency {
        /// The module that depends.
        module: String,
        /// On what.
        dependency: String,
        /// The kernel's version.
        kernel: String,
    },
    /// Modules depend on each other in a circle.
    #[error("modules depend on each other in a circle: {circle}")]
    Circle {
        /// The names, in order.
        circle: String,
    },
    /// A module is for another kernel.
    #[error("{path}: the module is for kernel {found}, expected {expected}")]
    OtherKernel {
        /// The module's file.
        path: PathBuf,
        /// The version in its `vermagic`.
        found: String,
        /// The kernel's version.
        expected: String,
    },
    /// A module file is damaged.
    #[error("{path}: not a usable kernel module")]
    Elf {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
}

/// A module in the image.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// Its name, with `_`.
    pub(crate) name: String,
    /// Its path below `lib/modules/VERSION`, without a compression suffix.
    pub(crate) path: String,
    /// The file as the kernel loads it, its signature included.
    pub(crate) data: Vec<u8>,
    /// What it is for; nothing for one that is there for another's sake.
    pub(crate) why: Option<&'static str>,
    info: Vec<(String, String)>,
    dependencies: Vec<String>,
}

impl Module {
    fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.info
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// The modules chosen from a kernel.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// In an order in which they can be loaded.
    pub(crate) modules: Vec<Module>,
    /// Wanted, and part of the kernel itself.
    pub(crate) built_in: Vec<String>,
    /// Wanted, and not in this kernel.
    pub(crate) absent: Vec<String>,
    builtin_index: String,
}

/// A kernel's modules as files, not yet read.
#[derive(Debug)]
pub(crate) struct ModuleFiles {
    architecture: Architecture,
    kernel: String,
    files: BTreeMap<String, (String, PathBuf)>,
    built_in: BTreeSet<String>,
    builtin_index: String,
}

/// The spelling in which names are compared: the kernel takes `-` and `_` for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Path without compression suffix and module name, when `path` names a module.
fn module_name(path: &str) -> Option<(String, String)> {
    let plain = [".xz", ".zst", ".gz"]
        .iter()
        .find_map(|suffix| path.strip_suffix(suffix))
        .unwrap_or(path);
    let name = plain.rsplit('/').next()?.strip_suffix(".ko")?;
    Some((plain.to_owned(), normal(name)))
}

impl ModuleFiles {
    /// Looks for modules in `directories`, each a `lib/modules/VERSION` of kernel `version`.
    ///
    /// Of two modules with one name, one below `updates/` wins, as it does for `depmod`.
    ///
    /// # Errors
    /// [`ModuleError::Read`] and [`ModuleError::Empty`].
    pub(crate) fn scan(
        architecture: Architecture,
        version: &str,
        directories: &[PathBuf],
    ) -> Result<Self, ModuleError> {
        let mut found = Self {
            architecture,
            kernel: version.to_owned(),
            files: BTreeMap::new(),
            built_in: BTreeSet::new(),
            builtin_index: String::new(),
        };
        for directory in directories {
            found.walk(directory, "")?;
            let index = directory.join("modules.builtin");
            if index.is_file() {
                found.builtin_index = fs::read_to_string(&index).map_err(read_error(&index))?;
            }
        }
        for line in found.builtin_index.lines() {
            if let Some((_, name)) = module_name(line.trim()) {
                found.built_in.insert(name);
            }
        }
        if found.files.is_empty() {
            let names: Vec<String> = directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            return Err(ModuleError::Empty {
                directories: names.join(", "),
            });
        }
        Ok(found)
    }

    fn walk(&mut self, directory: &Path, below: &str) -> Result<(), ModuleError> {
        for entry in fs::read_dir(directory).map_err(read_error(directory))? {
            let entry = entry.map_err(read_error(directory))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let relative = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            // Links (`build`, `source`) lead out of the tree and are not followed.
            let kind = entry.file_type().map_err(read_error(&path))?;
            if kind.is_dir() {
                self.walk(&path, &relative)?;
            } else if kind.is_file()
                && let Some((plain, name)) = module_name(&relative)
            {
                let better = match self.files.get(&name) {
                    None => true,
                    Some((other, _)) => {
                        (!plain.starts_with("updates/"), &plain)
                            < (!other.starts_with("updates/"), other)
                    }
                };
                if better {
                    self.files.insert(name, (plain, path));
                }
            }
        }
        Ok(())
    }

    /// The modules that `groups` want, with everything that they depend on.
    ///
    /// `extra_needs` are dependencies that the modules do not state; one that this kernel does not have
    /// as a file is left out. With `allow_missing`, required modules may be absent too.
    ///
    /// # Errors
    /// [`ModuleError`]; [`ModuleError::Required`] names all that are missing at once.
    pub(crate) fn select(
        &self,
        groups: &[Group],
        extra_needs: &[(&str, &str)],
        allow_missing: bool,
    ) -> Result<Selection, ModuleError> {
        let mut selection = Selection {
            builtin_index: self.builtin_index.clone(),
            ..Selection::default()
        };
        let mut why = BTreeMap::new();
        let mut missing = Vec::new();
        for group in groups {
            for name in group.modules {
                let name = normal(name);
                if self.files.contains_key(&name) {
                    why.insert(name, group.why);
                } else if self.built_in.contains(&name) {
                    selection.built_in.push(name);
                } else {
                    if group.need == Need::Required {
                        missing.push(format!("{name} ({})", group.why));
                    }
                    selection.absent.push(name);
                }
            }
        }
        if !missing.is_empty() && !allow_missing {
            return Err(ModuleError::Required {
                kernel: self.kernel.clone(),
                modules: missing.join(", "),
            });
        }

        let mut read = BTreeMap::new();
        let mut waiting: Vec<String> = why.keys().cloned().collect();
        while let Some(name) = waiting.pop() {
            if read.contains_key(&name) {
                continue;
            }
            let mut module = self.read(&name, extra_needs)?;
            module.why = why.get(&name).copied();
            waiting.extend(module.dependencies.iter().cloned());
            read.insert(name, module);
        }
        let edges: BTreeMap<&str, &[String]> = read
            .iter()
            .map(|(name, module)| (name.as_str(), module.dependencies.as_slice()))
            .collect();
        let order: Vec<String> = load_order(&edges)?.into_iter().map(str::to_owned).collect();
        selection.modules = order.iter().filter_map(|name| read.remove(name)).collect();
        Ok(selection)
    }

    /// Reads module `name` and finds its dependencies among the files.
    fn read(&self, name: &str, extra_needs: &[(&str, &str)]) -> Result<Module, ModuleError> {
        let Some((plain, path)) = self.files.get(name) else {
            // Callers ask only for names that are there.
            return Err(ModuleError::Dependency {
                module: name.to_owned(),
                dependency: name.to_owned(),
                kernel: self.kernel.clone(),
            });
        };
        let data = read_module(path).map_err(read_error(path))?;
        let info =
            elf::module_info(&data, self.architecture).map_err(|source| ModuleError::Elf {
                path: path.clone(),
                source,
            })?;
        let mut module = Module {
            name: name.to_owned(),
            path: plain.clone(),
            data,
            why: None,
            info,
            dependencies: Vec::new(),
        };
        let built_for = module
            .values("vermagic")
            .next()
            .and_then(|magic| magic.split_whitespace().next())
            .unwrap_or("(none)");
        if built_for != self.kernel {
            return Err(ModuleError::OtherKernel {
                path: path.clone(),
                found: built_for.to_owned(),
                expected: self.kernel.clone(),
            });
        }
        let mut dependencies = BTreeSet::new();
        for stated in module.values("depends").flat_map(|list| list.split(',')) {
            let dependency = normal(stated.trim());
            if self.files.contains_key(&dependency) {
                dependencies.insert(dependency);
            } else if !dependency.is_empty() && !self.built_in.contains(&dependency) {
                return Err(ModuleError::Dependency {
                    module: name.to_owned(),
                    dependency,
                    kernel: self.kernel.clone(),
                });
            }
        }
        for (module, needed) in extra_needs {
            if *module == name && self.files.contains_key(*needed) {
                dependencies.insert((*needed).to_owned());
            }
        }
        module.dependencies = dependencies.into_iter().collect();
        Ok(module)
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ModuleError {
    let path = path.to_owned();
    move |source| ModuleError::Read { path, source }
}

/// A module's content, decompressed: the whole image is compressed once, and better, at the end.
fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let stored = fs::read(path)?;
    let mut data = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(stored.as_slice(), true).read_to_end(&mut data)?,
        Some("zst") => zstd::Decoder::new(stored.as_slice())?.read_to_end(&mut data)?,
        Some("gz") => {
            flate2::read::MultiGzDecoder::new(stored.as_slice()).read_to_end(&mut data)?
        }
        _ => return Ok(stored),
    };
    Ok(data)
}

/// Every key of `edges` once, each after all that it depends on.
///
/// # Errors
/// [`ModuleError::Circle`].
fn load_order<'a>(edges: &BTreeMap<&'a str, &'a [String]>) -> Result<Vec<&'a str>, ModuleError> {
    fn visit<'a>(
        name: &'a str,
        edges: &BTreeMap<&'a str, &'a [String]>,
        done: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
        way: &mut Vec<&'a str>,
    ) -> Result<(), ModuleError> {
        if done.contains(name) {
            return Ok(());
        }
        if let Some(start) = way.iter().position(|other| *other == name) {
            return Err(ModuleError::Circle {
                circle: format!("{} → {name}", way[start..].join(" → ")),
            });
        }
        way.push(name);
        for dependency in edges.get(name).copied().unwrap_or_default() {
            visit(dependency, edges, done, order, way)?;
        }
        way.pop();
        done.insert(name);
        order.push(name);
        Ok(())
    }

    let mut order = Vec::with_capacity(edges.len());
    let mut done = BTreeSet::new();
    for name in edges.keys() {
        visit(name, edges, &mut done, &mut order, &mut Vec::new())?;
    }
    Ok(order)
}

impl Selection {
    /// The modules and their index files below `usr/lib/modules/VERSION`.
    pub(crate) fn tree(&self, version: &str) -> Tree {
        let base = format!("usr/lib/modules/{version}");
        let mut tree = self.files(version, |_| true);
        let indexes = [
            ("modules.dep", self.dependency_index()),
            ("modules.alias", self.lines("alias", alias_lines)),
            ("modules.softdep", self.lines("softdep", softdep_lines)),
            ("modules.builtin", self.builtin_index.clone()),
        ];
        for (name, content) in indexes {
            tree.file(&format!("{base}/{name}"), 0o644, content.into_bytes());
        }
        tree
    }

    /// The files of some modules, without the indexes.
    pub(crate) fn files(&self, version: &str, wanted: impl Fn(&str) -> bool) -> Tree {
        let base = format!("usr/lib/modules/{version}");
        let mut tree = Tree::default();
        for module in self.modules.iter().filter(|module| wanted(&module.name)) {
            let path = format!("{base}/{}", module.path);
            tree.file(&path, 0o644, module.data.clone());
        }
        tree
    }

    fn lines(&self, key: &str, line: fn(&str, &str) -> String) -> String {
        self.modules
            .iter()
            .flat_map(|module| module.values(key).map(|value| line(&module.name, value)))
            .collect()
    }

    fn dependency_index(&self) -> String {
        // Modules are in load order, so each one's dependencies have their sets already.
        let mut all: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        let position: BTreeMap<&str, usize> = self
            .modules
            .iter()
            .enumerate()
            .map(|(index, module)| (module.name.as_str(), index))
            .collect();
        let mut text = String::new();
        for module in &self.modules {
            let mut set: BTreeSet<usize> = BTreeSet::new();
            for dependency in &module.dependencies {
                set.extend(position.get(dependency.as_str()));
                set.extend(all.get(dependency.as_str()).into_iter().flatten());
            }
            text.push_str(&module.path);
            text.push(':');
            for index in set.iter().rev() {
                text.push(' ');
                text.push_str(&self.modules[*index].path);
            }
            text.push('\n');
            all.insert(&module.name, set);
        }
        text
    }
}

fn alias_lines(module: &str, pattern: &str) -> String {
    format!("alias {pattern} {module}\n")
}

fn softdep_lines(module: &str, text: &str) -> String {
    format!("softdep {module} {text}\n")
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
