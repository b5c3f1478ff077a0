//! The server on loopback ports, asked by clients that nobody here wrote, and by a relay.

mod server;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use protocol::dhcp::{Message, MessageType, Options, code};
use server::{Folders, Server, has_program};

/// A relay as the lab has one: it names the link and wants answers at the port it asks from.
struct Relay {
    socket: UdpSocket,
    server: u16,
}

impl Relay {
    fn new(server: &Server) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a deadline");
        Self {
            socket,
            server: server.dhcp,
        }
    }

    fn send(&self, client: u8, kind: MessageType, options: &[(u8, &[u8])]) {
        let mut all = Options::new();
        all.set(code::MESSAGE_TYPE, [kind.to_byte()]);
        all.set(code::RELAY_INFORMATION, [5, 4, 10, 77, 0, 0, 19, 0]);
        for (code, value) in options {
            all.set(*code, *value);
        }
        let mut hardware_address = [0; 16];
        hardware_address[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 0, client]);
        let message = Message {
            op: protocol::dhcp::BOOTREQUEST,
            hardware_type: 1,
            hardware_length: 6,
            hops: 1,
            transaction: u32::from(client),
            seconds: 0,
            broadcast: false,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            server_address: Ipv4Addr::UNSPECIFIED,
            relay_address: Ipv4Addr::LOCALHOST,
            hardware_address,
            file: Vec::new(),
            options: all,
        };
        self.socket
            .send_to(&message.emit(), ("127.0.0.1", self.server))
            .expect("sent");
    }

    fn hear(&self) -> Option<Message> {
        let mut buffer = [0; 2048];
        let (len, _) = self.socket.recv_from(&mut buffer).ok()?;
        Some(Message::parse(&buffer[..len]).expect("a DHCP message"))
    }

    fn ask(&self, client: u8, kind: MessageType, options: &[(u8, &[u8])]) -> Message {
        self.send(client, kind, options);
        self.hear().expect("an answer")
    }

    fn bind(&self, client: u8) -> Ipv4Addr {
        let offered = self.ask(client, MessageType::Discover, &[]).your_address;
        let wanted: &[(u8, &[u8])] = &[
            (code::SERVER_ID, &[10, 77, 0, 1]),
            (code::REQUESTED_ADDRESS, &offered.octets()),
        ];
        let ack = self.ask(client, MessageType::Request, wanted);
        assert_eq!(ack.message_type(), Some(MessageType::Ack));
        assert_eq!(ack.your_address, offered);
        offered
    }
}

#[test]
fn leases_survive_a_server_that_is_killed() {
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    let first = Server::start(&config);
    let relay = Relay::new(&first);
    relay.bind(1);
    let had = relay.bind(2);
    drop(first);

    let second = Server::start(&config);
    let relay = Relay::new(&second);
    let refused = relay.ask(
        3,
        MessageType::Request,
        &[
            (code::SERVER_ID, &[10, 77, 0, 1]),
            (code::REQUESTED_ADDRESS, &had.octets()),
        ],
    );
    assert_eq!(refused.message_type(), Some(MessageType::Nak));
    assert_eq!(relay.bind(2), had);
    assert_eq!(second.stop(), Some(0));
}

#[test]
fn every_address_acknowledged_before_a_kill_is_known_after_it() {
    const CLIENTS: std::ops::RangeInclusive<u8> = 1..=140;
    let folders = Folders::new();
    let config = folders.write_config([0; 3], "");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("10.77.0.110", "10.77.0.250")).expect("written");
    let first = Server::start(&config);
    let relay = Relay::new(&first);
    let offers: Vec<_> = CLIENTS
        .map(|client| relay.ask(client, MessageType::Discover, &[]).your_address)
        .collect();
    for (client, offered) in CLIENTS.zip(&offers) {
        let wanted: &[(u8, &[u8])] = &[
            (code::SERVER_ID, &[10, 77, 0, 1]),
            (code::REQUESTED_ADDRESS, &offered.octets()),
        ];
        relay.send(client, MessageType::Request, wanted);
    }
    // In the middle of it, with leases on their way to the disk.
    let mut granted: Vec<_> = (0..CLIENTS.len() / 4)
        .filter_map(|_| relay.hear())
        .collect();
    drop(first);
    let short = Duration::from_millis(200);
    relay
        .socket
        .set_read_timeout(Some(short))
        .expect("a deadline");
    granted.extend(std::iter::from_fn(|| relay.hear()));

    let second = Server::start(&config);
    let relay = Relay::new(&second);
    assert!(granted.len() >= CLIENTS.len() / 4);
    for ack in granted {
        assert_eq!(ack.message_type(), Some(MessageType::Ack));
        let client = ack.hardware_address[5];
        // Asked by somebody else it is refused, by its own client it is offered.
        let wanted: &[(u8, &[u8])] = &[
            (code::SERVER_ID, &[10, 77, 0, 1]),
            (code::REQUESTED_ADDRESS, &ack.your_address.octets()),
        ];
        let refused = relay.ask(200, MessageType::Request, wanted);
        assert_eq!(refused.message_type(), Some(MessageType::Nak));
        let again = relay.ask(client, MessageType::Discover, &[]);
        assert_eq!(again.your_address, ack.your_address);
    }
}

#[test]
fn an_ipxe_is_led_from_dhcp_to_its_script() {
    let folders = Folders::new();
    let server = Server::start(&folders.write_config([0; 3], ""));
    let offer = Relay::new(&server).ask(
        1,
        MessageType::Discover,
        &[
            (code::VENDOR_CLASS, b"PXEClient:Arch:00000:UNDI:002001"),
            (code::CLIENT_ARCHITECTURE, &[0, 0]),
            (code::USER_CLASS, b"iPXE"),
        ],
    );
    let url = offer.options.text(code::BOOT_FILE).expect("a boot file");
    let prefix = format!("http://10.77.0.1:{}", server.http);
    let path = url.strip_prefix(&prefix).expect("our address");
    let (head, script) = get(&server, path, "Host: 10.77.0.1:8080\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(script.starts_with(b"#!ipxe\n"));
    let script = String::from_utf8(script).expect("text");
    assert!(
        script.contains("netboot.server=http://10.77.0.1:8080 netboot.mac=52:54:00:00:00:01"),
        "{script}"
    );
}

/// A request of the simplest kind: head and body of the answer.
fn get(server: &Server, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", server.http)).expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).expect("text");
    (head, answer.split_off(end + 4))
}

#[test]
fn boot_files_are_sent_whole_and_in_parts() {
    let folders = Folders::new();
    let kernel = folders.add_boot_file("vmlinuz", 1_000_003);
    folders.add_boot_file("empty", 0);
    let server = Server::start(&folders.write_config([0; 3], ""));
    let (head, body) = get(&server, "/boot/vmlinuz", "Host: a\r\n");
    assert!(
        head.contains("content-length: 1000003") && head.contains("accept-ranges: bytes"),
        "{head}"
    );
    assert!(body == kernel);
    let (head, body) = get(
        &server,
        "/boot//vmlinuz",
        "Host: a\r\nRange: bytes=999990-\r\n",
    );
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert!(
        head.contains("content-range: bytes 999990-1000002/1000003"),
        "{head}"
    );
    assert!(body == kernel[999_990..]);
    let (head, _) = get(
        &server,
        "/boot/vmlinuz",
        "Host: a\r\nRange: bytes=1000003-\r\n",
    );
    assert!(head.starts_with("HTTP/1.1 416 "), "{head}");
    assert!(get(&server, "/boot/empty", "Host: a\r\n").1.is_empty());
    for path in [
        "/boot/../data/state.sqlite",
        "/boot/..%2fdata%2fstate.sqlite",
        "/boot/nothing",
    ] {
        let (head, _) = get(&server, path, "Host: a\r\n");
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
    }
}

#[test]
fn http_boot_is_sent_on_to_the_local_disk_when_there_is_no_work() {
    for (unknown, status) in [("recovery", "200"), ("local-disk", "404")] {
        let folders = Folders::new();
        folders.add_boot_file("ipxe.efi", 1000);
        let boot = format!("[boot]\nunknown_machines = \"{unknown}\"\n");
        let server = Server::start(&folders.write_config([0; 3], &boot));
        let offer = Relay::new(&server).ask(
            1,
            MessageType::Discover,
            &[
                (code::VENDOR_CLASS, b"HTTPClient:Arch:00016:UNDI:003001"),
                (code::CLIENT_ARCHITECTURE, &[0, 16]),
            ],
        );
        let url = offer.options.text(code::BOOT_FILE).expect("a boot file");
        let prefix = format!("http://10.77.0.1:{}", server.http);
        let path = url.strip_prefix(&prefix).expect("our address");
        let (head, body) = get(&server, path, "Host: a\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body.len() == 1000, status == "200", "{unknown}");
        let (head, _) = get(&server, "/boot/for/nobody/ipxe.efi", "Host: a\r\n");
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    }
}

#[test]
fn what_is_no_boot_file_is_refused_by_tftp() {
    let folders = Folders::new();
    let server = Server::start(&folders.write_config([0; 3], ""));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a deadline");
    for (request, code) in [
        (&b"\0\x01../data/state.sqlite\0octet\0"[..], 1),
        (b"\0\x01/etc/passwd\0octet\0", 1),
        (b"\0\x01nothing\0netascii\0", 4),
        (b"\0\x02new\0octet\0", 2),
        (b"\0\x01unended", 4),
    ] {
        socket
            .send_to(request, ("127.0.0.1", server.tftp))
            .expect("sent");
        let mut answer = [0; 600];
        let (len, _) = socket.recv_from(&mut answer).expect("an answer");
        assert_eq!(
            answer[..4],
            [0, 5, 0, code],
            "{:?}",
            String::from_utf8_lossy(&answer[..len])
        );
    }
}

#[test]
fn a_client_that_asks_for_something_else_from_its_port_gets_that() {
    let folders = Folders::new();
    folders.add_boot_file("first", 5000);
    let second = folders.add_boot_file("second", 300);
    let server = Server::start(&folders.write_config([0; 3], ""));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a deadline");
    let mut packet = [0; 600];
    let mut request = |bytes: &[u8]| {
        socket
            .send_to(bytes, ("127.0.0.1", server.tftp))
            .expect("sent");
        let (len, from) = socket.recv_from(&mut packet).expect("an answer");
        (packet[..len].to_vec(), from)
    };
    let (data, _) = request(b"\0\x01first\0octet\0");
    assert_eq!(data.len(), 516);
    // The first transfer still waits for its ACK when the second one begins.
    let (data, from) = request(b"\0\x01second\0octet\0");
    assert!(data[4..] == second);
    socket.send_to(&[0, 4, 0, 1], from).expect("sent");
}

/// Reads a file over TFTP as GRUB does; an ERROR packet as its number and words.
fn read_by_tftp(server: &Server, name: &str) -> Result<Vec<u8>, (u8, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a deadline");
    let request = format!("\0\x01{name}\0octet\0blksize\x001024\0tsize\x000\0");
    socket
        .send_to(request.as_bytes(), ("127.0.0.1", server.tftp))
        .expect("sent");
    let (mut bytes, mut announced) = (Vec::new(), None);
    loop {
        let mut packet = [0; 2048];
        let (len, from) = socket.recv_from(&mut packet).expect("an answer");
        let body = &packet[4..len];
        match packet[1] {
            6 => {
                let options = String::from_utf8_lossy(&packet[2..len]).into_owned();
                let words: Vec<_> = options.split('\0').map(str::to_owned).collect();
                let at = words
                    .iter()
                    .position(|word| word == "tsize")
                    .expect("tsize");
                announced = words[at + 1].parse::<usize>().ok();
                socket.send_to(&[0, 4, 0, 0], from).expect("sent");
            }
            3 => {
                bytes.extend_from_slice(body);
                let ack = [0, 4, packet[2], packet[3]];
                socket.send_to(&ack, from).expect("sent");
                if body.len() < 1024 {
                    assert_eq!(announced, Some(bytes.len()));
                    return Ok(bytes);
                }
            }
            5 => return Err((packet[3], String::from_utf8_lossy(body).into_owned())),
            other => panic!("a packet of kind {other}"),
        }
    }
}

#[test]
fn grub_is_told_by_tftp_who_it_is_and_what_it_boots() {
    let folders = Folders::new();
    let kernel = folders.add_boot_file("vmlinuz", 70_000);
    let server =
        Server::start(&folders.write_config([0; 3], "[boot]\nunknown_machines = \"menu\"\n"));
    let read = |name: &str| {
        let bytes = read_by_tftp(&server, name).expect("a file");
        String::from_utf8(bytes).expect("text")
    };
    let generic = read("/grub/grub.cfg");
    assert!(generic.contains("configfile /grub/for/$net_default_mac/grub.cfg"));
    let own = read("/grub/for/52:54:00:00:00:01/grub.cfg");
    let words = format!(
        "netboot.server=http://$net_default_server:{} netboot.mac=52:54:00:00:00:01 ",
        server.http
    );
    assert!(own.contains(&words), "{own}");
    assert!(
        own.contains("set timeout=30\nset default=recovery\nmenuentry "),
        "{own}"
    );
    let fetched = read_by_tftp(&server, "/for/52-54-00-00-00-01/vmlinuz");
    assert!(fetched.expect("a file") == kernel);
    // GRUB's own parser: it knows no `&&`.
    if has_program("grub-script-check") {
        for text in [generic, own] {
            let script = folders.path("grub.cfg");
            std::fs::write(&script, &text).expect("written");
            let check = Command::new("grub-script-check").arg(&script).output();
            let said = check.expect("it runs");
            assert!(said.status.success(), "{said:?}\n{text}");
        }
    }
}

#[test]
fn a_machine_without_work_is_refused_its_loader_in_words() {
    let folders = Folders::new();
    folders.add_boot_file("snponly.efi", 1000);
    let boot = "[boot]\nunknown_machines = \"local-disk\"\n";
    let server = Server::start(&folders.write_config([0; 3], boot));
    let offer = Relay::new(&server).ask(
        1,
        MessageType::Discover,
        &[
            (code::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003001"),
            (code::CLIENT_ARCHITECTURE, &[0, 7]),
        ],
    );
    let name = offer.options.text(code::BOOT_FILE).expect("a boot file");
    assert_eq!(name, "for/52-54-00-00-00-01/snponly.efi");
    let (number, words) = read_by_tftp(&server, &name).expect_err("no loader");
    assert_eq!(number, 1);
    assert!(words.contains("it starts its local disk"), "{words}");
}
