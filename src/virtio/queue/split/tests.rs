use proptest::prelude::*;

use super::super::{Form, MAX_INDIRECT, Ring};
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, RAM, RING, TABLE, WRITE, segments};

const ALL: RingFeatures = RingFeatures {
    packed: false,
    indirect: true,
    event_index: true,
};
const NONE: RingFeatures = RingFeatures {
    packed: false,
    indirect: false,
    event_index: false,
};
const DESCRIPTORS: u64 = RING.descriptors;

fn split(ring: &Ring) -> &SplitRing {
    match &ring.0 {
        Form::Split(ring) => ring,
        Form::Packed(_) => panic!("a packed ring"),
    }
}

#[test]
fn chains_are_followed_and_returned() {
    let mut driver = Driver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    assert_eq!(ring.pop(&dma, &mut chain), Ok(false));
    driver.describe(DESCRIPTORS, 2, (0x8000, 16, NEXT, 0));
    driver.describe(DESCRIPTORS, 0, (0x9000, 0, NEXT, 3));
    driver.describe(DESCRIPTORS, 3, (0xa000, 512, NEXT | WRITE, 1));
    driver.describe(DESCRIPTORS, 1, (0xb000, 1, WRITE, 77));
    driver.offer(2);
    assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
    assert_eq!(segments(chain.readable()), [(0x8000, 16), (0x9000, 0)]);
    assert_eq!(segments(chain.writable()), [(0xa000, 512), (0xb000, 1)]);
    assert_eq!(ring.pop(&dma, &mut Chain::default()), Ok(false));
    ring.undo_pop(2);
    let mut again = Chain::default();
    assert_eq!(ring.pop(&dma, &mut again), Ok(true));
    assert_eq!(again, chain);
    assert_eq!(driver.take_used(), None);
    ring.push(&dma, chain.head(), 513).unwrap();
    assert_eq!(driver.take_used(), Some((2, 513)));
}

#[test]
fn indices_wrap_around() {
    let mut driver = Driver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(NONE);
    let mut chain = Chain::default();
    driver.describe(DESCRIPTORS, 1, (0x8000, 1, WRITE, 0));
    for n in 0..70_000_u32 {
        driver.offer(1);
        assert_eq!(ring.pop(&dma, &mut chain), Ok(true), "{n}");
        ring.push(&dma, chain.head(), n).unwrap();
        assert_eq!(driver.take_used(), Some((1, n)));
    }
}

#[test]
fn indirect_tables_are_followed() {
    let mut driver = Driver::new(4);
    let dma = driver.dma();
    let mut ring = driver.ring(ALL);
    let mut chain = Chain::default();
    driver.describe(DESCRIPTORS, 3, (0x8000, 1, NEXT, 2));
    // Whether the device may write the table does not matter (2.7.5.3.2).
    driver.describe(DESCRIPTORS, 2, (TABLE, 32, INDIRECT | WRITE, 9));
    driver.describe(TABLE, 0, (0x9000, 2, NEXT, 1));
    driver.describe(TABLE, 1, (0xa000, 3, WRITE, 0));
    driver.offer(3);
    assert_eq!(ring.pop(&dma, &mut chain), Ok(true));
    assert_eq!(segments(chain.readable()), [(0x8000, 1), (0x9000, 2)]);
    assert_eq!(segments(chain.writable()), [(0xa000, 3)]);
}

/// A ring of 4; what the driver does wrong; what is wrong with it.
type Case = (fn(&mut Driver), RingError);

#[test]
fn broken_rings_are_found_and_nothing_is_taken() {
    let cases: &[Case] = &[
        (
            |d| d.set_available(5),
            RingError::TooManyAvailable {
                waiting: 5,
                size: 4,
            },
        ),
        (|d| d.offer(4), RingError::NoDescriptor { index: 4, len: 4 }),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (BUFFERS, 1, NEXT, 0xffff));
                d.offer(0);
            },
            RingError::NoDescriptor {
                index: 0xffff,
                len: 4,
            },
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (BUFFERS, 1, NEXT, 0));
                d.offer(0);
            },
            RingError::Loop,
        ),
        (
            |d| {
                for n in 0..4 {
                    d.describe(DESCRIPTORS, n, (BUFFERS, 1, NEXT, (n + 1) % 4));
                }
                d.offer(2);
            },
            RingError::Loop,
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 32, INDIRECT, 0));
                d.describe(TABLE, 0, (BUFFERS, 1, NEXT, 1));
                d.describe(TABLE, 1, (BUFFERS, 1, NEXT, 0));
                d.offer(0);
            },
            RingError::Loop,
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 32, INDIRECT, 0));
                d.describe(TABLE, 0, (BUFFERS, 1, NEXT, 2));
                d.offer(0);
            },
            RingError::NoDescriptor { index: 2, len: 2 },
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 16, INDIRECT, 0));
                d.describe(TABLE, 0, (TABLE, 16, INDIRECT, 0));
                d.offer(0);
            },
            RingError::IndirectNotAllowed,
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 16, INDIRECT | NEXT, 1));
                d.offer(0);
            },
            RingError::IndirectNotAllowed,
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 0, INDIRECT, 0));
                d.offer(0);
            },
            RingError::IndirectLength(0),
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 17, INDIRECT, 0));
                d.offer(0);
            },
            RingError::IndirectLength(17),
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (TABLE, 16 * 1025, INDIRECT, 0));
                d.offer(0);
            },
            RingError::IndirectLength(16 * 1025),
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (BUFFERS, 1, NEXT | WRITE, 1));
                d.describe(DESCRIPTORS, 1, (BUFFERS, 1, 0, 0));
                d.offer(0);
            },
            RingError::ReadableAfterWritable,
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (u64::MAX, 1, WRITE, 0));
                d.offer(0);
            },
            RingError::Wraps {
                gpa: Gpa(u64::MAX),
                len: 1,
            },
        ),
        (
            |d| {
                d.describe(DESCRIPTORS, 0, (0, u32::MAX, NEXT | WRITE, 1));
                d.describe(DESCRIPTORS, 1, (0, 1, WRITE, 0));
                d.offer(0);
            },
            RingError::TooLong(1 << 32),
        ),
    ];
    for (n, (wrong, error)) in cases.iter().enumerate() {
        let mut driver = Driver::new(4);
        let dma = driver.dma();
        let mut ring = driver.ring(ALL);
        wrong(&mut driver);
        let mut chain = Chain::default();
        for _ in 0..2 {
            assert_eq!(ring.pop(&dma, &mut chain), Err(*error), "case {n}");
        }
        assert_eq!(split(&ring).next_available, 0);
    }
    let mut driver = Driver::new(4);
    driver.describe(DESCRIPTORS, 0, (TABLE, 16, INDIRECT, 0));
    driver.offer(0);
    let popped = driver.ring(NONE).pop(&driver.dma(), &mut Chain::default());
    assert_eq!(popped, Err(RingError::IndirectNotAllowed), "not negotiated");
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
        (3, RING),
        (4, at(8, 0, 0)),
        (4, at(0, 1, 0)),
        (4, at(0, 0, 2)),
        (4, at(u64::MAX - 15, 0, 0)),
        (4, at(0, u64::MAX - 1, 0)),
        (4, at(0, 0, u64::MAX - 3)),
    ] {
        assert!(Ring::new(size, at, ALL).is_err(), "{size} {at:x?}");
    }
    assert!(Ring::new(MAX_SIZE, RING, ALL).is_ok());
    // No memory there, which shows when it is used.
    let driver = Driver::new(4);
    let dma = driver.dma();
    let mut ring = Ring::new(4, at(RAM, RAM, RAM), ALL).unwrap();
    let error = ring.pop(&dma, &mut Chain::default()).unwrap_err();
    assert!(matches!(error, RingError::Memory(_)) && !error.is_gate_closed());
    assert!(ring.push(&dma, 0, 0).is_err());
    assert_eq!(
        (split(&ring).next_available, split(&ring).next_used),
        (0, 0)
    );
    dma.gate().set(false);
    assert!(ring.rearm(&dma).unwrap_err().is_gate_closed());
}

#[test]
fn the_driver_decides_about_interrupts() {
    // (event index, flags, used event, requests, wanted)
    for (event_index, flags, event, count, wanted) in [
        (false, 0, 0, 1, true),
        (false, 1, 0, 1, false),
        (false, 0, 0, 0, false),
        (true, 1, 0, 1, true),
        (true, 0, 1, 1, false),
        (true, 0, 1, 2, true),
        (true, 0, 0xffff, 3, false),
        (true, 0, 3, 3, false),
        (true, 0, 2, 3, true),
    ] {
        let mut driver = Driver::new(4);
        let dma = driver.dma();
        let mut ring = driver.ring(RingFeatures {
            event_index,
            ..NONE
        });
        driver.set_flags(flags);
        driver.set_used_event(event);
        let mut chain = Chain::default();
        for _ in 0..count {
            driver.offer(0);
            ring.pop(&dma, &mut chain).unwrap();
            ring.push(&dma, chain.head(), 0).unwrap();
        }
        let case = (event_index, flags, event, count);
        assert_eq!(ring.wants_interrupt(&dma), Ok(wanted), "{case:?}");
        assert_eq!(ring.wants_interrupt(&dma), Ok(false), "{case:?}: once");
    }
}

#[test]
fn rearming_finds_what_came_meanwhile() {
    for features in [ALL, NONE] {
        let mut driver = Driver::new(4);
        let dma = driver.dma();
        let mut ring = driver.ring(features);
        driver.offer(0);
        ring.pop(&dma, &mut Chain::default()).unwrap();
        assert_eq!(ring.rearm(&dma), Ok(false));
        assert_eq!(driver.available_event(), u16::from(features.event_index));
        driver.offer(0);
        assert_eq!(ring.rearm(&dma), Ok(true));
    }
}

/// A descriptor as a driver might make it up: mostly near what is allowed.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let gpa = prop_oneof![0..RAM + 64, Just(TABLE), any::<u64>()];
    let len = prop_oneof![0..64_u32, Just(16), Just(64), any::<u32>()];
    (
        gpa,
        len,
        prop_oneof![0..8_u16, any::<u16>()],
        prop_oneof![0..9_u16, any::<u16>()],
    )
}

proptest! {
    #[test]
    fn no_ring_harms(
        descriptors in proptest::collection::vec(descriptor(), 16),
        indirect in proptest::collection::vec(descriptor(), 8),
        heads in proptest::collection::vec(prop_oneof![0..9_u16, any::<u16>()], 0..16),
        jump in proptest::option::weighted(0.1, any::<u16>()),
        features in (any::<bool>(), any::<bool>()),
        fill in proptest::collection::vec((0..RAM - 8, any::<[u8; 8]>()), 0..8),
    ) {
        let mut driver = Driver::new(8);
        let dma = driver.dma();
        let (indirect_ok, event_index) = features;
        let features = RingFeatures { packed: false, indirect: indirect_ok, event_index };
        let mut ring = driver.ring(features);
        for (n, descriptor) in (0..).zip(descriptors) {
            driver.describe(DESCRIPTORS, n, descriptor);
        }
        for (n, descriptor) in (0..).zip(indirect) {
            driver.describe(TABLE, n, descriptor);
        }
        for (at, bytes) in fill {
            driver.put(at, &bytes);
        }
        for head in heads {
            driver.offer(head);
        }
        if let Some(index) = jump {
            driver.set_available(index);
        }
        let mut chain = Chain::default();
        for _ in 0..20 {
            match ring.pop(&dma, &mut chain) {
                Ok(true) => {
                    let count = chain.readable().len() + chain.writable().len();
                    prop_assert!(count <= 8 + MAX_INDIRECT as usize);
                    prop_assert!(chain.head() < 8);
                    let all = chain.readable().iter().chain(chain.writable());
                    let total: u64 = all.map(|s| u64::from(s.len)).sum();
                    prop_assert!(u32::try_from(total).is_ok());
                    let _pushed = ring.push(&dma, chain.head(), 1);
                }
                Ok(false) => break,
                Err(_) => break,
            }
        }
        let _wants = ring.wants_interrupt(&dma);
        let _more = ring.rearm(&dma);
        let mut e = Encoder::new();
        ring.save(&mut e);
        let body = e.into_body();
        let mut loaded = driver.ring(features);
        loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
        prop_assert_eq!(loaded, ring);
    }
}
