use proptest::prelude::*;

use super::super::{Form, MAX_INDIRECT, Ring};
use super::*;
use crate::virtio::testing::{BUFFERS, PackedDriver, RAM, RING, TABLE, segments};

const ALL: RingFeatures = RingFeatures {
    packed: true,
    indirect: true,
    event_index: true,
};
const NONE: RingFeatures = RingFeatures {
    packed: true,
    indirect: false,
    event_index: false,
};

fn packed(ring: &Ring) -> &PackedRing {
    match &ring.0 {
        Form::Packed(ring) => ring,
        Form::Split(_) => panic!("a split ring"),
    }
}

fn saved(ring: &Ring) -> Vec<u8> {
    let mut e = Encoder::new();
    ring.save(&mut e);
    e.into_body()
}

fn load(ring: &mut Ring, body: &[u8]) -> Result<(), StateError> {
    let mut from = Decoder::new("ring", 1, body);
    ring.load(&mut from)?;
    from.finish()
}

/// The table's descriptors are either those of requests or free.
fn assert_whole(ring: &Ring) {
    let ring = packed(ring);
    let mut seen = vec![false; ring.table.len()];
    let mut visit = |index: u16| {
        let seen = &mut seen[usize::from(index)];
        assert!(!std::mem::replace(seen, true), "{index} twice in {ring:?}");
    };
    let mut taken = 0;
    for (head, entry) in (0..).zip(&ring.table) {
        let mut next = head;
        for _ in 0..entry.len {
            visit(next);
            next = ring.table[usize::from(next)].next;
        }
        taken += entry.len;
    }
    let mut free = ring.free;
    while free != ring.size {
        visit(free);
        free = ring.table[usize::from(free)].next;
    }
    assert!(seen.iter().all(|seen| *seen), "{ring:?}");
    assert_eq!(taken, ring.between(ring.next_used, ring.next_available));
}

#[test]
fn chains_are_followed_and_returned() {
    let mut driver = PackedDriver::new(5);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    assert_eq!(ring.pop(&dma, &mut chain), Ok(false));
    let elements = [
        (0x8000, 16, 0),
        (0x9000, 0, 0),
        (0xa000, 512, WRITE),
        (0xb000, 1, WRITE),
    ];
    driver.offer(0xffff, &elements);
    assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
    assert_eq!(segments(chain.readable()), [(0x8000, 16), (0x9000, 0)]);
    assert_eq!(segments(chain.writable()), [(0xa000, 512), (0xb000, 1)]);
    assert_eq!(ring.pop(&dma, &mut Chain::default()), Ok(false));
    ring.undo_pop(chain.head());
    let mut again = Chain::default();
    assert_eq!(ring.pop(&dma, &mut again), Ok(true));
    assert_eq!(again, chain);
    assert_eq!(driver.next_used(), None);
    ring.push(&dma, chain.head(), 513).unwrap();
    assert_eq!(driver.next_used(), Some(AVAILABLE | USED | WRITE));
    assert_eq!(driver.take_used(), Some((0xffff, 513)));
    driver.offer(7, &[(0x8000, 1, 0)]);
    ring.pop(&dma, &mut chain).unwrap();
    ring.push(&dma, chain.head(), 0).unwrap();
    assert_eq!(driver.next_used(), Some(AVAILABLE | USED));
    assert_eq!(driver.take_used(), Some((7, 0)));
    assert_whole(&ring);
}

#[test]
fn places_wrap_around_in_rings_of_any_size() {
    for size in [1, 2, 3, 7, 256, 300] {
        let mut driver = PackedDriver::new(size);
        let dma = driver.dma();
        let mut ring = driver.ring(NONE);
        let mut chain = Chain::default();
        for id in 0..5_000_u16 {
            let len = 1 + usize::from(id % size.min(5));
            driver.offer(id, &vec![(0x8000, 64, WRITE); len]);
            assert_eq!(ring.pop(&dma, &mut chain), Ok(true), "{id} of {size}");
            assert_eq!(chain.writable().len(), len);
            ring.push(&dma, chain.head(), id.into()).unwrap();
            assert_eq!(driver.take_used(), Some((id, id.into())));
        }
        assert_whole(&ring);
    }
}

#[test]
fn the_largest_ring_wraps_around() {
    let driver = PackedDriver::new(1);
    let at = Addresses {
        descriptors: 0,
        ..RING
    };
    let mut ring = PackedRing::new(MAX_SIZE, at, ALL).unwrap();
    let last = u16::MAX;
    assert_eq!((ring.offset(last), ring.wrap(last)), (MAX_SIZE - 1, false));
    assert_eq!((ring.after(last, 1), ring.before(0, 1)), (0, last));
    assert_eq!(ring.after(last, MAX_SIZE), MAX_SIZE - 1);
    assert_eq!(ring.between(last, 3), 4);
    let dma = driver.dma();
    assert!(ring.rearm(&dma).is_ok());
}

#[test]
fn requests_end_in_any_order_and_are_read_again_after_they_were_overwritten() {
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let [mut first, mut second, mut third] = [(); 3].map(|()| Chain::default());
    driver.describe(TABLE, 0, (0xc000, 9, 0, 0));
    driver.offer(1, &[(0x8000, 1, 0), (0x9000, 2, 0), (0xa000, 3, WRITE)]);
    driver.offer(2, &[(TABLE, 16, INDIRECT)]);
    for chain in [&mut first, &mut second] {
        assert_eq!(ring.pop(&dma, chain), Ok(true));
    }
    ring.push(&dma, second.head(), 0).unwrap();
    assert_eq!(driver.take_used(), Some((2, 0)));
    // Where the first one began.
    driver.offer(3, &[(0xb000, 4, WRITE)]);
    assert_eq!(ring.pop(&dma, &mut third), Ok(true));
    assert_ne!(first.head(), third.head());
    let body = saved(&ring);
    let mut loaded = driver.ring(ALL);
    load(&mut loaded, &body).unwrap();
    assert_eq!(saved(&loaded), body);
    for ring in [&ring, &loaded] {
        assert_whole(ring);
        for chain in [&first, &third] {
            let mut again = Chain::default();
            ring.read_chain(&dma, chain.head(), &mut again).unwrap();
            assert_eq!(again, *chain);
        }
    }
    loaded.push(&dma, third.head(), 4).unwrap();
    loaded.push(&dma, first.head(), 3).unwrap();
    assert_eq!(driver.take_used(), Some((3, 4)));
    assert_eq!(driver.take_used(), Some((1, 3)));
    assert_eq!(driver.take_used(), None);
    assert_whole(&loaded);
}

#[test]
fn several_are_returned_at_once() {
    let mut driver = PackedDriver::new(5);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut heads = Vec::new();
    for id in 0..3 {
        driver.offer(id, &[(0x8000, 1, WRITE)]);
        let mut chain = Chain::default();
        ring.pop(&dma, &mut chain).unwrap();
        heads.push((chain.head(), u32::from(id)));
    }
    dma.gate().set(false);
    let refused = ring.push_all(&dma, heads.iter().copied());
    assert!(refused.unwrap_err().is_gate_closed());
    dma.gate().set(true);
    assert_eq!(driver.take_used(), None);
    // Taken again, as if they had never been.
    ring.undo_pops(heads.iter().map(|(head, _)| *head));
    assert_whole(&ring);
    let mut chain = Chain::default();
    for (_, n) in &heads {
        assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
        assert_eq!(segments(chain.writable()), [(0x8000, 1)], "{n}");
    }
    assert_eq!(ring.pop(&dma, &mut chain), Ok(false));
    let heads = packed(&ring).table.iter().zip(0..);
    let heads: Vec<_> = heads
        .filter(|(entry, _)| entry.len > 0)
        .map(|(entry, head)| (head, entry.descriptor.number))
        .collect();
    let returned = heads.iter().map(|(head, id)| (*head, u32::from(*id)));
    ring.push_all(&dma, returned).unwrap();
    for (_, id) in heads {
        assert_eq!(driver.take_used(), Some((id, id.into())));
    }
    assert_whole(&ring);
}

#[test]
fn a_request_that_is_not_under_way_is_not_returned() {
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    driver.offer(0, &[(0x8000, 1, 0), (0x8000, 1, WRITE)]);
    ring.pop(&dma, &mut chain).unwrap();
    let before = ring.clone();
    // The second descriptor of the request, one that is free, and one that is not there.
    for head in [1, 2, 4, 0xffff] {
        let error = RingError::NoDescriptor {
            index: head,
            len: 4,
        };
        assert_eq!(ring.push(&dma, head, 0), Err(error));
        assert_eq!(ring.read_chain(&dma, head, &mut chain), Err(error));
    }
    assert_eq!(ring, before);
    ring.push(&dma, 0, 0).unwrap();
    assert!(ring.push(&dma, 0, 0).is_err());
}

#[test]
fn a_driver_that_changes_descriptors_changes_nothing() {
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    driver.offer(1, &[(0x8000, 1, 0), (0x9000, 2, WRITE)]);
    ring.pop(&dma, &mut chain).unwrap();
    for index in 0..4 {
        driver.describe(RING.descriptors, index, (u64::MAX, 77, 3, 0x7f));
    }
    let mut again = Chain::default();
    ring.read_chain(&dma, chain.head(), &mut again).unwrap();
    assert_eq!(again, chain);
    ring.push(&dma, chain.head(), 2).unwrap();
    assert_eq!(driver.take_used(), Some((1, 2)));
}

#[test]
fn indirect_tables_are_followed() {
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    // Flags other than that of writable ones do not count there, nor do ids (2.8.7).
    driver.describe(TABLE, 0, (0x9000, 2, 9, INDIRECT | AVAILABLE));
    driver.describe(TABLE, 1, (0xa000, 3, 8, WRITE | NEXT));
    driver.offer(5, &[(TABLE, 32, INDIRECT | WRITE)]);
    assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
    assert_eq!(segments(chain.readable()), [(0x9000, 2)]);
    assert_eq!(segments(chain.writable()), [(0xa000, 3)]);
    ring.push(&dma, chain.head(), 3).unwrap();
    assert_eq!(driver.take_used(), Some((5, 3)));
}

/// A ring of 4; what the driver does wrong; what is wrong with it.
type Case = (fn(&mut PackedDriver), RingError);

#[test]
fn broken_rings_are_found_and_nothing_is_taken() {
    let cases: &[Case] = &[
        (
            // As long as the driver says that it goes on.
            |d| d.force(0, &[(BUFFERS, 1, 0); 5]),
            RingError::TooManyDescriptors { size: 4 },
        ),
        (
            |d| d.force(0, &[(TABLE, 32, INDIRECT), (BUFFERS, 1, 0)]),
            RingError::IndirectNotAllowed,
        ),
        (
            |d| d.force(0, &[(BUFFERS, 1, 0), (TABLE, 32, INDIRECT)]),
            RingError::IndirectNotAllowed,
        ),
        (
            |d| d.force(0, &[(TABLE, 0, INDIRECT)]),
            RingError::IndirectLength(0),
        ),
        (
            |d| d.force(0, &[(TABLE, 17, INDIRECT)]),
            RingError::IndirectLength(17),
        ),
        (
            |d| d.force(0, &[(TABLE, 16 * 1025, INDIRECT)]),
            RingError::IndirectLength(16 * 1025),
        ),
        (
            |d| d.force(0, &[(u64::MAX - 15, 16, INDIRECT)]),
            RingError::Wraps {
                gpa: Gpa(u64::MAX - 15),
                len: 16,
            },
        ),
        (
            |d| d.force(0, &[(BUFFERS, 1, WRITE), (BUFFERS, 1, 0)]),
            RingError::ReadableAfterWritable,
        ),
        (
            |d| {
                d.describe(TABLE, 0, (BUFFERS, 1, 0, WRITE));
                d.describe(TABLE, 1, (BUFFERS, 1, 0, 0));
                d.force(0, &[(TABLE, 32, INDIRECT)]);
            },
            RingError::ReadableAfterWritable,
        ),
        (
            |d| d.force(0, &[(u64::MAX, 1, WRITE)]),
            RingError::Wraps {
                gpa: Gpa(u64::MAX),
                len: 1,
            },
        ),
        (
            |d| d.force(0, &[(0, u32::MAX, WRITE), (0, 1, WRITE)]),
            RingError::TooLong(1 << 32),
        ),
    ];
    for (n, (wrong, error)) in cases.iter().enumerate() {
        let mut driver = PackedDriver::new(4);
        let dma = driver.dma();
        let mut ring = driver.ring(ALL);
        let before = packed(&ring).free;
        wrong(&mut driver);
        let mut chain = Chain::default();
        for _ in 0..2 {
            assert_eq!(ring.pop(&dma, &mut chain), Err(*error), "case {n}");
        }
        let after = packed(&ring);
        assert_eq!((after.next_available, after.free), (0, before));
        assert_whole(&ring);
    }
    let mut driver = PackedDriver::new(4);
    driver.force(0, &[(TABLE, 16, INDIRECT)]);
    let popped = driver.ring(NONE).pop(&driver.dma(), &mut Chain::default());
    assert_eq!(popped, Err(RingError::IndirectNotAllowed), "not negotiated");
}

#[test]
fn no_more_descriptors_are_taken_than_there_are() {
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    for _ in 0..4 {
        // All with one id.
        driver.force(0, &[(BUFFERS, 1, 0)]);
        assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
    }
    assert_eq!(ring.pop(&dma, &mut chain), Ok(false));
    driver.force(0, &[(BUFFERS, 1, 0)]);
    let error = Err(RingError::TooManyDescriptors { size: 4 });
    assert_eq!(ring.pop(&dma, &mut chain), error);
    ring.push(&dma, chain.head(), 0).unwrap();
    assert_whole(&ring);
}

#[test]
fn rings_at_impossible_places_are_refused() {
    let at = |descriptors, available, used| Addresses {
        descriptors,
        available,
        used,
    };
    for (size, at) in [
        (0, RING),
        (MAX_SIZE + 1, RING),
        (4, at(8, 0, 0)),
        (4, at(0, 2, 0)),
        (4, at(0, 0, 2)),
        (4, at(u64::MAX - 15, 0, 0)),
        (4, at(0, u64::MAX - 3, 0)),
        (4, at(0, 0, u64::MAX - 3)),
    ] {
        assert!(Ring::new(size, at, ALL).is_err(), "{size} {at:x?}");
    }
    for size in [1, 3, MAX_SIZE] {
        assert!(Ring::new(size, RING, ALL).is_ok());
    }
    // No memory there, which shows when it is used.
    let mut driver = PackedDriver::new(4);
    let dma = driver.dma();
    let mut ring = Ring::new(4, at(RAM, RAM, RAM), ALL).unwrap();
    let error = ring.pop(&dma, &mut Chain::default()).unwrap_err();
    assert!(matches!(error, RingError::Memory(_)) && !error.is_gate_closed());
    assert!(ring.rearm(&dma).is_err());
    let mut ring = Ring::new(4, at(RING.descriptors, RAM, RAM), ALL).unwrap();
    driver.offer(0, &[(BUFFERS, 1, 0)]);
    let mut chain = Chain::default();
    ring.pop(&dma, &mut chain).unwrap();
    ring.push(&dma, chain.head(), 0).unwrap();
    assert!(ring.wants_interrupt(&dma).is_err());
    dma.gate().set(false);
    assert!(ring.rearm(&dma).unwrap_err().is_gate_closed());
    let popped = ring.pop(&dma, &mut chain);
    assert!(popped.unwrap_err().is_gate_closed());
}

#[test]
fn the_driver_decides_about_interrupts() {
    const W: u16 = WRAP;
    // In a ring of 3 of which 2 descriptors were used before: event index, flags, place, how many more are
    // used, wanted.
    for (event_index, flags, event, count, wanted) in [
        (false, 0, 0, 1, true),
        (false, 1, 0, 1, false),
        (false, 2, W | 1, 1, true),
        (false, 3, 0, 1, true),
        (false, 0, 0, 0, false),
        (true, 0, 0, 1, true),
        (true, 1, W | 2, 1, false),
        (true, 3, 0, 1, true),
        (true, 2, W | 2, 1, true),
        (true, 2, W | 2, 0, false),
        (true, 2, 0, 1, false),
        (true, 2, 0, 2, true),
        (true, 2, 1, 2, false),
        (true, 2, 1, 3, true),
        (true, 2, 2, 3, false),
        // Of the lap before.
        (true, 2, W | 1, 3, false),
        // Two laps, and more, contain all.
        (true, 2, W | 1, 6, true),
        (true, 2, W | 2, 7, true),
        (true, 2, W | 3, 1, true),
        (true, 2, 0x7fff, 1, true),
        // Reserved bits.
        (true, 0xfffd, W | 2, 1, false),
    ] {
        let mut driver = PackedDriver::new(3);
        let dma = driver.dma();
        let mut ring = driver.ring(RingFeatures {
            event_index,
            ..NONE
        });
        let mut chain = Chain::default();
        let case = (event_index, flags, event, count);
        for part in [2, count] {
            driver.set_event(event, flags);
            ring.wants_interrupt(&dma).unwrap();
            for _ in 0..part {
                driver.offer(0, &[(BUFFERS, 1, 0)]);
                ring.pop(&dma, &mut chain).unwrap();
                ring.push(&dma, chain.head(), 0).unwrap();
                driver.take_used().unwrap();
            }
        }
        assert_eq!(ring.wants_interrupt(&dma), Ok(wanted), "{case:x?}");
        assert_eq!(ring.wants_interrupt(&dma), Ok(false), "{case:x?}: once");
    }
}

#[test]
fn rearming_finds_what_came_meanwhile() {
    for (features, event) in [(ALL, (0, 2)), (NONE, (0, 0))] {
        let mut driver = PackedDriver::new(3);
        let dma = driver.dma();
        let mut ring = driver.ring(features);
        let mut chain = Chain::default();
        assert_eq!(ring.rearm(&dma), Ok(false));
        let first = if features.event_index { WRAP } else { 0 };
        assert_eq!(driver.device_event(), (first, event.1));
        driver.offer(0, &[(BUFFERS, 1, 0); 3]);
        assert_eq!(ring.rearm(&dma), Ok(true));
        ring.pop(&dma, &mut chain).unwrap();
        assert_eq!(ring.rearm(&dma), Ok(false));
        assert_eq!(driver.device_event(), event, "the wrap counter is 0");
        ring.push(&dma, chain.head(), 0).unwrap();
        driver.take_used().unwrap();
        assert_eq!(ring.rearm(&dma), Ok(false));
        driver.offer(0, &[(BUFFERS, 1, 0)]);
        assert_eq!(ring.rearm(&dma), Ok(true));
    }
}

#[test]
fn states_that_cannot_be_are_refused() {
    let driver = PackedDriver::new(3);
    let state = |places: [u16; 2], requests: &[(u16, u16)]| {
        let mut e = Encoder::new();
        places.into_iter().for_each(|place| e.u16(place));
        e.u32(0);
        e.u64(requests.len() as u64);
        for (head, len) in requests {
            e.u16(*head);
            e.u16(*len);
            for _ in 0..*len {
                e.array(&[0; 16]);
            }
        }
        e.into_body()
    };
    let good = state([5, 2], &[(2, 1), (0, 2)]);
    load(&mut driver.ring(ALL), &good).unwrap();
    for length in 0..good.len() {
        load(&mut driver.ring(ALL), &good[..length]).unwrap_err();
    }
    for (places, requests) in [
        ([6, 0], &[][..]),
        ([0, 6], &[]),
        ([1, 0], &[]),
        ([0, 0], &[(0, 1)]),
        ([4, 0], &[(0, 3), (1, 1)]),
        ([1, 0], &[(3, 1)]),
        ([2, 0], &[(1, 1), (1, 1)]),
        ([1, 0], &[(0, 0), (1, 1)]),
        ([3, 0], &[(0, 4)]),
    ] {
        let body = state(places, requests);
        let loaded = load(&mut driver.ring(ALL), &body);
        assert!(loaded.is_err(), "{places:?} {requests:?}");
    }
}

/// An element as a driver might make it up: mostly near what is allowed.
fn element() -> impl Strategy<Value = (u64, u32, u16)> {
    let gpa = prop_oneof![0..RAM + 64, Just(TABLE), any::<u64>()];
    let len = prop_oneof![0..64_u32, Just(16), Just(64), any::<u32>()];
    (gpa, len, prop_oneof![0..8_u16, any::<u16>()])
}

proptest! {
    #[test]
    fn no_ring_harms(
        size in 1..9_u16,
        offers in proptest::collection::vec(
            (any::<u16>(), proptest::collection::vec(element(), 1..5)),
            0..16,
        ),
        indirect in proptest::collection::vec(element(), 8),
        features in (any::<bool>(), any::<bool>()),
        fill in proptest::collection::vec((0..RAM - 8, any::<[u8; 8]>()), 0..8),
        kept in any::<u32>(),
        hostile in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
    ) {
        let mut driver = PackedDriver::new(size);
        let dma = driver.dma();
        let features = RingFeatures { packed: true, indirect: features.0, event_index: features.1 };
        let mut ring = driver.ring(features);
        for (n, (gpa, len, flags)) in (0..).zip(indirect) {
            driver.describe(TABLE, n, (gpa, len, 0, flags));
        }
        for (at, bytes) in fill {
            driver.put(at, &bytes);
        }
        let mut chain = Chain::default();
        for (n, (id, elements)) in offers.into_iter().enumerate() {
            driver.force(id, &elements);
            if let Ok(true) = ring.pop(&dma, &mut chain) {
                let count = chain.readable().len() + chain.writable().len();
                prop_assert!(count <= usize::from(size) + MAX_INDIRECT as usize);
                prop_assert!(chain.head() < size);
                let all = chain.readable().iter().chain(chain.writable());
                let total: u64 = all.map(|s| u64::from(s.len)).sum();
                prop_assert!(u32::try_from(total).is_ok());
                let mut again = Chain::default();
                ring.read_chain(&dma, chain.head(), &mut again).unwrap();
                prop_assert_eq!(&again, &chain);
                match kept >> (2 * n) & 3 {
                    0 => {}
                    1 => ring.undo_pop(chain.head()),
                    _ => ring.push(&dma, chain.head(), 1).unwrap(),
                }
            }
            assert_whole(&ring);
            let _wants = ring.wants_interrupt(&dma);
            let _more = ring.rearm(&dma);
        }
        let mut body = saved(&ring);
        let mut loaded = driver.ring(features);
        load(&mut loaded, &body).unwrap();
        assert_whole(&loaded);
        prop_assert_eq!(saved(&loaded), body.clone());
        for (at, value) in hostile {
            let at = at % body.len();
            body[at] = value;
        }
        let mut damaged = driver.ring(features);
        if load(&mut damaged, &body).is_ok() {
            assert_whole(&damaged);
            for head in 0..size {
                let _read = damaged.read_chain(&dma, head, &mut chain);
                let _pushed = damaged.push(&dma, head, 1);
            }
            let _popped = damaged.pop(&dma, &mut chain);
            let _wants = damaged.wants_interrupt(&dma);
            let _more = damaged.rearm(&dma);
            assert_whole(&damaged);
        }
    }
}
