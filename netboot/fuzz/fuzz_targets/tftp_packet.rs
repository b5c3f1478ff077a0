//! Any bytes are read without a panic; what was read is written and read back alike.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::tftp::Packet;

fuzz_target!(|bytes: &[u8]| {
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    if let Packet::Read(request) | Packet::Write(request) = &packet {
        for option in ["tsize", "blksize", "windowsize", "timeout"] {
            let _ = request.number(option);
        }
        let _ = request.is_octet();
    }
    let written = packet.emit();
    assert_eq!(Packet::parse(&written).as_ref(), Ok(&packet));
});
