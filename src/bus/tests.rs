use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use proptest::prelude::*;

use super::*;

/// Reads as its number, its region and the offset of the access; remembers the last write.
struct Probe {
    number: u8,
    written: Mutex<Option<(Region, u64, Vec<u8>)>>,
}

impl Probe {
    fn new(number: u8) -> Arc<Self> {
        Arc::new(Self {
            number,
            written: Mutex::default(),
        })
    }
}

impl Handler for Probe {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let region = region.0.to_le_bytes()[0];
        for (byte, value) in data
            .iter_mut()
            .zip([self.number, region, offset.to_le_bytes()[0]])
        {
            *byte = value;
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        *lock(&self.written) = Some((region, offset, data.to_vec()));
    }
}

/// Four bytes of memory, which decode no more than that.
struct Ram(Vec<u8>);

impl LockedDevice for Ram {
    fn name(&self) -> &str {
        "ram"
    }
    fn reset(&mut self) {
        self.0.fill(0);
    }
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        for (d, s) in data.iter_mut().zip(offset..) {
            if let Some(b) = usize::try_from(s).ok().and_then(|i| self.0.get(i)) {
                *d = *b;
            }
        }
    }
    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        for (d, s) in data.iter().zip(offset..) {
            if let Some(b) = usize::try_from(s).ok().and_then(|i| self.0.get_mut(i)) {
                *b = *d;
            }
        }
    }
    fn save(&self, to: &mut crate::state::Encoder) {
        to.bytes(&self.0);
    }
    fn load(
        &mut self,
        from: &mut crate::state::Decoder<'_>,
    ) -> Result<(), crate::state::StateError> {
        self.0 = from.bytes("content")?.to_vec();
        Ok(())
    }
}

fn ram() -> Arc<Mutex<Ram>> {
    Arc::new(Mutex::new(Ram(vec![0; 4])))
}

/// Who answers at `addr`: number, region, offset.
fn at(bus: &Bus, addr: u64) -> Option<[u8; 3]> {
    let mut data = [0; 3];
    bus.read(addr, &mut data).then_some(data)
}

/// The same, as a thread that keeps its view sees it.
fn seen_at(view: &mut View, addr: u64) -> Option<[u8; 3]> {
    let mut data = [0; 3];
    view.read(addr, &mut data).then_some(data)
}

#[test]
fn an_empty_bus_reads_all_ones() {
    let bus = Bus::ports();
    let mut data = [0; 4];
    assert!(!bus.read(0x80, &mut data));
    assert_eq!(data, [0xff; 4]);
    assert!(!bus.write(0x80, &[1]));
}

#[test]
fn accesses_reach_the_region_that_has_the_address() {
    let (bus, device) = (Bus::mmio(), Probe::new(7));
    for (region, start) in [(2, 0x20), (1, 0x10)] {
        bus.fixed("p", Region(region), start, 4, device.clone())
            .unwrap();
    }
    for (addr, answer) in [
        (0x0f, None),
        (0x10, Some([7, 1, 0])),
        (0x13, Some([7, 1, 3])),
        (0x14, None),
        (0x22, Some([7, 2, 2])),
        (0x24, None),
    ] {
        assert_eq!(at(&bus, addr), answer, "{addr:#x}");
    }
    assert!(bus.write(0x12, &[8, 9]));
    assert_eq!(
        lock(&device.written).take(),
        Some((Region(1), 2, vec![8, 9]))
    );
    assert!(!bus.write(0x14, &[1]));
}

#[test]
fn an_access_past_the_end_of_a_range_reads_ones_there() {
    let bus = Bus::mmio();
    bus.fixed("ram", Region::ONLY, 0x10, 4, ram()).unwrap();
    // Also where the next range begins at once: the first byte decides.
    bus.fixed("next", Region::ONLY, 0x14, 4, Probe::new(7))
        .unwrap();
    let mut data = [0; 4];
    assert!(bus.read(0x12, &mut data));
    assert_eq!(data, [0, 0, 0xff, 0xff]);
}

#[test]
fn overlaps_of_fixed_ranges_and_non_ranges_are_refused() {
    let bus = Bus::ports();
    let place = |start, len| bus.fixed("new", Region::ONLY, start, len, ram());
    bus.fixed("ram", Region::ONLY, 0x10, 4, ram()).unwrap();
    for (start, len) in [(0x10, 1), (0x13, 4), (0xe, 3), (0, 0x100)] {
        let error = place(start, len).unwrap_err();
        assert!(matches!(error, BusError::Overlap { .. }), "{error}");
    }
    assert_eq!(
        place(0x13, 4).unwrap_err().to_string(),
        "cannot place new at 0x13..=0x16 on the port bus: it overlaps ram at 0x10..=0x13"
    );
    for (start, len) in [(0, 0), (u64::MAX, 2)] {
        let error = place(start, len).unwrap_err();
        assert!(matches!(error, BusError::NotARange { .. }), "{error}");
    }
    place(0x14, 1).unwrap();
    place(0xf, 1).unwrap();
    place(u64::MAX, 1).unwrap();
}

#[test]
fn a_window_is_where_it_was_mapped_last() {
    let (bus, device) = (Bus::mmio(), Probe::new(1));
    let window = bus.window("bar", Region(3), 0x10, device);
    assert_eq!((window.address(), at(&bus, 0)), (None, None));
    window.map(0x100).unwrap();
    assert_eq!(at(&bus, 0x10f), Some([1, 3, 15]));
    window.map(0x108).unwrap();
    assert_eq!(window.address(), Some(0x108));
    assert_eq!(at(&bus, 0x107), None);
    assert_eq!(at(&bus, 0x108), Some([1, 3, 0]));
    window.unmap();
    assert_eq!((window.address(), at(&bus, 0x108)), (None, None));
    window.map(u64::MAX - 0xf).unwrap();
    assert_eq!(at(&bus, u64::MAX), Some([1, 3, 15]));
    // Not even where it was.
    window.map(u64::MAX - 0xe).unwrap_err();
    assert_eq!((window.address(), at(&bus, u64::MAX)), (None, None));
    window.map(0).unwrap();
    drop(window);
    assert!(bus.ranges().is_empty());
}

#[test]
fn hidden_windows_appear_when_the_other_leaves() {
    let bus = Bus::mmio();
    let [first, second] = [1, 2].map(|n| bus.window("bar", Region::ONLY, 8, Probe::new(n)));
    let who = || {
        let each = (0..12).map(|addr| at(&bus, addr).map_or(0, |[number, ..]| number));
        each.collect::<Vec<_>>()
    };
    second.map(4).unwrap();
    first.map(0).unwrap();
    assert_eq!(who(), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert_eq!(at(&bus, 4), Some([2, 0, 0]));
    // Mapped where it is: nothing changes. Moved away and back: now it is the later one.
    second.map(4).unwrap();
    assert_eq!(at(&bus, 4), Some([2, 0, 0]));
    second.map(100).unwrap();
    assert_eq!(who(), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    second.map(4).unwrap();
    assert_eq!(who(), [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(at(&bus, 8), Some([2, 0, 4]), "the offset is the region's");
    // A fixed one comes first, and splits both.
    bus.fixed("fixed", Region::ONLY, 6, 3, Probe::new(9))
        .unwrap();
    assert_eq!(who(), [1, 1, 1, 1, 1, 1, 9, 9, 9, 2, 2, 2]);
    first.unmap();
    assert_eq!(who(), [0, 0, 0, 0, 2, 2, 9, 9, 9, 2, 2, 2]);
}

#[test]
fn a_device_may_move_its_window_from_within_an_access() {
    struct Mover(Mutex<Option<Window>>);
    impl Handler for Mover {
        fn read(&self, _region: Region, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _region: Region, _offset: u64, data: &[u8]) {
            let window = lock(&self.0);
            window.as_ref().unwrap().map(data[0].into()).unwrap();
        }
    }
    let (bus, device) = (Bus::mmio(), Arc::new(Mover(Mutex::default())));
    let window = bus.window("bar", Region::ONLY, 1, device.clone());
    window.map(1).unwrap();
    *lock(&device.0) = Some(window);
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        assert!(bus.write(from, &[to]));
        assert!(!bus.write(from, &[to]));
    }
    // The device has its window and the bus the device: the bus goes all the same.
    drop(bus);
    assert_eq!(Arc::strong_count(&device), 1);
    lock(&device.0).as_ref().unwrap().map(5).unwrap();
}

#[test]
fn look_ups_find_what_stays_while_windows_move() {
    let bus = Bus::mmio();
    let stays: Vec<_> = (0..8_u8)
        .map(|n| {
            let at = 0x100 * u64::from(n) + 0x80;
            bus.fixed("fixed", Region(n.into()), at, 8, Probe::new(n))
                .unwrap();
            (at, n)
        })
        .collect();
    // Below a window that always answers, one that comes and goes; and one that walks over everything.
    let under = bus.window("under", Region::ONLY, 8, Probe::new(100));
    under.map(0x10).unwrap();
    let [over, walks] = [101, 102].map(|n| bus.window("w", Region::ONLY, 64, Probe::new(n)));
    let (stop, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0_u64;
            let mut view = bus.view();
            while !stop.load(Ordering::Relaxed) || moves.load(Ordering::Relaxed) == 0 {
                for &(addr, n) in &stays {
                    assert_eq!(at(&bus, addr + 3), Some([n, n, 3]));
                    assert_eq!(seen_at(&mut view, addr + 3), Some([n, n, 3]));
                }
                assert_eq!(at(&bus, 0x11), Some([100, 0, 1]));
                assert_eq!(seen_at(&mut view, 0x11), Some([100, 0, 1]));
                if let Some([who, _, offset]) = at(&bus, 0x20) {
                    assert!(
                        (who == 101 && offset == 0x20) || (who == 102 && offset < 64),
                        "{who}, {offset}"
                    );
                    seen += 1;
                }
            }
            seen
        });
        for step in 0..3_000 {
            over.map(0).unwrap();
            walks.map(step % 0x800).unwrap();
            over.unmap();
            moves.fetch_add(1, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

/// What a guest and the wiring do to a bus.
#[derive(Clone, Debug)]
enum Change {
    Fixed { at: u64, len: u64 },
    Map { window: usize, at: u64 },
    Unmap { window: usize },
    Close { window: usize },
}

const WINDOWS: usize = 4;
const SPACE: u64 = 40;

fn change() -> impl Strategy<Value = Change> {
    let window = 0..WINDOWS;
    // Some of the addresses wrap.
    let at = prop_oneof![0..SPACE, Just(u64::MAX - 1)];
    prop_oneof![
        1 => (0..SPACE, 0_u64..6).prop_map(|(at, len)| Change::Fixed { at, len }),
        6 => (window.clone(), at).prop_map(|(window, at)| Change::Map { window, at }),
        2 => window.clone().prop_map(|window| Change::Unmap { window }),
        1 => window.prop_map(|window| Change::Close { window }),
    ]
}

/// Who is where, by priority: number, address, length.
#[derive(Default)]
struct Model {
    fixed: Vec<(u8, u64, u64)>,
    mapped: Vec<(u8, u64, u64)>,
}

impl Model {
    fn answer(&self, addr: u64) -> Option<[u8; 3]> {
        let mut all = self.fixed.iter().chain(&self.mapped);
        let (number, at, _) = all.find(|(_, at, len)| (*at..at + len).contains(&addr))?;
        Some([*number, 0, (addr - at).to_le_bytes()[0]])
    }
}

proptest! {
    #[test]
    fn every_address_is_decoded_as_the_model_says(changes in proptest::collection::vec(change(), 0..40)) {
        let (bus, mut model) = (Bus::mmio(), Model::default());
        let mut view = bus.view();
        let lens: [u64; WINDOWS] = [1, 4, 7, 16];
        let number = |window: usize| u8::try_from(window).unwrap();
        let mut windows: Vec<_> = (0..WINDOWS)
            .map(|w| Some(bus.window("w", Region::ONLY, lens[w], Probe::new(number(w)))))
            .collect();
        for (n, change) in (100..).zip(changes) {
            match change {
                Change::Fixed { at, len } => {
                    let free = len > 0
                        && !model.fixed.iter().any(|(_, other, n)| at < other + n && *other < at + len);
                    let placed = bus.fixed("f", Region::ONLY, at, len, Probe::new(n));
                    prop_assert_eq!(placed.is_ok(), free);
                    if free {
                        model.fixed.push((n, at, len));
                    }
                }
                Change::Map { window, at } => {
                    let Some(open) = &windows[window] else { continue };
                    let entry = (number(window), at, lens[window]);
                    let fits = at.checked_add(lens[window] - 1).is_some();
                    prop_assert_eq!(open.map(at).is_ok(), fits);
                    if !(fits && model.mapped.contains(&entry)) {
                        model.mapped.retain(|(n, ..)| *n != number(window));
                        model.mapped.extend((fits && at < SPACE).then_some(entry));
                    }
                }
                Change::Unmap { window } => {
                    if let Some(open) = &windows[window] {
                        open.unmap();
                    }
                    model.mapped.retain(|(n, ..)| *n != number(window));
                }
                Change::Close { window } => {
                    windows[window] = None;
                    model.mapped.retain(|(n, ..)| *n != number(window));
                }
            }
            for addr in 0..SPACE + 20 {
                prop_assert_eq!(at(&bus, addr), model.answer(addr), "at {}", addr);
                prop_assert_eq!(seen_at(&mut view, addr), model.answer(addr), "at {}", addr);
            }
            let ranges = bus.ranges();
            prop_assert!(ranges.windows(2).all(|two| two[0].1 < two[1].0), "{:?}", ranges);
        }
    }
}

/// docs/decisions/0016-regions-and-windows.md has the figures.
#[test]
#[ignore = "a measurement: cargo test --release -p hypernest --lib -- --ignored --nocapture \
    cost_of_a_look_up"]
fn cost_of_a_look_up() {
    const ROUNDS: u32 = 2_000_000;
    let bus = Bus::ports();
    // As many as a machine has, looked up in turn.
    let places: Vec<u64> = (0..16).map(|n| 0x60 + n * 0x35).collect();
    for place in &places {
        bus.fixed("ram", Region::ONLY, *place, 4, ram()).unwrap();
    }
    let best = |read: &mut dyn FnMut(u64)| {
        let mut best = f64::MAX;
        for _ in 0..10 {
            let begin = Instant::now();
            for _ in 0..ROUNDS / 16 {
                for place in &places {
                    read(std::hint::black_box(*place));
                }
            }
            best = best.min(begin.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS));
        }
        best
    };
    let (mut view, mut data) = (bus.view(), [0; 1]);
    let by_bus = best(&mut |place| _ = bus.read(place, &mut data));
    let by_view = best(&mut |place| _ = view.read(place, &mut data));
    println!(
        "one read of one byte, found and with the device's lock: {by_bus:.1} ns by the bus, {by_view:.1} ns \
         by a view"
    );
}
