//! Networks: what carries a guest's frames. Network cards of any kind lead to a [`Backend`], which knows
//! none.
//!
//! A frame comes with the 12 bytes of `struct virtio_net_hdr_v1` before it (virtio 1.2, 5.1.6): they say what
//! of checksums and segmentation is left to the other side. A back end without offloads sends none, and
//! ignores the guest's.
//!
//! Frames may be lost at any time, as in all networks.

pub mod control;
pub mod loopback;
pub mod none;
pub mod passt;
pub mod stream;
pub mod tap;

use std::io;

use crate::memory::Readable;
use crate::sys::Bell;

/// Bytes before each frame: `struct virtio_net_hdr_v1`.
pub const HEADER: usize = 12;

/// The most bytes of a frame with its header: a segment of 64 KiB, and the Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = HEADER + 18 + 0x1_0000;

/// The fewest bytes of a frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The most pairs of queues that a card has.
pub const MAX_PAIRS: u16 = 16;

/// A hardware address.
pub type Mac = [u8; 6];

/// What the guest takes on itself for frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Computing or verifying checksums. The others need it.
    pub checksum: bool,
    /// Segments of TCP over IPv4 that are longer than the network's.
    pub tso4: bool,
    /// As `tso4` over IPv6.
    pub tso6: bool,
    /// Segments with explicit congestion notification.
    pub ecn: bool,
}

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was sent.
    Yes,
    /// The network does not take it.
    Dropped,
    /// Not yet: the bell rings when it can be.
    Later,
}

/// What carries frames. Pairs of queues are counted from 0.
pub trait Backend: Send {
    /// Rings when a frame may have come, or can be sent again, or the link has changed.
    fn bell(&self) -> Option<Bell> {
        None
    }

    /// Looks at what its bell has told. To be called before others are when the bell may have rung.
    fn woken(&mut self) {}

    /// Whether there is a network at its other end.
    fn link(&self) -> bool;

    /// Takes the next frame of a pair into `frame`, of [`MAX_FRAME`] bytes, and returns its length with the
    /// header. None: there is none, or the rest comes later.
    fn receive(&mut self, pair: usize, frame: &mut [u8]) -> Option<usize>;

    /// Sends a frame with its header.
    fn send(&mut self, pair: usize, frame: &Readable) -> Sent;

    /// Sends a frame of the host's own, without a header. It may be lost.
    fn inject(&mut self, frame: &[u8]) {
        let _unused = frame;
    }

    /// Several frames were sent: they leave now at the latest.
    fn flush(&mut self) {}

    /// The guest's driver has chosen its offloads.
    fn set_offloads(&mut self, offloads: Offloads) {
        let _unused = offloads;
    }

    /// The guest uses the first `pairs` pairs of queues.
    fn set_pairs(&mut self, pairs: u16) {
        let _unused = pairs;
    }

    /// Connects to the network, with this VM alone. A back end is created without it.
    ///
    /// # Errors
    /// If the host refuses.
    fn acquire(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Disconnects, before the VM continues in another process.
    fn release(&mut self) {}
}

/// A hardware address that is always the same for a card of a VM by their names, and hardly ever for two: of
/// QEMU's range for virtual machines (52:54:00).
pub fn mac_of(vm: &str, id: &str) -> Mac {
    let hash = crc32c::crc32c(format!("{vm}/{id}").as_bytes());
    let [a, b, c, _] = hash.to_be_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

/// As `52:54:00:12:34:56`.
pub fn show_mac(mac: Mac) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// The address in `text`, if it is one that a card may have: of six bytes, not zero, and not a group's.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let part = parts.next().filter(hex)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let single = mac[0] & 1 == 0 && mac != Mac::default();
    (parts.next().is_none() && single).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_they_are_read() {
        let mac = mac_of("win", "virtio-net0");
        assert_eq!(mac, mac_of("win", "virtio-net0"));
        assert_ne!(mac, mac_of("win", "virtio-net1"));
        assert_ne!(mac, mac_of("lin", "virtio-net0"));
        assert_eq!(parse_mac(&show_mac(mac)), Some(mac));
        assert_eq!(
            parse_mac("52-54-00-Ab-0c-fF"),
            Some([0x52, 0x54, 0, 0xab, 0xc, 0xff])
        );
        for wrong in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "52:54:0:12:34:56",
            "+2:54:00:12:34:56",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
