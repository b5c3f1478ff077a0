//! Puts DATA packets on the wire: a window of them in one system call when the kernel can.
//!
//! With UDP_SEGMENT (udp(7), Linux 4.18) one call carries many datagrams of one size through the
//! kernel as one; the last may be shorter, which is what the end of a file is. Payload goes from the
//! shared content into the kernel without a copy of ours.
//!
//! Not here: what is sent when (`transfer`).

use std::{
    io::{self, IoSlice},
    net::UdpSocket,
    os::fd::AsRawFd,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use protocol::tftp::{DATA_HEADER, data_header};

/// Segments of one call (UDP_MAX_SEGMENTS of the kernels before 6.9).
pub(super) const MAX_SEGMENTS: usize = 64;
/// Payload of the largest UDP datagram over IPv4, which is also the most of one call.
const MAX_CALL: usize = 65_507;

/// A DATA packet: a number on the wire and a range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Block number on the wire.
    pub(super) number: u16,
    /// First byte in the file.
    pub(super) offset: u64,
    /// How many.
    pub(super) len: u16,
}

/// How many of these blocks, which follow each other in the file, one call takes.
pub(super) fn blocks_of_a_call(blocks: &[Block], segmentation: bool) -> usize {
    let Some(first) = blocks.first() else {
        return 0;
    };
    if !segmentation {
        return 1;
    }
    let most = MAX_CALL / (DATA_HEADER + usize::from(first.len));
    most.min(MAX_SEGMENTS).min(blocks.len()).max(1)
}

/// Sends blocks in one call on a connected socket. `payload` is the bytes of all of them.
///
/// # Errors
/// As of sendmsg(2); `WouldBlock` when the socket has no room.
pub(super) fn send(socket: &UdpSocket, blocks: &[Block], payload: &[u8]) -> io::Result<()> {
    let headers: Vec<[u8; DATA_HEADER]> = blocks
        .iter()
        .map(|block| data_header(block.number))
        .collect();
    let mut slices = Vec::with_capacity(2 * blocks.len());
    let mut rest = payload;
    for (header, block) in headers.iter().zip(blocks) {
        let (this, after) = rest
            .split_at_checked(usize::from(block.len))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        slices.push(IoSlice::new(header));
        slices.push(IoSlice::new(this));
        rest = after;
    }
    // The sizes of RFC 2348 end at 65464.
    let segment = blocks
        .first()
        .map_or(0, |block| block.len.saturating_add(DATA_HEADER as u16));
    let segments = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if blocks.len() > 1 { &segments[..] } else { &[] };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        control,
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn blocks(count: u16, len: u16) -> Vec<Block> {
        (0..count)
            .map(|at| Block {
                number: at.wrapping_add(65_534),
                offset: u64::from(at) * u64::from(len),
                len,
            })
            .collect()
    }

    #[test]
    fn one_call_takes_what_the_kernel_lets_it() {
        assert_eq!(blocks_of_a_call(&blocks(64, 512), true), 64);
        assert_eq!(blocks_of_a_call(&blocks(200, 512), true), 64);
        assert_eq!(blocks_of_a_call(&blocks(64, 1468), true), 44);
        assert_eq!(blocks_of_a_call(&blocks(64, 65464), true), 1);
        assert_eq!(blocks_of_a_call(&blocks(64, 512), false), 1);
        assert_eq!(blocks_of_a_call(&blocks(1, 0), true), 1);
        assert_eq!(blocks_of_a_call(&[], true), 0);
    }

    #[test]
    fn a_window_arrives_as_packets_of_their_own() {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a deadline");
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        server
            .connect(client.local_addr().expect("an address"))
            .expect("connected");
        let payload: Vec<u8> = (0..=255).cycle().take(3 * 512 + 100).collect();
        let mut window = blocks(4, 512);
        window[3].len = 100;
        send(&server, &window, &payload).expect("sent");
        let mut packet = [0; 1000];
        for block in &window {
            let len = client.recv(&mut packet).expect("a packet");
            assert_eq!(packet[..4], data_header(block.number));
            let start = usize::try_from(block.offset).expect("small");
            assert_eq!(
                packet[4..len],
                payload[start..start + usize::from(block.len)]
            );
        }
    }

    #[test]
    fn payload_that_is_too_short_is_not_sent() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let error = send(&socket, &blocks(2, 512), &[0; 600]).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
