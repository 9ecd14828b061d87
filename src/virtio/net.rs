//! The network card (virtio 1.2, 5.1): frames of its queues go to a network, and come from it.
//!
//! Queues come in pairs: an even one with buffers for frames from the network, and the next with frames to
//! it. The last is for the driver's commands. A frame is copied once on its way to the guest, as it may have
//! to be spread over several buffers, and not at all on its way to a tap.

mod announce;
mod control;
mod receive;

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use super::device::{Kind, VirtioDevice};
use super::queue::{Chain, Ring, RingError, total};
use crate::bus::{DeviceRequest, Gauge, RequestError};
use crate::memory::{Dma, Readable};
use crate::net::control::{NetCounters, NetRequest};
use crate::net::{Backend, HEADER, MAX_FRAME, MAX_PAIRS, Mac, Offloads, Sent};
use crate::state::{Decoder, Encoder, StateError};
use crate::sys::Bell;
use crate::units::Gpa;
use announce::Announcement;
use control::Command;
use receive::{Delivery, Receiver};

/// As QEMU's.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// About how many bytes of a queue are copied before another queue's turn.
const PASS_BYTES: usize = 1 << 20;
/// The lengths of what can be sent, with the header.
const FRAME_LENGTHS: RangeInclusive<u64> = HEADER as u64 + 1..=MAX_FRAME as u64;

// Features (5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const F_MQ: u64 = 1 << 22;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

/// What the driver may take on itself for frames that it receives, and change later (5.1.6.5.6).
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
/// All that has to do with frames that are not complete.
const OFFLOADS: u64 =
    GUEST_OFFLOADS | F_CSUM | F_CTRL_GUEST_OFFLOADS | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;

/// Configuration status (5.1.4).
const S_LINK_UP: u16 = 1 << 0;
const S_ANNOUNCE: u16 = 1 << 1;

/// Bytes of `struct virtio_net_config` up to the MTU.
const CONFIG_LEN: usize = 12;

/// What a card is made of.
#[expect(missing_debug_implementations, reason = "a back end has none")]
pub struct NetOptions {
    /// The network.
    pub backend: Box<dyn Backend>,
    /// What the card is called in messages.
    pub id: String,
    /// Its address.
    pub mac: Mac,
    /// The greatest payload of a frame; None: the driver is told of none.
    pub mtu: Option<u16>,
    /// At most [`MAX_PAIRS`].
    pub pairs: u16,
    /// Checksums and segmentation are left to the network, and from the network to the guest.
    pub offload: bool,
}

/// The card.
pub struct Net {
    backend: Box<dyn Backend>,
    id: String,
    own_mac: Mac,
    mac: Mac,
    mtu: Option<u16>,
    pairs: u16,
    /// How many of them the driver uses.
    active: u16,
    offload: bool,
    features: u64,
    /// The guest offloads that the driver has on now, of those in `features`.
    guest_offloads: u64,
    queues: Vec<u16>,
    receivers: Vec<Receiver>,
    counters: Arc<NetCounters>,
    /// A user has left the link up.
    plugged: bool,
    /// What the driver is told of the link.
    link: bool,
    /// The driver is asked to announce itself.
    announce: bool,
    announcement: Announcement,
    /// The card has come from elsewhere and not run here yet.
    moved: bool,
    generation: u32,
    chain: Chain,
    /// A buffer without ranges, for the next frame.
    from: Option<Readable>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("id", &self.id)
            .field("mac", &self.mac)
            .finish_non_exhaustive()
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Receive(usize),
    Send(usize),
    Control,
}

impl Net {
    /// Of `options`.
    pub fn new(options: NetOptions) -> Self {
        let pairs = options.pairs.clamp(1, MAX_PAIRS);
        let mut queues = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        queues.push(CONTROL_SIZE);
        let counters = Arc::new(NetCounters::default());
        counters.set_mac(options.mac);
        Self {
            backend: options.backend,
            id: options.id,
            own_mac: options.mac,
            mac: options.mac,
            mtu: options.mtu,
            pairs,
            active: 1,
            offload: options.offload,
            features: 0,
            guest_offloads: 0,
            queues,
            receivers: (0..pairs).map(|_| Receiver::default()).collect(),
            counters,
            plugged: true,
            link: false,
            announce: false,
            announcement: Announcement::default(),
            moved: false,
            generation: 0,
            chain: Chain::default(),
            from: None,
        }
    }

    /// How many pairs of queues the driver may use.
    fn usable_pairs(&self) -> u16 {
        match self.features & F_MQ {
            0 => 1,
            _ => self.pairs,
        }
    }

    /// What queue `index` is for: a driver that does not know of pairs has the third for its commands
    /// (5.1.2).
    fn queue(&self, index: usize) -> Queue {
        match (index / 2, index % 2) {
            (pair, _) if pair >= self.usable_pairs().into() => Queue::Control,
            (pair, 0) => Queue::Receive(pair),
            (pair, _) => Queue::Send(pair),
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.mac);
        let mut status = 0;
        for (bit, set) in [(S_LINK_UP, self.link), (S_ANNOUNCE, self.announce)] {
            status |= if set { bit } else { 0 };
        }
        let mtu = self.mtu.unwrap_or(0);
        for (at, value) in [(6, status), (8, self.pairs), (10, mtu)] {
            config[at..][..2].copy_from_slice(&value.to_le_bytes());
        }
        config
    }

    fn set_mac(&mut self, mac: Mac) {
        if self.mac != mac {
            self.mac = mac;
            self.counters.set_mac(mac);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    fn set_link(&mut self, link: bool) {
        if self.link != link {
            self.link = link;
            self.counters.set_link(link);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    fn set_announce(&mut self, announce: bool) {
        if self.announce != announce {
            self.announce = announce;
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// The driver sees a link if there is one and the user wants it.
    fn update_link(&mut self) {
        self.set_link(self.plugged && self.backend.link());
    }

    /// The network learns where the card is now.
    fn announce(&mut self) {
        if self.moved && self.link {
            self.moved = false;
            self.announcement = Announcement::begin(Instant::now());
            self.set_announce(self.features & F_GUEST_ANNOUNCE != 0);
        }
        // Without a look at the clock in each pass.
        if self.announcement.next().is_some() && self.announcement.take(Instant::now()) {
            self.backend.inject(&announce::frame(self.mac));
        }
    }

    fn set_guest_offloads(&mut self, on: u64) {
        self.guest_offloads = on & self.features & GUEST_OFFLOADS;
        let has = |feature| self.guest_offloads & feature != 0;
        self.backend.set_offloads(Offloads {
            checksum: has(F_GUEST_CSUM),
            tso4: has(F_GUEST_TSO4),
            tso6: has(F_GUEST_TSO6),
            ecn: has(F_GUEST_ECN),
        });
    }

    fn set_active(&mut self, pairs: u16) {
        self.active = pairs;
        self.backend.set_pairs(pairs);
        for receiver in self.receivers.iter_mut().skip(pairs.into()) {
            receiver.clear();
        }
    }

    /// Gives frames of the network to the driver.
    fn receive(&mut self, pair: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let merge = self.features & F_MRG_RXBUF != 0;
        let Some(receiver) = self.receivers.get_mut(pair) else {
            return Ok(false);
        };
        if pair >= usize::from(self.active) {
            return Ok(false);
        }
        let mut left = ring.size();
        let mut bytes = PASS_BYTES;
        loop {
            if left == 0 || bytes == 0 {
                return Ok(true);
            }
            let Some(len) = receiver.next(|frame| self.backend.receive(pair, frame)) else {
                return Ok(false);
            };
            left -= 1;
            bytes = bytes.saturating_sub(len);
            if !self.plugged {
                receiver.clear();
                self.counters.received.dropped();
                continue;
            }
            match receiver.deliver(merge, &mut self.chain, ring, dma)? {
                Delivery::Done => self.counters.received.passed((len - HEADER) as u64),
                Delivery::TooLong { buffers } => {
                    self.counters.received.dropped();
                    left = left.saturating_sub(buffers);
                }
                Delivery::Waits => return Ok(false),
            }
        }
    }

    /// Sends frames of the driver.
    fn send(&mut self, pair: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let more = self.send_all(pair, ring, dma);
        self.backend.flush();
        more
    }

    fn send_all(&mut self, pair: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let mut left = ring.size();
        let mut bytes = PASS_BYTES as u64;
        while left > 0 && bytes > 0 {
            if !ring.pop(dma, &mut self.chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                return Ok(false);
            }
            left -= 1;
            bytes = bytes.saturating_sub(total(self.chain.readable()));
            match self.send_chain(pair, dma) {
                Ok(Sent::Later) => {
                    ring.undo_pop(self.chain.head());
                    return Ok(false);
                }
                Ok(Sent::Yes | Sent::Dropped) => {
                    if let Err(error) = ring.push(dma, self.chain.head(), 0) {
                        ring.undo_pop(self.chain.head());
                        return Err(error);
                    }
                }
                Err(error) => {
                    ring.undo_pop(self.chain.head());
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Sends the frame in `self.chain`.
    fn send_chain(&mut self, pair: usize, dma: &Dma) -> Result<Sent, RingError> {
        let mut frame = match self.from.take() {
            Some(frame) => frame,
            None => dma.readable(Gpa(0), 0)?,
        };
        let mut parts = self.chain.readable().iter();
        let pushed = parts.try_for_each(|part| frame.push(part.gpa, part.len.into()));
        let len = frame.len();
        let sent = match pushed {
            // The header alone is no frame, and no network has longer ones.
            Ok(()) if FRAME_LENGTHS.contains(&len) && self.plugged => {
                Ok(self.backend.send(pair, &frame))
            }
            Ok(()) => Ok(Sent::Dropped),
            Err(error) => Err(error.into()),
        };
        frame.clear();
        self.from = Some(frame);
        match sent {
            Ok(Sent::Yes) => self.counters.sent.passed(len - HEADER as u64),
            Ok(Sent::Dropped) => self.counters.sent.dropped(),
            Ok(Sent::Later) | Err(_) => {}
        }
        sent
    }

    /// Carries out a command of the driver: one in each pass, as the host's kernel may take its time for it.
    fn command(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        if !ring.pop(dma, &mut self.chain)? {
            return ring.rearm(dma);
        }
        let served = Command::read(&self.chain, dma).and_then(|command| {
            let done = command.is_some_and(|command| self.carry_out(command));
            let written = control::acknowledge(&self.chain, dma, done)?;
            ring.push(dma, self.chain.head(), written)
        });
        if let Err(error) = served {
            ring.undo_pop(self.chain.head());
            return Err(error);
        }
        Ok(true)
    }

    fn carry_out(&mut self, command: Command) -> bool {
        match command {
            // All frames of the network are given to the guest, which is allowed (5.1.6.5.1).
            Command::Filter => true,
            Command::SetMac(mac) => {
                self.set_mac(mac);
                true
            }
            Command::Announced => {
                self.set_announce(false);
                true
            }
            Command::SetPairs(pairs) => {
                let valid = self.features & F_MQ != 0 && (1..=self.pairs).contains(&pairs);
                if valid {
                    self.set_active(pairs);
                }
                valid
            }
            Command::SetOffloads(offloads) => {
                let possible = self.features & GUEST_OFFLOADS;
                let valid = self.features & F_CTRL_GUEST_OFFLOADS != 0 && offloads & !possible == 0;
                if valid {
                    self.set_guest_offloads(offloads);
                }
                valid
            }
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let mut features = F_MAC
            | F_MRG_RXBUF
            | F_STATUS
            | F_CTRL_VQ
            | F_CTRL_RX
            | F_GUEST_ANNOUNCE
            | F_CTRL_MAC_ADDR;
        for (feature, offered) in [
            (OFFLOADS, self.offload),
            (F_MTU, self.mtu.is_some()),
            (F_MQ, self.pairs > 1),
        ] {
            features |= if offered { feature } else { 0 };
        }
        features
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.set_active(1);
        self.set_guest_offloads(GUEST_OFFLOADS);
    }

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_config(&self.config(), offset, data);
    }

    fn bell(&self) -> Option<Bell> {
        self.backend.bell()
    }

    fn complete(&mut self, _rings: &mut [Option<Ring>], _dma: &Dma) -> Result<(), RingError> {
        self.backend.woken();
        self.update_link();
        Ok(())
    }

    fn serve(&mut self, index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let served = match self.queue(index) {
            Queue::Receive(pair) => self.receive(pair, ring, dma),
            Queue::Send(pair) => self.send(pair, ring, dma),
            Queue::Control => self.command(ring, dma),
        };
        // It may have shown that the network is gone.
        self.update_link();
        served
    }

    fn restart(&mut self, _rings: &mut [Option<Ring>], _dma: &Dma) -> Result<(), RingError> {
        self.announce();
        Ok(())
    }

    fn wake_at(&self) -> Option<Instant> {
        self.announcement.next()
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn request(&mut self, request: &DeviceRequest) -> Result<(), RequestError> {
        let DeviceRequest::Net(NetRequest::Plug(plugged)) = request else {
            return Err(RequestError::OtherKind);
        };
        self.plugged = *plugged;
        self.counters.set_plugged(*plugged);
        self.update_link();
        Ok(())
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        Some(Arc::clone(&self.counters) as _)
    }

    fn reset(&mut self) {
        self.set_mac(self.own_mac);
        self.set_announce(false);
        self.announcement = Announcement::default();
        self.moved = false;
        for receiver in &mut self.receivers {
            receiver.clear();
        }
        self.set_features(0);
    }

    fn save(&self, to: &mut Encoder) {
        for byte in self.mac {
            to.u8(byte);
        }
        to.u16(self.active);
        to.u64(self.guest_offloads);
        to.bool(self.link);
        to.bool(self.announce);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const PAIRS: &str = "pairs of queues";
        let mut mac = Mac::default();
        for byte in &mut mac {
            *byte = from.u8("hardware address")?;
        }
        self.set_mac(mac);
        let active = from.u16(PAIRS)?;
        let pairs = self.usable_pairs();
        if !(1..=pairs).contains(&active) {
            return Err(from.invalid(PAIRS, format!("{active} of {pairs}")));
        }
        self.set_active(active);
        let offloads = from.u64("offloads")?;
        self.set_guest_offloads(offloads);
        // What the driver has seen; the link here may be another.
        let link = from.bool("link")?;
        self.set_link(link);
        let announce = from.bool("announcement")?;
        self.set_announce(announce);
        self.moved = true;
        Ok(())
    }

    fn release(&mut self) {
        self.backend.release();
    }

    fn acquire(&mut self) -> io::Result<()> {
        self.backend.acquire().map_err(|error| {
            let why = format!("cannot use the network of {}: {error}", self.id);
            io::Error::new(error.kind(), why)
        })
    }

    fn resume(&mut self) {
        self.update_link();
    }
}

#[cfg(test)]
mod tests;
