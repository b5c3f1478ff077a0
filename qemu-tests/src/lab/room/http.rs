//! HTTP as iPXE speaks it: one connection for each request, read to its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::BootError;

/// A server that is busy with a whole room may take its time, but not for ever.
const PATIENCE: Duration = Duration::from_secs(120);
/// iPXE lets at most 256 KiB be on their way to it; the kernel doubles what it is told.
const RECEIVE_BUFFER: usize = 128 << 10;
const PIECE: usize = 64 << 10;
const LONGEST_SMALL_BODY: u64 = 64 << 10;

/// Fetches something small.
pub(super) fn get(from: Ipv4Addr, url: &str) -> Result<Vec<u8>, BootError> {
    let (mut stream, len) = ask(from, "GET", url, &[])?;
    let mut body = Vec::new();
    stream
        .by_ref()
        .take(len.min(LONGEST_SMALL_BODY))
        .read_to_end(&mut body)
        .map_err(BootError::socket(url))?;
    Ok(body)
}

/// Sends something; any answer of 200 is right.
pub(super) fn post(from: Ipv4Addr, url: &str, body: &[u8]) -> Result<(), BootError> {
    ask(from, "POST", url, body).map(drop)
}

/// Fetches a file whose content is known.
pub(super) fn get_known(from: Ipv4Addr, url: &str, content: &[u8]) -> Result<(), BootError> {
    let (mut stream, len) = ask(from, "GET", url, &[])?;
    if len != content.len() as u64 {
        return Err(BootError::answer(
            url,
            format!("{len} bytes, the file has {}", content.len()),
        ));
    }
    let mut piece = vec![0; PIECE];
    let mut read = 0;
    while read < content.len() {
        let len = stream.read(&mut piece).map_err(BootError::socket(url))?;
        if len == 0 {
            return Err(BootError::answer(
                url,
                format!("it ends after {read} bytes"),
            ));
        }
        if content.get(read..read + len) != Some(&piece[..len]) {
            return Err(BootError::answer(
                url,
                format!("other bytes after byte {read}"),
            ));
        }
        read += len;
    }
    Ok(())
}

/// Sends a request and reads the head of its answer: the rest of the stream, and the body's length.
fn ask(
    from: Ipv4Addr,
    method: &str,
    url: &str,
    body: &[u8],
) -> Result<(BufReader<TcpStream>, u64), BootError> {
    let parts = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'));
    let (host, path) = parts.ok_or_else(|| BootError::answer(url, "it is no URL"))?;
    let address = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address: SocketAddr = address
        .parse()
        .map_err(|_| BootError::answer(url, "its host is no address"))?;
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        Ok(BufReader::with_capacity(PIECE, stream))
    };
    let mut stream = connect().map_err(BootError::socket(url))?;
    let mut line = String::new();
    let mut next = |stream: &mut BufReader<TcpStream>| -> Result<String, BootError> {
        line.clear();
        stream
            .read_line(&mut line)
            .map_err(BootError::socket(url))?;
        Ok(line.trim_end().to_ascii_lowercase())
    };
    let status = next(&mut stream)?;
    if !status.starts_with("http/1.1 200") {
        return Err(BootError::answer(url, status));
    }
    let mut len = 0;
    loop {
        let header = next(&mut stream)?;
        if header.is_empty() {
            return Ok((stream, len));
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            len = value
                .trim()
                .parse()
                .map_err(|_| BootError::answer(url, header.clone()))?;
        }
    }
}
