//! The running server: opens its doors, gives each protocol its own, and waits for the end.
//!
//! Not here: what is checked before (`serve`, `links`), how a socket is opened (`sockets`).

use std::{
    fs, io,
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixListener,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    thread,
};

use async_channel::{Receiver, Sender};
use async_signal::{Signal, Signals};
use futures_lite::StreamExt;
use ipnet::Ipv4Net;
use smol::{Async, Executor, Task};

use super::{
    ServeError,
    links::Link,
    roles::{self, Chosen, Role},
    watch::{self, Board, Watched},
};
use crate::{
    boot_catalogue::BootCatalogue,
    boot_desk::{BootDesk, Chainloaded},
    boot_policy::{INITRAMFS, KERNEL},
    config::{Config, Dhcp},
    dhcp::{
        boot_table::FirstFiles,
        lease_store::{self, LeaseStore, SqliteLeases},
        proxy::{BOOT_SERVER_PORT, Door, ProxySettings, WayPolicy},
        proxy_service::ProxyService,
        server::{DhcpServer, Settings},
        service::DhcpService,
    },
    flight_recorder::FlightRecorder,
    http::{
        Recovery, agent_api, boot_api, boot_files, boot_files::BootFiles, import_api, operator_api,
        server, silent_jobs, upkeep_api,
    },
    sockets::{self, DhcpSocket, OpenError, ProxySocket},
    store::DataLock,
    tftp::{server::TftpServer, transfer::Limits},
};

/// Threads for everything but DHCP and TFTP; they wait for the network, not for the processor.
const THREADS: usize = 2;
/// Largest TFTP window: what a small switch port can queue.
const TFTP_WINDOW: u16 = 64;

/// Serves until a signal comes or a part of the server dies.
///
/// # Errors
/// Whatever cannot be opened, or died.
pub(super) fn serve(
    config: &Config,
    links: &[Link],
    mut settings: Settings,
) -> Result<(), ServeError> {
    raise_file_limit();
    // Held to the end: one server on a data directory.
    let _lock = DataLock::take(&config.data_dir)?;
    // Before our own sockets are open: a server on this machine is found by the port it has.
    let chosen = roles::choose(config, links, &settings)?;
    let doors = Doors::open(config, links, &chosen)?;
    let ready = doors.ready_line(links, &chosen);
    let board = Arc::new(Board::new(links, &chosen));
    let http_port = config.advertised_port.unwrap_or(doors.http_port());
    for subnet in &mut settings.subnets {
        subnet.http_port = http_port;
    }
    let own_address = links[0].address;
    let address = settings
        .subnets
        .first()
        .map_or(own_address, |subnet| subnet.server);

    let state = config.data_dir.join("state.sqlite");
    let catalogue = Arc::new(BootCatalogue::read(&config.boot_files, &config.loaders)?);
    warn_of_missing_files(config, &catalogue);
    let recorder = Arc::new(FlightRecorder::open(&state)?);
    let recovery = Arc::new(Recovery::open(&config.data_dir, Arc::clone(&recorder))?);
    let desk = Arc::new(BootDesk {
        catalogue,
        directory: Arc::clone(&recovery) as _,
        recorder: Arc::clone(&recorder),
        policy: config.boot,
        http_port,
        chainloaded: Chainloaded::default(),
    });
    let boot = Arc::new(BootFiles {
        desk: Arc::clone(&desk),
        recorder: Arc::clone(&recorder),
        fallback_url: format!("http://{address}:{http_port}"),
    });

    let parts = Parts::new();
    let (stop, stopped) = server::stop_channel();
    let mut stopping = Vec::new();
    let machines = boot_files::router(boot).merge(agent_api::router(Arc::clone(&recovery)));
    for listener in doors.http {
        let (router, pool) = (machines.clone(), Arc::clone(&parts.executor));
        let task = server::serve(listener, router, pool, stopped.clone());
        stopping.push(parts.start("the HTTP server", task));
    }
    let operators = operator_api::router(Arc::clone(&recovery))
        .merge(upkeep_api::router(Arc::clone(&recovery), config.retention))
        .merge(import_api::router(Arc::clone(&recovery)))
        .merge(boot_api::router(Arc::clone(&recovery), Arc::clone(&desk)))
        .merge(watch::router(Arc::clone(&board)));
    let (router, pool) = (operators, Arc::clone(&parts.executor));
    let task = server::serve(doors.control, router, pool, stopped);
    stopping.push(parts.start("the control socket", task));
    let task = silent_jobs::watch(recovery);
    parts.start("the search for silent jobs", task).detach();
    let limits = Limits {
        block_size: config.tftp_block_size,
        window: TFTP_WINDOW,
    };
    let tftp = TftpServer::new(Arc::clone(&desk), Arc::clone(&recorder), limits);
    let (tftp, sockets) = (Arc::new(tftp), doors.tftp);
    parts.start_thread("the TFTP server", async move { tftp.run(sockets) })?;
    for proxy in doors.proxies {
        let settings = ProxySettings {
            addresses: proxy.addresses,
            http_port,
            ways: proxy.ways,
        };
        let files = Arc::clone(&desk) as Arc<dyn FirstFiles>;
        let service = Arc::new(ProxyService::new(settings, files, Arc::clone(&recorder)));
        for (door, socket) in proxy.sockets {
            let task = Arc::clone(&service).run(door, socket);
            parts.start("the proxyDHCP server", task).detach();
        }
    }
    for (index, (link, chosen)) in links.iter().zip(chosen).enumerate() {
        if let (Some(interface), true) = (link.ethernet(), chosen.role != Role::Off) {
            let watched = Watched {
                index,
                interface: interface.clone(),
                chosen,
            };
            let task = watch::watch(watched, Arc::clone(&board));
            parts
                .start("the search for other DHCP servers", task)
                .detach();
        }
    }
    if !doors.dhcp.is_empty() {
        let mut store = SqliteLeases::open(&config.data_dir.join(lease_store::FILE))?;
        store.take_over(&state)?;
        let leases = store.load()?;
        for lease in &leases {
            recorder.granted(lease.mac, lease.address);
        }
        let server = DhcpServer::new(settings, leases);
        let (service, granted) = DhcpService::new(server, desk, recorder);
        let service = Arc::new(service);
        let saving = Arc::clone(&service).save_and_answer(granted, Box::new(store));
        parts.start_thread("saving leases", saving)?;
        for socket in doors.dhcp.into_iter().map(Arc::new) {
            let watch = Arc::clone(&service).watch_addresses(Arc::clone(&socket));
            parts
                .start("the watch over addresses in use", watch)
                .detach();
            parts.start_thread("the DHCP server", Arc::clone(&service).run(socket))?;
        }
    }
    let signals =
        Signals::new([Signal::Term, Signal::Int]).map_err(|source| ServeError::System {
            what: "listening for signals",
            source,
        })?;
    parts.start_workers()?;
    eprintln!("{ready}");
    let ended = smol::block_on(async {
        let ended = smol::future::or(wait_for(signals), parts.death()).await;
        // Answers that are being given are given to their end, for some seconds.
        drop(stop);
        for task in stopping {
            task.fallible().await;
        }
        ended
    });
    let _ = fs::remove_file(control_path(config));
    ended
}

/// Every socket of the server, open.
struct Doors {
    control: Async<UnixListener>,
    http: Vec<Async<TcpListener>>,
    tftp: Vec<UdpSocket>,
    dhcp: Vec<DhcpSocket>,
    proxies: Vec<ProxyDoors>,
}

/// The proxy's sockets on one link.
struct ProxyDoors {
    addresses: Vec<Ipv4Net>,
    ways: WayPolicy,
    sockets: [(Door, ProxySocket); 2],
}

impl Doors {
    fn open(config: &Config, links: &[Link], chosen: &[Chosen]) -> Result<Self, OpenError> {
        let with_role = |role| {
            let pairs = links.iter().zip(chosen);
            pairs.filter_map(move |(link, chosen)| {
                let dhcp = config.dhcp.as_ref()?;
                (chosen.role == role).then_some((link, dhcp))
            })
        };
        let server = |(link, dhcp): (&Link, &Dhcp)| match &link.interface {
            Some(interface) => DhcpSocket::on_interface(interface, dhcp.port),
            None => DhcpSocket::on_address(link.address, dhcp.port),
        };
        // A machine may be told any address of its interface.
        let each = || {
            links
                .iter()
                .flat_map(|link| link.networks().map(|own| own.addr()))
        };
        Ok(Self {
            control: sockets::control(&control_path(config))?,
            http: each()
                .map(|address| sockets::http(address, config.http_port))
                .collect::<Result<_, _>>()?,
            tftp: each()
                .map(|address| sockets::tftp(address, config.tftp_port))
                .collect::<Result<_, _>>()?,
            dhcp: with_role(Role::Server)
                .map(server)
                .collect::<Result<_, _>>()?,
            proxies: with_role(Role::Proxy)
                .map(|(link, dhcp)| ProxyDoors::open(link, dhcp))
                .collect::<Result<_, _>>()?,
        })
    }

    fn http_port(&self) -> u16 {
        let first = self.http.first();
        first
            .and_then(|listener| listener.get_ref().local_addr().ok())
            .map_or(0, |address| address.port())
    }

    fn ready_line(&self, links: &[Link], chosen: &[Chosen]) -> String {
        let pairs = links.iter().zip(chosen);
        let names: Vec<_> = pairs
            .map(|(link, chosen)| format!("{} {}", link.name(), chosen.words))
            .collect();
        let proxied = || self.proxies.first().map(|proxy| proxy.sockets[0].1.port());
        let dhcp = self.dhcp.first().map(DhcpSocket::port).or_else(proxied);
        let dhcp = dhcp.map_or("off".to_owned(), |port| port.to_string());
        let tftp = self.tftp.first();
        let tftp = tftp
            .and_then(|socket| socket.local_addr().ok())
            .map_or(0, |address| address.port());
        let http = self.http_port();
        format!(
            "netboot: serving on {}: dhcp {dhcp}, tftp {tftp}, http {http}",
            names.join(", ")
        )
    }
}

impl ProxyDoors {
    fn open(link: &Link, dhcp: &Dhcp) -> Result<Self, OpenError> {
        let (servers, boot_servers) = match &link.interface {
            Some(interface) => (
                ProxySocket::servers_port(interface, dhcp.port)?,
                ProxySocket::boot_servers_port(interface)?,
            ),
            None => (
                ProxySocket::on_address(link.address, dhcp.port)?,
                ProxySocket::on_address(link.address, BOOT_SERVER_PORT)?,
            ),
        };
        Ok(Self {
            addresses: link.networks().collect(),
            ways: dhcp.ways.clone(),
            sockets: [(Door::Servers, servers), (Door::BootServers, boot_servers)],
        })
    }
}

fn control_path(config: &Config) -> PathBuf {
    config.data_dir.join("control.sock")
}

fn warn_of_missing_files(config: &Config, catalogue: &BootCatalogue) {
    for name in [KERNEL, INITRAMFS] {
        if !catalogue.has(name) {
            let folder = config.boot_files.display();
            log::warn!("{name} is not in {folder}: no machine can be restored");
        }
    }
}

/// The parts of the server at work, and how it is learnt that one of them died.
struct Parts {
    executor: Arc<Executor<'static>>,
    died: Sender<ServeError>,
    deaths: Receiver<ServeError>,
}

impl Parts {
    fn new() -> Self {
        let (died, deaths) = async_channel::unbounded();
        Self {
            executor: Arc::new(Executor::new()),
            died,
            deaths,
        }
    }

    fn start(
        &self,
        what: &'static str,
        task: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> Task<()> {
        self.executor.spawn(self.watch(what, Box::pin(task)))
    }

    /// On a thread of its own, for a part that waits for the disk.
    fn start_thread(
        &self,
        what: &'static str,
        task: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> Result<(), ServeError> {
        let task = self.watch(what, Box::pin(task));
        spawn_thread(move || smol::block_on(task))
    }

    fn start_workers(&self) -> Result<(), ServeError> {
        for _ in 0..THREADS {
            let executor = Arc::clone(&self.executor);
            spawn_thread(move || {
                let work = || smol::block_on(executor.run(std::future::pending::<()>()));
                // One request's bug ends that request; the thread goes on with the others.
                while catch_unwind(AssertUnwindSafe(work)).is_err() {}
            })?;
        }
        Ok(())
    }

    fn watch(
        &self,
        what: &'static str,
        task: Pin<Box<dyn Future<Output = io::Result<()>> + Send>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let watch = Watch {
            what,
            died: self.died.clone(),
        };
        async move {
            if let Err(source) = task.await {
                watch.tell(source);
            }
        }
    }

    async fn death(&self) -> Result<(), ServeError> {
        match self.deaths.recv().await {
            Ok(error) => Err(error),
            Err(_) => Ok(()),
        }
    }
}

/// Tells of a part's death, by an error or by a panic: a server without its DHCP must not look
/// like one that serves.
struct Watch {
    what: &'static str,
    died: Sender<ServeError>,
}

impl Watch {
    fn tell(&self, source: io::Error) {
        let what = self.what;
        // Without a receiver the server is ending already.
        let _ = self.died.try_send(ServeError::System { what, source });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell(io::Error::other(
                "it panicked; the message above says where",
            ));
        }
    }
}

fn spawn_thread(run: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    let started = thread::Builder::new().name("serve".into()).spawn(run);
    started.map(drop).map_err(|source| ServeError::System {
        what: "starting a thread",
        source,
    })
}

async fn wait_for(mut signals: Signals) -> Result<(), ServeError> {
    let signal = signals.next().await;
    log::info!(
        "stopping: {}",
        match signal {
            Some(Ok(Signal::Int)) => "interrupted",
            _ => "told to end",
        }
    );
    Ok(())
}

/// Each transfer and connection is a file descriptor; the usual soft limit of 1024 is less than a
/// room of machines.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(65_536).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_panics_is_known_and_the_others_go_on() {
        let parts = Parts::new();
        parts
            .start("the part", async { panic!("expected by this test") })
            .detach();
        parts.start_workers().expect("threads");
        let death = smol::block_on(parts.death()).expect_err("a death");
        assert_eq!(death.to_string(), "the part failed");
        let alive = parts.executor.spawn(async { 7 });
        assert_eq!(smol::block_on(alive), 7);
    }
}
