//! An interrupt line that several functions share: it is high while any of them asserts it.

use std::sync::{Arc, Mutex};

use super::IrqLine;
use crate::bus::lock;

/// A level-triggered line with several holders (PCI INTx; PCI Local Bus Specification 3.0, 2.2.6).
///
/// The line's level is not saved. Each holder's device drives its own bit again when its state is loaded, as
/// it does for a line that it has for itself. The controller's part of a level-triggered interrupt is the
/// controller's: the I/O APIC in user space and the one in KVM both deliver again upon an EOI while the line
/// is high.
#[derive(Clone, Debug)]
pub struct SharedLine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    line: IrqLine,
    /// How many holders assert it. Held while the line changes, or two changes could overtake each other.
    asserted: Mutex<usize>,
}

impl SharedLine {
    /// Over `line`, which nothing else drives.
    pub fn new(line: IrqLine) -> Self {
        Self(Arc::new(Shared {
            line,
            asserted: Mutex::new(0),
        }))
    }

    /// One more holder, which does not assert the line yet.
    pub fn holder(&self) -> LineHolder {
        LineHolder {
            shared: Arc::clone(&self.0),
            asserts: Mutex::new(false),
        }
    }
}

/// One function's part of a [`SharedLine`]. Dropping it deasserts.
#[derive(Debug)]
pub struct LineHolder {
    shared: Arc<Shared>,
    asserts: Mutex<bool>,
}

impl LineHolder {
    /// Asserts the line or takes the assertion back; a call that changes nothing costs one lock.
    pub fn set(&self, high: bool) {
        let mut asserts = lock(&self.asserts);
        if *asserts == high {
            return;
        }
        *asserts = high;
        let mut count = lock(&self.shared.asserted);
        let before = *count;
        *count = if high { before + 1 } else { before - 1 };
        if (before == 0) != (*count == 0) {
            self.shared.line.set(high);
        }
    }

    /// Whether this holder asserts the line (Interrupt Status in a PCI function's Status register).
    pub fn is_set(&self) -> bool {
        *lock(&self.asserts)
    }
}

impl Drop for LineHolder {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::irq::IrqSink;
    use crate::units::Gsi;

    #[derive(Default)]
    struct Wire {
        high: AtomicBool,
        changes: AtomicUsize,
    }

    impl IrqSink for Wire {
        fn set_level(&self, gsi: Gsi, high: bool) {
            assert_eq!(gsi, Gsi(16));
            self.high.store(high, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shared() -> (Arc<Wire>, SharedLine) {
        let wire = Arc::new(Wire::default());
        let line = SharedLine::new(IrqLine::new(wire.clone(), Gsi(16)));
        (wire, line)
    }

    #[test]
    fn holders_on_threads_leave_the_line_low() {
        let (wire, line) = shared();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let holder = line.holder();
                scope.spawn(move || {
                    for n in 0..2000 {
                        holder.set(n % 2 == 0);
                        if holder.is_set() {
                            assert!(wire_is_high(&holder));
                        }
                    }
                });
            }
        });
        assert!(!wire.high.load(Ordering::Relaxed));
    }

    fn wire_is_high(holder: &LineHolder) -> bool {
        *lock(&holder.shared.asserted) > 0
    }

    proptest! {
        /// Against a list of bits: the level is their OR, and the line is driven only when that changes.
        #[test]
        fn the_line_is_the_or_of_its_holders(ops in proptest::collection::vec((0_u8..4, 0_usize..5),
            0..200)) {
            let (wire, line) = shared();
            let mut holders: Vec<LineHolder> = Vec::new();
            let mut model: Vec<bool> = Vec::new();
            let mut changes = 0;
            for (op, which) in ops {
                let before = model.contains(&true);
                match (op, holders.get(which)) {
                    (0, Some(holder)) => { holder.set(true); model[which] = true; }
                    (1, Some(holder)) => { holder.set(false); model[which] = false; }
                    (2, Some(_)) => { holders.remove(which); model.remove(which); }
                    _ => { holders.push(line.holder()); model.push(false); }
                }
                let after = model.contains(&true);
                changes += usize::from(before != after);
                prop_assert_eq!(wire.high.load(Ordering::Relaxed), after);
                prop_assert_eq!(wire.changes.load(Ordering::Relaxed), changes);
                prop_assert!(holders.iter().map(LineHolder::is_set).eq(model.iter().copied()));
            }
        }
    }
}
