use super::super::testing::{BUFFERS, Driver, NEXT, RAM, RING, WRITE};
use super::*;
use crate::block::{DiskRequest, Resize};
use crate::units::Gpa;
use crate::virtio::queue::RingFeatures;

const SIZE: u64 = 64 << 20;
/// Where the test's pages are: behind its rings and buffers.
const FIRST: u64 = 0x1_0000;

struct Rig {
    balloon: Balloon,
    driver: Driver,
    dma: Dma,
    ring: Ring,
}

impl Rig {
    /// A driver with all features and one ring of eight; its pages from [`FIRST`] on are full.
    fn new() -> Self {
        let mut balloon = Balloon::new(BalloonOptions {
            ram: SIZE,
            deflate_on_oom: true,
            reporting: true,
            interval: Some(Duration::from_secs(3600)),
        });
        balloon.set_features(balloon.features());
        let driver = Driver::new(8);
        driver.put(FIRST, &[7; 0x1_0000]);
        let dma = driver.dma();
        let ring = driver.ring(RingFeatures::default());
        Self {
            balloon,
            driver,
            dma,
            ring,
        }
    }

    fn serve(&mut self, queue: usize) -> Result<bool, RingError> {
        self.balloon.serve(queue, &mut self.ring, &self.dma)
    }

    fn offer(&mut self, head: u16, at: u64, len: u32, flags: u16) {
        let descriptor = (at, len, flags, head + 1);
        self.driver.describe(RING.descriptors, head, descriptor);
        if flags & NEXT == 0 {
            self.driver.offer(head);
        }
    }

    fn used(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.take_used()).collect()
    }

    /// Offers a request with these pages.
    fn offer_pages(&mut self, pages: &[u32]) {
        let bytes: Vec<_> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.put(BUFFERS, &bytes);
        self.offer(0, BUFFERS, u32::try_from(bytes.len()).unwrap(), 0);
    }

    /// Which of the 16 pages from [`FIRST`] on are empty.
    fn empty(&self) -> Vec<u64> {
        let is = |page: &u64| self.driver.get(FIRST + page * PAGE) == [0_u8; 4096];
        (0..16).filter(is).collect()
    }

    fn report(&self) -> crate::memory::balloon::BalloonReport {
        self.balloon.counters.report()
    }
}

fn target(bytes: u64) -> DeviceRequest {
    DeviceRequest::Balloon(BalloonRequest::Target(bytes))
}

#[test]
fn pages_in_the_balloon_are_released() {
    let mut rig = Rig::new();
    rig.offer_pages(&[19, 17, 18, 17]);
    rig.driver.offer(0);
    assert_eq!(rig.serve(0), Ok(true), "one request at a time");
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(rig.empty(), [1, 2, 3]);
    assert_eq!(rig.report().released, 3 * PAGE);
    rig.driver.put(FIRST + PAGE, &[7; 4096]);
    rig.driver.set_available(1);
    assert_eq!(rig.serve(0), Ok(false));
    // The driver takes it back.
    rig.driver.offer(0);
    assert_eq!(rig.serve(1), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(rig.empty(), [2, 3]);
}

#[test]
fn pages_that_are_no_ram_are_ignored() {
    let mut rig = Rig::new();
    let end = u32::try_from(RAM / PAGE).unwrap();
    rig.offer_pages(&[u32::MAX, end, end + 1, 0xf_ffff, 0xfee00, end - 1]);
    assert_eq!(rig.serve(0), Ok(true));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!((rig.empty(), rig.report().released), (vec![15], PAGE));
    // Not even a whole number.
    rig.offer(0, BUFFERS, 3, 0);
    assert_eq!(rig.serve(0), Ok(true));
    rig.offer(0, BUFFERS, 8, WRITE);
    assert_eq!(rig.serve(0), Ok(true));
    assert_eq!((rig.used().len(), rig.report().released), (2, PAGE));
}

#[test]
fn its_own_rings_in_the_balloon_stop_it_at_most() {
    let mut rig = Rig::new();
    rig.offer_pages(&(0..u32::try_from(RAM / PAGE).unwrap()).collect::<Vec<_>>());
    // The used index of an empty ring is 1 then, and the available one 0.
    assert_eq!(rig.serve(0), Ok(true));
    assert!(matches!(
        rig.serve(0),
        Err(RingError::TooManyAvailable { .. })
    ));
}

#[test]
fn a_request_from_pieces_and_one_that_is_too_long() {
    let mut rig = Rig::new();
    rig.driver.put(BUFFERS, &[16, 0, 0, 0, 18, 0]);
    rig.driver.put(BUFFERS + 0x100, &[0, 0]);
    rig.offer(0, BUFFERS, 6, NEXT);
    rig.offer(1, BUFFERS + 0x100, 2, 0);
    rig.driver.set_available(0);
    rig.driver.offer(0);
    assert_eq!(rig.serve(0), Ok(true));
    assert_eq!(rig.empty(), [0, 2]);
    rig.offer(0, BUFFERS, 4 * 4097, 0);
    assert!(matches!(rig.serve(0), Err(RingError::Request { .. })));
    rig.driver.rewind();
    rig.ring = rig.driver.ring(RingFeatures::default());
    rig.offer(0, 1 << 40, 4, 0);
    assert!(!rig.serve(0).unwrap_err().is_gate_closed());
}

#[test]
fn a_request_waits_while_the_function_is_no_bus_master() {
    for queue in [0, 1, 2, 4] {
        let mut rig = Rig::new();
        rig.offer_pages(&[16]);
        rig.dma.gate().set(false);
        assert!(rig.serve(queue).unwrap_err().is_gate_closed());
        assert_eq!((rig.used(), rig.empty()), (vec![], vec![]));
        rig.dma.gate().set(true);
        rig.serve(queue).unwrap();
        assert_eq!(rig.used().len(), usize::from(queue != 2));
    }
}

#[test]
fn reported_pages_are_released_as_far_as_they_are_whole() {
    for queue in [3, 4] {
        let mut rig = Rig::new();
        rig.offer(0, FIRST + 0x1001, 0x3000, WRITE | NEXT);
        rig.offer(1, 1 << 40, 0x4000, WRITE | NEXT);
        rig.offer(2, FIRST + 0x8000, 0x2000, WRITE);
        rig.driver.set_available(0);
        rig.driver.offer(0);
        assert_eq!(rig.serve(queue), Ok(true));
        assert_eq!(rig.used(), [(0, 0)]);
        assert_eq!(rig.empty(), [2, 3, 8, 9]);
    }
    // Without statistics they come in queue 2; without the feature there are none.
    let mut rig = Rig::new();
    rig.balloon.set_features(F_REPORTING);
    rig.offer(0, FIRST, 0x1000, WRITE);
    assert_eq!(rig.serve(2), Ok(true));
    assert_eq!(rig.empty(), [0]);
    rig.balloon.set_features(F_STATS_VQ);
    rig.offer(0, FIRST, 0x2000, WRITE);
    assert_eq!(rig.serve(3), Ok(false));
    assert_eq!(rig.empty(), [0]);
}

#[test]
fn pages_whose_content_counts_are_kept() {
    let mut rig = Rig::new();
    rig.balloon.write_config(POISON, &[0xaa; 4]);
    let mut config = [0; 4];
    rig.balloon.read_config(POISON, &mut config);
    assert_eq!(config, [0xaa; 4]);
    rig.offer(0, FIRST, 0x1000, WRITE);
    assert_eq!(rig.serve(4), Ok(true));
    assert_eq!((rig.used(), rig.empty()), (vec![(0, 0)], vec![]));
    rig.balloon.reset();
    rig.balloon.set_features(rig.balloon.features());
    rig.driver.offer(0);
    assert_eq!(rig.serve(4), Ok(true));
    assert_eq!(rig.empty(), [0]);
}

/// Bytes of statistics: tags and values.
fn statistics(of: &[(u16, u64)]) -> Vec<u8> {
    let bytes = of.iter().flat_map(|(tag, value)| {
        let tag = tag.to_le_bytes().into_iter();
        tag.chain(value.to_le_bytes())
    });
    bytes.collect()
}

#[test]
fn statistics_are_taken_and_asked_for_again() {
    let mut rig = Rig::new();
    let first = statistics(&[(4, 100), (5, 200), (7, u64::MAX), (99, 1), (0xffff, 2)]);
    rig.driver.put(BUFFERS, &first);
    rig.offer(0, BUFFERS, u32::try_from(first.len()).unwrap(), 0);
    assert_eq!(rig.serve(2), Ok(true));
    assert_eq!(rig.serve(2), Ok(false));
    assert_eq!(rig.used(), [], "the device keeps the buffer");
    let report = rig.report();
    let shown: Vec<_> = report.stats.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    assert_eq!(
        shown,
        [("stat-free-memory", 100), ("stat-total-memory", 200)]
    );
    assert!(report.last_update > 0 && rig.balloon.wake_at().is_some());
    // It is due.
    rig.balloon.due = Some(Instant::now());
    assert_eq!(rig.serve(2), Ok(false));
    assert_eq!(rig.used(), [(0, 0)]);
    assert_eq!(rig.balloon.wake_at(), None);
    // Two come unasked; one is kept.
    rig.driver.offer(0);
    rig.driver.offer(0);
    while rig.serve(2).unwrap() {}
    assert_eq!(rig.used(), [(0, 0)]);
    // Another guest.
    rig.balloon.reset();
    assert_eq!(rig.report().stats.len(), 0);
    assert_eq!((rig.report().last_update, rig.balloon.wake_at()), (0, None));
}

#[test]
fn more_statistics_than_there_are_do_no_harm() {
    let mut rig = Rig::new();
    rig.offer(0, 0, 0x1_0000, 0);
    assert_eq!(rig.serve(2), Ok(true));
    rig.offer(1, 0, 0, 0);
    assert_eq!(rig.serve(2), Ok(true));
    assert_eq!(rig.used(), [(0, 0)]);
}

#[test]
fn the_driver_is_told_of_a_target() {
    let mut rig = Rig::new();
    rig.balloon.request(&target(SIZE - 5 * PAGE)).unwrap();
    assert_eq!(rig.balloon.config_generation(), 1);
    rig.balloon.request(&target(SIZE - 5 * PAGE)).unwrap();
    assert_eq!(rig.balloon.config_generation(), 1);
    let mut config = [0xee; 20];
    rig.balloon.write_config(ACTUAL, &[3, 0, 0, 0]);
    rig.balloon.read_config(0, &mut config);
    assert_eq!(config[..8], [5, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(config[8..], [0; 12]);
    let report = rig.report();
    assert_eq!(
        (report.target, report.actual),
        (SIZE - 5 * PAGE, SIZE - 3 * PAGE)
    );
    for bytes in [0, LEAST - 1, SIZE + 1, u64::MAX] {
        let refused = rig.balloon.request(&target(bytes)).unwrap_err();
        assert!(refused.to_string().contains("64 MiB"), "{refused}");
    }
    assert_eq!(rig.report(), report);
    let disk = DeviceRequest::Disk(DiskRequest::Resize(Resize::default()));
    assert_eq!(rig.balloon.request(&disk), Err(RequestError::OtherKind));
    // A guest may say anything.
    for data in [&[0xff; 4][..], &[1; 2], &[1; 8], &[]] {
        for offset in [ACTUAL, POISON, 0, 8, 0xfff] {
            rig.balloon.write_config(offset, data);
        }
    }
    assert_eq!(rig.report().actual, 0);
    rig.balloon.reset();
    let report = rig.report();
    assert_eq!((report.target, report.actual), (SIZE - 5 * PAGE, SIZE));
}

#[test]
fn features_are_those_that_are_asked_for() {
    let of = |deflate_on_oom, reporting, interval: Option<u64>| {
        let balloon = Balloon::new(BalloonOptions {
            ram: SIZE,
            deflate_on_oom,
            reporting,
            interval: interval.map(Duration::from_secs),
        });
        (balloon.features(), balloon.queues().len())
    };
    assert_eq!(of(false, false, None), (0, 3));
    assert_eq!(of(true, false, Some(1)), (F_STATS_VQ | F_DEFLATE_ON_OOM, 3));
    assert_eq!(of(false, true, None), (F_PAGE_POISON | F_REPORTING, 5));
}

#[test]
fn statistics_are_due_only_where_they_can_be_asked_for() {
    let state = |held: bool| {
        let mut e = Encoder::default();
        for _ in 0..3 {
            e.u32(0);
        }
        e.bool(held);
        e.u16(3);
        e.into_body()
    };
    for (features, ring, due) in [
        (F_STATS_VQ, true, true),
        (F_STATS_VQ, false, false),
        (0, true, false),
    ] {
        let mut rig = Rig::new();
        rig.balloon.set_features(features);
        let body = state(true);
        rig.balloon
            .load(&mut Decoder::new("balloon", 1, &body))
            .unwrap();
        let mut rings = [None, None, ring.then(|| rig.ring.clone())];
        rig.balloon.complete(&mut rings, &rig.dma).unwrap();
        assert_eq!(rig.balloon.wake_at().is_some(), due, "{features:#x} {ring}");
    }
}

#[test]
fn a_saved_balloon_goes_on() {
    let mut rig = Rig::new();
    rig.balloon.request(&target(SIZE / 2)).unwrap();
    rig.balloon.write_config(ACTUAL, &[9, 0, 0, 0]);
    rig.balloon.write_config(POISON, &[1, 0, 0, 0]);
    rig.offer(3, BUFFERS, 0, 0);
    assert_eq!(rig.serve(2), Ok(true));
    let mut saved = Encoder::default();
    rig.balloon.save(&mut saved);
    let saved = saved.into_body();
    let mut there = Rig::new();
    let mut from = Decoder::new("balloon", 1, &saved);
    there.balloon.load(&mut from).unwrap();
    let report = there.report();
    assert_eq!((report.target, report.actual), (SIZE / 2, SIZE - 9 * PAGE));
    assert_eq!(there.balloon.poison, 1);
    assert_eq!(there.serve(2), Ok(false));
    assert_eq!(there.used(), [(3, 0)], "statistics are asked for at once");
    for len in 0..saved.len() {
        let mut from = Decoder::new("balloon", 1, &saved[..len]);
        assert!(there.balloon.load(&mut from).is_err(), "{len}");
    }
    let mut from = Decoder::new("balloon", 1, &[0xff; 15]);
    let _any = there.balloon.load(&mut from);
    let mut byte = [0];
    rig.dma.read(Gpa(0), &mut byte).unwrap();
}
