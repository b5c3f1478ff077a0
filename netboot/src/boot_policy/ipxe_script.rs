//! The iPXE script of one machine.
//!
//! Not here: what it boots (`boot_policy`).

use std::fmt::Write;

use protocol::{boot_args::BootArgs, dhcp::MacAddress};

use super::{
    ARM64_FOLDER, BootDecision, CONSOLES, CONSOLES_ARM64, Entry, INITRAMFS, KERNEL, Platform,
    SCRIPT_PATH,
};

/// The script for an iPXE that came without saying who it is (its URL was typed or is burnt in).
pub(crate) fn chain(base: &str) -> String {
    format!(
        "#!ipxe\nchain --replace {base}{SCRIPT_PATH}?mac=${{netX/mac:hexhyp}}&platform=${{platform}}&uuid=${{uuid}}\n"
    )
}

/// The script for a machine. `base` is the server's URL as this machine reaches it, without a
/// slash at the end.
pub(crate) fn of_machine(
    decision: BootDecision,
    base: &str,
    mac: MacAddress,
    platform: Platform,
    menu_seconds: u16,
) -> String {
    let mut text = String::from("#!ipxe\n");
    match decision {
        BootDecision::Recovery => add_recovery(&mut text, base, mac),
        BootDecision::LocalDisk => {
            text.push_str(
                "echo netboot: nothing to do for this machine; starting its local disk\n",
            );
            text.push_str(local_disk(platform));
        }
        BootDecision::Menu(marked) => {
            add_menu(&mut text, base, marked, menu_seconds);
            let _ = writeln!(text, ":{}", Entry::LocalDisk.label());
            text.push_str(local_disk(platform));
            let _ = writeln!(text, ":{}", Entry::Recovery.label());
            add_recovery(&mut text, base, mac);
        }
    }
    text
}

/// The part that ends in the local disk's start.
fn local_disk(platform: Platform) -> &'static str {
    match platform {
        Platform::PcBios => "sanboot --no-describe --drive 0x80 || exit 1\n",
        // UEFI goes on to the next boot entry only after a failure: after a success it stops in
        // the boot manager's menu.
        Platform::Efi => "exit 1\n",
    }
}

/// The part that ends in the recovery environment, or tries for ever.
fn add_recovery(text: &mut String, base: &str, mac: MacAddress) {
    let args = BootArgs {
        server: Some(base.to_owned()),
        mac: Some(mac.to_string()),
    };
    // The query tells the flight recorder whose fetch it is, even behind address translation.
    // `initrd=` is for kernels that find it by name (EFI stub before 5.8).
    let _ = write!(
        text,
        "echo netboot: starting the recovery environment from {base}\n\
         set files {base}/boot\n\
         set consoles {CONSOLES}\n\
         iseq ${{buildarch}} arm64 && set files {base}/boot/{ARM64_FOLDER} ||\n\
         iseq ${{buildarch}} arm64 && set consoles {CONSOLES_ARM64} ||\n\
         :again\n\
         imgfree\n\
         kernel --name {KERNEL} ${{files}}/{KERNEL}?mac={mac} initrd={INITRAMFS} {args} ${{consoles}} || goto failed\n\
         initrd --name {INITRAMFS} ${{files}}/{INITRAMFS}?mac={mac} || goto failed\n\
         boot || goto failed\n\
         :failed\n\
         echo netboot: the boot files could not be fetched or started; again in 5 seconds\n\
         sleep 5\n\
         goto again\n"
    );
}

/// The menu; an iPXE built without menus takes what is marked.
fn add_menu(text: &mut String, base: &str, marked: Entry, seconds: u16) {
    let milliseconds = u32::from(seconds) * 1000;
    let _ = writeln!(text, "menu netboot {base} || goto {}", marked.label());
    for entry in Entry::ALL {
        let _ = writeln!(text, "item {} {}", entry.label(), entry.title());
    }
    let marked = marked.label();
    let _ = write!(
        text,
        "choose --timeout {milliseconds} --default {marked} chosen || set chosen {marked}\n\
         goto ${{chosen}}\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://10.77.0.1:8080";

    fn script(decision: BootDecision, platform: Platform) -> String {
        let mac = MacAddress::new([0x52, 0x54, 0, 0, 0, 1]);
        of_machine(decision, BASE, mac, platform, 30)
    }

    #[test]
    fn the_recovery_script_hands_over_server_and_card() {
        let text = script(BootDecision::Recovery, Platform::Efi);
        assert!(text.starts_with("#!ipxe\n"));
        assert!(
            text.contains("netboot.server=http://10.77.0.1:8080 netboot.mac=52:54:00:00:00:01 ")
        );
        assert!(text.contains("set files http://10.77.0.1:8080/boot\n"));
        assert!(text.contains("initrd --name initramfs ${files}/initramfs?mac="));
        assert!(text.contains("arm64 && set files http://10.77.0.1:8080/boot/arm64 ||\n"));
    }

    #[test]
    fn the_local_disk_is_started_as_the_platform_can() {
        let bios = script(BootDecision::LocalDisk, Platform::PcBios);
        assert!(bios.contains("sanboot --no-describe --drive 0x80"));
        let efi = script(BootDecision::LocalDisk, Platform::Efi);
        assert!(efi.ends_with("exit 1\n") && !efi.contains("sanboot"));
    }

    #[test]
    fn the_menu_waits_as_long_as_told_and_reaches_both_entries() {
        let text = script(BootDecision::Menu(Entry::LocalDisk), Platform::PcBios);
        assert!(text.contains("choose --timeout 30000 --default local-disk chosen"));
        for entry in Entry::ALL {
            let (label, title) = (entry.label(), entry.title());
            assert!(text.contains(&format!("\nitem {label} {title}\n")));
            assert!(text.contains(&format!("\n:{label}\n")));
        }
        let disk = text.find(":local-disk\n").expect("the disk's part");
        assert!(text[disk..].contains("sanboot"));
        // Nothing falls from the disk's part into the recovery environment.
        let recovery = text.find(":recovery\n").expect("the environment's part");
        assert!(text[disk..recovery].ends_with("|| exit 1\n"));
    }
}
