use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::testing::{BUFFERS, Driver, NEXT, RING, WRITE};
use super::*;
use crate::sys::eventfd;
use crate::virtio::queue::RingFeatures;

/// Counts how often the host's end is called.
#[derive(Clone, Default)]
struct Calls(Arc<[AtomicUsize; 2]>);

impl Calls {
    fn taken(&self) -> [usize; 2] {
        [0, 1].map(|of| self.0[of].swap(0, Ordering::Relaxed))
    }
}

impl Attention for Calls {
    fn output(&self) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
    }

    fn room(&self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    console: Console,
    line: Arc<Mutex<Line>>,
    calls: Calls,
    driver: Driver,
    dma: Dma,
    ring: Ring,
}

impl Rig {
    /// A console, or a port, whose driver is ready and has one ring of eight.
    fn new(name: Option<&str>) -> Self {
        let calls = Calls::default();
        let host = Box::new(calls.clone());
        let bell = Arc::new(eventfd().unwrap());
        let line = Arc::new(Mutex::new(Line::new(Some(host), bell)));
        let mut console = Console::new(Arc::clone(&line), name.map(str::to_owned));
        console.set_features(console.features());
        let driver = Driver::new(8);
        let dma = driver.dma();
        let ring = driver.ring(RingFeatures::default());
        Self {
            console,
            line,
            calls,
            driver,
            dma,
            ring,
        }
    }

    fn serve(&mut self, queue: usize) -> Result<bool, RingError> {
        self.console.serve(queue, &mut self.ring, &self.dma)
    }

    fn offer(&mut self, head: u16, at: u64, len: u32, flags: u16) {
        let descriptor = (BUFFERS + at, len, flags, head + 1);
        self.driver.describe(RING.descriptors, head, descriptor);
        if flags & NEXT == 0 {
            self.driver.offer(head);
        }
    }

    fn used(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.take_used()).collect()
    }

    /// What the host's end reads.
    fn taken(&self) -> Vec<u8> {
        let mut data = vec![0; 2 * TO_HOST];
        let count = lock(&self.line).take_output(&mut data);
        data.truncate(count);
        data
    }

    fn rings(&self) -> bool {
        lock(&self.line).bell().read().is_ok()
    }

    /// A message of the driver.
    fn says(&mut self, id: u32, event: u16, value: u16) -> bool {
        let mut message = id.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.driver.put(BUFFERS, &message);
        self.offer(0, 0, 8, 0);
        let more = self.serve(3).unwrap();
        assert_eq!(self.used(), [(0, 0)]);
        more
    }

    /// The device's next message to the driver.
    fn hears(&mut self) -> Option<Vec<u8>> {
        self.offer(0, 0, 100, WRITE);
        assert_eq!(self.serve(2), Ok(false));
        let (_, len) = self.used().pop()?;
        let data: [u8; 100] = self.driver.get(BUFFERS);
        Some(data[..usize::try_from(len).unwrap()].to_vec())
    }
}

#[test]
fn output_reaches_the_host_from_any_pieces() {
    let mut rig = Rig::new(None);
    rig.driver.put(BUFFERS, b"hello, ");
    rig.driver.put(BUFFERS + 0x100, b"world");
    rig.offer(0, 0, 7, NEXT);
    rig.offer(1, 0x100, 0, NEXT);
    rig.offer(2, 0x100, 5, 0);
    rig.driver.offer(0);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), [(2, 0), (0, 0)]);
    assert_eq!(rig.taken(), b"worldhello, world");
    assert!(rig.calls.taken()[0] >= 2);
}

#[test]
fn input_fills_the_drivers_buffers_and_waits_for_more() {
    let mut rig = Rig::new(None);
    assert_eq!(lock(&rig.line).input_room(), TO_GUEST);
    lock(&rig.line).input(b"abcdefgh");
    assert!(rig.rings());
    rig.offer(0, 0, 3, WRITE);
    assert_eq!(rig.serve(0), Ok(false));
    assert_eq!(rig.used(), [(0, 3)]);
    assert_eq!(rig.driver.get(BUFFERS), *b"abc\0");
    // A buffer without room is returned, and loses nothing; a chain of two.
    rig.offer(1, 0, 0, WRITE);
    rig.offer(2, 0x10, 1, WRITE | NEXT);
    rig.offer(3, 0x20, 100, WRITE);
    rig.driver.offer(2);
    assert_eq!(rig.serve(0), Ok(false));
    assert_eq!(rig.used(), [(1, 0), (3, 5)]);
    assert_eq!(rig.driver.get(BUFFERS + 0x20), *b"defgh\0");
}

#[test]
fn input_is_bounded_and_the_host_is_told_of_room() {
    let mut rig = Rig::new(None);
    let mut given = 0;
    loop {
        let room = lock(&rig.line).input_room();
        if room == 0 {
            break;
        }
        lock(&rig.line).input(&vec![7; room.min(1000)]);
        given += room.min(1000);
    }
    assert_eq!(given, TO_GUEST);
    lock(&rig.line).input(&[8; 10]);
    assert_eq!(rig.calls.taken(), [0, 0]);
    rig.offer(0, 0, 0x1_0000, WRITE);
    assert_eq!(rig.serve(0), Ok(false));
    assert_eq!(rig.used(), [(0, u32::try_from(TO_GUEST).unwrap())]);
    assert_eq!(rig.calls.taken(), [0, 1]);
    assert_eq!(lock(&rig.line).input_room(), TO_GUEST);
    assert_eq!(lock(&rig.line).peek_input(&mut [0; 1]), 0, "8 was too much");
}

#[test]
fn a_port_that_nobody_reads_from_holds_its_output_back() {
    let mut rig = Rig::new(Some("agent"));
    let len = 20_000;
    rig.driver.put(BUFFERS, &vec![1; 20_000]);
    rig.offer(0, 0, len, 0);
    assert_eq!(rig.serve(5), Ok(false));
    assert_eq!(rig.used(), [], "the rest has no room");
    assert_eq!(rig.console.wake_at(), None);
    assert_eq!(rig.console.sent, TO_HOST as u64);
    assert!(!rig.rings());
    // Saved and loaded, it goes on where it was.
    let mut saved = Encoder::default();
    rig.console.save(&mut saved);
    let saved = saved.into_body();
    rig.console.sent = 0;
    let mut from = Decoder::new("console", 1, &saved);
    rig.console.load(&mut from).unwrap();
    assert_eq!(rig.taken().len(), TO_HOST);
    assert!(rig.rings());
    assert_eq!(rig.serve(5), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(rig.taken().len(), 20_000 - TO_HOST);
    // A request that has become shorter is done.
    rig.console.sent = 1 << 40;
    rig.driver.offer(0);
    assert_eq!(rig.serve(5), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(rig.taken(), [0; 0]);
}

#[test]
fn a_console_that_nobody_reads_does_not_hold_the_guest_up() {
    let mut rig = Rig::new(None);
    rig.driver.put(BUFFERS, &[1; 40_000]);
    rig.offer(0, 0, 40_000, 0);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), []);
    let wakes = rig.console.wake_at().unwrap();
    rig.console.stalled = wakes.checked_sub(2 * PATIENCE);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)], "the rest is lost");
    assert_eq!(rig.console.wake_at(), None);
    rig.driver.offer(0);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)], "without another wait");
    // The reader is back.
    assert_eq!(rig.taken().len(), TO_HOST);
    rig.offer(1, 0, 3, 0);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!((rig.used(), rig.taken()), (vec![(1, 0)], vec![1; 3]));
}

#[test]
fn a_pass_has_an_end() {
    let mut rig = Rig::new(None);
    // A reader that is always faster.
    lock(&rig.line).connect(true);
    let line = Arc::clone(&rig.line);
    rig.offer(0, 0, 0x1_8000 - 8, 0);
    let mut taken = 0;
    let mut passes = 0;
    loop {
        let more = rig.serve(1).unwrap();
        passes += 1;
        let mut data = vec![0; TO_HOST];
        taken += lock(&line).take_output(&mut data);
        if !more && !rig.used().is_empty() {
            break;
        }
        assert!(passes < 100);
    }
    assert_eq!(taken, 0x1_8000 - 8);
    // Nothing is connected: it costs nothing, and a pass still has an end.
    let bell = Arc::new(eventfd().unwrap());
    let nothing = Arc::new(Mutex::new(Line::new(None, bell)));
    let mut console = Console::new(nothing, None);
    rig.driver.offer(0);
    assert_eq!(console.serve(1, &mut rig.ring, &rig.dma), Ok(true));
    assert_eq!(console.sent, PASS_BYTES as u64);
    assert_eq!(console.serve(1, &mut rig.ring, &rig.dma), Ok(false));
}

#[test]
fn a_driver_learns_of_a_port_and_opens_it() {
    let mut rig = Rig::new(Some("org.x"));
    assert!(rig.says(u32::MAX, 0, 1), "there is something to tell");
    assert_eq!(rig.hears().unwrap(), [1, 0, 0, 0, 1, 0, 1, 0]);
    lock(&rig.line).connect(true);
    assert!(rig.rings());
    assert!(rig.says(1, 3, 1));
    rig.offer(0, 0, 100, WRITE);
    rig.driver.offer(0);
    assert_eq!(rig.serve(2), Ok(false));
    assert_eq!(rig.used(), [(0, 13), (0, 8)]);
    assert_eq!(
        lock(&rig.line).input_room(),
        0,
        "the guest has not opened it"
    );
    assert!(!rig.says(1, 6, 1));
    assert_eq!(rig.calls.taken(), [0, 1]);
    assert_eq!(lock(&rig.line).input_room(), TO_GUEST);
    lock(&rig.line).input(b"stale");
    assert!(!rig.says(1, 6, 0));
    assert_eq!(lock(&rig.line).peek_input(&mut [0; 8]), 0);
    lock(&rig.line).connect(false);
    assert_eq!(rig.hears().unwrap(), [1, 0, 0, 0, 6, 0, 0, 0]);
}

#[test]
fn a_message_needs_room() {
    let mut rig = Rig::new(Some("x"));
    rig.says(0, 0, 1);
    rig.offer(0, 0, 7, WRITE);
    assert!(matches!(rig.serve(2), Err(RingError::Request { .. })));
}

#[test]
fn a_driver_that_knows_no_ports_has_none() {
    let mut rig = Rig::new(Some("x"));
    rig.console.set_features(0);
    rig.offer(0, 0, 8, 0);
    assert_eq!(rig.serve(3), Ok(false));
    assert_eq!(rig.used(), []);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)], "port 0's output is lost");
    assert_eq!(rig.taken(), [0; 0]);
    assert_eq!(rig.serve(0), Ok(false));
}

#[test]
fn what_is_outside_of_memory_breaks_the_ring_and_a_closed_gate_does_not() {
    let mut rig = Rig::new(None);
    lock(&rig.line).input(b"abc");
    for (queue, flags) in [(0, WRITE), (1, 0)] {
        rig.offer(0, 0, 3, flags);
        rig.dma.gate().set(false);
        assert!(rig.serve(queue).unwrap_err().is_gate_closed());
        rig.dma.gate().set(true);
        assert_eq!(rig.serve(queue), Ok(false));
        assert_eq!(rig.used().len(), 1);
    }
    lock(&rig.line).input(b"abc");
    for (queue, flags) in [(0, WRITE), (1, 0)] {
        rig.driver
            .describe(RING.descriptors, 0, (1 << 40, 3, flags, 0));
        rig.driver.offer(0);
        assert!(!rig.serve(queue).unwrap_err().is_gate_closed());
        rig.driver.rewind();
        rig.ring = rig.driver.ring(RingFeatures::default());
    }
    assert_eq!(rig.taken(), b"abc", "what was sent before");
    assert_eq!(lock(&rig.line).peek_input(&mut [0; 8]), 3);
}

#[test]
fn the_configuration_shows_the_terminals_size() {
    let mut rig = Rig::new(None);
    assert_eq!(rig.console.features(), F_SIZE | F_EMERG_WRITE);
    let size = Size {
        columns: 132,
        rows: 50,
    };
    lock(&rig.line).resize(size);
    assert!(rig.rings());
    rig.console.complete(&mut [], &rig.dma).unwrap();
    rig.console.complete(&mut [], &rig.dma).unwrap();
    assert_eq!(rig.console.config_generation(), 1);
    let mut config = [0xee; 16];
    rig.console.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 50, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let port = Rig::new(Some("x"));
    assert_eq!(port.console.features(), F_MULTIPORT | F_EMERG_WRITE);
    assert_eq!(port.console.queues().len(), 6);
}

#[test]
fn an_emergency_is_heard_in_any_state() {
    let mut rig = Rig::new(None);
    rig.console.reset();
    for (offset, data) in [
        (8, &[b'!', 1, 2, 3][..]),
        (8, b"?"),
        (0, b"x"),
        (9, b"x"),
        (8, b""),
    ] {
        rig.console.write_config(offset, data);
    }
    for _ in 0..2 * TO_HOST {
        rig.console.write_config(8, b"~");
    }
    let taken = rig.taken();
    assert_eq!((&taken[..3], taken.len()), (&b"!?~"[..], TO_HOST));
}

#[test]
fn input_on_its_way_is_saved_and_lost_with_a_reset() {
    let mut rig = Rig::new(None);
    lock(&rig.line).input(b"abc");
    let mut saved = Encoder::default();
    rig.console.save(&mut saved);
    let saved = saved.into_body();
    let mut there = Rig::new(None);
    let mut from = Decoder::new("console", 1, &saved);
    there.console.load(&mut from).unwrap();
    there.offer(0, 0, 10, WRITE);
    assert_eq!(there.serve(0), Ok(false));
    assert_eq!(there.used(), [(0, 3)]);
    for len in 0..saved.len() {
        let mut from = Decoder::new("console", 1, &saved[..len]);
        assert!(there.console.load(&mut from).is_err(), "{len}");
    }
    rig.console.reset();
    rig.console.set_features(rig.console.features());
    rig.offer(0, 0, 10, WRITE);
    assert_eq!(rig.serve(0), Ok(false));
    assert_eq!(rig.used(), []);
}

#[test]
fn too_much_saved_input_is_refused() {
    let mut saved = Encoder::default();
    Rig::new(None).console.save(&mut saved);
    let mut body = saved.into_body();
    let len = (TO_GUEST + 1) as u64;
    let at = body.len() - 8;
    body[at..].copy_from_slice(&len.to_le_bytes());
    body.extend(vec![0; TO_GUEST + 1]);
    let mut from = Decoder::new("console", 1, &body);
    let error = Rig::new(None).console.load(&mut from).unwrap_err();
    assert!(error.to_string().contains("4097 bytes"), "{error}");
}
