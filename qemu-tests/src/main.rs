//! `lab`: virtual machines booted from the network without root, and the scenarios that prove the product.

mod lab;

use lab::{deadline::Deadline, firmware::*, guest::*, link::*};
fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("source") {
        println!(
            "{:?}",
            lab::source_machine::SourceMachine::get_or_build(std::path::Path::new(
                "/tmp/lab-exp/work"
            ))?
            .disk()
        );
        return Ok(());
    }
    let kind = if std::env::args().nth(1).as_deref() == Some("uefi") {
        FirmwareKind::Uefi
    } else {
        FirmwareKind::Bios
    };
    let out = std::path::PathBuf::from("/tmp/lab-exp/try");
    std::fs::create_dir_all(&out)?;
    let run = tempfile::tempdir()?;
    let mut link = Link::start(
        LinkConfig {
            pcap: Some(out.join(format!("{kind}.pcap"))),
            dhcp: Some(6767),
            ports: lab::port_map::PortMap::default()
                .with_udp(69, 6969)
                .with_tcp(80, 8080),
            ..Default::default()
        },
        run.path(),
    )?;
    let port = link.add_port()?;
    let guest = Guest::start(&GuestConfig {
        name: kind.to_string(),
        firmware: Firmware::fresh(kind, &out)?,
        memory_mib: 1024,
        cpus: 1,
        disks: vec![],
        network: Some(NetworkCard {
            model: "virtio-net-pci".into(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            attachment: Attachment::SwitchPort(port.clone()),
        }),
        identity: None,
        kernel: None,
        logs: out.clone(),
    })?;
    println!(
        "{:?}",
        guest.console().wait_for_any(
            &["Nothing", "No more network", "netboot agent", "PXE-E"],
            Deadline::seconds(60)
        )
    );
    println!("{:?}", link.counters(port.id)?);
    Ok(())
}
