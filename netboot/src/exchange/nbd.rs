//! The little of the NBD protocol (<https://github.com/NetworkBlockDevice/nbd>, `doc/proto.md`) that reading
//! and writing one export over a local socket needs: fixed newstyle negotiation, simple replies.
//!
//! Invariant: a reply is believed only when its magic and its handle are those of the request.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backup::filesystem::{ReadAt, ReadError};

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const HAVE_OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`, of server and client alike.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_EXPORT_NAME: u32 = 1;
/// The most bytes of one request: what every server takes.
const MAX_REQUEST: usize = 32 << 20;
/// How long one answer may take; a disk that is slower than this is broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A disk at the other end of a socket.
#[derive(Debug)]
pub(super) struct NbdClient {
    line: Mutex<Line>,
    size: u64,
}

#[derive(Debug)]
struct Line {
    stream: UnixStream,
    handle: u64,
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD: {what}"))
}

impl NbdClient {
    /// Asks for the export without a name.
    ///
    /// # Errors
    /// Whatever the connection says, and a server of another protocol.
    pub(super) fn new(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        let flags = u16::from_be_bytes([hello[16], hello[17]]);
        if hello[..8] != GREETING.to_be_bytes() || hello[8..16] != HAVE_OPTION.to_be_bytes() {
            return Err(strange("the server greets with other bytes than NBD's"));
        }
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(strange("the server does not negotiate as it must"));
        }
        let flags = flags & (FIXED_NEWSTYLE | NO_ZEROES);
        let mut ask = Vec::with_capacity(20);
        ask.extend(u32::from(flags).to_be_bytes());
        ask.extend(HAVE_OPTION.to_be_bytes());
        ask.extend(OPTION_EXPORT_NAME.to_be_bytes());
        ask.extend(0u32.to_be_bytes());
        stream.write_all(&ask)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        if flags & NO_ZEROES == 0 {
            stream.read_exact(&mut [0; 124])?;
        }
        let mut size = [0; 8];
        size.copy_from_slice(&export[..8]);
        Ok(Self {
            line: Mutex::new(Line { stream, handle: 0 }),
            size: u64::from_be_bytes(size),
        })
    }

    /// Its size in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Writes all of `bytes` from byte `offset` on.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        for part in bytes.chunks(MAX_REQUEST) {
            line.ask(Command::Write, at, part.len(), part)?;
            line.answer(&mut [])?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Flushes and says good-bye.
    ///
    /// # Errors
    /// What the server says.
    pub(super) fn finish(self) -> io::Result<()> {
        let mut line = self
            .line
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        line.ask(Command::Flush, 0, 0, &[])?;
        line.answer(&mut [])?;
        line.ask(Command::Disconnect, 0, 0, &[])
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        for part in buffer.chunks_mut(MAX_REQUEST) {
            line.ask(Command::Read, at, part.len(), &[])?;
            line.answer(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl ReadAt for NbdClient {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let len = buffer.len() as u64;
        let failed = |reason: String| ReadError {
            offset,
            len,
            reason,
        };
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let reason = format!("past the end of the disk of {} bytes", self.size);
            return Err(failed(reason));
        }
        self.read(offset, buffer)
            .map_err(|error| failed(error.to_string()))
    }
}

impl Line {
    fn ask(&mut self, command: Command, at: u64, len: usize, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| strange("a request is too long"))?;
        self.handle += 1;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST.to_be_bytes());
        request.extend(0u16.to_be_bytes());
        request.extend((command as u16).to_be_bytes());
        request.extend(self.handle.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(len.to_be_bytes());
        self.stream.write_all(&request)?;
        self.stream.write_all(data)
    }

    fn answer(&mut self, data: &mut [u8]) -> io::Result<()> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let error = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        if reply[..4] != SIMPLE_REPLY.to_be_bytes() || reply[8..] != self.handle.to_be_bytes() {
            return Err(strange("an answer to no question"));
        }
        if error != 0 {
            // The numbers of the protocol are those of Linux.
            let error = i32::try_from(error).map_err(|_| strange("an impossible error"))?;
            return Err(io::Error::from_raw_os_error(error));
        }
        self.stream.read_exact(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that greets, gives an export of 4096 bytes and then says `answers`.
    fn server(answers: Vec<u8>) -> UnixStream {
        let (client, mut server) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut hello = Vec::new();
            hello.extend(GREETING.to_be_bytes());
            hello.extend(HAVE_OPTION.to_be_bytes());
            hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
            server.write_all(&hello).unwrap();
            server.read_exact(&mut [0; 20]).unwrap();
            let mut export = 4096u64.to_be_bytes().to_vec();
            export.extend([0, 1]);
            export.extend(answers);
            server.write_all(&export).unwrap();
            let _ = server.read_to_end(&mut Vec::new());
        });
        client
    }

    fn reply(error: u32, handle: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = SIMPLE_REPLY.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(handle.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn bytes_are_read_and_a_full_disk_is_known_by_its_number() {
        let mut answers = reply(0, 1, b"abcd");
        answers.extend(reply(28, 2, b""));
        let client = NbdClient::new(server(answers)).unwrap();
        assert_eq!(client.size(), 4096);
        let mut buffer = [0; 4];
        client.read_at(10, &mut buffer).unwrap();
        assert_eq!(&buffer, b"abcd");
        let error = client.write_at(0, &[1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(client.read_at(4093, &mut buffer).is_err(), "past the end");
    }

    #[test]
    fn an_answer_to_another_question_is_no_answer() {
        let client = NbdClient::new(server(reply(0, 7, b"abcd"))).unwrap();
        assert!(client.read_at(0, &mut [0; 4]).is_err());
    }
}
