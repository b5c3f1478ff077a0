//! A boot loader for machines that start by UEFI, as the distribution signed it: shim and GRUB, and the few lines by
//! which that GRUB finds the system's own configuration.
//!
//! Both are in the folder that firmware looks into by itself, and in one of their own, where GRUB has its
//! configuration. A signed GRUB loads no modules and needs none: it has them all.
//!
//! Invariant: no byte of the two is changed, so that they start with Secure Boot on.

use std::fs;
use std::path::Path;

use crate::job::error::Fault;

const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
const GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";
/// What begins the name of the folder in which a GRUB has its configuration.
const PREFIX: &[u8] = b"/EFI/";
/// The longest name of such a folder: a short name of FAT.
const MAX_NAME: usize = 8;

/// The signed loaders.
#[derive(Debug)]
pub(crate) struct SignedLoaders {
    shim: Vec<u8>,
    grub: Vec<u8>,
    /// The folder of its own, which is the name of the distribution.
    pub(crate) vendor: String,
}

impl SignedLoaders {
    /// Reads them; `root` is where packages' files are.
    ///
    /// # Errors
    /// [`Fault::Tool`] when one is not there or is not understood.
    pub(crate) fn read(root: &Path) -> Result<Self, Fault> {
        let read = |path: &str| {
            fs::read(root.join(path)).map_err(|error| Fault::Tool {
                tool: format!("/{path}"),
                reason: format!(
                    "{error}: it is not in this environment, and starts systems by UEFI; make the boot files again \
                     with the packages shim-signed and grub-efi-amd64-signed"
                ),
            })
        };
        let (shim, grub) = (read(SHIM)?, read(GRUB)?);
        let vendor = vendor_of(&grub).ok_or_else(|| Fault::Tool {
            tool: format!("/{GRUB}"),
            reason: "where it has its configuration is not found in it".to_owned(),
        })?;
        Ok(Self { shim, grub, vendor })
    }

    /// The files of an EFI system partition, by folder and name; GRUB begins with `script`.
    pub(crate) fn files<'a>(&'a self, script: &'a str) -> Vec<(String, &'static str, &'a [u8])> {
        let own = || format!("EFI/{}", self.vendor);
        let fallback = || "EFI/BOOT".to_owned();
        // What the firmware starts comes last.
        vec![
            (own(), "grub.cfg", script.as_bytes()),
            (own(), "grubx64.efi", &self.grub),
            (own(), "shimx64.efi", &self.shim),
            (fallback(), "grub.cfg", script.as_bytes()),
            (fallback(), "grubx64.efi", &self.grub),
            (fallback(), "BOOTX64.EFI", &self.shim),
        ]
    }
}

/// The name behind `/EFI/` in a GRUB, where it has its prefix.
fn vendor_of(grub: &[u8]) -> Option<String> {
    let places = grub
        .windows(PREFIX.len())
        .enumerate()
        .filter(|(_, word)| *word == PREFIX);
    places.into_iter().find_map(|(at, _)| {
        let name = &grub[at + PREFIX.len()..];
        let len = name.iter().take(MAX_NAME + 1).position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&name[..len]).ok()?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
        is_name.then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grub_says_where_its_configuration_is() {
        let of = |text: &[u8]| vendor_of(text);
        assert_eq!(of(b"x/EFI/BOOT\0 y/EFI/debian\0z").unwrap(), "debian");
        assert_eq!(of(b"/EFI/ubuntu\0").unwrap(), "ubuntu");
        for text in [
            &b"/EFI/debian"[..],
            b"/EFI/\0",
            b"/EFI/averylongname\0",
            b"",
        ] {
            assert_eq!(of(text), None);
        }
    }
}
