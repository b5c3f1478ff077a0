//! Packet captures of a link, in the classic libpcap format.
//!
//! Format: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>. Bulk data is cut short so that a
//! restore of hundreds of megabytes leaves a file that can be kept and opened: headers and the beginnings
//! of requests are what a failed scenario is read by. Not here: when a capture is kept.

use std::io::{self, Write};
use std::time::SystemTime;

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
const DECLARED_SNAPLEN: u32 = 65535;
/// Frames up to this long are kept whole: all DHCP, TFTP control and ARP.
const WHOLE_UP_TO: usize = 640;

/// Writes frames with their times to a pcap file.
#[derive(Debug)]
pub(crate) struct PcapWriter<W> {
    out: W,
    snaplen: usize,
}

impl<W: Write> PcapWriter<W> {
    /// Starts a capture; long frames keep their first `snaplen` bytes.
    pub(crate) fn new(mut out: W, snaplen: usize) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&MAGIC_MICROSECONDS.to_le_bytes());
        header.extend_from_slice(&2u16.to_le_bytes());
        header.extend_from_slice(&4u16.to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&DECLARED_SNAPLEN.to_le_bytes());
        header.extend_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out, snaplen })
    }

    /// Records one frame seen at `at`.
    pub(crate) fn record(&mut self, at: SystemTime, frame: &[u8]) -> io::Result<()> {
        let since_epoch = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let kept = if frame.len() > WHOLE_UP_TO {
            self.snaplen.min(frame.len())
        } else {
            frame.len()
        };
        let mut header = [0; 16];
        // The format has 32-bit seconds.
        header[0..4].copy_from_slice(&(since_epoch.as_secs() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&since_epoch.subsec_micros().to_le_bytes());
        header[8..12].copy_from_slice(&(kept as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(&frame[..kept])
    }

    /// Hands everything recorded so far to the file.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn capture(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut pcap = PcapWriter::new(&mut file, 256).unwrap();
        for frame in frames {
            pcap.record(
                SystemTime::UNIX_EPOCH + Duration::from_micros(3_000_007),
                frame,
            )
            .unwrap();
        }
        file
    }

    #[test]
    fn the_file_header_says_ethernet_and_version_2_4() {
        let file = capture(&[]);
        assert_eq!(&file[..8], &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(&file[20..24], &[1, 0, 0, 0]);
    }

    #[test]
    fn a_short_frame_is_kept_whole_with_its_time() {
        let file = capture(&[&[7; 600]]);
        assert_eq!(&file[24..32], &[3, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(&file[32..40], &[88, 2, 0, 0, 88, 2, 0, 0]);
        assert_eq!(file.len(), 24 + 16 + 600);
    }

    #[test]
    fn a_long_frame_is_cut_and_says_its_true_length() {
        let file = capture(&[&[7; 1514]]);
        assert_eq!(&file[32..40], &[0, 1, 0, 0, 0xea, 5, 0, 0]);
        assert_eq!(file.len(), 24 + 16 + 256);
    }
}
