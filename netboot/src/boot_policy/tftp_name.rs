//! The names by which machines ask for files over TFTP, and what they stand for.
//!
//! A machine's own names carry its card's address, because its IP address says little: a proxy does
//! not know it, and behind address translation it is shared. `for/MAC/NAME` is NAME of the boot
//! folder for that machine. GRUB asks for one name only, whoever it runs on; what it gets there
//! makes it ask again with its card's address.
//!
//! Not here: what is answered (`boot_desk`).

use protocol::dhcp::MacAddress;

use super::with_hyphens;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A file of the boot folder.
    File(String),
    /// GRUB's configuration, for whoever asks.
    GrubConfig,
    /// GRUB's configuration for the machine that is named with it.
    MachinesGrubConfig,
}

/// A name as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Whose name it is.
    pub(crate) machine: Option<MacAddress>,
    /// What is asked for.
    pub(crate) wanted: Wanted,
}

impl Asked {
    /// The file of the boot folder that is meant, or would be.
    pub(crate) fn file_name(&self) -> String {
        match &self.wanted {
            Wanted::File(name) => name.clone(),
            Wanted::GrubConfig | Wanted::MachinesGrubConfig => "grub/grub.cfg".to_owned(),
        }
    }
}

/// The name of a loader for one machine.
pub(crate) fn of_loader(mac: MacAddress, loader: &str) -> String {
    format!("for/{}/{loader}", with_hyphens(mac))
}

/// The folder in which GRUB finds a machine's files.
pub(crate) fn folder(mac: MacAddress) -> String {
    format!("/for/{}", with_hyphens(mac))
}

/// The name by which GRUB asks for one machine's configuration; `mac` is what GRUB puts there.
pub(crate) fn of_grub_config(mac: &str) -> String {
    format!("/grub/for/{mac}/grub.cfg")
}

/// Understands a name as a client wrote it: `\` is `/`, empty parts do not count.
pub(crate) fn parse(name: &str) -> Asked {
    let parts: Vec<_> = name
        .split(['/', '\\'])
        .filter(|part| !part.is_empty())
        .collect();
    let file = |parts: &[&str]| Wanted::File(parts.join("/"));
    let (machine, wanted) = match parts.as_slice() {
        ["grub", "grub.cfg"] => (None, Wanted::GrubConfig),
        ["grub", "for", mac, "grub.cfg"] | ["for", mac, "grub", "grub.cfg"] => match mac.parse() {
            Ok(mac) => (Some(mac), Wanted::MachinesGrubConfig),
            Err(_) => (None, file(&parts)),
        },
        ["for", mac, rest @ ..] if !rest.is_empty() => match mac.parse() {
            Ok(mac) => (Some(mac), file(rest)),
            Err(_) => (None, file(&parts)),
        },
        parts => (None, file(parts)),
    };
    Asked { machine, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        MacAddress::new([0x52, 0x54, 0, 0, 0, 1])
    }

    fn asked(name: &str) -> (Option<MacAddress>, Wanted) {
        let Asked { machine, wanted } = parse(name);
        (machine, wanted)
    }

    fn file(name: &str) -> Wanted {
        Wanted::File(name.to_owned())
    }

    #[test]
    fn a_machines_names_say_whose_they_are() {
        assert_eq!(
            asked(&of_loader(mac(), "shimx64.efi")),
            (Some(mac()), file("shimx64.efi"))
        );
        // shim asks beside itself.
        assert_eq!(
            asked("/for/52-54-00-00-00-01/grubx64.efi"),
            (Some(mac()), file("grubx64.efi"))
        );
        let kernel = format!("{}/arm64/vmlinuz", folder(mac()));
        assert_eq!(asked(&kernel), (Some(mac()), file("arm64/vmlinuz")));
        assert_eq!(
            asked(r"for\52-54-00-00-00-01\snponly.efi"),
            (Some(mac()), file("snponly.efi"))
        );
    }

    #[test]
    fn grub_asks_once_for_all_and_once_for_itself() {
        assert_eq!(asked("/grub/grub.cfg"), (None, Wanted::GrubConfig));
        // What GRUB has in `$net_default_mac`.
        assert_eq!(
            asked(&of_grub_config("52:54:00:00:00:01")),
            (Some(mac()), Wanted::MachinesGrubConfig)
        );
        assert_eq!(
            asked("/grub/x86_64-efi/fs.lst"),
            (None, file("grub/x86_64-efi/fs.lst"))
        );
    }

    #[test]
    fn what_names_no_machine_is_a_file() {
        for name in [
            "vmlinuz",
            "for/nobody/vmlinuz",
            "for/52-54-00-00-00-01",
            "grub/for/x/grub.cfg",
        ] {
            assert_eq!(asked(name), (None, file(name)), "{name}");
        }
        assert_eq!(asked("//vmlinuz"), (None, file("vmlinuz")));
        assert_eq!(asked(""), (None, file("")));
        assert_eq!(asked("../x"), (None, file("../x")));
    }
}
