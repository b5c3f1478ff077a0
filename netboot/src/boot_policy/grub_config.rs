//! GRUB's configuration: the one for whoever asks, and that of one machine.
//!
//! GRUB knows the address of the server that it was loaded from (`$net_default_server`) and of its
//! card (`$net_default_mac`); both are right behind relays and address translation, so they are used
//! in place of what this server believes. Kernel and initial file system go over TFTP: the GRUB that
//! distributions sign has no HTTP in it, and under Secure Boot it loads no module.
//!
//! Not here: what a machine boots (`boot_policy`).

use std::fmt::Write;

use protocol::dhcp::MacAddress;

use super::{
    ARM64_FOLDER, BootDecision, CONSOLES, CONSOLES_ARM64, Entry, INITRAMFS, KERNEL, tftp_name,
};

/// Loaders of systems on the EFI system partitions of local disks, in the order in which they are
/// looked for. The last two are the fallback of UEFI 2.10 §3.5.1.1.
const LOCAL_LOADERS: &[&str] = &[
    "/EFI/Microsoft/Boot/bootmgfw.efi",
    "/EFI/debian/shimx64.efi",
    "/EFI/ubuntu/shimx64.efi",
    "/EFI/fedora/shimx64.efi",
    "/EFI/redhat/shimx64.efi",
    "/EFI/rocky/shimx64.efi",
    "/EFI/almalinux/shimx64.efi",
    "/EFI/opensuse/shim.efi",
    "/EFI/sles/shim.efi",
    "/EFI/debian/shimaa64.efi",
    "/EFI/ubuntu/shimaa64.efi",
    "/EFI/debian/grubx64.efi",
    "/EFI/debian/grubaa64.efi",
    "/EFI/systemd/systemd-bootx64.efi",
    "/EFI/BOOT/BOOTX64.EFI",
    "/EFI/BOOT/BOOTAA64.EFI",
];

/// The configuration for whoever asks: GRUB asks again and says who it is. A GRUB without a card's
/// address gets the recovery environment.
pub(crate) fn for_all(http_port: u16) -> String {
    let own = tftp_name::of_grub_config("$net_default_mac");
    let mut text = format!(
        "# netboot: the machine that this GRUB runs on is asked for what it is to boot\n\
         if [ -n \"$net_default_mac\" ]; then\n  configfile {own}\nfi\n"
    );
    add_files(&mut text, "", http_port, "");
    add_recovery(&mut text);
    text.push_str("recovery\n");
    text
}

/// The configuration of one machine.
pub(crate) fn of_machine(
    decision: BootDecision,
    mac: MacAddress,
    http_port: u16,
    menu_seconds: u16,
) -> String {
    let mut text = format!("# netboot: what {mac} boots\n");
    add_files(
        &mut text,
        &tftp_name::folder(mac),
        http_port,
        &format!(" netboot.mac={mac}"),
    );
    add_recovery(&mut text);
    add_local_disk(&mut text);
    match decision {
        BootDecision::Recovery => text.push_str("recovery\n"),
        BootDecision::LocalDisk => text.push_str("local_disk\n"),
        BootDecision::Menu(marked) => {
            let _ = write!(
                text,
                "set timeout_style=menu\nset timeout={menu_seconds}\nset default={}\n",
                marked.label()
            );
            for entry in Entry::ALL {
                let function = function(entry);
                let _ = writeln!(
                    text,
                    "menuentry \"{}\" --id {} {{\n  {function}\n}}",
                    entry.title(),
                    entry.label(),
                );
            }
        }
    }
    text
}

fn function(entry: Entry) -> &'static str {
    match entry {
        Entry::Recovery => "recovery",
        Entry::LocalDisk => "local_disk",
    }
}

/// Where kernel and initial file system are, and the kernel's command line.
fn add_files(text: &mut String, folder: &str, http_port: u16, more: &str) {
    let _ = write!(
        text,
        "set files={folder}\n\
         set consoles=\"{CONSOLES}\"\n\
         if [ \"$grub_cpu\" = arm64 ]; then\n  \
           set files={folder}/{ARM64_FOLDER}\n  \
           set consoles=\"{CONSOLES_ARM64}\"\n\
         fi\n\
         set words=\"netboot.server=http://$net_default_server:{http_port}{more} $consoles\"\n"
    );
}

/// The function that ends in the recovery environment, or tries for ever.
fn add_recovery(text: &mut String) {
    let _ = write!(
        text,
        "function recovery {{\n  \
           while true; do\n    \
             echo \"netboot: starting the recovery environment from $net_default_server\"\n    \
             if linux $files/{KERNEL} $words; then\n      \
               if initrd $files/{INITRAMFS}; then\n        \
                 boot\n      \
               fi\n    \
             fi\n    \
             echo \"netboot: the boot files could not be fetched or started; again in 5 seconds\"\n    \
             sleep 5\n  \
           done\n\
         }}\n"
    );
}

/// The function that starts the system on the local disk. Firmware stops in its own menu when GRUB
/// exits, because GRUB can only say that all is well: so the system's loader is started from here.
fn add_local_disk(text: &mut String) {
    let _ = write!(
        text,
        "function local_disk {{\n  \
           echo \"netboot: starting the local disk\"\n  \
           for loader in {}; do\n    \
             if search --no-floppy --file --set=esp $loader; then\n      \
               if chainloader ($esp)$loader; then\n        \
                 boot\n      \
               fi\n    \
             fi\n  \
           done\n  \
           echo \"netboot: no system was found on the local disks\"\n  \
           sleep 5\n  \
           exit\n\
         }}\n",
        LOCAL_LOADERS.join(" ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        MacAddress::new([0x52, 0x54, 0, 0, 0, 1])
    }

    fn config(decision: BootDecision) -> String {
        of_machine(decision, mac(), 8080, 30)
    }

    /// The last line that is not part of a block.
    fn end(text: &str) -> &str {
        text.lines().last().expect("a line")
    }

    #[test]
    fn whoever_asks_is_made_to_say_who_it_is() {
        let text = for_all(8080);
        assert!(text.contains("configfile /grub/for/$net_default_mac/grub.cfg\n"));
        assert!(text.contains("netboot.server=http://$net_default_server:8080 $consoles\""));
        assert_eq!(end(&text), "recovery");
    }

    #[test]
    fn the_recovery_environment_is_told_server_and_card_and_fetched_by_the_machines_names() {
        let text = config(BootDecision::Recovery);
        assert!(text.contains(
            "netboot.server=http://$net_default_server:8080 netboot.mac=52:54:00:00:00:01 "
        ));
        assert!(text.contains("set files=/for/52-54-00-00-00-01\n"));
        assert!(text.contains("set files=/for/52-54-00-00-00-01/arm64\n"));
        assert!(text.contains("console=ttyAMA0"));
        assert_eq!(end(&text), "recovery");
    }

    #[test]
    fn a_machine_without_work_starts_its_disk() {
        let text = config(BootDecision::LocalDisk);
        assert_eq!(end(&text), "local_disk");
        let windows = text.find("bootmgfw.efi").expect("Windows");
        assert!(windows < text.find("BOOTX64.EFI").expect("the fallback"));
    }

    #[test]
    fn the_menu_waits_as_long_as_told_and_has_both_entries() {
        let text = config(BootDecision::Menu(Entry::LocalDisk));
        assert!(text.contains("set timeout=30\nset default=local-disk\n"));
        for entry in Entry::ALL {
            let (title, label, function) = (entry.title(), entry.label(), function(entry));
            let block = format!("menuentry \"{title}\" --id {label} {{\n  {function}\n}}\n");
            assert!(text.contains(&block), "{text}");
        }
    }

    #[test]
    fn blocks_are_closed() {
        for text in [for_all(80), config(BootDecision::Menu(Entry::Recovery))] {
            let count = |word: &str| {
                let words = text.split_ascii_whitespace();
                words
                    .filter(|found| found.trim_end_matches(';') == word)
                    .count()
            };
            assert_eq!(count("{"), count("}"));
            assert_eq!(count("if"), count("fi"));
            assert_eq!(count("do"), count("done"));
        }
    }
}
