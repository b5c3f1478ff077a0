//! One machine: PXE firmware, then iPXE, then the agent's first beacon.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::hardware::{FirmwareKind, Inventory, MachineIdentity};
use protocol::api;
use protocol::beacon::{AgentState, Beacon};
use protocol::dhcp::{MacAddress, Message, MessageType, Options, code};

use super::desk::Desk;
use super::http;
use super::{BootError, Files, tftp};

/// PXE firmware asks again after 4, 8, 16 and 32 s (PXE 2.1 §2.2.4).
const WAITS: [u64; 4] = [4, 8, 16, 32];

/// What asks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// A BIOS's PXE code.
    Firmware,
    /// The iPXE that it was sent.
    Ipxe,
}

/// An address and what to do with it.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// The address.
    pub(crate) address: Ipv4Addr,
    /// The file or URL to fetch.
    pub(crate) file: String,
}

/// How a boot went.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    /// Address of the machine.
    pub(crate) address: Ipv4Addr,
    /// From switching on to each step's end, with the step's name.
    pub(crate) steps: Vec<(&'static str, Duration)>,
}

impl Boot {
    /// From switching on to the last byte.
    pub(crate) fn took(&self) -> Duration {
        self.steps.last().map_or(Duration::ZERO, |(_, at)| *at)
    }
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    number: u16,
    transaction: u32,
    desk: Arc<Desk>,
    files: &'a Files,
    server: Ipv4Addr,
}

impl<'a> Machine<'a> {
    pub(super) fn new(number: u16, desk: Arc<Desk>, files: &'a Files, server: Ipv4Addr) -> Self {
        Self {
            number,
            transaction: u32::from(number) << 16,
            desk,
            files,
            server,
        }
    }

    /// Its card.
    pub(crate) fn mac(&self) -> MacAddress {
        let [high, low] = self.number.to_be_bytes();
        MacAddress::new([0x02, 0x78, 0x01, 0, high, low])
    }

    /// Everything from power-on to the beacon. The calling thread has to be in the room.
    pub(crate) fn boot(&mut self) -> Result<Boot, BootError> {
        let on = Instant::now();
        let mut steps = Vec::new();
        let mut done = |step| steps.push((step, on.elapsed()));
        let firmware = self.lease(Program::Firmware)?;
        done("lease of the firmware");
        self.fetch_loader(&firmware)?;
        done("loader");
        let ipxe = self.lease(Program::Ipxe)?;
        done("lease of iPXE");
        let script = self.fetch_script(&ipxe)?;
        done("script");
        let images = images(&script);
        if images.len() != 2 {
            return Err(BootError::answer(&ipxe.file, script));
        }
        for (name, url) in images {
            self.fetch_image(ipxe.address, &name, &url)?;
            done(if name == "vmlinuz" {
                "kernel"
            } else {
                "initramfs"
            });
        }
        self.beacon(ipxe.address)?;
        done("beacon");
        Ok(Boot {
            address: ipxe.address,
            steps,
        })
    }

    /// A lease, a file by TFTP and a file by HTTP: whether the server serves.
    pub(crate) fn visit(&mut self, name: &str) -> Result<(), BootError> {
        let lease = self.lease(Program::Firmware)?;
        self.fetch_loader(&lease)?;
        let url = format!("http://{}/boot/{name}", self.server);
        self.fetch_image(lease.address, name, &url)
    }

    fn fetch_loader(&self, lease: &Lease) -> Result<(), BootError> {
        let step = format!("TFTP of {}", lease.file);
        // The folders before the name tell the server who asks.
        let name = lease.file.rsplit('/').next().unwrap_or(&lease.file);
        let content = self.files.get(name);
        let content =
            content.ok_or_else(|| BootError::answer(&step, "a loader that nobody expected"))?;
        let server = SocketAddrV4::new(self.server, protocol::tftp::PORT);
        tftp::fetch(lease.address, server, &lease.file, content)
    }

    fn fetch_script(&self, lease: &Lease) -> Result<String, BootError> {
        let body = http::get(lease.address, &lease.file)?;
        String::from_utf8(body).map_err(|_| BootError::answer(&lease.file, "no text"))
    }

    fn fetch_image(&self, from: Ipv4Addr, name: &str, url: &str) -> Result<(), BootError> {
        let content = self.files.get(name);
        let content =
            content.ok_or_else(|| BootError::answer(url, "an image that nobody expected"))?;
        http::get_known(from, url, content)
    }

    fn beacon(&self, from: Ipv4Addr) -> Result<(), BootError> {
        let mac = self.mac().to_string();
        let beacon = Beacon {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: format!("room-{}", self.number),
            pairing_code: format!("{:04}", self.number),
            since_link_ms: None,
            boot_mac: Some(mac.clone()),
            state: AgentState::Waiting,
            error: None,
            inventory: Inventory {
                identity: MachineIdentity {
                    serial: Some(format!("room-{}", self.number)),
                    macs: vec![mac],
                    ..MachineIdentity::default()
                },
                firmware: FirmwareKind::Bios,
                architecture: "x86_64".to_owned(),
                disks: Vec::new(),
                nics: Vec::new(),
                memory: 1 << 30,
                without_driver: Vec::new(),
            },
        };
        let url = format!("http://{}{}", self.server, api::BEACON);
        let body = serde_json::to_vec(&beacon);
        let body = body.map_err(|error| BootError::answer(&url, error.to_string()))?;
        http::post(from, &url, &body)
    }

    /// DISCOVER, OFFER, REQUEST, ACK.
    fn lease(&mut self, program: Program) -> Result<Lease, BootError> {
        self.transaction += 1;
        let replies = self.desk.expect(self.transaction);
        let discover = self.message(MessageType::Discover, program);
        let ask = |message: &Message, kinds: &[MessageType]| -> Result<Message, BootError> {
            let step = format!("DHCP {:?}", message.message_type());
            for wait in WAITS {
                let end = Instant::now() + Duration::from_secs(wait);
                self.desk.send(message).map_err(BootError::socket(&step))?;
                loop {
                    let left = end.saturating_duration_since(Instant::now());
                    let Ok(reply) = replies.recv_timeout(left) else {
                        break;
                    };
                    // A late answer to an earlier copy of an earlier message is none to this one.
                    if reply
                        .message_type()
                        .is_some_and(|kind| kinds.contains(&kind))
                    {
                        return Ok(reply);
                    }
                }
            }
            Err(BootError::Silent { step })
        };
        let offer = ask(&discover, &[MessageType::Offer])?;
        let mut request = self.message(MessageType::Request, program);
        request
            .options
            .set(code::REQUESTED_ADDRESS, offer.your_address.octets())
            .set(code::SERVER_ID, self.server.octets());
        let ack = ask(&request, &[MessageType::Ack, MessageType::Nak])?;
        if ack.message_type() != Some(MessageType::Ack) {
            let said = ack.options.text(code::MESSAGE).unwrap_or_default();
            return Err(BootError::answer("DHCP REQUEST", said));
        }
        Ok(Lease {
            address: ack.your_address,
            file: String::from_utf8_lossy(&ack.file).into_owned(),
        })
    }

    fn message(&self, kind: MessageType, program: Program) -> Message {
        let mut options = Options::new();
        options
            .set(code::MESSAGE_TYPE, [kind.to_byte()])
            .set(code::MAX_SIZE, 1472_u16.to_be_bytes())
            .set(code::PARAMETER_LIST, [1, 3, 6, 54, 60, 66, 67, 175])
            .set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001")
            .set(code::CLIENT_ARCHITECTURE, [0, 0]);
        if program == Program::Ipxe {
            options.set(code::USER_CLASS, "iPXE");
            // It speaks HTTP (19) and starts Linux (24).
            options.set(code::IPXE, [19, 1, 1, 24, 1, 1]);
        }
        Message {
            broadcast: true,
            ..Message::of_client(self.mac(), self.transaction, options)
        }
    }
}

/// The kernel and the initial file system that an iPXE script fetches: name and URL. Settings that the
/// script made with `set` are put in; what is fetched only in other branches is none of ours.
fn images(script: &str) -> Vec<(String, String)> {
    let settings: Vec<(String, &str)> = script
        .lines()
        .filter_map(|line| line.strip_prefix("set ")?.split_once(' '))
        .map(|(name, value)| (format!("${{{name}}}"), value))
        .collect();
    let resolved = |line: &str| {
        settings
            .iter()
            .fold(line.to_owned(), |line, (name, value)| {
                line.replace(name, value)
            })
    };
    let image = |line: &str| {
        let mut words = line.split_whitespace();
        let command = words.next()?;
        if !["kernel", "initrd"].contains(&command) {
            return None;
        }
        let url = words.find(|word| word.starts_with("http://"))?;
        let name = url.split(['?', '#']).next()?.rsplit('/').next()?;
        Some((name.to_owned(), url.to_owned()))
    };
    script
        .lines()
        .filter_map(|line| image(&resolved(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_a_script_are_found_with_their_queries() {
        let script = "#!ipxe\nset files http://10.78.0.1/boot\n:again\n\
                      kernel --name vmlinuz ${files}/vmlinuz?mac=a initrd=initramfs || goto x\n\
                      initrd --name initramfs ${files}/initramfs?mac=a || goto x\nboot\n";
        let expected = ["vmlinuz", "initramfs"].map(|name| {
            (
                name.to_owned(),
                format!("http://10.78.0.1/boot/{name}?mac=a"),
            )
        });
        assert_eq!(images(script), expected);
    }
}
