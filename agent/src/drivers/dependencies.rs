//! In which order modules are loaded: `modules.dep`.
//!
//! Invariant: a module comes after everything it needs, and once. What is *not* here: loading.

use std::collections::HashMap;

/// A module file and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: String,
    needs: Vec<String>,
}

/// The content of `modules.dep` and `modules.builtin`.
#[derive(Debug, Default)]
pub(crate) struct Dependencies {
    by_name: HashMap<String, Entry>,
    built_in: std::collections::HashSet<String>,
}

/// Why a module cannot be loaded by its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DependencyError {
    /// It is not in this image.
    #[error("module {name} is not in this environment")]
    Missing {
        /// The module, or what it needs.
        name: String,
    },
    /// The file is compressed.
    #[error("module file {path} is compressed; this agent loads plain .ko files only")]
    Compressed {
        /// The file.
        path: String,
    },
}

/// `-` and `_` mean the same in module names (`modprobe(8)`).
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name of a file such as `kernel/drivers/net/e1000.ko`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let end = file.find(".ko").unwrap_or(file.len());
    canonical(&file[..end])
}

impl Dependencies {
    /// Reads `modules.dep` (`FILE: NEEDED_FILE…`) and `modules.builtin` (a file a line).
    pub(crate) fn parse(dep: &str, built_in: &str) -> Self {
        let mut all = Self::default();
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let entry = Entry {
                    path: path.trim().to_owned(),
                    needs: needs.split_ascii_whitespace().map(name_of).collect(),
                };
                all.by_name.insert(name_of(path.trim()), entry);
            }
        }
        all.built_in = built_in.lines().map(|path| name_of(path.trim())).collect();
        all
    }

    /// The files to load for `name`, in order, relative to the modules directory. Empty when the
    /// kernel has it built in.
    ///
    /// # Errors
    /// [`DependencyError`] when it, or something it needs, is not there.
    pub(crate) fn order(&self, name: &str) -> Result<Vec<&str>, DependencyError> {
        let mut order = Vec::new();
        let mut seen = Vec::new();
        self.visit(&canonical(name), &mut order, &mut seen)?;
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        order: &mut Vec<&'a str>,
        seen: &mut Vec<String>,
    ) -> Result<(), DependencyError> {
        // A circle, which depmod refuses to write, ends here.
        if self.built_in.contains(name) || seen.iter().any(|seen| seen == name) {
            return Ok(());
        }
        let missing = || DependencyError::Missing { name: name.into() };
        let (_, entry) = self.by_name.get_key_value(name).ok_or_else(missing)?;
        seen.push(name.to_owned());
        // depmod lists needs nearest first: the last one has to be loaded first. Visiting each
        // need's own needs gives the order whatever wrote the file.
        for need in entry.needs.iter().rev() {
            self.visit(need, order, seen)?;
        }
        if !entry.path.ends_with(".ko") {
            return Err(DependencyError::Compressed {
                path: entry.path.clone(),
            });
        }
        order.push(&entry.path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n\
        kernel/net/core/failover.ko:\n\
        kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/usb/storage/usb-storage.ko: kernel/drivers/usb/core/usbcore.ko kernel/drivers/scsi/scsi_mod.ko\n\
        kernel/drivers/scsi/scsi_mod.ko:\n\
        kernel/drivers/net/igb.ko.xz:\n\
        kernel/a.ko: kernel/b.ko\n\
        kernel/b.ko: kernel/a.ko\n\
        kernel/drivers/half.ko: kernel/drivers/gone.ko\n";

    fn dependencies() -> Dependencies {
        Dependencies::parse(DEP, "kernel/drivers/usb/core/usbcore.ko\n")
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let all = dependencies();
        let order = all.order("virtio-net").unwrap();
        let at = |name: &str| order.iter().position(|path| path.ends_with(name)).unwrap();
        assert_eq!(order.len(), 5);
        assert!(at("/virtio.ko") < at("/virtio_ring.ko"));
        assert!(at("/virtio_ring.ko") < at("/virtio_net.ko"));
        assert!(at("/failover.ko") < at("/net_failover.ko"));
        assert_eq!(order.last(), Some(&"kernel/drivers/net/virtio_net.ko"));
    }

    #[test]
    fn built_in_modules_need_no_file() {
        let all = dependencies();
        assert_eq!(
            all.order("usb_storage").unwrap(),
            [
                "kernel/drivers/scsi/scsi_mod.ko",
                "kernel/drivers/usb/storage/usb-storage.ko"
            ]
        );
        assert_eq!(all.order("usbcore"), Ok(vec![]));
    }

    #[test]
    fn what_is_missing_or_compressed_is_named() {
        let all = dependencies();
        let missing = |name: &str| Err(DependencyError::Missing { name: name.into() });
        assert_eq!(all.order("nvme"), missing("nvme"));
        assert_eq!(all.order("half"), missing("gone"));
        assert!(matches!(
            all.order("igb"),
            Err(DependencyError::Compressed { .. })
        ));
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(dependencies().order("a").unwrap().len(), 2);
    }
}
