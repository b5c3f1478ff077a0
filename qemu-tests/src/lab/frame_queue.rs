//! Frames between smoltcp and whoever carries them: a device that is two queues.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;

/// Ethernet header and an IP packet of 1500 bytes.
const FRAME_LIMIT: usize = 14 + 1500;

/// Frames to and from smoltcp.
#[derive(Debug, Default)]
pub(crate) struct FrameQueue {
    /// Frames that smoltcp has yet to see.
    pub(crate) received: VecDeque<Vec<u8>>,
    /// Frames that smoltcp wants sent.
    pub(crate) sent: VecDeque<Vec<u8>>,
}

/// A frame on its way into smoltcp.
pub(crate) struct ReceivedFrame(Vec<u8>);

/// Room for a frame on its way out.
pub(crate) struct FrameSlot<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for ReceivedFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for FrameSlot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for FrameQueue {
    type RxToken<'a> = ReceivedFrame;
    type TxToken<'a> = FrameSlot<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(ReceivedFrame, FrameSlot<'_>)> {
        let frame = self.received.pop_front()?;
        Some((ReceivedFrame(frame), FrameSlot(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<FrameSlot<'_>> {
        Some(FrameSlot(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = FRAME_LIMIT;
        capabilities.medium = Medium::Ethernet;
        capabilities
    }
}
