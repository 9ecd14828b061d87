//! Both forms of rings lead the same requests to the device, and back to the driver.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, PackedDriver, RING, TABLE, WRITE};

/// Descriptors of each ring.
const SIZE: u16 = 8;
/// Requests that a driver may have under way are known by their numbers.
const NUMBERS: u16 = SIZE;
/// Most elements of a request.
const ELEMENTS: usize = 5;

/// A request: the lengths of its elements, how many the device reads, and whether they are in a table.
#[derive(Clone, Debug)]
struct Offer {
    lens: Vec<u32>,
    readable: usize,
    indirect: bool,
}

impl Offer {
    /// Address, length and flags of each element of the request `number`.
    fn elements(&self, number: u16) -> Vec<(u64, u32, u16)> {
        let at = BUFFERS + u64::from(number) * 0x800;
        let element = |(n, len): (usize, &u32)| {
            let flags = if n < self.readable { 0 } else { WRITE };
            (at + n as u64 * 0x100, *len, flags)
        };
        self.lens.iter().enumerate().map(element).collect()
    }

    fn descriptors(&self) -> usize {
        if self.indirect { 1 } else { self.lens.len() }
    }
}

/// How many there are.
fn count<T>(all: &[T]) -> u16 {
    u16::try_from(all.len()).unwrap()
}

/// Where the table of the request `number` is.
fn table(number: u16) -> u64 {
    TABLE + u64::from(number) * 0x100
}

#[derive(Clone, Debug)]
enum Step {
    Offer(Offer),
    /// The device takes so many at most, and asks for a notification if it finds no more.
    Serve(u8),
    /// It takes one and gives it back.
    Undo,
    /// It returns one of those that it has.
    Finish(usize, u32),
    /// It returns all, at once.
    FinishAll,
    /// It decides about an interrupt.
    Signal,
    /// The driver takes what came back, and asks for an interrupt.
    Collect,
    /// The device is saved and continues elsewhere.
    Move,
}

/// The driver's side of a form.
trait Side {
    fn dma(&self) -> Dma;
    fn ring(&self, features: RingFeatures) -> Ring;
    /// How many descriptors are free.
    fn room(&self) -> usize;
    fn offer(&mut self, number: u16, offer: &Offer);
    /// Whether the device wants to know of what was offered since this was last asked.
    fn notifies(&mut self) -> bool;
    fn take(&mut self) -> Option<(u16, u32)>;
    /// Wants an interrupt for the next that comes back.
    fn arm(&mut self);
}

struct Split {
    driver: Driver,
    event_index: bool,
    free: Vec<u16>,
    /// The descriptors of each request by the first.
    under_way: BTreeMap<u32, (u16, Vec<u16>)>,
    offered: u16,
    told: u16,
    seen: u16,
}

impl Side for Split {
    fn dma(&self) -> Dma {
        self.driver.dma()
    }

    fn ring(&self, features: RingFeatures) -> Ring {
        self.driver.ring(features)
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn offer(&mut self, number: u16, offer: &Offer) {
        let mut elements = offer.elements(number);
        if offer.indirect {
            let count = count(&elements);
            for (index, (gpa, len, flags)) in (0..).zip(&elements) {
                let next = if index + 1 == count { 0 } else { NEXT };
                let descriptor = (*gpa, *len, flags | next, index + 1);
                self.driver.describe(table(number), index, descriptor);
            }
            elements = vec![(table(number), u32::from(count) * 16, INDIRECT)];
        }
        let used = self.free.split_off(self.free.len() - elements.len());
        for (n, (gpa, len, flags)) in elements.into_iter().enumerate() {
            let (flags, next) = match used.get(n + 1) {
                Some(next) => (flags | NEXT, *next),
                None => (flags, 0xdead),
            };
            let descriptor = (gpa, len, flags, next);
            self.driver.describe(RING.descriptors, used[n], descriptor);
        }
        self.driver.offer(used[0]);
        self.offered = self.offered.wrapping_add(1);
        self.under_way.insert(used[0].into(), (number, used));
    }

    fn notifies(&mut self) -> bool {
        let (old, new) = (self.told, self.offered);
        self.told = new;
        let event = self.driver.available_event();
        let passed = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        old != new && (!self.event_index || passed)
    }

    fn take(&mut self) -> Option<(u16, u32)> {
        let (head, written) = self.driver.take_used()?;
        self.seen = self.seen.wrapping_add(1);
        let (number, used) = self.under_way.remove(&head).unwrap();
        self.free.extend(used);
        Some((number, written))
    }

    fn arm(&mut self) {
        self.driver.set_used_event(self.seen);
    }
}

struct Packed {
    driver: PackedDriver,
    event_index: bool,
    /// How many descriptors were made available since this was last asked.
    untold: u16,
}

impl Side for Packed {
    fn dma(&self) -> Dma {
        self.driver.dma()
    }

    fn ring(&self, features: RingFeatures) -> Ring {
        self.driver.ring(features)
    }

    fn room(&self) -> usize {
        self.driver.room()
    }

    fn offer(&mut self, number: u16, offer: &Offer) {
        let mut elements = offer.elements(number);
        if offer.indirect {
            for (index, (gpa, len, flags)) in (0..).zip(&elements) {
                let descriptor = (*gpa, *len, 0xbeef, *flags);
                self.driver.describe(table(number), index, descriptor);
            }
            let bytes = u32::from(count(&elements)) * 16;
            elements = vec![(table(number), bytes, INDIRECT)];
        }
        self.untold += count(&elements);
        self.driver.offer(number, &elements);
    }

    /// As Linux decides it, in 16 bits.
    fn notifies(&mut self) -> bool {
        let (event, flags) = self.driver.device_event();
        let untold = std::mem::take(&mut self.untold);
        let new = self.driver.next.offset;
        let old = new.wrapping_sub(untold);
        let offset = match event >> 15 == u16::from(self.driver.next.wrap) {
            true => event & 0x7fff,
            false => (event & 0x7fff).wrapping_sub(SIZE),
        };
        let passed = new.wrapping_sub(offset).wrapping_sub(1) < new.wrapping_sub(old);
        assert_eq!(flags, if self.event_index { 2 } else { 0 });
        untold > 0 && (flags == 0 || passed)
    }

    fn take(&mut self) -> Option<(u16, u32)> {
        self.driver.take_used()
    }

    fn arm(&mut self) {
        let flags = if self.event_index { 2 } else { 0 };
        self.driver.set_event(self.driver.used.event(), flags);
    }
}

/// A driver and its device, and what they did.
struct World<'a> {
    side: &'a mut dyn Side,
    ring: Ring,
    features: RingFeatures,
    dma: Dma,
    /// Numbers of requests that the driver may use.
    numbers: Vec<u16>,
    /// The requests that the device has, with what it could write.
    taken: Vec<(u16, Chain)>,
    /// The device is to look at its ring: it was notified, or did not look at all of it.
    notified: bool,
    interrupted: bool,
    log: Vec<String>,
}

impl<'a> World<'a> {
    fn new(side: &'a mut dyn Side, features: RingFeatures) -> Self {
        let mut ring = side.ring(features);
        let dma = side.dma();
        side.arm();
        // A device looks when its driver is ready.
        assert_eq!(ring.rearm(&dma), Ok(false));
        Self {
            side,
            ring,
            features,
            dma,
            numbers: (0..NUMBERS).collect(),
            taken: Vec::new(),
            notified: false,
            interrupted: false,
            log: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Offer(offer) => self.offer(offer),
            Step::Serve(count) => self.serve(*count),
            Step::Undo => {
                let mut chain = Chain::default();
                if self.ring.pop(&self.dma, &mut chain).unwrap() {
                    self.ring.undo_pop(chain.head());
                }
            }
            Step::Finish(which, written) if !self.taken.is_empty() => {
                let (head, chain) = self.taken.remove(which % self.taken.len());
                self.assert_same(head, &chain);
                self.ring.push(&self.dma, head, *written).unwrap();
            }
            Step::Finish(..) => {}
            Step::FinishAll => {
                let taken = std::mem::take(&mut self.taken);
                let heads = taken.iter().map(|(head, _)| (*head, 1));
                self.ring.push_all(&self.dma, heads).unwrap();
            }
            Step::Signal => self.interrupted |= self.ring.wants_interrupt(&self.dma).unwrap(),
            Step::Collect => self.collect(),
            Step::Move => {
                let mut e = Encoder::new();
                self.ring.save(&mut e);
                let body = e.into_body();
                self.ring = self.side.ring(self.features);
                let mut from = Decoder::new("ring", 1, &body);
                self.ring.load(&mut from).unwrap();
                from.finish().unwrap();
                // A machine that runs again looks at all rings.
                self.notified = true;
            }
        }
    }

    fn offer(&mut self, offer: &Offer) {
        let Some(number) = self.numbers.pop() else {
            return;
        };
        if offer.descriptors() > self.side.room() {
            self.numbers.push(number);
            return;
        }
        self.side.offer(number, offer);
        self.notified |= self.side.notifies();
    }

    fn serve(&mut self, count: u8) {
        self.notified = true;
        for _ in 0..count {
            let mut chain = Chain::default();
            if self.ring.pop(&self.dma, &mut chain).unwrap() {
                self.log
                    .push(format!("{:?} {:?}", chain.readable(), chain.writable()));
                self.taken.push((chain.head(), chain));
            } else if !self.ring.rearm(&self.dma).unwrap() {
                self.notified = false;
                return;
            }
        }
    }

    /// What the device has taken reads as it did then.
    fn assert_same(&self, head: u16, chain: &Chain) {
        let mut again = Chain::default();
        self.ring.read_chain(&self.dma, head, &mut again).unwrap();
        assert_eq!(again, *chain);
    }

    fn collect(&mut self) {
        self.interrupted = false;
        loop {
            while let Some((number, written)) = self.side.take() {
                self.log.push(format!("{number} is back with {written}"));
                self.numbers.push(number);
            }
            self.side.arm();
            // What came before it was armed.
            match self.side.take() {
                Some((number, written)) => {
                    self.log.push(format!("{number} is back with {written}"));
                    self.numbers.push(number);
                }
                None => return,
            }
        }
    }

    /// Both sides do what they are told of, and nothing else, until nothing is left.
    fn come_to_rest(&mut self) {
        self.step(&Step::Signal);
        for _ in 0..100 {
            if self.notified {
                self.serve(u8::MAX);
            }
            self.step(&Step::FinishAll);
            self.step(&Step::Signal);
            if self.interrupted {
                self.collect();
            }
        }
        assert_eq!(
            self.numbers.len(),
            usize::from(NUMBERS),
            "a request is lost"
        );
    }
}

fn offer() -> impl Strategy<Value = Offer> {
    let lens = prop::collection::vec(0..0x100_u32, 1..=ELEMENTS);
    (lens, 0..=ELEMENTS, any::<bool>()).prop_map(|(lens, readable, indirect)| Offer {
        readable: readable.min(lens.len()),
        lens,
        indirect,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => offer().prop_map(Step::Offer),
        4 => (0..6_u8).prop_map(Step::Serve),
        1 => Just(Step::Undo),
        6 => (any::<usize>(), 0..600_u32).prop_map(|(which, written)| Step::Finish(which, written)),
        1 => Just(Step::FinishAll),
        4 => Just(Step::Signal),
        4 => Just(Step::Collect),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #[test]
    fn both_forms_lead_the_same_requests_and_lose_none(
        steps in prop::collection::vec(step(), 0..150),
        event_index: bool,
    ) {
        let mut split = Split {
            driver: Driver::new(SIZE),
            event_index,
            free: (0..SIZE).collect(),
            under_way: BTreeMap::new(),
            offered: 0,
            told: 0,
            seen: 0,
        };
        let mut packed = Packed {
            driver: PackedDriver::new(SIZE),
            event_index,
            untold: 0,
        };
        let sides: [(&mut dyn Side, bool); 2] = [(&mut split, false), (&mut packed, true)];
        let logs = sides.map(|(side, packed)| {
            let features = RingFeatures { packed, indirect: true, event_index };
            let mut world = World::new(side, features);
            for step in &steps {
                world.step(step);
            }
            world.come_to_rest();
            world.log
        });
        let [split, packed] = logs;
        prop_assert_eq!(split, packed);
    }
}
