//! Mounting the kernel's own file systems.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// A file system of the kernel and where it belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mount {
    kind: &'static str,
    on: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What every boot mounts, in order.
pub(crate) const MOUNTS: [Mount; 5] = [
    Mount {
        kind: "devtmpfs",
        on: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: "mode=0755",
    },
    Mount {
        kind: "proc",
        on: "/proc",
        flags: QUIET,
        options: "",
    },
    Mount {
        kind: "sysfs",
        on: "/sys",
        flags: QUIET,
        options: "",
    },
    Mount {
        kind: "tmpfs",
        on: "/run",
        flags: QUIET,
        options: "mode=0755",
    },
    Mount {
        kind: "tmpfs",
        on: "/tmp",
        flags: QUIET,
        options: "mode=1777",
    },
];

/// UEFI's variables; only on machines that UEFI started.
pub(crate) const EFIVARFS: Mount = Mount {
    kind: "efivarfs",
    on: "/sys/firmware/efi/efivars",
    flags: QUIET,
    options: "",
};

impl Mount {
    /// Where it belongs.
    pub(crate) const fn on(self) -> &'static str {
        self.on
    }

    /// Mounts it, making the folder if it is missing. What is mounted already is success: kernels can
    /// mount `/dev` by themselves (`CONFIG_DEVTMPFS_MOUNT`).
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn mount(self) -> io::Result<()> {
        if !Path::new(self.on).is_dir() {
            std::fs::create_dir_all(self.on)?;
        }
        match mount(
            Some(self.kind),
            self.on,
            Some(self.kind),
            self.flags,
            Some(self.options),
        ) {
            Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
