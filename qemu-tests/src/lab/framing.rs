//! QEMU's stream framing: how Ethernet frames travel over a byte stream.
//!
//! `-netdev stream` puts a 4-byte big-endian length before each frame (QEMU `net/stream.c`,
//! `net_socket_rs_init`). Invariant: a decoder yields exactly the frames that were encoded, however the
//! stream was cut into reads. No socket is touched here.

use thiserror::Error;

/// QEMU's own limit for one frame (`NET_BUFSIZE`, `include/net/net.h`): 4096 + 65536 bytes.
const LONGEST_FRAME: usize = 4096 + 65536;
const PREFIX: usize = 4;

/// Why a stream of frames is no longer understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FramingError {
    /// The peer announced a frame that no network card sends; the stream is out of step.
    #[error("frame of {announced} bytes announced, at most {LONGEST_FRAME} are possible")]
    FrameTooLong {
        /// Length that stood in the prefix, bytes.
        announced: usize,
    },
}

/// Appends one frame with its length to an output buffer.
pub(crate) fn encode(frame: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(frame);
}

/// Collects bytes as they arrive and hands out whole frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Takes bytes as they were read from the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes have been fed.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        let rest = &self.buffer[self.consumed..];
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*prefix) as usize;
        if announced > LONGEST_FRAME {
            return Err(FramingError::FrameTooLong { announced });
        }
        let Some(frame) = rest.get(..announced) else {
            return Ok(None);
        };
        let frame = frame.to_vec();
        self.consumed += PREFIX + announced;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(decoder: &mut Decoder) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..10),
            cut in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                encode(frame, &mut stream);
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.feed(piece);
                seen.extend(drain(&mut decoder));
            }
            prop_assert_eq!(seen, frames);
        }
    }

    #[test]
    fn a_stream_out_of_step_is_refused() {
        let mut decoder = Decoder::default();
        decoder.feed(&[0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(
            decoder.next_frame(),
            Err(FramingError::FrameTooLong {
                announced: 0xffff_ffff
            })
        );
    }
}
