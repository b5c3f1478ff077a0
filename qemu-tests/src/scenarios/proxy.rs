//! The proxy on a network that has a DHCP server: who is answered what, and who is left alone.
//!
//! No virtual machine: clients are busybox, dhclient, and DISCOVERs made here by hand, so that nothing of
//! the product judges itself. Whole boots beside dnsmasq are in `boot_path`.

use anyhow::{Context, bail, ensure};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::Skipped;
use super::stage::Stage;
use crate::lab::bridge_capture::BridgeCapture;
use crate::lab::deadline::Deadline;
use crate::lab::dnsmasq::{BootAdvice, DNSMASQ_ADDRESS, Dnsmasq, DnsmasqError};
use crate::lab::namespace::{
    BRIDGE, BRIDGE_ADDRESS, Bridge, CLIENT_INTERFACE, Namespace, NamespaceError, Place,
};
use crate::lab::tool;
use crate::lab::udhcpc::Udhcpc;

/// How long a client waits for offers: the servers are on the same computer.
const OFFERS_WITHIN: Duration = Duration::from_millis(1500);
/// iPXE's wait for a proxy's offer is over when there is one; a second is far less than its three.
const AT_ONCE: Duration = Duration::from_secs(1);
const HTTP_PORT: u16 = 8080;
const OFFER: u8 = 2;
const BOOT_REPLY: u8 = 2;
const CLASS: u8 = 60;
const FILE_NAME: u8 = 67;
const DHCLIENT: &str = "/usr/sbin/dhclient";

/// Options of a DISCOVER, by code.
type Wishes = &'static [(u8, &'static [u8])];

const OVMF: Wishes = &[
    (CLASS, b"PXEClient:Arch:00007:UNDI:003000"),
    (93, &[0, 7]),
    (94, &[1, 3, 0]),
];
const IPXE_ROM: Wishes = &[
    (CLASS, b"PXEClient:Arch:00000:UNDI:002001"),
    (93, &[0, 0]),
    (94, &[1, 2, 1]),
    (77, b"iPXE"),
    // That it speaks HTTP.
    (175, &[19, 1, 1]),
];
const HTTP_BOOT: Wishes = &[
    (CLASS, b"HTTPClient:Arch:00016:UNDI:003001"),
    (93, &[0, 16]),
];
/// A PXE class without an architecture, and a plain client.
const HALF: Wishes = &[(CLASS, b"PXEClient:Arch:00007:UNDI:003000")];
const PLAIN: Wishes = &[];

/// An office: a bridge, a DHCP server, a client's place, and netboot started with nothing but an interface.
struct Office {
    netboot: Netboot,
    capture: BridgeCapture,
    client: Namespace,
    _dnsmasq: Option<Dnsmasq>,
    bridge: Bridge,
}

/// A server started as a person would without having read anything.
struct Netboot {
    process: Child,
    log: PathBuf,
}

impl Drop for Netboot {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Netboot {
    fn start(stage: &Stage<'_>, place: &Place) -> anyhow::Result<Self> {
        let program = stage.program("netboot")?;
        let (data, boot) = (stage.disks().join("data"), stage.disks().join("boot"));
        for folder in [&data, &boot] {
            fs::create_dir_all(folder)?;
        }
        // Nothing of them is fetched here: their names are what counts.
        for file in [
            "vmlinuz",
            "initramfs",
            "undionly.kpxe",
            "snponly.efi",
            "ipxe.efi",
        ] {
            fs::write(boot.join(file), file)?;
        }
        let log = stage.logs().join("server.log");
        let words = File::create(&log)?;
        let mut command = place.command(program);
        command.args(["serve", "--interface", BRIDGE, "--data-dir"]);
        command.arg(&data).arg("--boot-files").arg(&boot);
        let process = tool::bound_to_us(&command)
            .stdin(Stdio::null())
            .stdout(words.try_clone()?)
            .stderr(words)
            .spawn()?;
        let mut server = Self { process, log };
        let deadline = Deadline::seconds(30);
        while !server.said().contains("netboot: serving on ") {
            if !matches!(server.process.try_wait(), Ok(None)) || deadline.remaining().is_none() {
                bail!("netboot does not serve; it said: {}", server.said());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        place.inside(|| TcpStream::connect((BRIDGE_ADDRESS, HTTP_PORT)))?;
        Ok(server)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The line that says what it serves as.
    fn ready(&self) -> anyhow::Result<String> {
        let said = self.said();
        let line = said
            .lines()
            .find(|line| line.starts_with("netboot: serving on "));
        Ok(line.context("no ready line")?.to_owned())
    }
}

impl Office {
    /// `dnsmasq` is made once the bridge is there.
    fn open(
        stage: &Stage<'_>,
        dnsmasq: impl FnOnce(&mut Bridge) -> Result<Option<Dnsmasq>, DnsmasqError>,
    ) -> anyhow::Result<Self> {
        stage.program("netboot")?;
        let mut bridge = Bridge::up().map_err(|error| match error {
            NamespaceError::Unavailable { .. } => skipped(error.to_string()),
            other => other.into(),
        })?;
        let dnsmasq = dnsmasq(&mut bridge).map_err(|error| match error {
            DnsmasqError::NotInstalled => skipped(error.to_string()),
            other => other.into(),
        })?;
        let client = Namespace::create()?;
        bridge.connect(&client)?;
        let capture = BridgeCapture::start(&bridge, &stage.logs().join("bridge.pcap"))?;
        Ok(Self {
            netboot: Netboot::start(stage, bridge.place())?,
            capture,
            client,
            _dnsmasq: dnsmasq,
            bridge,
        })
    }
}

fn skipped(reason: String) -> anyhow::Error {
    Skipped { reason }.into()
}

/// The network that nearly everybody has.
pub(super) fn office(stage: &Stage<'_>) -> anyhow::Result<()> {
    let logs = stage.logs().to_owned();
    let mut office = Office::open(stage, |bridge| {
        Dnsmasq::start(bridge, &logs, &BootAdvice::default()).map(Some)
    })?;
    let ready = office.netboot.ready()?;
    ensure!(
        ready.contains(&format!(
            "as proxy beside the DHCP server {DNSMASQ_ADDRESS}"
        )),
        "it chose something else: {ready}"
    );
    stage.say(&ready);

    let systems = systems_keep_their_server(stage, &office, DNSMASQ_ADDRESS)?;
    machines_get_files(stage, office.client.place(), DNSMASQ_ADDRESS)?;
    systems_get_one_offer(stage, office.client.place(), DNSMASQ_ADDRESS)?;

    let seen = office.capture.finish();
    let ours: Vec<_> = seen
        .iter()
        .filter(|sighting| sighting.is_reply && sighting.from == BRIDGE_ADDRESS)
        .collect();
    ensure!(!ours.is_empty(), "the capture has no answer of ours");
    for answer in &ours {
        ensure!(
            answer.your_address.is_unspecified(),
            "netboot gave {} away",
            answer.your_address
        );
        ensure!(
            answer.kind == Some(OFFER) && !systems.contains(&answer.client),
            "netboot said {answer} to a system that did not ask for a boot file"
        );
    }
    stage.say(&format!(
        "{} offers of netboot in the capture, all to machines that boot, none with an address",
        ours.len()
    ));
    drop(office.bridge);
    Ok(())
}

/// A DHCP server on the very machine.
pub(super) fn same_host(stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut local = None;
    let folder = stage.logs().to_owned();
    let office = Office::open(stage, |bridge| {
        local = Some(local_dnsmasq(bridge.place(), &folder)?);
        Ok(None)
    })?;
    let _local = local.context("dnsmasq was not started")?;
    let ready = office.netboot.ready()?;
    ensure!(
        ready.contains(&format!("as proxy beside the DHCP server {BRIDGE_ADDRESS}")),
        "it chose something else: {ready}"
    );
    stage.say(&ready);
    // Renewals are unicast to port 67: they must reach dnsmasq, not us.
    systems_keep_their_server(stage, &office, BRIDGE_ADDRESS)?;
    machines_get_files(stage, office.client.place(), BRIDGE_ADDRESS)?;
    systems_get_one_offer(stage, office.client.place(), BRIDGE_ADDRESS)
}

/// A dnsmasq that is killed when dropped.
struct Local(Child);

impl Drop for Local {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn local_dnsmasq(place: &Place, folder: &Path) -> Result<Local, DnsmasqError> {
    let program = Path::new("/usr/sbin/dnsmasq");
    if !program.is_file() {
        return Err(DnsmasqError::NotInstalled);
    }
    let error = |source: io::Error| DnsmasqError::Start {
        folder: folder.to_owned(),
        source,
    };
    let log = folder.join("dnsmasq.log");
    let words = File::create(&log).map_err(error)?;
    let mut command = place.command(program);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--log-dhcp",
        "--user=root",
        "--port=0",
        "--no-ping",
        "--dhcp-range=10.78.0.100,10.78.0.200,1h",
    ]);
    command.arg(format!(
        "--dhcp-leasefile={}",
        folder.join("leases").display()
    ));
    let process = tool::bound_to_us(&command)
        .stdin(Stdio::null())
        .stdout(words.try_clone().map_err(error)?)
        .stderr(words)
        .spawn()
        .map_err(error)?;
    let local = Local(process);
    let deadline = Deadline::seconds(30);
    while !fs::read_to_string(&log)
        .unwrap_or_default()
        .contains("DHCP, IP range")
    {
        if deadline.remaining().is_none() {
            return Err(DnsmasqError::NotReady {
                allowed: deadline.to_string(),
                said: fs::read_to_string(&log).unwrap_or_default(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(local)
}

/// Clients that do not boot from the network get, renew and return what their server gives. Their cards.
fn systems_keep_their_server(
    stage: &Stage<'_>,
    office: &Office,
    server: Ipv4Addr,
) -> anyhow::Result<Vec<[u8; 6]>> {
    let place = office.client.place();
    if Udhcpc::is_installed() {
        let mut client = Udhcpc::start(place, &stage.logs().join("udhcpc"), false)?;
        let bound = client.wait_for("bound", Deadline::seconds(30))?;
        ensure!(
            bound.server == server,
            "udhcpc took the offer of {}",
            bound.server
        );
        client.ask_to_renew()?;
        client.wait_for("renew", Deadline::seconds(30))?;
        client.release(Deadline::seconds(20))?;
        stage.say(&format!(
            "udhcpc got, renewed and returned {}",
            bound.address
        ));
    }
    if Path::new(DHCLIENT).is_file() {
        let leases = stage.logs().join("dhclient.leases");
        let mut command = place.command(DHCLIENT);
        command.args([
            "-1",
            "-d",
            "-q",
            "-cf",
            "/dev/null",
            "-sf",
            "/bin/true",
            "-lf",
        ]);
        command
            .arg(&leases)
            .args(["-pf", "/dev/null", CLIENT_INTERFACE]);
        let mut process = tool::bound_to_us(&command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let deadline = Deadline::seconds(30);
        let wanted = format!("option dhcp-server-identifier {server};");
        let got = loop {
            let text = fs::read_to_string(&leases).unwrap_or_default();
            if text.contains(&wanted) {
                break true;
            }
            if deadline.remaining().is_none() {
                break false;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // It stays to renew; both fail only when it has ended.
        let _ = process.kill();
        let _ = process.wait();
        ensure!(got, "dhclient got no lease from {server}");
        stage.say(&format!("dhclient got a lease from {server}"));
    }
    Ok(vec![card(&office.client)?])
}

/// The address of a namespace's card.
fn card(namespace: &Namespace) -> anyhow::Result<[u8; 6]> {
    let text = namespace.ip(&["-br", "link", "show", "dev", CLIENT_INTERFACE])?;
    let word = text
        .split_whitespace()
        .nth(2)
        .context("no address in ip's answer")?;
    let bytes: Result<Vec<u8>, _> = word
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16))
        .collect();
    let bytes = bytes.with_context(|| format!("{word} is no Ethernet address"))?;
    <[u8; 6]>::try_from(bytes).ok().context("not six bytes")
}

/// An offer that a client heard.
struct Offer {
    server: Ipv4Addr,
    address: Ipv4Addr,
    next_server: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
    after: Duration,
}

impl Offer {
    fn text(&self, code: u8) -> String {
        let value = self.options.iter().find(|(known, _)| *known == code);
        let value = value.map(|(_, value)| value.as_slice()).unwrap_or_default();
        String::from_utf8_lossy(value)
            .trim_end_matches('\0')
            .to_owned()
    }
}

fn machines_get_files(stage: &Stage<'_>, place: &Place, server: Ipv4Addr) -> anyhow::Result<()> {
    let cases: [(&str, u8, Wishes, &str, &str); 3] = [
        ("OVMF", 1, OVMF, "PXEClient", ".efi"),
        (
            "the iPXE of a ROM",
            2,
            IPXE_ROM,
            "PXEClient",
            "platform=pcbios",
        ),
        ("UEFI HTTP Boot", 3, HTTP_BOOT, "HTTPClient", ".efi"),
    ];
    for (who, number, wishes, class, end) in cases {
        let offers = place.inside(|| offers(number, wishes))?;
        let with_file: Vec<_> = offers
            .iter()
            .filter(|offer| offer.address.is_unspecified())
            .collect();
        let [ours] = with_file.as_slice() else {
            bail!("{who} heard {} proxy offers", with_file.len());
        };
        ensure!(
            ours.server == BRIDGE_ADDRESS && ours.next_server == BRIDGE_ADDRESS,
            "{who} is sent to {} for its file",
            ours.next_server
        );
        ensure!(
            ours.text(CLASS) == class,
            "{who}: option 60 is {}",
            ours.text(CLASS)
        );
        let file = ours.text(FILE_NAME);
        ensure!(file.ends_with(end), "{who} is told {file}");
        let addresses = offers
            .iter()
            .filter(|offer| !offer.address.is_unspecified());
        let givers: Vec<_> = addresses.map(|offer| offer.server).collect();
        ensure!(
            givers == [server],
            "{who} is offered addresses by {givers:?}"
        );
        ensure!(
            ours.after < AT_ONCE,
            "{who} had to wait {:?} for the proxy's offer",
            ours.after
        );
        stage.say(&format!(
            "{who} is told {file} after {:.1} ms",
            ours.after.as_secs_f64() * 1e3
        ));
    }
    Ok(())
}

fn systems_get_one_offer(stage: &Stage<'_>, place: &Place, server: Ipv4Addr) -> anyhow::Result<()> {
    for (who, number, wishes) in [("a plain client", 4, PLAIN), ("a class alone", 5, HALF)] {
        let offers = place.inside(|| offers(number, wishes))?;
        let heard: Vec<_> = offers
            .iter()
            .map(|offer| (offer.server, offer.address.is_unspecified()))
            .collect();
        ensure!(heard == [(server, false)], "{who} heard {heard:?}");
    }
    stage.say("clients that did not ask for a boot file heard their own server only");
    Ok(())
}

/// Broadcasts a DISCOVER from a made-up card and listens for offers.
fn offers(number: u8, wishes: Wishes) -> io::Result<Vec<Offer>> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(CLIENT_INTERFACE.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into())?;
    let socket = UdpSocket::from(socket);
    let transaction = [0x6e, 0x62, 0, number];
    let began = Instant::now();
    socket.send_to(
        &discover(number, transaction, wishes),
        (Ipv4Addr::BROADCAST, 67),
    )?;
    let mut offers = Vec::new();
    let mut buffer = [0; 2048];
    while let Some(left) = OFFERS_WITHIN.checked_sub(began.elapsed()) {
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        offers.extend(offer(&buffer[..len], transaction, began.elapsed()));
    }
    Ok(offers)
}

/// RFC 2131 §2, by hand.
fn discover(number: u8, transaction: [u8; 4], wishes: Wishes) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0];
    bytes.extend(transaction);
    // Seconds, then the broadcast flag.
    bytes.extend([0, 0, 0x80, 0]);
    bytes.resize(28, 0);
    bytes.extend([0x52, 0x54, 0, 0x6e, 0x62, number]);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99, 53, 1, 1]);
    for (code, value) in wishes {
        bytes.push(*code);
        bytes.extend(u8::try_from(value.len()));
        bytes.extend_from_slice(value);
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

fn offer(bytes: &[u8], transaction: [u8; 4], after: Duration) -> Option<Offer> {
    let (header, mut rest) = bytes.split_at_checked(240)?;
    if header[0] != BOOT_REPLY || header[4..8] != transaction {
        return None;
    }
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let mut options = Vec::new();
    while let [code, after @ ..] = rest {
        match code {
            0 => rest = after,
            255 => break,
            _ => {
                let (length, body) = after.split_first()?;
                let (value, next) = body.split_at_checked(usize::from(*length))?;
                options.push((*code, value.to_vec()));
                rest = next;
            }
        }
    }
    let server: (u8, Vec<u8>) = options.iter().find(|(code, _)| *code == 54)?.clone();
    Some(Offer {
        server: Ipv4Addr::from(<[u8; 4]>::try_from(server.1).ok()?),
        address: address(16),
        next_server: address(20),
        options,
        after,
    })
}
