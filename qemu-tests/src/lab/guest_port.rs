//! One guest's socket on the link: accepts QEMU, reads and writes its framed stream.
//!
//! Invariant: what a guest has not read yet is bounded; beyond that its frames are dropped whole, as a
//! switch does. A new connection replaces the old one, so a guest that is killed and started again is
//! back on its port.

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use std::io::{self, ErrorKind, Read, Write};

use super::framing::{self, Decoder};
use super::link::PortCounters;

/// Bytes that may wait for a guest.
const OUTPUT_LIMIT: usize = 4 << 20;
/// Taken from a guest in one turn, so that one guest cannot hold up the others.
const READ_PIECE: usize = 64 << 10;

#[derive(Debug)]
struct Plug {
    stream: UnixStream,
    token: Token,
    readable: bool,
    writable: bool,
    decoder: Decoder,
    output: Vec<u8>,
    written: usize,
}

/// A port with or without a guest.
#[derive(Debug)]
pub(crate) struct GuestPort {
    listener: UnixListener,
    listener_token: Token,
    plug: Option<Plug>,
    counters: PortCounters,
    buffer: Vec<u8>,
}

impl GuestPort {
    /// Starts to listen for a guest.
    pub(crate) fn new(
        mut listener: UnixListener,
        token: Token,
        registry: &Registry,
    ) -> io::Result<Self> {
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self {
            listener,
            listener_token: token,
            plug: None,
            counters: PortCounters::default(),
            buffer: vec![0; READ_PIECE],
        })
    }

    /// Notes what the operating system said; true when `fresh` was used for a new connection.
    pub(crate) fn note(
        &mut self,
        token: Token,
        (readable, writable): (bool, bool),
        fresh: Token,
        registry: &Registry,
    ) -> io::Result<bool> {
        if token == self.listener_token {
            return self.accept(fresh, registry);
        }
        if let Some(plug) = self.plug.as_mut().filter(|plug| plug.token == token) {
            plug.readable |= readable;
            plug.writable |= writable;
        }
        Ok(false)
    }

    fn accept(&mut self, token: Token, registry: &Registry) -> io::Result<bool> {
        let mut newest = None;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => newest = Some(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let Some(mut stream) = newest else {
            return Ok(false);
        };
        self.unplug(registry);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.plug = Some(Plug {
            stream,
            token,
            readable: true,
            writable: true,
            decoder: Decoder::default(),
            output: Vec::new(),
            written: 0,
        });
        Ok(true)
    }

    fn unplug(&mut self, registry: &Registry) {
        if let Some(mut plug) = self.plug.take() {
            // A socket that is gone from the poll set needs no report.
            let _ = registry.deregister(&mut plug.stream);
        }
    }

    /// Whether the guest's socket is known to have more to read.
    pub(crate) fn has_work(&self) -> bool {
        self.plug.as_ref().is_some_and(|plug| plug.readable)
    }

    /// Frames that the guest has sent, at most one piece of the stream.
    pub(crate) fn read(&mut self, registry: &Registry) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let Some(plug) = self.plug.as_mut().filter(|plug| plug.readable) else {
            return frames;
        };
        let gone = match plug.stream.read(&mut self.buffer) {
            Ok(0) => true,
            Ok(length) => {
                plug.decoder.feed(&self.buffer[..length]);
                drain(&mut plug.decoder, &mut frames)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                plug.readable = false;
                false
            }
            Err(error) => error.kind() != ErrorKind::Interrupted,
        };
        for frame in &frames {
            self.counters.frames_from_guest += 1;
            self.counters.bytes_from_guest += frame.len() as u64;
        }
        if gone {
            self.unplug(registry);
        }
        frames
    }

    /// Queues a frame for the guest, or drops it when the guest is not there or does not read.
    pub(crate) fn queue(&mut self, frame: &[u8]) {
        let Some(plug) = &mut self.plug else {
            return;
        };
        if plug.output.len() - plug.written + frame.len() > OUTPUT_LIMIT {
            self.counters.dropped += 1;
            return;
        }
        framing::encode(frame, &mut plug.output);
        self.counters.frames_to_guest += 1;
        self.counters.bytes_to_guest += frame.len() as u64;
    }

    /// Writes what is queued; true when something was written.
    pub(crate) fn write(&mut self, registry: &Registry) -> bool {
        let Some(plug) = &mut self.plug else {
            return false;
        };
        let mut moved = false;
        while plug.writable && plug.written < plug.output.len() {
            match plug.stream.write(&plug.output[plug.written..]) {
                Ok(length) => {
                    plug.written += length;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => plug.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.unplug(registry);
                    return false;
                }
            }
        }
        if plug.written == plug.output.len() {
            plug.output.clear();
            plug.written = 0;
        } else if plug.written > OUTPUT_LIMIT / 2 {
            plug.output.drain(..plug.written);
            plug.written = 0;
        }
        moved
    }

    /// Traffic so far.
    pub(crate) fn counters(&self) -> PortCounters {
        self.counters
    }
}

/// Takes every whole frame; true when the stream is out of step and has to be closed.
fn drain(decoder: &mut Decoder, frames: &mut Vec<Vec<u8>>) -> bool {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return false,
            Err(error) => {
                log::warn!("link: a guest is unplugged: {error}");
                return true;
            }
        }
    }
}
