//! Gathers the facts: files, sockets' tables, interfaces, the network, the running server.
//!
//! Invariant: what cannot be read is left out, never an error: whoever needs a doctor has something
//! broken.
//!
//! Not here: what the facts mean (`judge`).

use std::{
    fs,
    io::Read,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::sys::statvfs::statvfs;
use protocol::api::{self, ServerView};

use super::{
    DoctorArgs, boot_files,
    facts::{BootFile, BootFolder, Clock, DataDir, Facts, Holder, Link, Port, Server},
    firewall, judge,
    proc_files::filesystem_of,
};
use crate::{
    cli::Place,
    config::{Config, DEFAULT_DATA_DIR, DhcpMode, Listen, Overrides},
    control_client::{ClientError, ControlClient},
    dhcp::{
        other_servers::{OtherServer, Patience, look_for_servers},
        proxy::BOOT_SERVER_PORT,
    },
    port_owner::{Transport, is_held, port_owner},
    serve::watch::NETWORK,
    sockets::{self, Interface},
};

/// Everything, as far as it can be had.
pub(super) fn facts(args: &DoctorArgs, place: Place) -> Facts {
    let wanted = Wanted::of(args, place);
    let server = server(&wanted.data_dir);
    Facts {
        ports: ports(&wanted, &server),
        interfaces: interfaces(&wanted, !args.no_search),
        mode: wanted.mode,
        tftp_block_size: wanted.tftp_block_size,
        data_dir: data_dir(&wanted.data_dir),
        boot: boot_folder(&wanted.boot_files, &wanted.loaders),
        clock: clock(),
        firewall: dropped(&wanted),
        server,
        config_error: wanted.config_error,
    }
}

/// What the configuration and the command line say, or the defaults where they are wrong.
struct Wanted {
    config_error: Option<String>,
    data_dir: PathBuf,
    boot_files: PathBuf,
    loaders: PathBuf,
    /// Empty: every Ethernet interface that is up and has an address. `None`: the server is on an address of no interface.
    interfaces: Option<Vec<String>>,
    mode: DhcpMode,
    dhcp_port: u16,
    tftp_port: u16,
    tftp_block_size: u16,
    http_port: u16,
}

impl Wanted {
    fn of(args: &DoctorArgs, place: Place) -> Self {
        let data_dir = place.data_dir.clone();
        let overrides = Overrides {
            interfaces: args.interface.clone(),
            data_dir: data_dir.clone(),
            boot_files: args.boot_files.clone(),
            ..Overrides::default()
        };
        match Config::load(place.config.as_deref(), overrides) {
            Ok(config) => Self::from(config),
            Err(error) => {
                let data_dir = data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
                let boot_files = args.boot_files.clone();
                // Without a file it is only said that no interface was named.
                let given = place.config.is_some();
                Self {
                    config_error: given.then(|| format!("{:#}", anyhow::Error::from(error))),
                    boot_files: boot_files.unwrap_or_else(|| data_dir.join("boot")),
                    data_dir,
                    loaders: "/usr/lib/ipxe".into(),
                    interfaces: Some(args.interface.clone()),
                    mode: DhcpMode::Auto,
                    dhcp_port: protocol::dhcp::SERVER_PORT,
                    tftp_port: protocol::tftp::PORT,
                    tftp_block_size: 1468,
                    http_port: 8080,
                }
            }
        }
    }

    /// Transport and number of every port that machines send to.
    fn ports(&self) -> Vec<(&'static str, Transport, u16)> {
        let mut ports = Vec::new();
        if self.mode != DhcpMode::Off {
            ports.push(("DHCP", Transport::Udp, self.dhcp_port));
        }
        if self.mode == DhcpMode::Proxy {
            ports.push(("proxyDHCP", Transport::Udp, BOOT_SERVER_PORT));
        }
        ports.push(("TFTP", Transport::Udp, self.tftp_port));
        ports.push(("HTTP", Transport::Tcp, self.http_port));
        // 0: any that is free, as tests have it.
        ports.retain(|(_, _, number)| *number != 0);
        ports
    }
}

impl From<Config> for Wanted {
    fn from(config: Config) -> Self {
        let dhcp = config.dhcp.as_ref();
        Self {
            config_error: None,
            data_dir: config.data_dir,
            boot_files: config.boot_files,
            loaders: config.loaders,
            interfaces: match config.listen {
                Listen::Interfaces(names) => Some(names),
                Listen::Address(_) => None,
            },
            mode: dhcp.map_or(DhcpMode::Off, |dhcp| dhcp.mode),
            dhcp_port: dhcp.map_or(0, |dhcp| dhcp.port),
            tftp_port: config.tftp_port,
            tftp_block_size: config.tftp_block_size,
            http_port: config.http_port,
        }
    }
}

fn server(data_dir: &Path) -> Server {
    let client = ControlClient::new(data_dir);
    match client.get::<ServerView>(api::SERVER) {
        Ok(view) => Server::Running {
            version: view.version,
            uptime: view.uptime_seconds,
            process: view.process,
            links: client.get(NETWORK).unwrap_or_default(),
        },
        Err(ClientError::NotRunning(_)) => Server::NotRunning,
        Err(error) => Server::Unknown(format!("{:#}", anyhow::Error::from(error))),
    }
}

fn ports(wanted: &Wanted, server: &Server) -> Vec<Port> {
    let own = match server {
        Server::Running { process, .. } => Some(format!("(process {process})")),
        _ => None,
    };
    let proxy = match server {
        Server::Running { links, .. } => links.iter().any(|link| link.role == "proxy"),
        _ => false,
    };
    let mut needed = wanted.ports();
    let boot_server = ("proxyDHCP", Transport::Udp, BOOT_SERVER_PORT);
    if proxy && !needed.contains(&boot_server) {
        needed.push(boot_server);
    }
    let look = |(service, transport, number)| Port {
        service,
        transport,
        number,
        holder: is_held(transport, number).then(|| match port_owner(transport, number) {
            Some(who) if own.as_ref().is_some_and(|own| who.ends_with(own.as_str())) => {
                Holder::Ours
            }
            Some(who) => Holder::Other(who),
            None => Holder::Unknown,
        }),
    };
    needed.into_iter().map(look).collect()
}

fn interfaces(wanted: &Wanted, search: bool) -> Vec<Link> {
    let Some(names) = &wanted.interfaces else {
        return Vec::new();
    };
    let all = sockets::interfaces().unwrap_or_default();
    let chosen: Vec<(String, Option<&Interface>)> = if names.is_empty() {
        let ethernet = all.iter().filter(|known| {
            known.is_ethernet() && is_up(&known.name) && !known.addresses.is_empty()
        });
        ethernet
            .map(|known| (known.name.clone(), Some(known)))
            .collect()
    } else {
        let find = |name: &String| all.iter().find(|known| known.name == *name);
        names
            .iter()
            .map(|name| (name.clone(), find(name)))
            .collect()
    };
    let looks: Vec<_> = chosen
        .iter()
        .map(|(_, known)| {
            let up = known.filter(|known| search && is_up(&known.name));
            up.map(|known| smol::spawn(look(known.clone())))
        })
        .collect();
    chosen
        .into_iter()
        .zip(looks)
        .map(|((name, known), look)| Link {
            others: look.map(smol::block_on),
            ..link(name, known)
        })
        .collect()
}

async fn look(interface: Interface) -> Result<Vec<OtherServer>, String> {
    let found = look_for_servers(&interface, Patience::Everybody).await;
    found.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

fn link(name: String, known: Option<&Interface>) -> Link {
    let about = |what: &str| read(&format!("/sys/class/net/{name}/{what}"));
    let exists = |what: &str| Path::new(&format!("/sys/class/net/{name}/{what}")).exists();
    let addresses: Vec<Ipv4Addr> = known
        .into_iter()
        .flat_map(|known| &known.addresses)
        .map(ipnet::Ipv4Net::addr)
        .collect();
    Link {
        present: known.is_some(),
        up: is_up(&name),
        carrier: about("carrier").map(|text| text == "1"),
        addresses,
        mtu: about("mtu").and_then(|text| text.parse().ok()),
        wireless: exists("wireless") || exists("phy80211"),
        vlan: Path::new(&format!("/proc/net/vlan/{name}")).exists(),
        others: None,
        name,
    }
}

/// `IFF_UP` of the interface's flags (netdevice(7)).
fn is_up(name: &str) -> bool {
    let flags = read(&format!("/sys/class/net/{name}/flags"));
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    flags.is_some_and(|flags| flags & 1 != 0)
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn data_dir(path: &Path) -> DataDir {
    let present = path.is_dir();
    let probe = path.join(".netboot-may-write");
    let written = fs::write(&probe, []).and_then(|()| fs::remove_file(&probe));
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    DataDir {
        present,
        not_writable: written
            .err()
            .filter(|_| present)
            .map(|error| error.to_string()),
        free: statvfs(path).ok().map(|found| {
            found
                .blocks_available()
                .saturating_mul(found.fragment_size())
        }),
        filesystem: filesystem_of(&mounts, &absolute).filter(|_| present),
        path: path.to_owned(),
    }
}

fn boot_folder(path: &Path, loaders: &Path) -> BootFolder {
    let files = judge::file_names().into_iter().filter_map(|name| {
        let found = [path, loaders].map(|folder| folder.join(name));
        let file = found.iter().find(|file| file.is_file())?;
        let head = head(file);
        Some(BootFile {
            name,
            damage: match &head {
                Ok(head) => boot_files::damage(name, head),
                Err(error) => Some(format!("it cannot be read: {error}")),
            },
            signed: head.ok().and_then(|head| boot_files::is_signed(&head)),
            made: made(file),
        })
    });
    BootFolder {
        unlike_manifest: unlike_manifest(path),
        unreadable: fs::read_dir(path).err().map(|error| error.to_string()),
        files: files.collect(),
        program_made: std::env::current_exe().ok().and_then(|file| made(&file)),
        path: path.to_owned(),
    }
}

/// Files that are not as the folder's manifests, one for each processor, list them. A folder without one
/// has none.
fn unlike_manifest(folder: &Path) -> Vec<(String, String)> {
    let manifests = ["manifest.json", "arm64/manifest.json"].into_iter();
    let manifests = manifests.filter_map(|name| {
        let text = fs::read(folder.join(name)).ok()?;
        serde_json::from_slice::<boot_files::Manifest>(&text).ok()
    });
    let listed = manifests
        .flat_map(|manifest| manifest.files)
        .filter(|file| file.is_inside());
    let unlike = listed.filter_map(|listed| {
        let path = folder.join(&listed.name);
        let why = match fs::metadata(&path) {
            Ok(found) => listed.differs(found.len(), || digest(&path)),
            Err(error) => Some(error.to_string()),
        };
        why.map(|why| (listed.name, why))
    });
    unlike.collect()
}

/// BLAKE3 of a file; empty when it cannot be read.
fn digest(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let read = fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    read.map_or_else(
        |_| String::new(),
        |()| hasher.finalize().to_hex().to_string(),
    )
}

fn head(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let most = u64::try_from(boot_files::HEAD).unwrap_or(u64::MAX);
    fs::File::open(file)?.take(most).read_to_end(&mut head)?;
    Ok(head)
}

fn made(file: &Path) -> Option<u64> {
    let modified = fs::metadata(file).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn clock() -> Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Clock {
        now: now.unwrap_or_default().as_secs(),
        hardware: read("/sys/class/rtc/rtc0/since_epoch").and_then(|text| text.parse().ok()),
    }
}

/// The ports that the host's firewall drops.
fn dropped(wanted: &Wanted) -> Option<Vec<(Transport, u16, String)>> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then_some(text)
    };
    let nft = said("nft", &["-nn", "list", "ruleset"]);
    // nft shows the rules of iptables, too, unless those are of the old kind.
    let iptables = said("iptables-save", &[]);
    if nft.is_none() && iptables.is_none() {
        return None;
    }
    let (nft, iptables) = (nft.unwrap_or_default(), iptables.unwrap_or_default());
    let ports = wanted.ports().into_iter();
    let dropped = ports.filter_map(|(_, transport, port)| {
        let rule = firewall::dropped_by_nft(&nft, transport, port)
            .or_else(|| firewall::dropped_by_iptables(&iptables, transport, port))?;
        Some((transport, port, rule))
    });
    Some(dropped.collect())
}
