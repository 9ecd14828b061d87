use proptest::prelude::*;

use super::*;

fn common() -> Common {
    Common::new(1 << 5, &[8, 64], 3)
}

fn read(common: &Common, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    common.read(offset, &mut data[..len]);
    u64::from_le_bytes(data)
}

fn status(common: &mut Common, value: u8) -> (Change, u8) {
    let change = common.write(0x14, &[value]);
    (change, common.status())
}

fn agree(common: &mut Common, features: u64) {
    for select in [0, 1_u32] {
        common.write(0x08, &select.to_le_bytes());
        let half = u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap();
        common.write(0x0c, &half.to_le_bytes());
    }
}

#[test]
fn negotiation_goes_by_the_book() {
    let mut c = common();
    assert_eq!(read(&c, 4, 4), INDIRECT_DESC | EVENT_IDX | 1 << 5);
    c.write(0, &[1, 0, 0, 0]);
    assert_eq!(read(&c, 4, 4), VERSION_1 >> 32);
    c.write(0, &[2, 0, 0, 0]);
    assert_eq!(read(&c, 4, 4), 0);
    assert_eq!(status(&mut c, 1), (Change::None, 1));
    assert_eq!(status(&mut c, 3), (Change::None, 3));
    // Not offered; then without VERSION_1; then right.
    for (features, change, agreed) in [
        (VERSION_1 | 1 << 6, Change::None, 3),
        (VERSION_1 | RING_PACKED, Change::None, 3),
        (EVENT_IDX, Change::None, 3),
        (VERSION_1 | EVENT_IDX, Change::Agreed, 0xb),
    ] {
        agree(&mut c, features);
        assert_eq!(c.agreed_features(), 0);
        assert_eq!(status(&mut c, 0xb), (change, agreed));
    }
    assert_eq!(c.agreed_features(), VERSION_1 | EVENT_IDX);
    agree(&mut c, 0);
    assert_eq!(c.driver_features, VERSION_1 | EVENT_IDX, "agreed is agreed");
    assert_eq!(
        c.ring_features(),
        RingFeatures {
            packed: false,
            indirect: false,
            event_index: true
        }
    );
    assert!(!c.is_running());
    assert_eq!(status(&mut c, 0xf), (Change::Started, 0xf));
    assert_eq!(status(&mut c, 0xf), (Change::None, 0xf));
    assert!(c.is_running());
    c.set_needs_reset();
    assert!(!c.is_running());
    assert_eq!(status(&mut c, 0x8f), (Change::None, 0xcf));
    assert_eq!(status(&mut c, 0), (Change::Reset, 0xcf));
    c.reset();
    assert_eq!(c, common());
}

#[test]
fn a_driver_that_agreed_on_nothing_is_not_started() {
    let mut c = common();
    assert_eq!(status(&mut c, 7), (Change::None, 3));
    assert_eq!(status(&mut c, 0x40), (Change::None, 3), "not the driver's");
}

#[test]
fn queues_are_configured_until_they_are_enabled() {
    let mut c = common();
    agree(&mut c, VERSION_1);
    assert_eq!(c.write(0x1c, &[1, 0]), Change::None, "before the features");
    status(&mut c, 0xb);
    c.write(0x16, &[1, 0]);
    assert_eq!((read(&c, 0x12, 2), read(&c, 0x18, 2)), (2, 64));
    assert_eq!((read(&c, 0x1e, 2), read(&c, 0x38, 2)), (1, 1));
    for (size, want) in [(128_u16, 64), (0, 64), (48, 64), (16, 16)] {
        c.write(0x18, &size.to_le_bytes());
        assert_eq!(read(&c, 0x18, 2), want);
    }
    c.write(0x20, &0x1122_3344_5566_7788_u64.to_le_bytes());
    c.write(0x28, &[1, 0, 0, 0]);
    c.write(0x2c, &[2, 0, 0, 0]);
    c.write(0x34, &[3, 0, 0, 0]);
    // Across registers, or bytes of them: ignored.
    c.write(0x24, &[9; 8]);
    c.write(0x30, &[9; 2]);
    c.write(0x20, &[9; 1]);
    let at = Addresses {
        descriptors: 0x1122_3344_5566_7788,
        available: 0x2_0000_0001,
        used: 0x3_0000_0000,
    };
    assert_eq!(c.queues()[1].at, at);
    assert_eq!(c.write(0x1c, &[0, 0]), Change::None);
    assert_eq!(c.write(0x1c, &[2, 0]), Change::None);
    assert_eq!(c.write(0x1c, &[1, 0]), Change::QueueEnabled(1));
    assert_eq!(c.write(0x1c, &[1, 0]), Change::None);
    c.write(0x20, &[0; 8]);
    c.write(0x18, &[8, 0]);
    assert_eq!((c.queues()[1].at, c.queues()[1].size), (at, 16));
    c.write(0x16, &[2, 0]);
    assert_eq!((read(&c, 0x18, 2), read(&c, 0x1a, 2)), (0, 0xffff));
    assert_eq!(c.write(0x1c, &[1, 0]), Change::None, "there is no queue 2");
}

/// The size is chosen before the form of the ring is: whatever a driver has written can be saved and loaded.
#[test]
fn a_size_that_was_chosen_too_early_is_saved_and_loaded() {
    let new = || Common::new(RING_PACKED, &[8, 64], 3);
    let mut c = new();
    agree(&mut c, RING_PACKED);
    c.write(0x18, &[3, 0]);
    agree(&mut c, VERSION_1);
    assert_eq!(read(&c, 0x18, 2), 3);
    let mut e = Encoder::new();
    c.save(&mut e);
    let body = e.into_body();
    let mut loaded = new();
    loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
    assert_eq!(loaded, c);
    // A driver that claims what is not offered has the sizes of split rings.
    let mut c = common();
    agree(&mut c, RING_PACKED);
    c.write(0x18, &[3, 0]);
    assert_eq!(read(&c, 0x18, 2), 8);
}

#[test]
fn no_queue_is_enabled_before_the_features_are_agreed_on() {
    let mut c = common();
    agree(&mut c, VERSION_1);
    status(&mut c, 0xb);
    c.write(0x1c, &[1, 0]);
    let mut e = Encoder::new();
    c.save(&mut e);
    let mut body = e.into_body();
    // Selects, features and a vector precede the status.
    const STATUS: usize = 4 + 4 + 8 + 2;
    assert_eq!(body[STATUS], 0xb);
    body[STATUS] = 3;
    let refused = common().load(&mut Decoder::new("s", 1, &body));
    assert!(refused.unwrap_err().to_string().contains("queue enable"));
}

#[test]
fn packed_rings_have_any_size() {
    let mut c = Common::new(RING_PACKED, &[8, 64], 3);
    agree(&mut c, VERSION_1 | RING_PACKED);
    assert_eq!(status(&mut c, 0xb), (Change::Agreed, 0xb));
    assert!(c.ring_features().packed);
    c.write(0x16, &[1, 0]);
    for (size, want) in [(48_u16, 48), (0, 48), (65, 48), (1, 1), (63, 63)] {
        c.write(0x18, &size.to_le_bytes());
        assert_eq!(read(&c, 0x18, 2), want);
    }
    let mut e = Encoder::new();
    c.save(&mut e);
    let body = e.into_body();
    let mut loaded = Common::new(RING_PACKED, &[8, 64], 3);
    loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
    assert_eq!(loaded, c);
    // Where they are not offered.
    let refused = common().load(&mut Decoder::new("s", 1, &body));
    assert!(refused.unwrap_err().to_string().contains("not offered"));
}

#[test]
fn vectors_that_are_not_there_read_back_as_none() {
    let mut c = common();
    for (vector, want) in [(2_u16, 2), (3, 0xffff), (0, 0), (0xffff, 0xffff)] {
        c.write(0x10, &vector.to_le_bytes());
        c.write(0x1a, &vector.to_le_bytes());
        assert_eq!((read(&c, 0x10, 2), read(&c, 0x1a, 2)), (want, want));
    }
}

proptest! {
    #[test]
    fn any_accesses_keep_the_rules_and_come_back(
        accesses in proptest::collection::vec(
            (0..0x44_u64, proptest::collection::vec(prop_oneof![0..16_u8, any::<u8>()], 0..9)),
            0..100,
        ),
        hostile in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut c = common();
        agree(&mut c, VERSION_1);
        for (offset, mut data) in accesses {
            match c.write(offset, &data) {
                Change::Reset => c.reset(),
                Change::QueueEnabled(index) => prop_assert!(c.queues()[index].enabled),
                Change::Started => prop_assert!(c.is_running()),
                Change::Agreed => prop_assert!(c.agreed_features() != 0),
                Change::None => {}
            }
            c.read(offset, &mut data);
            let agreed = c.status() & FEATURES_OK != 0;
            prop_assert!(!agreed || c.driver_features & !c.offered == 0);
            prop_assert!(agreed || !c.is_running());
            for queue in c.queues() {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= queue.max);
                prop_assert!(queue.vector < 3 || queue.vector == NO_VECTOR);
            }
        }
        let mut e = Encoder::new();
        c.save(&mut e);
        let body = e.into_body();
        let mut loaded = common();
        loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
        prop_assert_eq!(&loaded, &c);
        let _loaded = loaded.load(&mut Decoder::new("s", 1, &hostile));
        loaded.read(0, &mut [0; 8]);
    }
}
