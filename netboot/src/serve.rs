//! `netboot serve`: from a checked configuration to a running server, and its end.
//!
//! Order: configuration, folders, database, sockets, then threads. Whatever cannot be had ends the
//! start with one sentence, before anything is answered.
//!
//! Not here: protocols; each has its own module and gets its socket from here.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use async_signal::{Signal, Signals};
use futures_lite::StreamExt;
use ipnet::Ipv4Net;
use smol::Executor;

use crate::{
    boot_catalogue::{BootCatalogue, CatalogueError},
    boot_policy::{INITRAMFS, KERNEL, MachineDirectory},
    cli::{ExitCode, Place, ServeArgs},
    config::{Config, ConfigError, DEFAULT_DATA_DIR, Listen, SubnetConfig, is_within},
    dhcp::{
        lease_store::{LeaseStore, LeaseStoreError, SqliteLeases},
        server::{DhcpServer, Settings, Subnet},
        service::DhcpService,
    },
    flight_recorder::{FlightRecorder, RecorderError},
    http::{
        Recovery, RecoveryError, agent_api, boot_files, boot_files::BootFiles, operator_api, server,
    },
    sockets::{self, DhcpSocket, Interface, OpenError},
    store::{DataLock, StoreError},
    tftp::{server::TftpServer, transfer::Limits},
};

/// Threads for everything but DHCP; transfers wait for the network, not for the processor.
const THREADS: usize = 2;
/// Largest TFTP window: what a small switch port can queue.
const TFTP_WINDOW: u16 = 64;

/// Why the server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The boot folder.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The leases.
    #[error(transparent)]
    Leases(#[from] LeaseStoreError),
    /// The flight recorder.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// The data directory cannot be locked.
    #[error(transparent)]
    Lock(#[from] StoreError),
    /// Store or state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The data directory is not there.
    #[error(
        "the data directory {} does not exist: make it, or start with --create", .0.display()
    )]
    NoDataDir(PathBuf),
    /// The boot folder is not there.
    #[error(
        "the folder of boot files {} does not exist: make the boot files with the initramfs \
         command, or name their folder with --boot-files", .0.display()
    )]
    NoBootFiles(PathBuf),
    /// A folder cannot be made or written.
    #[error(
        "the data directory {} cannot be written: start netboot as a user who may, or name \
         another one with --data-dir", .path.display()
    )]
    NotWritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Threads, signals, or a socket that died.
    #[error("{what} failed")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The exit code that fits an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        None => ExitCode::Failure,
        Some(ServeError::Config(_)) => ExitCode::Config,
        Some(ServeError::NoDataDir(_) | ServeError::NoBootFiles(_)) => ExitCode::Missing,
        Some(ServeError::Open(error)) => match error {
            OpenError::PortTaken { .. } | OpenError::AlreadyServing(_) => ExitCode::Unavailable,
            OpenError::NoRights { .. } => ExitCode::NoRights,
            OpenError::NoSuchAddress { .. }
            | OpenError::NoSuchInterface { .. }
            | OpenError::NoAddress { .. } => ExitCode::Config,
            OpenError::System { .. } => ExitCode::System,
        },
        Some(ServeError::Lock(StoreError::InUse { .. })) => ExitCode::Unavailable,
        Some(ServeError::NotWritable { .. }) => ExitCode::NoRights,
        Some(_) => ExitCode::System,
    }
}

/// Runs `netboot serve` until a signal ends it.
pub(crate) fn run(args: &ServeArgs, place: Place) -> Result<(), anyhow::Error> {
    let overrides = args.overrides(place.data_dir);
    let config = Config::load(place.config.as_deref(), overrides).map_err(ServeError::from)?;
    let links = links(&config)?;
    let settings = settings(&config, &links)?;
    if args.check {
        eprintln!("netboot: the configuration is right");
        return Ok(());
    }
    prepare_folders(&config, args.create)?;
    Ok(serve(&config, &links, settings)?)
}

/// A link to serve: an interface, or the lab's address.
struct Link {
    interface: Option<Interface>,
    address: Ipv4Addr,
}

impl Link {
    fn name(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{} ({})", interface.name, self.address),
            None => self.address.to_string(),
        }
    }
}

fn links(config: &Config) -> Result<Vec<Link>, ServeError> {
    match &config.listen {
        Listen::Address(address) => Ok(vec![Link {
            interface: None,
            address: *address,
        }]),
        Listen::Interfaces(names) => names
            .iter()
            .map(|name| {
                let interface = sockets::interface(name)?;
                let address = interface
                    .addresses
                    .first()
                    .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Net::addr);
                Ok(Link {
                    interface: Some(interface),
                    address,
                })
            })
            .collect(),
    }
}

/// The DHCP server's settings, every subnet with the address its machines reach us at.
fn settings(config: &Config, links: &[Link]) -> Result<Settings, ServeError> {
    let networks = || {
        links.iter().flat_map(|link| {
            let own = Ipv4Net::from(link.address);
            link.interface
                .as_ref()
                .map_or_else(|| vec![own], |known| known.addresses.clone())
        })
    };
    let names = || links.iter().map(Link::name).collect::<Vec<_>>().join(", ");
    let mut subnets = Vec::new();
    for subnet in with_own_network(config, links)? {
        let own = networks()
            .map(|net| net.addr())
            .find(|address| subnet.network.contains(address));
        let server = subnet
            .server
            .or(own)
            .ok_or_else(|| ConfigError::NoServerAddress {
                network: subnet.network,
                interfaces: names(),
            })?;
        subnets.push(Subnet {
            network: subnet.network,
            pool: vec![subnet.pool],
            server,
            router: subnet.router,
            dns: subnet.dns,
            http_port: config.advertised_port.unwrap_or(config.http_port),
        });
    }
    Ok(Settings {
        subnets,
        reservations: config.reservations.clone(),
        lease_seconds: config.dhcp.as_ref().map_or(3600, |dhcp| dhcp.lease_seconds),
    })
}

/// The subnets of the configuration or, without any, the interface's network with `--pool`.
fn with_own_network(config: &Config, links: &[Link]) -> Result<Vec<SubnetConfig>, ServeError> {
    if !config.subnets.is_empty() || config.dhcp.is_none() {
        return Ok(config.subnets.clone());
    }
    let own: Vec<(String, Ipv4Net)> = links
        .iter()
        .filter_map(|link| link.interface.as_ref())
        .flat_map(|known| {
            known
                .addresses
                .iter()
                .map(|network| (known.name.clone(), *network))
        })
        .collect();
    let Some(pool) = &config.pool else {
        let example = own.first().map_or_else(
            || "10.77.0.100-10.77.0.200".to_owned(),
            |(_, network)| example_pool(*network),
        );
        return Err(ConfigError::NoPool { example }.into());
    };
    let text = format!(
        "{}-{}",
        Ipv4Addr::from(*pool.start()),
        Ipv4Addr::from(*pool.end())
    );
    match own.iter().find(|(_, network)| is_within(pool, *network)) {
        Some((_, network)) => Ok(vec![SubnetConfig {
            network: network.trunc(),
            pool: pool.clone(),
            server: Some(network.addr()),
            router: None,
            dns: Vec::new(),
        }]),
        None => match own.into_iter().next() {
            Some((interface, network)) => Err(ConfigError::PoolOutside {
                pool: text,
                network: network.trunc(),
                interface,
            }
            .into()),
            None => Err(ConfigError::NoPool { example: text }.into()),
        },
    }
}

/// The third quarter of a network, to be written into a sentence.
fn example_pool(network: Ipv4Net) -> String {
    let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
    let quarter = (last - first) / 4;
    let (from, to) = (first + 2 * quarter, first + 3 * quarter);
    format!("{}-{}", Ipv4Addr::from(from), Ipv4Addr::from(to))
}

fn prepare_folders(config: &Config, create: bool) -> Result<(), ServeError> {
    let data_dir = &config.data_dir;
    let not_writable = |source| ServeError::NotWritable {
        path: data_dir.clone(),
        source,
    };
    if !data_dir.is_dir() {
        // The package's own place is ours to make; anywhere else, a name that is not there is
        // more likely a disk that is not mounted.
        if !create && data_dir != Path::new(DEFAULT_DATA_DIR) {
            return Err(ServeError::NoDataDir(data_dir.clone()));
        }
        fs::create_dir_all(data_dir).map_err(not_writable)?;
    }
    let probe = data_dir.join(".netboot-may-write");
    fs::write(&probe, [])
        .and_then(|()| fs::remove_file(&probe))
        .map_err(not_writable)?;
    if config.boot_files.is_dir() {
        Ok(())
    } else {
        Err(ServeError::NoBootFiles(config.boot_files.clone()))
    }
}

fn serve(config: &Config, links: &[Link], mut settings: Settings) -> Result<(), ServeError> {
    raise_file_limit();
    // Held to the end: one server on a data directory.
    let _lock = DataLock::take(&config.data_dir)?;
    let state = config.data_dir.join("state.sqlite");
    let control_path = config.data_dir.join("control.sock");
    let control = sockets::control(&control_path)?;
    let catalogue = Arc::new(BootCatalogue::read(&config.boot_files, &config.loaders)?);
    for name in [KERNEL, INITRAMFS] {
        if !catalogue.has(name) {
            log::warn!(
                "{name} is not in {}: no machine can be restored",
                config.boot_files.display()
            );
        }
    }
    let recorder = Arc::new(FlightRecorder::open(&state)?);
    let recovery = Arc::new(Recovery::open(&config.data_dir, Arc::clone(&recorder))?);

    let http = open_each(links, |link| sockets::http(link.address, config.http_port))?;
    let tftp = open_each(links, |link| sockets::tftp(link.address, config.tftp_port))?;
    let dhcp = match &config.dhcp {
        None => Vec::new(),
        Some(dhcp) => open_each(links, |link| match &link.interface {
            Some(interface) => DhcpSocket::on_interface(interface, dhcp.port),
            None => DhcpSocket::on_address(link.address, dhcp.port),
        })?,
    };
    let http_port = http
        .first()
        .and_then(|listener| listener.get_ref().local_addr().ok())
        .map_or(config.http_port, |address| address.port());
    let advertised = config.advertised_port.unwrap_or(http_port);
    for subnet in &mut settings.subnets {
        subnet.http_port = advertised;
    }
    let ready = ready_line(links, &dhcp, &tftp, http_port);
    let server_address = settings
        .subnets
        .first()
        .map_or(links[0].address, |subnet| subnet.server);

    let directory: Arc<dyn MachineDirectory> = Arc::clone(&recovery) as _;
    let boot = Arc::new(BootFiles {
        catalogue: Arc::clone(&catalogue),
        directory,
        unknown: config.unknown_machines,
        recorder: Arc::clone(&recorder),
        fallback_url: format!("http://{server_address}:{advertised}"),
    });
    let machines = boot_files::router(boot).merge(agent_api::router(Arc::clone(&recovery)));
    let operators = operator_api::router(recovery);

    let executor: Arc<Executor<'static>> = Arc::new(Executor::new());
    let (died, deaths) = async_channel::unbounded();
    let watch = |what: &'static str, task: BoxedTask| {
        let died = died.clone();
        async move {
            if let Err(source) = task.await {
                // The receiver lives as long as the server.
                let _ = died.send(ServeError::System { what, source }).await;
            }
        }
    };
    let (stop, stopped) = server::stop_channel();
    let mut stopping = Vec::new();
    for listener in http {
        let (router, pool) = (machines.clone(), Arc::clone(&executor));
        let task = server::serve(listener, router, pool, stopped.clone());
        stopping.push(executor.spawn(watch("the HTTP server", Box::pin(task))));
    }
    let task = server::serve(control, operators, Arc::clone(&executor), stopped);
    stopping.push(executor.spawn(watch("the control socket", Box::pin(task))));
    let limits = Limits {
        block_size: config.tftp_block_size,
        window: TFTP_WINDOW,
    };
    let transfers = Arc::new(TftpServer::new(
        Arc::clone(&catalogue),
        Arc::clone(&recorder),
        limits,
    ));
    for socket in tftp {
        let task = Arc::clone(&transfers).run(socket, Arc::clone(&executor));
        executor
            .spawn(watch("the TFTP server", Box::pin(task)))
            .detach();
    }
    if !dhcp.is_empty() {
        let mut store = SqliteLeases::open(&state)?;
        let leases = store.load()?;
        for lease in &leases {
            recorder.granted(lease.mac, lease.address);
        }
        let server = DhcpServer::new(settings, leases);
        let service = Arc::new(DhcpService::new(
            server,
            Box::new(store),
            catalogue,
            recorder,
        ));
        for socket in dhcp {
            let task = watch(
                "the DHCP server",
                Box::pin(Arc::clone(&service).run(socket)),
            );
            spawn_thread("dhcp", move || smol::block_on(task))?;
        }
    }
    let signals =
        Signals::new([Signal::Term, Signal::Int]).map_err(|source| ServeError::System {
            what: "listening for signals",
            source,
        })?;
    for _ in 1..THREADS {
        let executor = Arc::clone(&executor);
        spawn_thread("serve", move || {
            smol::block_on(executor.run(std::future::pending::<()>()))
        })?;
    }
    eprintln!("{ready}");
    let died = async {
        match deaths.recv().await {
            Ok(error) => Err(error),
            Err(_) => Ok(()),
        }
    };
    let ended = smol::block_on(executor.run(async {
        let ended = smol::future::or(wait_for(signals), died).await;
        // Answers that are being given are given to their end, for some seconds.
        drop(stop);
        for task in stopping {
            task.await;
        }
        ended
    }));
    let _ = fs::remove_file(&control_path);
    ended
}

type BoxedTask = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

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

fn open_each<T>(
    links: &[Link],
    open: impl Fn(&Link) -> Result<T, OpenError>,
) -> Result<Vec<T>, OpenError> {
    links.iter().map(open).collect()
}

fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
        .map_err(|source| ServeError::System {
            what: "starting a thread",
            source,
        })
}

fn ready_line(
    links: &[Link],
    dhcp: &[DhcpSocket],
    tftp: &[smol::Async<std::net::UdpSocket>],
    http_port: u16,
) -> String {
    let names: Vec<_> = links.iter().map(Link::name).collect();
    let dhcp = dhcp
        .first()
        .map_or("off".to_owned(), |socket| socket.port().to_string());
    let tftp = tftp
        .first()
        .and_then(|socket| socket.get_ref().local_addr().ok())
        .map_or(0, |address| address.port());
    format!(
        "netboot: serving on {}: dhcp {dhcp}, tftp {tftp}, http {http_port}",
        names.join(", ")
    )
}

/// Each transfer and connection is a file descriptor; the usual soft limit of 1024 is less than a
/// room of machines.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard));
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}
