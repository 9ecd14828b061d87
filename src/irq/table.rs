//! Which GSI is whose, and where each leads. Pure.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

use super::ioapic::PINS;
use crate::kvm::route::{Msi, Route, Target};
use crate::layout::{TIMER_IRQ, TIMER_PIN};
use crate::units::Gsi;

/// The first GSI that is not a pin of the I/O APIC.
pub(super) const FIRST_VECTOR: u32 = 24;
const _: () = assert!(PINS == FIRST_VECTOR as usize);

/// Where the interrupt controllers are that have pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// PICs, I/O APIC and local APICs are in KVM.
    Kernel,
    /// Only the local APICs are; the I/O APIC is in user space, and sends messages.
    Split,
}

/// All GSIs.
#[derive(Debug)]
pub(super) struct Table {
    /// Of the I/O APIC's and, in the kernel, the PICs' pins.
    pins: Vec<Route>,
    /// Owned GSIs from [`FIRST_VECTOR`] on, and where they lead; `None` for a free one.
    others: Vec<Option<Option<Target>>>,
    /// How many others there can be.
    capacity: usize,
}

impl Table {
    /// All pins, and no other, of at most `limit` routes (`KVM_CAP_IRQ_ROUTING`).
    pub(super) fn new(controllers: Controllers, limit: u32) -> Self {
        let pins = match controllers {
            Controllers::Kernel => pc_routes(),
            Controllers::Split => Vec::new(),
        };
        // The limit is one of routes and of GSIs, and a pin has up to two routes.
        let reserved = pins.len().max(PINS);
        Self {
            pins,
            others: Vec::new(),
            capacity: usize::try_from(limit).unwrap_or(0).saturating_sub(reserved),
        }
    }

    /// The messages of the I/O APIC in user space. KVM never delivers them: it reads from them which vectors'
    /// EOIs exit (`kvm_scan_ioapic_routes`).
    pub(super) fn set_ioapic(&mut self, messages: &[Option<Msi>; PINS]) {
        let each = (0..).map(Gsi).zip(messages);
        self.pins = each
            .filter_map(|(gsi, message)| {
                message.map(|msi| Route {
                    gsi,
                    to: Target::Msi(msi),
                })
            })
            .collect();
    }

    /// The lowest free GSI, which leads nowhere yet.
    pub(super) fn allocate(&mut self) -> Option<Gsi> {
        let index = match self.others.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.others.len() < self.capacity => {
                self.others.push(None);
                self.others.len() - 1
            }
            None => return None,
        };
        self.others[index] = Some(None);
        Some(Gsi(FIRST_VECTOR + u32::try_from(index).ok()?))
    }

    /// Gives back what [`Self::allocate`] gave.
    pub(super) fn free(&mut self, gsi: Gsi) {
        if let Some(entry) = self.entry(gsi) {
            *entry = None;
        }
    }

    /// An allocated GSI now leads to `to`.
    pub(super) fn set(&mut self, gsi: Gsi, to: Target) {
        if let Some(Some(target)) = self.entry(gsi) {
            *target = Some(to);
        }
    }

    fn entry(&mut self, gsi: Gsi) -> Option<&mut Option<Option<Target>>> {
        let index = usize::try_from(gsi.0.checked_sub(FIRST_VECTOR)?).ok()?;
        self.others.get_mut(index)
    }

    /// All routes, as KVM takes them.
    pub(super) fn routes(&self) -> Vec<Route> {
        let others = (FIRST_VECTOR..).map(Gsi).zip(&self.others);
        let others = others.filter_map(|(gsi, to)| Some(Route { gsi, to: (*to)?? }));
        self.pins.iter().copied().chain(others).collect()
    }
}

/// How a PC's interrupt lines lead to the controllers in the kernel. KVM's own default leads the timer to pin
/// 0 of the I/O APIC, where no operating system expects it (the MADT says pin 2).
fn pc_routes() -> Vec<Route> {
    const PER_PIC: u32 = 8;
    let route = |line, irqchip, pin| Route {
        gsi: Gsi(line),
        to: Target::Pin { irqchip, pin },
    };
    let pic = (0..2 * PER_PIC)
        // Line 2 of the master is where the slave hangs.
        .filter(|&line| line != 2)
        .map(|line| {
            let irqchip = if line < PER_PIC {
                KVM_IRQCHIP_PIC_MASTER
            } else {
                KVM_IRQCHIP_PIC_SLAVE
            };
            route(line, irqchip, line % PER_PIC)
        });
    let ioapic = (0..FIRST_VECTOR)
        .filter(|&line| line != TIMER_PIN.0)
        .map(|line| {
            let pin = if line == TIMER_IRQ.0 {
                TIMER_PIN.0
            } else {
                line
            };
            route(line, KVM_IRQCHIP_IOAPIC, pin)
        });
    pic.chain(ioapic).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn leads(line: u32, irqchip: u32, pin: u32) -> bool {
        pc_routes().contains(&Route {
            gsi: Gsi(line),
            to: Target::Pin { irqchip, pin },
        })
    }

    #[test]
    fn lines_lead_to_pins_of_the_same_number_but_the_timer() {
        assert!(leads(0, KVM_IRQCHIP_IOAPIC, 2) && leads(0, KVM_IRQCHIP_PIC_MASTER, 0));
        assert!(leads(4, KVM_IRQCHIP_IOAPIC, 4) && leads(4, KVM_IRQCHIP_PIC_MASTER, 4));
        assert!(leads(9, KVM_IRQCHIP_IOAPIC, 9) && leads(9, KVM_IRQCHIP_PIC_SLAVE, 1));
        assert!(leads(23, KVM_IRQCHIP_IOAPIC, 23));
        assert!(!pc_routes().iter().any(|route| route.gsi == Gsi(2)));
        assert_eq!(pc_routes().len(), 15 + 23);
    }

    fn msi(data: u32) -> Msi {
        Msi {
            address: 0xfee0_0000,
            data,
        }
    }

    #[test]
    fn routes_and_gsis_stay_within_the_limit() {
        for (controllers, pins) in [(Controllers::Kernel, 38), (Controllers::Split, 24)] {
            let mut table = Table::new(controllers, 64);
            table.set_ioapic(&[Some(msi(0)); PINS]);
            if controllers == Controllers::Kernel {
                table.pins = pc_routes();
            }
            for n in 0..64 - pins {
                let gsi = table.allocate().unwrap();
                table.set(gsi, Target::Msi(msi(n)));
            }
            assert_eq!(table.allocate(), None);
            assert_eq!(table.routes().len(), 64);
            assert!(table.routes().iter().all(|route| route.gsi.0 < 64));
        }
        assert_eq!(Table::new(Controllers::Split, 0).allocate(), None);
    }

    #[test]
    fn messages_of_the_io_apic_leave_other_routes_alone() {
        let mut table = Table::new(Controllers::Split, 4096);
        let gsi = table.allocate().unwrap();
        let to = Target::Msi(msi(0x51));
        table.set(gsi, to);
        let mut messages = [None; PINS];
        messages[4] = Some(msi(0x34));
        table.set_ioapic(&messages);
        let pin = Route {
            gsi: Gsi(4),
            to: Target::Msi(msi(0x34)),
        };
        let vector = Route { gsi: Gsi(24), to };
        assert_eq!(table.routes(), [pin, vector]);
        table.set_ioapic(&[None; PINS]);
        assert_eq!(table.routes(), [vector]);
    }

    proptest! {
        /// Against a map: a GSI is owned once, and leads where it was last set to.
        #[test]
        fn a_gsi_has_one_owner(ops in proptest::collection::vec((0_u8..3, 0_u32..12, any::<u8>()), 0..200)) {
            let mut table = Table::new(Controllers::Split, 32);
            let mut model: BTreeMap<u32, Option<Target>> = BTreeMap::new();
            for (op, which, data) in ops {
                let gsi = FIRST_VECTOR + which;
                let to = Target::Msi(msi(data.into()));
                match op {
                    0 => match table.allocate() {
                        Some(gsi) => prop_assert_eq!(model.insert(gsi.0, None), None),
                        None => prop_assert_eq!(model.len(), 8),
                    },
                    1 => {
                        table.free(Gsi(gsi));
                        model.remove(&gsi);
                    }
                    _ => {
                        table.set(Gsi(gsi), to);
                        model.entry(gsi).and_modify(|there| *there = Some(to));
                    }
                }
                let expected: Vec<_> = model
                    .iter()
                    .filter_map(|(gsi, to)| Some(Route { gsi: Gsi(*gsi), to: (*to)? }))
                    .collect();
                prop_assert_eq!(table.routes(), expected);
            }
        }
    }
}
