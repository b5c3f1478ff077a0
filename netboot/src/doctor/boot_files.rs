//! What a boot file should begin with, and whether an EFI program is signed.
//!
//! Pure over bytes: a truncated copy or a web page saved under a loader's name is found without
//! booting it.
//!
//! Not here: which firmware wants which file (`dhcp::boot_table`).

use serde::Deserialize;

/// Bytes from a file's beginning that are looked at.
pub(super) const HEAD: usize = 4096;

/// What is wrong with a file's content, by its name.
pub(super) fn damage(name: &str, head: &[u8]) -> Option<String> {
    let file = name.rsplit('/').next().unwrap_or(name);
    if head.is_empty() {
        return Some("it is empty".to_owned());
    }
    let fits = match file {
        "vmlinuz" => is_kernel(head),
        "initramfs" => is_initramfs(head),
        file if file.ends_with(".efi") => head.starts_with(b"MZ") && pe_offset(head).is_some(),
        _ => true,
    };
    let expected = match file {
        "vmlinuz" => "a Linux kernel",
        "initramfs" => "an initial file system (cpio, also compressed)",
        _ => "an EFI program",
    };
    (!fits).then(|| format!("it is not {expected}"))
}

/// Documentation/arch/x86/boot.rst: "HdrS" at 0x202. Arm: the EFI stub of a zboot or Image kernel,
/// "ARM\x64" at 56 (Documentation/arch/arm64/booting.rst).
fn is_kernel(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS")
        || head.get(56..60) == Some(b"ARM\x64")
        || (head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg"))
        || head.starts_with(&[0x1f, 0x8b])
}

/// Documentation/driver-api/early-userspace/buffer-format.rst, and what kernels decompress.
fn is_initramfs(head: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 7] = [
        b"070701",
        b"070702",
        &[0x28, 0xb5, 0x2f, 0xfd],
        &[0x1f, 0x8b],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        &[0x02, 0x21, 0x4c, 0x18],
        b"BZh",
    ];
    BEGINNINGS.iter().any(|begin| head.starts_with(begin))
}

/// The part of `manifest.json` that is of use here; `initramfs build` writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    /// The files of the set.
    pub(super) files: Vec<Listed>,
}

/// A file of the set.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    /// Its path in the boot folder.
    pub(super) name: String,
    bytes: u64,
    /// Of its content, in hexadecimal.
    blake3: String,
}

impl Listed {
    /// A path that stays in the boot folder.
    pub(super) fn is_inside(&self) -> bool {
        let normal = |part| matches!(part, std::path::Component::Normal(_));
        std::path::Path::new(&self.name).components().all(normal)
    }

    /// What is wrong with the file; `digest` is asked for when the length is right.
    pub(super) fn differs(&self, bytes: u64, digest: impl FnOnce() -> String) -> Option<String> {
        if bytes != self.bytes {
            return Some(format!("it has {bytes} bytes, not {}", self.bytes));
        }
        (digest() != self.blake3).then(|| "its content differs".to_owned())
    }
}

/// Where the PE header is (Microsoft PE format, "MS-DOS Stub").
fn pe_offset(head: &[u8]) -> Option<usize> {
    let at = usize::try_from(u32::from_le_bytes(head.get(0x3c..0x40)?.try_into().ok()?)).ok()?;
    (head.get(at..at.checked_add(4)?)? == b"PE\0\0").then_some(at)
}

/// Whether an EFI program carries a signature: entry 4 of the data directories, the certificate
/// table (Microsoft PE format, "Optional Header Data Directories"). `None` for anything else.
pub(super) fn is_signed(head: &[u8]) -> Option<bool> {
    let optional = pe_offset(head)? + 24;
    let magic = u16::from_le_bytes(head.get(optional..optional + 2)?.try_into().ok()?);
    let directories = optional
        + match magic {
            0x10b => 96,
            0x20b => 112,
            _ => return None,
        };
    let entry = directories + 4 * 8;
    let size = head.get(entry + 4..entry + 8)?;
    Some(size != [0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(certificate_bytes: u32) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x98..0x9a].copy_from_slice(&0x20b_u16.to_le_bytes());
        let entry = 0x98 + 112 + 32;
        head[entry + 4..entry + 8].copy_from_slice(&certificate_bytes.to_le_bytes());
        head
    }

    #[test]
    fn a_listed_file_differs_by_length_or_content_and_stays_inside() {
        let listed = |name: &str| Listed {
            name: name.into(),
            bytes: 3,
            blake3: "abc".into(),
        };
        assert_eq!(listed("a").differs(3, || "abc".into()), None);
        assert!(listed("a").differs(3, || "abd".into()).is_some());
        assert!(listed("a").differs(2, || "abc".into()).is_some());
        assert!(listed("arm64/vmlinuz").is_inside());
        assert!(!listed("../shadow").is_inside() && !listed("/etc/shadow").is_inside());
    }

    #[test]
    fn a_signature_is_seen() {
        assert_eq!(is_signed(&program(0)), Some(false));
        assert_eq!(is_signed(&program(8192)), Some(true));
        assert_eq!(is_signed(b"<html>"), None);
        assert_eq!(is_signed(&program(0)[..200]), None);
    }

    #[test]
    fn what_is_not_what_its_name_says_is_damaged() {
        assert_eq!(damage("snponly.efi", &program(0)), None);
        assert_eq!(damage("undionly.kpxe", b"anything"), None);
        let mut kernel = vec![0; 1024];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(damage("arm64/vmlinuz", &kernel), None);
        assert_eq!(damage("initramfs", b"0707010000"), None);
        for name in ["snponly.efi", "vmlinuz", "initramfs"] {
            assert!(damage(name, b"<html>not found</html>").is_some(), "{name}");
            assert_eq!(damage(name, b"").as_deref(), Some("it is empty"));
        }
    }
}
