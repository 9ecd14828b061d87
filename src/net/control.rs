//! What users see and ask of a network card while the VM runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// What a user asks of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetRequest {
    /// Set the link up or down, as far as users decide.
    Plug(bool),
}

/// What a card shows of itself. The counters are since it was made, as the host counts: `rx` is what the
/// guest has received. Those of frames and bytes are without what was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as `ip -s link` has them, above")]
pub struct NetReport {
    /// The hardware address.
    pub mac: String,
    /// Whether the guest sees a link.
    pub link: bool,
    /// Whether a user has left the link up, which the network may take down all the same.
    pub plugged: bool,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// They fit into none of the guest's buffers.
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// The network did not take them.
    pub tx_dropped: u64,
}

/// The counters of a direction.
#[derive(Debug, Default)]
pub struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// A frame of so many bytes has gone through.
    pub fn passed(&self, bytes: u64) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// A frame was dropped.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}

/// The values. The card alone writes them, under its own lock; others read them at any time.
#[derive(Debug)]
pub struct NetCounters {
    /// The bytes of the hardware address, behind two zeroes.
    mac: AtomicU64,
    link: AtomicBool,
    plugged: AtomicBool,
    /// To the guest.
    pub received: Direction,
    /// From the guest.
    pub sent: Direction,
}

impl Default for NetCounters {
    fn default() -> Self {
        Self {
            mac: AtomicU64::default(),
            link: AtomicBool::default(),
            plugged: AtomicBool::new(true),
            received: Direction::default(),
            sent: Direction::default(),
        }
    }
}

impl NetCounters {
    /// The card has this address.
    pub fn set_mac(&self, mac: super::Mac) {
        let [a, b, c, d, e, f] = mac;
        self.mac
            .store(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), Relaxed);
    }

    /// The guest sees a link, or none.
    pub fn set_link(&self, link: bool) {
        self.link.store(link, Relaxed);
    }

    /// A user has left the link up, or not.
    pub fn set_plugged(&self, plugged: bool) {
        self.plugged.store(plugged, Relaxed);
    }

    /// The values now. They need not be of one instant.
    pub fn report(&self) -> NetReport {
        let [_, _, mac @ ..] = self.mac.load(Relaxed).to_be_bytes();
        let Self { received, sent, .. } = self;
        NetReport {
            mac: super::show_mac(mac),
            link: self.link.load(Relaxed),
            plugged: self.plugged.load(Relaxed),
            rx_packets: received.frames.load(Relaxed),
            rx_bytes: received.bytes.load(Relaxed),
            rx_dropped: received.dropped.load(Relaxed),
            tx_packets: sent.frames.load(Relaxed),
            tx_bytes: sent.bytes.load(Relaxed),
            tx_dropped: sent.dropped.load(Relaxed),
        }
    }
}
