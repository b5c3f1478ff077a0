//! A way over loopback to the server that can be lost and mended, for agents that are programs on this computer.
//!
//! While it is lost, what was connected is cut off, and whoever connects is cut off at once.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context;

/// What goes over it.
#[derive(Debug, Default)]
struct Ways {
    lost: bool,
    open: Vec<TcpStream>,
}

/// A relay; its threads end with the program.
#[derive(Debug)]
pub(super) struct Relay {
    url: String,
    ways: Arc<Mutex<Ways>>,
}

fn lock(ways: &Mutex<Ways>) -> MutexGuard<'_, Ways> {
    ways.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// A way to the server at `url`, which has an address and a port.
    pub(super) fn to(url: &str) -> anyhow::Result<Self> {
        let server = url.strip_prefix("http://").context("no HTTP")?.to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let ways = Arc::new(Mutex::new(Ways::default()));
        let shared = Arc::clone(&ways);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A server that is away refuses; then so does the relay, by dropping the stream.
                let _ = connect(stream, &server, &shared);
            }
        });
        Ok(Self { url, ways })
    }

    /// The agent's end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Cuts it.
    pub(super) fn lose(&self) {
        let mut ways = lock(&self.ways);
        ways.lost = true;
        for stream in ways.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Makes it whole again.
    pub(super) fn mend(&self) {
        lock(&self.ways).lost = false;
    }
}

fn connect(near: TcpStream, server: &str, ways: &Mutex<Ways>) -> io::Result<()> {
    let far = TcpStream::connect(server)?;
    let mut ways = lock(ways);
    if ways.lost {
        return Ok(());
    }
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    ways.open.retain(|stream| stream.peer_addr().is_ok());
    ways.open.extend([near, far]);
    Ok(())
}
