//! A virtual machine of the lab: how it is built, switched on, watched, and cut from its power.
//!
//! QEMU with `-accel tcg` always: an accelerator that can be opened may still hang, and the emulator works
//! everywhere. Invariant: a machine never outlives its [`Guest`]. The network link, disks and firmware are
//! made elsewhere and given to it.

use serde_json::json;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use thiserror::Error;

use super::deadline::Deadline;
use super::firmware::{Architecture, Firmware};
use super::link::Port;
use super::namespace::Tap;
use super::qmp::{Qmp, QmpError};
use super::serial::{Console, ConsoleError};
use super::tool;

/// How often a process is asked whether it has ended.
const TICK: Duration = Duration::from_millis(50);

/// The last that Linux says when it dies.
const PANIC: &str = "---[ end Kernel panic - not syncing";
/// Linux gives up when its timer stands still for some ticks at its start: QEMU's main thread did not get
/// the computer in time. Nobody's fault but that of a busy host.
const STARVED: &str = "IO-APIC + timer doesn't work";
/// Starts that such a machine gets.
const MOST_RESETS: u32 = 5;

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// An NVMe controller of its own.
    Nvme,
    /// AHCI.
    Ahci,
}

/// A disk of a machine: a raw file.
#[derive(Debug, Clone)]
pub(crate) struct DiskDevice {
    /// The raw image.
    pub(crate) image: PathBuf,
    /// How it is attached.
    pub(crate) bus: DiskBus,
    /// Serial number that the machine sees; virtio keeps 20 characters.
    pub(crate) serial: String,
    /// Whether its sectors have 4096 bytes in place of 512.
    pub(crate) large_sectors: bool,
}

/// A network card of a machine.
#[derive(Debug, Clone)]
pub(crate) struct NetworkCard {
    /// QEMU's device name.
    pub(crate) model: String,
    /// Ethernet address.
    pub(crate) mac: [u8; 6],
    /// Where it is plugged in.
    pub(crate) attachment: Attachment,
}

/// What a network card is plugged into.
#[derive(Debug, Clone)]
pub(crate) enum Attachment {
    /// A port of the lab's own switch.
    SwitchPort(Port),
    /// A cable into a bridge of the kernel; the machine is started in its namespace.
    Tap(Tap),
}

impl Attachment {
    fn netdev(&self) -> String {
        match self {
            Self::SwitchPort(port) => format!(
                "stream,id=n0,server=off,addr.type=unix,addr.path={}",
                port.socket.display()
            ),
            Self::Tap(tap) => {
                format!("tap,id=n0,ifname={},script=no,downscript=no", tap.device)
            }
        }
    }
}

/// What a machine says about itself (SMBIOS type 1).
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Manufacturer.
    pub(crate) manufacturer: String,
    /// Product name.
    pub(crate) product: String,
    /// Serial number.
    pub(crate) serial: String,
    /// System UUID as text.
    pub(crate) uuid: String,
}

/// A kernel that QEMU starts itself, without boot loader.
#[derive(Debug, Clone)]
pub(crate) struct DirectKernel {
    /// Kernel image.
    pub(crate) kernel: PathBuf,
    /// Initial RAM file system.
    pub(crate) initrd: PathBuf,
    /// Kernel command line.
    pub(crate) command_line: String,
}

/// Everything a machine is made of.
#[derive(Debug, Clone)]
pub(crate) struct GuestConfig {
    /// Name in logs.
    pub(crate) name: String,
    /// Firmware with its state.
    pub(crate) firmware: Firmware,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// Disks in order.
    pub(crate) disks: Vec<DiskDevice>,
    /// Network card.
    pub(crate) network: Option<NetworkCard>,
    /// Whether the network comes before the disks in the boot order, or after them.
    pub(crate) network_first: bool,
    /// SMBIOS identity.
    pub(crate) identity: Option<Identity>,
    /// Kernel to start in place of the boot order.
    pub(crate) kernel: Option<DirectKernel>,
    /// Whether a restart from inside switches the machine off, so that its disk can be looked at.
    pub(crate) ends_at_reset: bool,
    /// Where logs go.
    pub(crate) logs: PathBuf,
}

/// A machine could not be started or did not do what was waited for.
#[derive(Debug, Error)]
pub(crate) enum GuestError {
    /// QEMU did not start.
    #[error("cannot start {program} for {name}")]
    Start {
        /// The emulator.
        program: &'static str,
        /// Name of the machine.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// QEMU started and gave up; what it said follows.
    #[error("{program} for {name} ended at once: {said}")]
    EndedAtOnce {
        /// The emulator.
        program: &'static str,
        /// Name of the machine.
        name: String,
        /// QEMU's own words.
        said: String,
    },
    /// The machine is still on.
    #[error("{name} is still on after {allowed}")]
    StillOn {
        /// Name of the machine.
        name: String,
        /// How long was waited.
        allowed: String,
    },
    /// Its kernel died.
    #[error("the kernel of {name} died: {line}")]
    Panicked {
        /// Name of the machine.
        name: String,
        /// The line that says so.
        line: String,
    },
    /// A wait on the console failed.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A command to QEMU failed.
    #[error("cannot control {name}")]
    Control {
        /// Name of the machine.
        name: String,
        /// Why not.
        source: QmpError,
    },
}

/// A running machine. Dropping it cuts its power.
#[derive(Debug)]
pub(crate) struct Guest {
    program: &'static str,
    name: String,
    qemu: Child,
    console: Console,
    qmp: Qmp,
    ends_at_reset: bool,
    /// How far the console was searched for a panic.
    examined: usize,
    resets: u32,
    // Holds the sockets; removed with the machine.
    _runtime: tempfile::TempDir,
}

impl Guest {
    /// Switches a machine on.
    pub(crate) fn start(config: &GuestConfig) -> Result<Self, GuestError> {
        let program = program(config.firmware.architecture());
        let start = |source| GuestError::Start {
            program,
            name: config.name.clone(),
            source,
        };
        // Socket paths are limited to 107 bytes: they live in the temporary directory.
        let runtime = tempfile::Builder::new()
            .prefix("lab-")
            .tempdir()
            .map_err(start)?;
        let console_socket = runtime.path().join("console");
        let control_socket = runtime.path().join("control");
        let log = config.logs.join(format!("{}.console.log", config.name));
        let console = Console::listen(&config.name, &console_socket, &log).map_err(start)?;
        let control = UnixListener::bind(&control_socket).map_err(start)?;
        let words = config.logs.join(format!("{}.qemu.log", config.name));
        let errors = File::create(&words).map_err(start)?;

        let arguments = arguments(config, &console_socket, &control_socket);
        log::debug!("{program} {}", arguments.join(" "));
        let mut qemu = emulator(config)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(start)?;
        match wait_for_control(&control, &mut qemu) {
            Some(qmp) => Ok(Self {
                program,
                name: config.name.clone(),
                qemu,
                console,
                ends_at_reset: config.ends_at_reset,
                examined: 0,
                resets: 0,
                qmp: qmp.map_err(|source| GuestError::Control {
                    name: config.name.clone(),
                    source,
                })?,
                _runtime: runtime,
            }),
            None => Err(GuestError::EndedAtOnce {
                program,
                name: config.name.clone(),
                said: std::fs::read_to_string(&words)
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
            }),
        }
    }

    /// The machine's serial console.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// Whether the machine has power: it has not switched itself off and QEMU has not ended.
    pub(crate) fn is_on(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// Waits for words on the console; a dead kernel ends the wait.
    pub(crate) fn wait_for(
        &mut self,
        words: &str,
        deadline: Deadline,
    ) -> Result<String, GuestError> {
        loop {
            let sighting = self.console.wait_for_any(&[words, PANIC], deadline)?;
            if sighting.which == 0 {
                return Ok(sighting.line);
            }
            // The rest of the line is on its way.
            std::thread::sleep(TICK);
            self.check_for_panic()?;
        }
    }

    /// Fails when the kernel died. A death that only a busy host explains is answered with a reset.
    pub(crate) fn check_for_panic(&mut self) -> Result<(), GuestError> {
        let Some(end) = self.console.find_after(self.examined, PANIC) else {
            return Ok(());
        };
        // The reason stands behind the words.
        let line = self.console.line_at(end);
        self.examined = end;
        if !line.contains(STARVED) || self.resets == MOST_RESETS {
            return Err(GuestError::Panicked {
                name: self.name.clone(),
                line,
            });
        }
        self.resets += 1;
        log::warn!(
            "{}: the emulated timer stood still on this busy computer; reset",
            self.name
        );
        self.control("set-action", json!({ "reboot": "reset" }))?;
        self.control("system_reset", json!({}))?;
        let action = if self.ends_at_reset {
            "shutdown"
        } else {
            "reset"
        };
        self.control("set-action", json!({ "reboot": action }))
    }

    /// Pulls out a disk, counted from 0 in the order of the configuration; its system is asked to let it go.
    pub(crate) fn pull_disk(&mut self, index: usize) -> Result<(), GuestError> {
        self.control("device_del", json!({ "id": format!("disk{index}") }))
    }

    /// Saves what the screen shows, as a PPM picture.
    pub(crate) fn screenshot(&mut self, path: &Path) -> Result<(), GuestError> {
        self.control("screendump", json!({ "filename": path }))
    }

    /// Pulls the plug: nothing in the machine gets to know.
    pub(crate) fn cut_power(mut self) {
        self.kill();
    }

    /// Waits until the machine has switched itself off.
    pub(crate) fn wait_until_off(mut self, deadline: Deadline) -> Result<ExitStatus, GuestError> {
        loop {
            match self.qemu.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(source) => {
                    return Err(GuestError::Start {
                        program: self.program,
                        name: self.name.clone(),
                        source,
                    });
                }
            }
            if deadline.remaining().is_none() {
                return Err(GuestError::StillOn {
                    name: self.name.clone(),
                    allowed: deadline.to_string(),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    fn control(&mut self, command: &str, arguments: serde_json::Value) -> Result<(), GuestError> {
        let result = self.qmp.execute(command, arguments);
        result.map(|_| ()).map_err(|source| GuestError::Control {
            name: self.name.clone(),
            source,
        })
    }

    fn kill(&mut self) {
        // Both fail only when QEMU has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for QEMU's control connection; `None` when the process ended instead.
fn wait_for_control(listener: &UnixListener, qemu: &mut Child) -> Option<Result<Qmp, QmpError>> {
    if let Err(error) = listener.set_nonblocking(true) {
        return Some(Err(error.into()));
    }
    let deadline = Deadline::seconds(60);
    loop {
        match Qmp::accept(listener) {
            Err(QmpError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return Some(result),
        }
        if matches!(qemu.try_wait(), Ok(Some(_))) {
            return None;
        }
        if deadline.remaining().is_none() {
            return Some(Err(
                std::io::Error::from(std::io::ErrorKind::TimedOut).into()
            ));
        }
        std::thread::sleep(TICK);
    }
}

/// QEMU, where the machine's network card finds its cable.
fn emulator(config: &GuestConfig) -> Command {
    let program = program(config.firmware.architecture());
    let qemu = match config.network.as_ref().map(|card| &card.attachment) {
        Some(Attachment::Tap(tap)) => tap.place.command(program),
        Some(Attachment::SwitchPort(_)) | None => Command::new(program),
    };
    tool::bound_to_us(&qemu)
}

/// The emulator of an architecture. Debian's package of the one for Arm is `qemu-system-arm`.
fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86 => "qemu-system-x86_64",
        Architecture::Arm64 => "qemu-system-aarch64",
    }
}

fn arguments(config: &GuestConfig, console: &Path, control: &Path) -> Vec<String> {
    let mut arguments = config.firmware.arguments();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-name", &config.name, "-accel", "tcg"]);
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    // The machine `virt` has no place for a VGA card.
    if config.firmware.architecture() == Architecture::X86 {
        add(&["-vga", "std"]);
    }
    add(&[
        "-m",
        &config.memory_mib.to_string(),
        "-smp",
        &config.cpus.to_string(),
    ]);
    add(&["-device", "virtio-rng-pci", "-rtc", "base=utc"]);
    add(&[
        "-chardev",
        &format!("socket,id=console,path={}", console.display()),
        "-serial",
        "chardev:console",
    ]);
    add(&[
        "-chardev",
        &format!("socket,id=control,path={}", control.display()),
    ]);
    add(&["-mon", "chardev=control,mode=control"]);
    if config.ends_at_reset {
        add(&["-no-reboot"]);
    }
    if let Some(kernel) = &config.kernel {
        add(&["-kernel", &kernel.kernel.display().to_string()]);
        add(&[
            "-initrd",
            &kernel.initrd.display().to_string(),
            "-append",
            &kernel.command_line,
        ]);
    }
    if let Some(identity) = &config.identity {
        let Identity {
            manufacturer,
            product,
            serial,
            uuid,
        } = identity;
        add(&[
            "-smbios",
            &format!(
                "type=1,manufacturer={manufacturer},product={product},serial={serial},uuid={uuid}"
            ),
        ]);
    }
    if let Some(card) = &config.network {
        let mac = card.mac.map(|octet| format!("{octet:02x}")).join(":");
        // Without its ROM a virtio card is driven by OVMF's own network stack. OVMF has no driver for others.
        let own_driver = card.model.starts_with("virtio-net");
        let rom = if own_driver && matches!(config.firmware, Firmware::Uefi(_)) {
            ",romfile="
        } else {
            ""
        };
        let place = if config.network_first {
            0
        } else {
            config.disks.len() + 1
        };
        add(&["-netdev", &card.attachment.netdev()]);
        add(&[
            "-device",
            &format!("{},netdev=n0,mac={mac},bootindex={place}{rom}", card.model),
        ]);
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let image = disk.image.display();
        // cache=unsafe: a power cut kills QEMU, not this computer, so its page cache keeps what was written.
        add(&[
            "-drive",
            &format!(
                "file={image},if=none,id=d{index},format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap"
            ),
        ]);
        let device = match disk.bus {
            DiskBus::Virtio => "virtio-blk-pci".to_owned(),
            DiskBus::Nvme => "nvme".to_owned(),
            DiskBus::Ahci => {
                add(&["-device", &format!("ahci,id=ahci{index}")]);
                format!("ide-hd,bus=ahci{index}.0")
            }
        };
        let (serial, order) = (&disk.serial, index + 1);
        let sectors = if disk.large_sectors {
            ",logical_block_size=4096,physical_block_size=4096"
        } else {
            ""
        };
        add(&[
            "-device",
            &format!(
                "{device},id=disk{index},drive=d{index},serial={serial},bootindex={order}{sectors}"
            ),
        ]);
    }
    arguments
}
