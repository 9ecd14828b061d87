use proptest::prelude::*;

use super::*;
use crate::devices::testing::{accesses, assert_comes_back, hostile, inl, outb, outl, replay};

#[derive(Debug, Default)]
struct Recorder {
    sent: Mutex<Vec<Msi>>,
    routes: Mutex<Vec<[Option<Msi>; PINS]>>,
}

impl MsiSink for Recorder {
    fn send(&self, msi: Msi) {
        lock(&self.sent).push(msi);
    }

    fn routes_changed(&self, routes: &[Option<Msi>; PINS]) {
        lock(&self.routes).push(*routes);
    }
}

struct Bench {
    msi: Arc<Recorder>,
    ioapic: Arc<IoApic>,
    mmio: IoApicMmio,
}

fn bench() -> Bench {
    let msi = Arc::new(Recorder::default());
    let ioapic = Arc::new(IoApic::new(msi.clone()));
    let mmio = IoApicMmio::new(ioapic.clone());
    Bench { msi, ioapic, mmio }
}

impl Bench {
    fn get(&mut self, index: u8) -> u32 {
        outb(&mut self.mmio, IOREGSEL, index);
        inl(&mut self.mmio, IOWIN)
    }

    fn put(&mut self, index: u8, value: u32) {
        outl(&mut self.mmio, IOREGSEL, index.into());
        outl(&mut self.mmio, IOWIN, value);
    }

    /// Writes a redirection entry, upper half first.
    fn redirect(&mut self, pin: u8, entry: u64) {
        let index = INDEX_REDIRECTION + 2 * pin;
        self.put(index + 1, u32::try_from(entry >> 32).unwrap());
        self.put(index, u32::try_from(entry & 0xffff_ffff).unwrap());
    }

    fn set(&self, pin: u32, high: bool) {
        self.ioapic.set_level(Gsi(pin), high);
    }

    fn sent(&self) -> Vec<(u64, u32)> {
        lock(&self.msi.sent)
            .drain(..)
            .map(|m| (m.address, m.data))
            .collect()
    }
}

#[test]
fn registers_read_as_the_data_sheet_says() {
    let mut b = bench();
    assert_eq!(b.get(INDEX_VERSION), 0x0017_0020);
    b.put(INDEX_ID, 0xffff_ffff);
    assert_eq!(b.get(INDEX_ID), 0x0f00_0000);
    assert_eq!(b.get(INDEX_ARBITRATION), 0x0f00_0000);
    assert_eq!(b.get(0x10), 0x0001_0000, "masked at power-on");
    b.redirect(23, u64::MAX);
    assert_eq!(b.get(0x3e), 0x0001_afff, "status bits cannot be written");
    assert_eq!(b.get(0x3f), 0xff00_0000);
    assert_eq!(b.get(0x40), 0xffff_ffff, "there is no pin 24");
    assert_eq!(b.get(0x05), 0xffff_ffff);
    assert_eq!(inl(&mut b.mmio, IOREGSEL), 0x05, "the index reads back");
}

#[test]
fn messages_carry_every_field() {
    for (entry, address, data) in [
        (0x31, 0xfee0_0000, 0x4031),
        (0x01 << 56 | 0x31, 0xfee0_1000, 0x4031),
        (0xff << 56 | LOGICAL | 1 << 8 | 0x31, 0xfeef_f004, 0x4131),
        (LEVEL | 0x40, 0xfee0_0000, 0xc040),
        (4 << 8, 0xfee0_0000, 0x4400),
    ] {
        let message = message(entry).unwrap();
        assert_eq!(
            (message.address, message.data),
            (address, data),
            "{entry:#x}"
        );
    }
    assert_eq!(message(DELIVERY_EXTINT << 8 | 0x20), None);
}

#[test]
fn an_edge_is_sent_once_and_lost_while_masked() {
    let mut b = bench();
    b.set(4, true);
    b.redirect(4, 0x24);
    assert!(b.sent().is_empty(), "the edge came while masked");
    b.set(4, true);
    assert!(b.sent().is_empty(), "no edge");
    b.set(4, false);
    b.set(4, true);
    assert_eq!(b.sent(), [(0xfee0_0000, 0x4024)]);
    b.set(4, false);
    b.set(4, true);
    assert_eq!(b.sent().len(), 1, "no EOI needed");
    b.ioapic.eoi(0x24);
    assert!(b.sent().is_empty());
}

#[test]
fn a_level_is_sent_again_after_eoi_while_driven() {
    let mut b = bench();
    b.redirect(9, LEVEL | 0x51);
    b.set(9, true);
    assert_eq!(b.sent(), [(0xfee0_0000, 0xc051)]);
    assert_eq!(b.get(0x22), 0xc051, "remote IRR shows");
    b.set(9, false);
    b.set(9, true);
    assert!(b.sent().is_empty(), "in service");
    b.ioapic.eoi(0x50);
    assert!(b.sent().is_empty(), "another vector");
    b.ioapic.eoi(0x51);
    assert_eq!(b.sent().len(), 1);
    b.set(9, false);
    // By the register, as directed EOI does.
    outl(&mut b.mmio, EOI, 0x51);
    assert!(b.sent().is_empty());
    assert_eq!(b.get(0x22), 0x8051);
}

#[test]
fn unmasking_a_driven_level_sends_it() {
    let mut b = bench();
    b.redirect(9, MASKED | LEVEL | 0x51);
    b.set(9, true);
    assert!(b.sent().is_empty());
    b.redirect(9, LEVEL | 0x51);
    assert_eq!(b.sent().len(), 1);
    // Masked in service and freed by EOI: silent until unmasked.
    b.redirect(9, MASKED | LEVEL | 0x51);
    b.ioapic.eoi(0x51);
    assert!(b.sent().is_empty());
    b.redirect(9, LEVEL | 0x51);
    assert_eq!(b.sent().len(), 1);
}

#[test]
fn pins_that_share_a_vector_are_freed_together() {
    let mut b = bench();
    for pin in [16, 17] {
        b.redirect(pin, LEVEL | 0x61);
        b.set(pin.into(), true);
    }
    assert_eq!(b.sent().len(), 2);
    b.set(16, false);
    b.ioapic.eoi(0x61);
    assert_eq!(b.sent().len(), 1);
}

/// Linux's `__eoi_ioapic_pin` for I/O APICs without an EOI register.
#[test]
fn switching_to_edge_and_back_clears_remote_irr() {
    let mut b = bench();
    b.redirect(9, LEVEL | 0x51);
    b.set(9, true);
    b.sent();
    b.redirect(9, MASKED | 0x51);
    assert_eq!(b.get(0x22), 0x0001_0051);
    b.redirect(9, LEVEL | 0x51);
    assert_eq!(b.sent().len(), 1);
}

#[test]
fn routes_are_published_only_when_they_change_and_kept_while_in_service() {
    let mut b = bench();
    let published = |b: &Bench| lock(&b.msi.routes).len();
    b.redirect(9, MASKED | LEVEL | 0x51);
    assert_eq!(published(&b), 0, "masked pins have none");
    b.redirect(9, LEVEL | 0x51);
    assert_eq!(published(&b), 1);
    b.redirect(9, LEVEL | 0x51);
    assert_eq!(published(&b), 1);
    b.set(9, true);
    b.redirect(9, MASKED | LEVEL | 0x51);
    assert_eq!(published(&b), 1, "its EOI is still to come");
    b.ioapic.eoi(0x51);
    assert_eq!(published(&b), 2);
    assert_eq!(lock(&b.msi.routes)[1], [None; PINS]);
    let route = lock(&b.msi.routes)[0][9].unwrap();
    assert_eq!((route.address, route.data), (0xfee0_0000, 0xc051));
}

#[test]
fn reset_masks_everything_and_keeps_the_inputs() {
    let mut b = bench();
    b.redirect(9, LEVEL | 0x51);
    b.set(9, true);
    b.sent();
    b.mmio.reset();
    assert_eq!(b.get(0x22), 0x0001_0000);
    assert_eq!(lock(&b.msi.routes).last().unwrap(), &[None; PINS]);
    b.redirect(9, LEVEL | 0x52);
    assert_eq!(b.sent().len(), 1, "the line is still driven");
}

#[test]
fn unknown_lines_are_ignored() {
    let b = bench();
    for gsi in [24, 31, 32, 64, u32::MAX] {
        b.set(gsi, true);
    }
    assert!(b.sent().is_empty());
}

#[test]
fn a_restored_one_tells_its_routes_and_takes_the_devices_levels_as_no_edges() {
    let mut b = bench();
    let edge = 0x41;
    let level = LEVEL | 0x42;
    b.redirect(4, edge);
    b.redirect(9, level);
    b.set(4, true);
    b.set(9, true);
    let mut restored = bench();
    assert_comes_back(&b.mmio, &mut restored.mmio);
    let routes = lock(&restored.msi.routes).last().copied();
    assert_eq!(routes, lock(&b.msi.routes).last().copied());
    // Each device drives its line as it was.
    restored.set(4, true);
    restored.set(9, true);
    assert!(restored.sent().is_empty(), "both were delivered before");
    restored.ioapic.eoi(0x42);
    assert_eq!(restored.sent().len(), 1, "still driven");
}

proptest! {
    #[test]
    fn it_comes_back_after_any_accesses(
        seq in accesses(0x48),
        levels in proptest::collection::vec((0_u32..30, any::<bool>()), 0..32),
    ) {
        let mut b = bench();
        for (access, (gsi, high)) in seq.chunks(2).zip(levels) {
            replay(&mut b.mmio, Region::ONLY, access.to_vec());
            b.set(gsi, high);
        }
        let mut fresh = bench();
        assert_comes_back(&b.mmio, &mut fresh.mmio);
        prop_assert_eq!(lock(&b.ioapic.state).routes, lock(&fresh.ioapic.state).routes);
        prop_assert!(fresh.sent().is_empty());
    }

    #[test]
    fn no_state_harms(body in hostile(), seq in accesses(0x48), vector: u8) {
        let mut b = bench();
        body.load_into(&mut b.mmio);
        replay(&mut b.mmio, Region::ONLY, seq);
        b.ioapic.eoi(vector);
    }

    #[test]
    fn no_access_sequence_panics_or_leaves_a_driven_level_unserved(
        seq in accesses(0x48),
        levels in proptest::collection::vec((0_u32..30, any::<bool>()), 0..32),
        vector: u8,
    ) {
        let mut b = bench();
        for (access, (gsi, high)) in seq.chunks(2).zip(levels) {
            replay(&mut b.mmio, Region::ONLY, access.to_vec());
            b.set(gsi, high);
            b.ioapic.eoi(vector);
        }
        let state = lock(&b.ioapic.state);
        for (pin, entry) in state.entries.iter().enumerate() {
            let driven = state.inputs & 1 << pin != 0;
            if driven && entry & (LEVEL | MASKED) == LEVEL && message(*entry).is_some() {
                prop_assert!(entry & REMOTE_IRR != 0, "pin {pin}");
            }
        }
    }
}
