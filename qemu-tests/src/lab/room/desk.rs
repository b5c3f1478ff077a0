//! The DHCP post of a room: one socket on port 68, letters sorted by transaction.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::dhcp::{BOOTREPLY, CLIENT_PORT, Message, SERVER_PORT};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::namespace::CLIENT_INTERFACE;

/// How often the thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);
/// Replies to a whole room that come at once.
const RECEIVE_BUFFER: usize = 4 << 20;
const LARGEST_MESSAGE: usize = 2048;

type Letters = Arc<Mutex<HashMap<u32, Sender<Message>>>>;

/// The post. Dropping it ends its thread.
#[derive(Debug)]
pub(super) struct Desk {
    socket: Arc<UdpSocket>,
    waiting: Letters,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Desk {
    /// Opens the socket in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(CLIENT_INTERFACE.as_bytes()))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
        let socket = Arc::new(UdpSocket::from(socket));
        let (waiting, stop) = (Letters::default(), Arc::new(AtomicBool::new(false)));
        let sorter = {
            let (socket, waiting) = (Arc::clone(&socket), Arc::clone(&waiting));
            let stop = Arc::clone(&stop);
            move || sort(&socket, &waiting, &stop)
        };
        let thread = std::thread::Builder::new().name("dhcp desk".to_owned());
        Ok(Self {
            socket,
            waiting,
            stop,
            thread: Some(thread.spawn(sorter)?),
        })
    }

    /// From now on, replies of a transaction come to the receiver.
    pub(super) fn expect(&self, transaction: u32) -> Receiver<Message> {
        let (sender, receiver) = channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(transaction, sender);
        receiver
    }

    /// Sends to the server as a client without an address does.
    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        let everyone = SocketAddr::from((Ipv4Addr::BROADCAST, SERVER_PORT));
        self.socket.send_to(&message.emit(), everyone).map(drop)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

fn sort(socket: &UdpSocket, waiting: &Letters, stop: &AtomicBool) {
    let mut buffer = [0; LARGEST_MESSAGE];
    while !stop.load(Ordering::Relaxed) {
        // A time-out is a look at the flag; nothing else goes wrong with this socket for long.
        let Ok((len, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Ok(message) = Message::parse(&buffer[..len]) else {
            continue;
        };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let letter = waiting.get(&message.transaction);
        if message.op == BOOTREPLY
            && letter.is_some_and(|letter| letter.send(message.clone()).is_err())
        {
            waiting.remove(&message.transaction);
        }
    }
}
