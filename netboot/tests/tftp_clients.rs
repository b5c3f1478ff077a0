//! TFTP with clients that nobody here wrote: tftp-hpa, atftp, curl and BusyBox, on the loopback interface.
//!
//! Each block size and window that a client can ask for, files around the ends of blocks, nothing at
//! all, and more blocks than their numbers reach; every byte is compared. What takes many seconds is
//! ignored and played by `scripts/test --full`. A client that is not installed is skipped in words.

#[allow(
    dead_code,
    reason = "each test program uses its own part of the module"
)]
mod server;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use server::{Folders, Server, has_program};

/// The name under which clients write what they fetched.
const FETCHED: &str = "fetched";

/// What a client is to ask for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    block_size: usize,
    window: usize,
}

/// A client's command line; `None` when it cannot ask for that.
type CommandOf = fn(&Peer, u16, &str, Ask) -> Option<Command>;

/// A client.
struct Peer {
    program: &'static str,
    command: CommandOf,
}

const TFTP_HPA: Peer = Peer {
    program: "tftp",
    // It asks for no option at all.
    command: |peer, port, file, ask| {
        (ask.block_size == 512 && ask.window == 1).then(|| {
            let mut command = Command::new(peer.program);
            command.args(["-m", "binary", "127.0.0.1", &port.to_string()]);
            command.args(["-c", "get", file, FETCHED]);
            command
        })
    },
};

const ATFTP: Peer = Peer {
    program: "atftp",
    command: |peer, port, file, ask| {
        let mut command = Command::new(peer.program);
        // In letters as some firmware writes them (RFC 2347: names have no letter case).
        for option in [
            format!("blksize {}", ask.block_size),
            format!("windowsize {}", ask.window),
            "tsize 0".to_owned(),
            "timeout 3".to_owned(),
        ] {
            command.args(["--option", &option]);
        }
        command.args(["--get", "-r", file, "-l", FETCHED, "127.0.0.1"]);
        command.arg(port.to_string());
        Some(command)
    },
};

const CURL: Peer = Peer {
    program: "curl",
    command: |peer, port, file, ask| {
        (ask.window == 1).then(|| {
            let mut command = Command::new(peer.program);
            let size = ask.block_size.to_string();
            command.args(["-sS", "-o", FETCHED, "--tftp-blksize", &size]);
            command.arg(format!("tftp://127.0.0.1:{port}/{file}"));
            command
        })
    },
};

/// The same without options.
const PLAIN_CURL: Peer = Peer {
    program: "curl",
    command: |peer, port, file, ask| {
        (ask.block_size == 512 && ask.window == 1).then(|| {
            let mut command = Command::new(peer.program);
            command.args(["-sS", "-o", FETCHED, "--tftp-no-options"]);
            command.arg(format!("tftp://127.0.0.1:{port}/{file}"));
            command
        })
    },
};

const BUSYBOX: Peer = Peer {
    program: "busybox",
    command: |peer, port, file, ask| {
        // The smallest that it asks for is 24 bytes.
        (ask.window == 1 && ask.block_size >= 24).then(|| {
            let mut command = Command::new(peer.program);
            let size = ask.block_size.to_string();
            command.args(["tftp", "-g", "-b", &size, "-r", file, "-l", FETCHED]);
            command.args(["127.0.0.1", &port.to_string()]);
            command
        })
    },
};

const PEERS: [Peer; 5] = [TFTP_HPA, ATFTP, CURL, PLAIN_CURL, BUSYBOX];

/// A server that agrees to every block size, and its folders.
struct Bench {
    folders: Folders,
    server: Server,
}

impl Bench {
    /// With files of these lengths, each named by its length.
    fn with_files(lengths: impl IntoIterator<Item = usize>) -> Self {
        let folders = Folders::new();
        for len in lengths {
            folders.add_boot_file(&name(len), len);
        }
        let config = folders.write_config([0; 3], "");
        let text = fs::read_to_string(&config).expect("the configuration");
        let text = text.replace("[tftp]\n", "[tftp]\nblock_size = 65464\n");
        fs::write(&config, text).expect("the configuration");
        let server = Server::start(&config);
        Self { folders, server }
    }

    /// Lets a client fetch a file and compares it. A client that cannot ask so is passed over.
    fn check(&self, peer: &Peer, len: usize, ask: Ask) {
        let Some(mut command) = (peer.command)(peer, self.server.tftp, &name(len), ask) else {
            return;
        };
        let target = self.folders.path(FETCHED);
        let _ = fs::remove_file(&target);
        let output = command
            .current_dir(self.folders.path(""))
            .output()
            .expect("the client runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        // curl makes no file of nothing.
        let fetched = fs::read(&target).unwrap_or_default();
        let expected = fs::read(self.folders.boot().join(name(len))).expect("the boot file");
        assert!(
            fetched == expected,
            "{command:?}: {} bytes came, {len} were asked for",
            fetched.len()
        );
    }
}

fn name(len: usize) -> String {
    format!("f{len}")
}

fn peers() -> impl Iterator<Item = &'static Peer> {
    PEERS.iter().filter(|peer| has_program(peer.program))
}

/// curl takes a size of 0 in the server's answer for an error.
fn can_fetch(peer: &Peer, len: usize) -> bool {
    len > 0 || !std::ptr::fn_addr_eq(peer.command, CURL.command)
}

#[test]
fn every_client_fetches_files_around_the_ends_of_blocks() {
    let sizes = [8, 9, 511, 512, 1024, 1428, 1432, 1468, 8192, 65464];
    let lengths = |size: usize| [0, 1, size - 1, size, size + 1, 3 * size];
    let bench = Bench::with_files(sizes.into_iter().flat_map(lengths));
    for peer in peers() {
        for block_size in sizes {
            for len in lengths(block_size) {
                let ask = Ask {
                    block_size,
                    window: 1,
                };
                if can_fetch(peer, len) {
                    bench.check(peer, len, ask);
                }
            }
        }
    }
}

#[test]
fn every_window_from_1_to_64_brings_the_whole_file() {
    let lengths = [0, 512, 64 * 512, 64 * 512 + 1, 300_000];
    let bench = Bench::with_files(lengths);
    if !has_program(ATFTP.program) {
        return;
    }
    for window in 1..=64 {
        for block_size in [512, 1468] {
            bench.check(&ATFTP, 300_000, Ask { block_size, window });
        }
    }
    for len in lengths {
        for (block_size, window) in [(8, 64), (512, 64), (1468, 7), (65464, 2)] {
            bench.check(&ATFTP, len, Ask { block_size, window });
        }
    }
}

#[test]
fn block_numbers_wrap_with_and_without_windows() {
    let len = 8 * 65_536 + 5;
    let bench = Bench::with_files([len]);
    for peer in peers() {
        for window in [1, 64] {
            let block_size = 8;
            bench.check(peer, len, Ask { block_size, window });
        }
    }
}

#[test]
#[ignore = "many seconds: scripts/test --full"]
fn block_numbers_wrap_at_every_clients_usual_block_size() {
    for block_size in [512, 1468] {
        let len = block_size * 65_536 + 5;
        let bench = Bench::with_files([len]);
        for peer in peers() {
            for window in [1, 16] {
                bench.check(peer, len, Ask { block_size, window });
            }
        }
    }
}

#[test]
#[ignore = "many seconds: scripts/test --full"]
fn every_block_size_of_every_window_brings_the_whole_file() {
    let len = 200_003;
    let bench = Bench::with_files([len]);
    let sizes = [
        8, 64, 128, 512, 1024, 1428, 1432, 1456, 1468, 4096, 16384, 65464,
    ];
    for peer in peers() {
        for block_size in sizes {
            // More than a client's socket holds (208 KiB): it would be a test of its patience.
            for window in (1..=64).filter(|window| window * block_size <= 100_000) {
                bench.check(peer, len, Ask { block_size, window });
            }
        }
    }
}

/// A client that does one step when told.
struct Stepper {
    socket: UdpSocket,
    server: SocketAddr,
    last: Vec<u8>,
}

impl Stepper {
    fn send(&mut self, packet: Vec<u8>) {
        self.socket.send_to(&packet, self.server).expect("sent");
        self.last = packet;
    }

    /// Waits for a block, asking again when nothing comes, and returns what is in it.
    fn block(&mut self, number: u16) -> Vec<u8> {
        let mut packet = [0; 600];
        for _ in 0..30 {
            let Ok((len, from)) = self.socket.recv_from(&mut packet) else {
                let again = self.last.clone();
                self.send(again);
                continue;
            };
            self.server = from;
            let [high, low] = number.to_be_bytes();
            // What was sent twice has another number.
            if packet[..4] == [0, 3, high, low] {
                return packet[4..len].to_vec();
            }
        }
        panic!("block {number} does not come");
    }
}

#[test]
fn three_thousand_transfers_at_once_are_all_served() {
    // Each is a file descriptor here, too.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let wanted = hard.min(soft.max(4000));
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).expect("the limit");
    if wanted < 4000 {
        eprintln!("skipped: only {wanted} open files are allowed");
        return;
    }
    let folders = Folders::new();
    let bytes = folders.add_boot_file("f", 1100);
    let server = Server::start(&folders.write_config([0; 3], ""));
    let door = SocketAddr::from(([127, 0, 0, 1], server.tftp));
    let mut clients: Vec<Stepper> = (0..3000_u16)
        .map(|number| {
            // One address has 1024 places.
            let last = u8::try_from(1 + number / 1000).expect("small");
            let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0)).expect("a socket");
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .expect("a deadline");
            Stepper {
                socket,
                server: door,
                last: Vec::new(),
            }
        })
        .collect();
    for client in &mut clients {
        client.send(b"\0\x01f\0octet\0".to_vec());
    }
    // All have begun before one goes on.
    let mut fetched: Vec<Vec<u8>> = clients.iter_mut().map(|client| client.block(1)).collect();
    for number in 1..=2_u16 {
        for client in &mut clients {
            let [high, low] = number.to_be_bytes();
            client.send(vec![0, 4, high, low]);
        }
        for (client, fetched) in clients.iter_mut().zip(&mut fetched) {
            fetched.extend(client.block(number + 1));
        }
    }
    for client in &mut clients {
        client.send(vec![0, 4, 0, 3]);
    }
    assert!(fetched.iter().all(|fetched| *fetched == bytes));
}
