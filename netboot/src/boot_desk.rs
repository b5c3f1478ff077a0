//! Where firmware's and loaders' questions are answered: which file first, what to boot, is there
//! such a file. DHCP, proxy, TFTP and HTTP all ask here.
//!
//! Invariants: DHCP's question waits for nothing, so a machine's state is looked up when it asks for
//! its loader, not when it is told the loader's name. What is remembered of machines is bounded.
//!
//! Not here: the rules (`dhcp::boot_table`, `boot_policy`), sockets and routes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use protocol::{
    api::{LoaderState, LoaderView},
    dhcp::MacAddress,
};
use uuid::Uuid;

use crate::{
    boot_catalogue::BootCatalogue,
    boot_content::Content,
    boot_policy::{
        AtBoot, BootDecision, BootPolicy, MachineDirectory, decide, grub_config, is_sent,
        tftp_name::{self, Asked, Wanted},
    },
    dhcp::boot_table::{
        self, BootRequest, Circumstances, Firmware, FirstFile, FirstFiles, NoFirstFile, Role,
    },
    flight_recorder::{Decided, Fact, FlightRecorder, Over},
};

/// The iPXE that replaces a BIOS card's own.
pub(crate) const UNDIONLY: &str = "undionly.kpxe";
/// How long after that one was fetched an iPXE of the same machine is taken for it. It asks for an
/// address 2 to 3 s later, and some seconds more where a link comes up slowly.
const CHAINLOADED: Duration = Duration::from_secs(120);
/// Machines of which that is remembered.
const MAX_CHAINLOADED: usize = 4096;

/// What the desk goes by.
pub(crate) struct BootDesk {
    /// The boot folder.
    pub(crate) catalogue: Arc<BootCatalogue>,
    /// The machines.
    pub(crate) directory: Arc<dyn MachineDirectory>,
    /// The time lines.
    pub(crate) recorder: Arc<FlightRecorder>,
    /// What operators set.
    pub(crate) policy: BootPolicy,
    /// Port of our HTTP server as machines see it.
    pub(crate) http_port: u16,
    /// When a machine was sent [`UNDIONLY`] whole.
    pub(crate) chainloaded: Chainloaded,
}

/// Machines whose next iPXE is the one that they were sent.
#[derive(Default)]
pub(crate) struct Chainloaded(Mutex<HashMap<MacAddress, Instant>>);

/// Why nothing is sent.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// There is no such file.
    NotHere,
    /// The machine has nothing to do here and is to go on to its local disk.
    LocalDisk,
    /// The file cannot be read.
    Unreadable(io::Error),
}

impl BootDesk {
    /// What a machine boots now. May wait for the disk.
    pub(crate) fn decision(&self, mac: MacAddress, uuid: Option<Uuid>) -> BootDecision {
        decide(self.at_boot(mac, uuid), &self.policy)
    }

    fn at_boot(&self, mac: MacAddress, uuid: Option<Uuid>) -> AtBoot {
        self.directory.at_boot(mac, uuid)
    }

    /// Takes note that a machine was told what to boot. May wait for the disk.
    pub(crate) fn told(
        &self,
        over: Over,
        mac: MacAddress,
        uuid: Option<Uuid>,
        decision: BootDecision,
    ) {
        let boots = match decision {
            BootDecision::Recovery => Decided::Recovery,
            BootDecision::LocalDisk => Decided::LocalDisk,
            BootDecision::Menu(_) => Decided::Menu,
        };
        self.recorder.record(mac, Fact::Told { over, boots });
        self.directory.told(mac, uuid, decision);
    }

    /// Whether a machine is sent this file: loaders are kept from machines that are to start their
    /// local disk, which they are told so. May wait for the disk.
    pub(crate) fn may_have(&self, over: Over, mac: MacAddress, name: &str) -> bool {
        let Some(kind) = boot_table::kind_of(name) else {
            return true;
        };
        let decision = self.decision(mac, None);
        if is_sent(decision, name, kind) {
            return true;
        }
        self.told(over, mac, None, BootDecision::LocalDisk);
        false
    }

    /// What is sent for a name over TFTP. May wait for the disk.
    ///
    /// # Errors
    /// Why nothing is sent.
    pub(crate) fn open(&self, asked: &Asked) -> Result<Content, NotSent> {
        match (&asked.wanted, asked.machine) {
            (Wanted::File(name), Some(mac)) if !self.may_have(Over::Tftp, mac, name) => {
                Err(NotSent::LocalDisk)
            }
            (Wanted::File(name), _) => self.open_file(name),
            (Wanted::MachinesGrubConfig, Some(mac)) => {
                let decision = self.decision(mac, None);
                self.told(Over::Tftp, mac, None, decision);
                let seconds = self.policy.menu_seconds;
                Ok(text(grub_config::of_machine(
                    decision,
                    mac,
                    self.http_port,
                    seconds,
                )))
            }
            // An operator's own configuration is for every machine.
            (Wanted::GrubConfig | Wanted::MachinesGrubConfig, _) => {
                match self.open_file("grub/grub.cfg") {
                    Err(NotSent::NotHere) => Ok(text(grub_config::for_all(self.http_port))),
                    opened => opened,
                }
            }
        }
    }

    fn open_file(&self, name: &str) -> Result<Content, NotSent> {
        let file = self.catalogue.find(name).ok_or(NotSent::NotHere)?;
        self.catalogue.open(&file).map_err(NotSent::Unreadable)
    }

    /// Which firmware gets which loader, as the boot folder is now. Waits for the disk.
    pub(crate) fn loaders(&self) -> Vec<LoaderView> {
        self.catalogue.refresh();
        let uefi = self.policy.loaders.uefi;
        let exists = |name: &str| self.catalogue.has(name);
        let mut views = Vec::new();
        for firmware in boot_table::firmwares() {
            let Firmware(architectures, protocol) = firmware;
            let Some(&architecture) = architectures.first() else {
                continue;
            };
            let rungs = |role| boot_table::ladder(architecture, protocol, role, uefi);
            let chosen = |role| boot_table::choose(&rungs(role), &exists, &[]);
            for rung in rungs(Role::Server) {
                let missing: Vec<_> = rung.missing(&exists).map(str::to_owned).collect();
                let state = |role| match chosen(role) {
                    _ if !missing.is_empty() => LoaderState::Missing,
                    Some(served) if served == rung => LoaderState::Served,
                    _ => LoaderState::There,
                };
                views.push(LoaderView {
                    firmware: architecture.name().to_owned(),
                    architectures: architectures.iter().map(|code| code.0).collect(),
                    protocol: boot_table::transport(protocol).to_owned(),
                    loader: rung.loader.to_owned(),
                    kind: rung.kind.word().to_owned(),
                    server: state(Role::Server),
                    proxy: state(Role::Proxy),
                    missing,
                });
            }
        }
        views
    }

    /// A machine fetched a file of the boot folder whole.
    pub(crate) fn fetched(&self, mac: MacAddress, name: &str) {
        if name == UNDIONLY {
            self.chainloaded.insert(mac, Instant::now());
        }
    }
}

fn text(text: String) -> Content {
    Content::Memory(text.into())
}

impl FirstFiles for BootDesk {
    fn first_file(&self, request: &BootRequest) -> Result<FirstFile, NoFirstFile> {
        let refused = self.recorder.abandoned_loaders(request.mac);
        let known = Circumstances {
            choice: self.policy.loaders,
            exists: &|name| self.catalogue.has(name),
            refused: &refused,
            chainloaded: self.chainloaded.contains(request.mac, Instant::now()),
        };
        let first = boot_table::first_file(&request.client, request.role, &known)?;
        Ok(match first {
            FirstFile::Tftp(loader) => FirstFile::Tftp(tftp_name::of_loader(request.mac, &loader)),
            other => other,
        })
    }
}

impl Chainloaded {
    fn insert(&self, mac: MacAddress, now: Instant) {
        let mut machines = self.lock();
        if machines.len() >= MAX_CHAINLOADED {
            machines.retain(|_, at| now.duration_since(*at) < CHAINLOADED);
        }
        if machines.len() < MAX_CHAINLOADED {
            machines.insert(mac, now);
        }
    }

    fn contains(&self, mac: MacAddress, now: Instant) -> bool {
        self.lock()
            .get(&mac)
            .is_some_and(|at| now.saturating_duration_since(*at) < CHAINLOADED)
    }

    /// It asked for its script: the next iPXE of this machine is its card's again.
    pub(crate) fn went_on(&self, mac: MacAddress) {
        self.lock().remove(&mac);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MacAddress, Instant>> {
        // Each change is one insertion or removal: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
