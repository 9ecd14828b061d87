//! Interrupt lines and messages into KVM. Devices hold on to these across resets, while the VM behind them is replaced.

use std::sync::{Arc, PoisonError, RwLock};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};
use kvm_ioctls::VmFd;

use crate::irq::IrqSink;
use crate::irq::ioapic::{MsiRoute, MsiSink};
use crate::kvm::route::{self, Msi, Route, Target};
use crate::layout::{IOAPIC_PINS, TIMER_IRQ, TIMER_PIN};
use crate::units::Gsi;

/// The VM that is running now, for whoever injects interrupts. Empty between power cycles: interrupts raised then are lost,
/// as on a machine held in reset.
#[derive(Clone, Debug, Default)]
pub(super) struct CurrentVm(Arc<RwLock<Option<Arc<VmFd>>>>);

impl CurrentVm {
    /// From now on interrupts go to `vm`.
    pub(super) fn set(&self, vm: Option<Arc<VmFd>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = vm;
    }

    /// Calls `f` with the VM, if there is one.
    pub(super) fn with<T>(&self, f: impl FnOnce(&VmFd) -> T) -> Option<T> {
        let vm = self.0.read().unwrap_or_else(PoisonError::into_inner);
        vm.as_deref().map(f)
    }
}

/// Lines into the interrupt controllers that are in the kernel.
#[derive(Debug)]
pub(super) struct KernelLines(pub(super) CurrentVm);

impl IrqSink for KernelLines {
    fn set_level(&self, gsi: Gsi, high: bool) {
        // KVM_IRQ_LINE fails only for a VM without an irqchip, and this sink is only wired to VMs with one.
        let _delivered = self.0.with(|vm| vm.set_irq_line(gsi.0, high));
    }
}

/// How a PC's interrupt lines lead to the controllers in the kernel. KVM's own default leads the timer to pin 0 of the I/O
/// APIC, where no operating system expects it (the MADT says pin 2).
pub(super) fn pc_routes() -> Vec<Route> {
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
    let pins = u32::try_from(IOAPIC_PINS).expect("24 pins");
    let ioapic = (0..pins).filter(|&line| line != TIMER_PIN.0).map(|line| {
        let pin = if line == TIMER_IRQ.0 {
            TIMER_PIN.0
        } else {
            line
        };
        route(line, KVM_IRQCHIP_IOAPIC, pin)
    });
    pic.chain(ioapic).collect()
}

/// Messages from the I/O APIC that is in user space.
#[derive(Debug)]
pub(super) struct Messages(pub(super) CurrentVm);

impl MsiSink for Messages {
    fn send(&self, address: u64, data: u32) {
        // KVM_SIGNAL_MSI fails only for a VM without local APICs in the kernel, and every VM has them there. That none of
        // them takes the message is the guest's business.
        let _delivered = self
            .0
            .with(|vm| route::signal_msi(vm, Msi { address, data }));
    }

    fn routes_changed(&self, routes: &[Option<MsiRoute>; IOAPIC_PINS]) {
        let routes: Vec<_> = (0..)
            .map(Gsi)
            .zip(routes)
            .filter_map(|(gsi, route)| {
                route.map(|r| Route {
                    gsi,
                    to: Target::Msi(Msi {
                        address: r.address,
                        data: r.data,
                    }),
                })
            })
            .collect();
        // 24 routes always fit, and the kind is one that every VM takes.
        let _set = self.0.with(|vm| route::set_routes(vm, &routes));
    }
}

#[cfg(test)]
mod tests {
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
}
