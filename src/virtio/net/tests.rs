use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::super::testing::{BUFFERS, Driver, NEXT, RING, WRITE};
use super::*;
use crate::net::MAX_FRAME;
use crate::sys::lock;
use crate::virtio::queue::RingFeatures;

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const HEADER_LEN: u64 = HEADER as u64;

/// A network that a test plays.
#[derive(Clone, Default)]
struct TestNet(Arc<Mutex<Played>>);

#[derive(Default)]
struct Played {
    frames: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    refuses: Option<Sent>,
    injected: Vec<Vec<u8>>,
    flushes: usize,
    offloads: Offloads,
    pairs: u16,
    acquired: bool,
}

impl TestNet {
    /// A frame of `len` bytes arrives, with a header that says something.
    fn arrives(&self, byte: u8, len: usize) {
        let frame = [&[0x11; HEADER][..], &vec![byte; len]].concat();
        lock(&self.0).frames.push_back(frame);
    }

    fn waiting(&self) -> usize {
        lock(&self.0).frames.len()
    }
}

impl Backend for TestNet {
    fn link(&self) -> bool {
        lock(&self.0).acquired
    }

    fn receive(&mut self, _pair: usize, frame: &mut [u8]) -> Option<usize> {
        assert_eq!(frame.len(), MAX_FRAME);
        let next = lock(&self.0).frames.pop_front()?;
        frame[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }

    fn send(&mut self, _pair: usize, frame: &Readable) -> Sent {
        let mut played = lock(&self.0);
        if let Some(refused) = played.refuses {
            return refused;
        }
        let mut bytes = vec![0; usize::try_from(frame.len()).unwrap()];
        frame.copy_to(0, &mut bytes).unwrap();
        played.sent.push(bytes);
        Sent::Yes
    }

    fn inject(&mut self, frame: &[u8]) {
        lock(&self.0).injected.push(frame.to_vec());
    }

    fn flush(&mut self) {
        lock(&self.0).flushes += 1;
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        lock(&self.0).offloads = offloads;
    }

    fn set_pairs(&mut self, pairs: u16) {
        lock(&self.0).pairs = pairs;
    }

    fn acquire(&mut self) -> io::Result<()> {
        lock(&self.0).acquired = true;
        Ok(())
    }

    fn release(&mut self) {
        lock(&self.0).acquired = false;
    }
}

fn card(net: &TestNet, change: impl FnOnce(&mut NetOptions)) -> Net {
    let mut options = NetOptions {
        backend: Box::new(net.clone()),
        id: "net0".to_owned(),
        mac: MAC,
        mtu: None,
        pairs: 1,
        offload: true,
    };
    change(&mut options);
    Net::new(options)
}

/// A card that a driver has agreed with on all features, or all but `without`.
fn ready(net: &TestNet, pairs: u16, without: u64) -> Net {
    let mut card = card(net, |options| options.pairs = pairs);
    card.set_features(card.features() & !without);
    card.acquire().unwrap();
    card
}

struct Rig {
    driver: Driver,
    dma: Dma,
    ring: Ring,
}

impl Rig {
    fn new(size: u16) -> Self {
        let driver = Driver::new(size);
        let features = RingFeatures {
            event_index: true,
            ..RingFeatures::default()
        };
        Self {
            dma: driver.dma(),
            ring: driver.ring(features),
            driver,
        }
    }

    /// Descriptor `index` is a buffer of `len` bytes for the device, which is offered.
    fn offer_room(&mut self, index: u16, len: u32) {
        let at = BUFFERS + u64::from(index) * 0x400;
        self.driver
            .describe(RING.descriptors, index, (at, len, WRITE, 0));
        self.driver.offer(index);
    }

    fn serve(&mut self, card: &mut Net, queue: usize) -> Result<bool, RingError> {
        card.serve(queue, &mut self.ring, &self.dma)
    }

    /// What was returned: heads with lengths.
    fn used(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.take_used()).collect()
    }

    fn command(&mut self, card: &mut Net, queue: usize, bytes: &[u8]) -> u8 {
        self.driver.put(BUFFERS, bytes);
        self.driver.put(BUFFERS + 0x100, &[0xee]);
        let len = u32::try_from(bytes.len()).unwrap();
        self.driver
            .describe(RING.descriptors, 0, (BUFFERS, len, NEXT, 1));
        self.driver
            .describe(RING.descriptors, 1, (BUFFERS + 0x100, 1, WRITE, 0));
        self.driver.offer(0);
        assert_eq!(self.serve(card, queue), Ok(true));
        assert_eq!(self.serve(card, queue), Ok(false));
        assert_eq!(self.used(), [(0, 1)]);
        let [answer] = self.driver.get(BUFFERS + 0x100);
        answer
    }
}

#[test]
fn a_frame_fills_a_buffer() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, F_MRG_RXBUF);
    let mut rig = Rig::new(4);
    rig.offer_room(2, 0x400);
    net.arrives(7, 60);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(2, 72)]);
    let at = BUFFERS + 2 * 0x400;
    let header: [u8; HEADER] = rig.driver.get(at);
    assert_eq!(
        header,
        [
            0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 1, 0
        ]
    );
    assert_eq!(rig.driver.get(at + HEADER_LEN), [7; 60]);
    assert_eq!(rig.driver.get(at + HEADER_LEN + 60), [0; 4]);
    let report = card.counters.report();
    assert_eq!((report.rx_packets, report.rx_bytes), (1, 60));
}

#[test]
fn a_long_frame_is_spread_over_buffers_that_are_returned_at_once() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(8);
    net.arrives(9, 300);
    net.arrives(8, 20);
    rig.offer_room(0, 100);
    // Of two descriptors.
    rig.driver
        .describe(RING.descriptors, 1, (BUFFERS + 0x400, 50, NEXT | WRITE, 2));
    rig.driver
        .describe(RING.descriptors, 2, (BUFFERS + 0x800, 150, WRITE, 0));
    rig.driver.offer(1);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [], "12 bytes are missing");
    assert_eq!(
        rig.driver.available_event(),
        2,
        "the next buffer is notified of"
    );
    assert_eq!(net.waiting(), 1);
    rig.offer_room(3, 100);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(0, 100), (1, 200), (3, 12)]);
    let count: [u8; 2] = rig.driver.get(BUFFERS + 10);
    assert_eq!(count, [3, 0]);
    assert_eq!(rig.driver.get(BUFFERS + 12), [9; 88]);
    assert_eq!(rig.driver.get(BUFFERS + 0x400), [9; 50]);
    assert_eq!(rig.driver.get(BUFFERS + 0x800), [9; 150]);
    assert_eq!(rig.driver.get(BUFFERS + 3 * 0x400), [9; 12]);
    assert_eq!(rig.driver.get(BUFFERS + 3 * 0x400 + 12), [0; 4]);
    assert_eq!(net.waiting(), 0);
    rig.offer_room(4, 100);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(4, 32)]);
}

#[test]
fn a_frame_that_fits_into_nothing_is_dropped_and_takes_no_buffers() {
    let net = TestNet::default();
    for (without, size) in [(F_MRG_RXBUF, 8), (0, 2)] {
        let mut card = ready(&net, 1, without);
        let mut rig = Rig::new(size);
        rig.offer_room(0, 100);
        rig.offer_room(1, 100);
        net.arrives(1, 200);
        net.arrives(2, 60);
        while rig.serve(&mut card, 0).unwrap() {}
        assert_eq!(rig.used(), [(0, 72)]);
        assert_eq!(card.counters.report().rx_dropped, 1);
        assert_eq!(rig.driver.get(BUFFERS + HEADER_LEN), [2; 60]);
    }
}

#[test]
fn a_pass_takes_as_many_frames_as_the_ring_has_descriptors() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(2);
    for n in 0..5 {
        net.arrives(n, 200);
    }
    rig.offer_room(0, 10);
    rig.offer_room(1, 10);
    assert_eq!(
        rig.serve(&mut card, 0),
        Ok(true),
        "it was too long for both buffers"
    );
    assert_eq!((net.waiting(), card.counters.report().rx_dropped), (4, 1));
    let mut rig = Rig::new(4);
    for n in 0..4 {
        rig.offer_room(n, 0x400);
    }
    assert_eq!(rig.serve(&mut card, 0), Ok(true));
    assert_eq!((net.waiting(), rig.used().len()), (0, 4));
}

#[test]
fn a_buffer_outside_of_memory_breaks_the_ring_and_a_closed_gate_does_not() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(4);
    rig.offer_room(0, 100);
    net.arrives(1, 60);
    rig.dma.gate().set(false);
    assert!(rig.serve(&mut card, 0).unwrap_err().is_gate_closed());
    rig.dma.gate().set(true);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(0, 72)]);
    rig.driver
        .describe(RING.descriptors, 1, (1 << 40, 100, WRITE, 0));
    rig.driver.offer(1);
    net.arrives(1, 60);
    let error = rig.serve(&mut card, 0).unwrap_err();
    assert!(!error.is_gate_closed());
    let mut rig = Rig::new(4);
    rig.offer_room(0, 0);
    assert!(matches!(
        rig.serve(&mut card, 0),
        Err(RingError::Request { .. })
    ));
}

#[test]
fn frames_are_sent_from_any_pieces() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(8);
    rig.driver.put(BUFFERS, &[1; 12]);
    rig.driver.put(BUFFERS + 0x100, &[2; 60]);
    // The header in two pieces, the second with data.
    rig.driver
        .describe(RING.descriptors, 0, (BUFFERS, 5, NEXT, 1));
    rig.driver
        .describe(RING.descriptors, 1, (BUFFERS + 5, 7, NEXT, 2));
    rig.driver
        .describe(RING.descriptors, 2, (BUFFERS + 0x100, 60, 0, 0));
    rig.driver.offer(0);
    // The header alone, and less.
    rig.driver
        .describe(RING.descriptors, 3, (BUFFERS, 12, 0, 0));
    rig.driver.offer(3);
    rig.driver.describe(RING.descriptors, 4, (BUFFERS, 0, 0, 0));
    rig.driver.offer(4);
    assert_eq!(rig.serve(&mut card, 1), Ok(false));
    assert_eq!(rig.used(), [(0, 0), (3, 0), (4, 0)]);
    assert_eq!(rig.driver.available_event(), 3);
    let played = lock(&net.0);
    assert_eq!(played.sent, [[&[1; 12][..], &[2; 60]].concat()]);
    assert_eq!(played.flushes, 1);
    drop(played);
    let report = card.counters.report();
    assert_eq!(
        (report.tx_packets, report.tx_bytes, report.tx_dropped),
        (1, 60, 2)
    );
}

#[test]
fn a_frame_that_cannot_be_sent_yet_stays_in_its_ring() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(4);
    rig.driver
        .describe(RING.descriptors, 0, (BUFFERS, 72, 0, 0));
    rig.driver.offer(0);
    lock(&net.0).refuses = Some(Sent::Later);
    assert_eq!(rig.serve(&mut card, 1), Ok(false));
    assert_eq!(rig.used(), []);
    assert_eq!(lock(&net.0).flushes, 1);
    lock(&net.0).refuses = None;
    assert_eq!(rig.serve(&mut card, 1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    lock(&net.0).refuses = Some(Sent::Dropped);
    rig.driver.offer(0);
    assert_eq!(rig.serve(&mut card, 1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(card.counters.report().tx_dropped, 1);
}

#[test]
fn the_driver_commands_the_card() {
    let net = TestNet::default();
    let mut card = ready(&net, 4, 0);
    let mut rig = Rig::new(4);
    let control = 8;
    assert_eq!(lock(&net.0).pairs, 1);
    assert_eq!(
        rig.command(&mut card, control, &[1, 1, 2, 2, 3, 4, 5, 6]),
        0
    );
    let mut mac = [0; 6];
    card.read_config(0, &mut mac);
    assert_eq!(mac, [2, 2, 3, 4, 5, 6]);
    for (pairs, answer) in [(4, 0), (0, 1), (5, 1), (3, 0)] {
        assert_eq!(rig.command(&mut card, control, &[4, 0, pairs, 0]), answer);
    }
    assert_eq!(lock(&net.0).pairs, 3);
    let checksum = Offloads {
        checksum: true,
        ..Offloads::default()
    };
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(lock(&net.0).offloads, all);
    let set = |offloads: u64| [&[5, 0][..], &offloads.to_le_bytes()].concat();
    assert_eq!(rig.command(&mut card, control, &set(F_GUEST_CSUM)), 0);
    assert_eq!(lock(&net.0).offloads, checksum);
    assert_eq!(
        rig.command(&mut card, control, &set(F_GUEST_CSUM | F_CSUM)),
        1
    );
    assert_eq!(lock(&net.0).offloads, checksum);
    assert_eq!(rig.command(&mut card, control, &[0, 0, 1]), 0);
    assert_eq!(rig.command(&mut card, control, &[3, 0]), 0);
    assert_eq!(rig.command(&mut card, control, &[3, 1]), 1);
    assert_eq!(rig.command(&mut card, control, &[]), 1);
}

#[test]
fn a_driver_without_pairs_has_its_commands_in_the_third_queue() {
    let net = TestNet::default();
    let mut card = ready(&net, 4, F_MQ);
    let mut rig = Rig::new(4);
    assert_eq!(rig.command(&mut card, 2, &[0, 0, 1]), 0);
    assert_eq!(rig.command(&mut card, 2, &[4, 0, 2, 0]), 1);
    assert_eq!(lock(&net.0).pairs, 1);
}

#[test]
fn queues_beyond_those_in_use_receive_nothing() {
    let net = TestNet::default();
    let mut card = ready(&net, 2, 0);
    let mut rig = Rig::new(4);
    rig.offer_room(0, 100);
    net.arrives(1, 60);
    assert_eq!(rig.serve(&mut card, 2), Ok(false));
    assert_eq!(rig.used(), []);
    card.set_active(2);
    assert_eq!(rig.serve(&mut card, 2), Ok(false));
    assert_eq!(rig.used(), [(0, 72)]);
}

#[test]
fn the_configuration_says_what_is_offered() {
    let net = TestNet::default();
    let mut plain = card(&net, |options| options.offload = false);
    assert_eq!(plain.features() & (OFFLOADS | F_MTU | F_MQ), 0);
    assert_eq!(plain.queues(), [256, 256, 64]);
    let mut config = [0xee; 16];
    plain.read_config(0, &mut config);
    assert_eq!(
        config,
        [0x52, 0x54, 0, 1, 2, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
    plain.acquire().unwrap();
    plain.resume();
    let mut status = [0xee; 2];
    plain.read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
    plain.read_config(0x1000, &mut status);
    assert_eq!(status, [0, 0]);
    let full = card(&net, |options| {
        options.mtu = Some(9000);
        options.pairs = 16;
    });
    let wanted = OFFLOADS | F_MTU | F_MQ;
    assert_eq!(full.features() & wanted, wanted);
    assert_eq!(full.queues().len(), 33);
    full.read_config(8, &mut config[..4]);
    assert_eq!(config[..4], [16, 0, 0x28, 0x23]);
}

#[test]
fn a_saved_card_goes_on_and_a_reset_one_begins_again() {
    let net = TestNet::default();
    let mut first = ready(&net, 4, F_GUEST_TSO6);
    first.mac = [2, 2, 2, 2, 2, 2];
    first.set_active(3);
    first.set_guest_offloads(F_GUEST_CSUM | F_GUEST_TSO4);
    let mut saved = Encoder::default();
    first.save(&mut saved);
    let saved = saved.into_body();
    let mut second = ready(&net, 4, F_GUEST_TSO6);
    second.load(&mut Decoder::new("net", 1, &saved)).unwrap();
    assert_eq!((second.mac, second.active), ([2; 6], 3));
    assert_eq!(second.guest_offloads, F_GUEST_CSUM | F_GUEST_TSO4);
    assert_eq!(lock(&net.0).pairs, 3);
    let offloads = lock(&net.0).offloads;
    assert_eq!((offloads.tso4, offloads.tso6), (true, false));
    second.reset();
    assert_eq!((second.mac, second.active), (MAC, 1));
    assert_eq!(lock(&net.0).offloads, Offloads::default());
    let mut few = ready(&net, 2, 0);
    let error = few.load(&mut Decoder::new("net", 1, &saved)).unwrap_err();
    assert!(error.to_string().contains("3 of 2"), "{error}");
    assert!(few.load(&mut Decoder::new("net", 1, &saved[..7])).is_err());
}

#[test]
fn a_frame_that_waits_is_lost_with_a_reset() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let mut rig = Rig::new(4);
    net.arrives(1, 60);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    card.reset();
    card.set_features(card.features());
    rig.offer_room(0, 100);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), []);
    net.arrives(2, 60);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(0, 72)]);
    assert_eq!(rig.driver.get(BUFFERS + HEADER_LEN), [2; 60]);
}

fn status(card: &Net) -> u8 {
    let mut status = [0xee; 2];
    card.read_config(6, &mut status);
    assert_eq!(status[1], 0);
    status[0]
}

fn plug(card: &mut Net, plugged: bool) {
    let request = DeviceRequest::Net(NetRequest::Plug(plugged));
    card.request(&request).unwrap();
}

#[test]
fn a_user_pulls_the_cable_out() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    card.resume();
    assert_eq!((status(&card), card.config_generation()), (1, 1));
    plug(&mut card, false);
    assert_eq!((status(&card), card.config_generation()), (0, 2));
    plug(&mut card, false);
    assert_eq!(card.config_generation(), 2);
    let mut rig = Rig::new(4);
    net.arrives(1, 60);
    rig.offer_room(0, 100);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!((rig.used(), net.waiting()), (vec![], 0), "it is lost");
    rig.driver
        .describe(RING.descriptors, 1, (BUFFERS, 72, 0, 0));
    let report = card.counters.report();
    assert_eq!(
        (report.link, report.plugged, report.rx_dropped),
        (false, false, 1)
    );
    plug(&mut card, true);
    assert_eq!((status(&card), card.config_generation()), (1, 3));
    net.arrives(2, 60);
    assert_eq!(rig.serve(&mut card, 0), Ok(false));
    assert_eq!(rig.used(), [(0, 72)]);
    let mut rig = Rig::new(4);
    plug(&mut card, false);
    rig.driver
        .describe(RING.descriptors, 0, (BUFFERS, 72, 0, 0));
    rig.driver.offer(0);
    assert_eq!(rig.serve(&mut card, 1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(card.counters.report().tx_dropped, 1);
    assert!(lock(&net.0).sent.is_empty());
}

#[test]
fn a_network_that_goes_away_takes_the_link_with_it() {
    let net = TestNet::default();
    let mut card = ready(&net, 1, 0);
    let rig = Rig::new(4);
    card.resume();
    lock(&net.0).acquired = false;
    card.complete(&mut [], &rig.dma).unwrap();
    assert_eq!((status(&card), card.config_generation()), (0, 2));
}

#[test]
fn a_card_that_has_moved_is_announced() {
    let net = TestNet::default();
    let first = ready(&net, 1, 0);
    let mut saved = Encoder::default();
    first.save(&mut saved);
    let saved = saved.into_body();
    for (without, announces) in [(0, 2), (F_GUEST_ANNOUNCE, 0)] {
        let net = TestNet::default();
        let mut card = ready(&net, 1, without);
        let mut rig = Rig::new(4);
        card.restart(&mut [], &rig.dma).unwrap();
        assert_eq!(card.wake_at(), None, "it has not moved");
        card.load(&mut Decoder::new("net", 1, &saved)).unwrap();
        card.resume();
        card.restart(&mut [], &rig.dma).unwrap();
        assert_eq!(status(&card), 1 | announces);
        assert_eq!(lock(&net.0).injected, [announce::frame(MAC).to_vec()]);
        card.restart(&mut [], &rig.dma).unwrap();
        assert!(card.wake_at().is_some());
        let before = card.config_generation();
        if announces != 0 {
            assert_eq!(rig.command(&mut card, 2, &[3, 0]), 0);
            assert_eq!((status(&card), card.config_generation()), (1, before + 1));
        }
        card.reset();
        assert_eq!(card.wake_at(), None);
    }
}

#[test]
fn what_is_asked_of_other_devices_is_refused() {
    let mut card = ready(&TestNet::default(), 1, 0);
    let resize = DeviceRequest::Disk(crate::block::DiskRequest::Resize(Default::default()));
    assert_eq!(card.request(&resize), Err(RequestError::OtherKind));
}
