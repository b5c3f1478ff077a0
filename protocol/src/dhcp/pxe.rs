//! How a boot client describes itself: architecture, machine id, vendor and user class, iPXE.

use std::fmt;

use super::{Message, code};

/// A client architecture number of option 93 (RFC 4578 §2.1, IANA "Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchitectureCode(pub u16);

impl ArchitectureCode {
    /// BIOS, booted by PXE.
    pub const BIOS: Self = Self(0);
    /// 32-bit x86 UEFI.
    pub const EFI_IA32: Self = Self(6);
    /// x86-64 UEFI: what most firmware says, though IANA calls 7 "EFI BC".
    pub const EFI_X64: Self = Self(7);
    /// x86-64 UEFI: the other number in use.
    pub const EFI_X64_ALTERNATE: Self = Self(9);
    /// 32-bit Arm UEFI.
    pub const EFI_ARM32: Self = Self(10);
    /// 64-bit Arm UEFI.
    pub const EFI_ARM64: Self = Self(11);
    /// x86-64 UEFI HTTP Boot.
    pub const EFI_X64_HTTP: Self = Self(16);
    /// 64-bit Arm UEFI HTTP Boot.
    pub const EFI_ARM64_HTTP: Self = Self(19);

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "BIOS",
            6 => "UEFI IA32",
            7 | 9 => "UEFI x86-64",
            10 => "UEFI Arm32",
            11 => "UEFI Arm64",
            15 => "UEFI IA32 HTTP Boot",
            16 => "UEFI x86-64 HTTP Boot",
            18 => "UEFI Arm32 HTTP Boot",
            19 => "UEFI Arm64 HTTP Boot",
            27 => "UEFI RISC-V 64",
            _ => "unnamed",
        }
    }
}

impl fmt::Display for ArchitectureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.name())
    }
}

/// Over what the client wants its first file: the prefix of its vendor class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// `PXEClient`: TFTP.
    Pxe,
    /// `HTTPClient`: UEFI HTTP Boot (UEFI specification, "HTTP Boot").
    Http,
}

/// The prefix that a reply to this kind of client carries in option 60, if any, and that the
/// client itself sends.
#[must_use]
pub const fn vendor_class_prefix(protocol: BootProtocol) -> &'static str {
    match protocol {
        BootProtocol::Pxe => "PXEClient",
        BootProtocol::Http => "HTTPClient",
    }
}

/// What an iPXE says it can do (option 175, one-byte feature flags, ipxe.org/dev/features).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IpxeFeatures {
    /// Option 175 was there at all. Without it nothing is known.
    pub announced: bool,
    /// Sub-option 19: it speaks HTTP.
    pub http: bool,
    /// Sub-option 24: it starts Linux kernels (BIOS builds).
    pub bzimage: bool,
    /// Sub-option 36: it runs under EFI.
    pub efi: bool,
}

impl IpxeFeatures {
    fn of(message: &Message) -> Self {
        let Some(mut rest) = message.options.get(code::IPXE) else {
            return Self::default();
        };
        let mut features = Self {
            announced: true,
            ..Self::default()
        };
        while let [sub_option, after @ ..] = rest {
            if *sub_option == code::PAD {
                rest = after;
                continue;
            }
            let Some((value, next)) = after
                .split_first()
                .and_then(|(&length, body)| body.split_at_checked(usize::from(length)))
            else {
                break;
            };
            let on = value != [0];
            match sub_option {
                19 => features.http = on,
                24 => features.bzimage = on,
                36 => features.efi = on,
                _ => {}
            }
            rest = next;
        }
        features
    }
}

/// A client that asked for a boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootClient {
    /// What it wants its file over.
    pub protocol: BootProtocol,
    /// Every architecture of option 93 in the client's order; never empty.
    pub architectures: Vec<ArchitectureCode>,
    /// `Some` when the asking program is an iPXE.
    pub ipxe: Option<IpxeFeatures>,
}

impl BootClient {
    /// Reads the client's description. `None` when it did not ask for a boot file: it has no
    /// vendor class `PXEClient…` or `HTTPClient…`, or no option 93 (PXE 2.1 §2.2 requires both).
    /// An iPXE without option 93 is an old BIOS one and is taken as such.
    #[must_use]
    pub fn of(message: &Message) -> Option<Self> {
        let vendor_class = message.options.get(code::VENDOR_CLASS).unwrap_or_default();
        let ipxe = is_ipxe(message).then(|| IpxeFeatures::of(message));
        let protocol = if vendor_class.starts_with(b"HTTPClient") {
            BootProtocol::Http
        } else if vendor_class.starts_with(b"PXEClient") || ipxe.is_some() {
            BootProtocol::Pxe
        } else {
            return None;
        };
        let mut architectures: Vec<_> = message
            .options
            .get(code::CLIENT_ARCHITECTURE)
            .unwrap_or_default()
            .chunks_exact(2)
            .map(|pair| ArchitectureCode(u16::from_be_bytes([pair[0], pair[1]])))
            .collect();
        if architectures.is_empty() {
            ipxe?;
            architectures.push(ArchitectureCode::BIOS);
        }
        Some(Self {
            protocol,
            architectures,
            ipxe,
        })
    }
}

/// iPXE sends its user class raw; RFC 3004 wants each one behind a length byte. Both are read.
fn is_ipxe(message: &Message) -> bool {
    const NAME: &[u8] = b"iPXE";
    let mut rest = match message.options.get(code::USER_CLASS) {
        None => return false,
        Some(NAME) => return true,
        Some(classes) => classes,
    };
    while let Some((class, next)) = rest
        .split_first()
        .and_then(|(&length, body)| body.split_at_checked(usize::from(length)))
    {
        if class == NAME {
            return true;
        }
        rest = next;
    }
    false
}

/// The machine's UUID as its firmware knows it, in RFC 9562 byte order; `None` when missing,
/// malformed or all zero or all ones (firmware without one).
///
/// Option 97 carries the SMBIOS form: the first three fields little endian (RFC 4578 §2.3 leaves
/// the order to PXE 2.1, which means SMBIOS).
#[must_use]
pub fn client_uuid(message: &Message) -> Option<[u8; 16]> {
    let [0, raw @ ..] = message.options.get(code::CLIENT_MACHINE)? else {
        return None;
    };
    let mut uuid: [u8; 16] = raw.try_into().ok()?;
    if uuid == [0; 16] || uuid == [0xff; 16] {
        return None;
    }
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::Options;
    use proptest::prelude::{any, prop, proptest};

    fn client(options: &[(u8, &[u8])]) -> Message {
        let mut bytes = vec![0; 236];
        bytes.extend([0x63, 0x82, 0x53, 0x63, 255]);
        let mut message = Message::parse(&bytes).expect("an empty message");
        message.options = Options::new();
        for (code, value) in options {
            message.options.set(*code, *value);
        }
        message
    }

    #[test]
    fn every_architecture_is_kept() {
        let message = client(&[(60, b"PXEClient:Arch:00000"), (93, &[0, 0, 0, 7, 0, 9])]);
        let boot = BootClient::of(&message).expect("a boot client");
        assert_eq!(
            boot.architectures,
            [
                ArchitectureCode::BIOS,
                ArchitectureCode::EFI_X64,
                ArchitectureCode::EFI_X64_ALTERNATE
            ]
        );
        assert_eq!(boot.ipxe, None);
    }

    #[test]
    fn a_client_that_did_not_ask_is_no_boot_client() {
        assert_eq!(BootClient::of(&client(&[(60, b"MSFT 5.0")])), None);
        assert_eq!(
            BootClient::of(&client(&[(60, b"PXEClient:Arch:00000")])),
            None
        );
        assert_eq!(BootClient::of(&client(&[(93, &[0, 7])])), None);
    }

    #[test]
    fn both_spellings_of_the_ipxe_user_class_are_known() {
        for class in [&b"iPXE"[..], b"\x04iPXE", b"\x03foo\x04iPXE"] {
            let message = client(&[(60, b"PXEClient"), (93, &[0, 0]), (77, class)]);
            assert!(
                BootClient::of(&message)
                    .expect("a boot client")
                    .ipxe
                    .is_some()
            );
        }
        let other = client(&[(60, b"PXEClient"), (93, &[0, 0]), (77, b"iPXE2")]);
        assert_eq!(BootClient::of(&other).expect("a boot client").ipxe, None);
    }

    #[test]
    fn ipxe_features_are_read() {
        let message = client(&[(77, b"iPXE"), (175, &[177, 1, 9, 19, 1, 1, 24, 1, 1])]);
        let features = BootClient::of(&message)
            .and_then(|boot| boot.ipxe)
            .expect("iPXE");
        assert!(features.http && features.bzimage && !features.efi);
    }

    #[test]
    fn the_machine_id_is_turned_from_smbios_order() {
        let raw: Vec<u8> = (0..=16).collect();
        let uuid = client_uuid(&client(&[(97, &raw)])).expect("a uuid");
        assert_eq!(
            uuid,
            [4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16]
        );
        assert_eq!(client_uuid(&client(&[(97, &[0; 17])])), None);
        assert_eq!(client_uuid(&client(&[(97, &[0; 16])])), None);
    }

    proptest! {
        #[test]
        fn no_option_makes_the_readers_panic(
            user in prop::collection::vec(any::<u8>(), 0..40),
            ipxe in prop::collection::vec(any::<u8>(), 0..40),
            arch in prop::collection::vec(any::<u8>(), 0..9),
            machine in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let message = client(&[(60, b"PXEClient"), (77, &user), (175, &ipxe), (93, &arch), (97, &machine)]);
            let _ = BootClient::of(&message);
            let _ = client_uuid(&message);
        }
    }
}
