//! The targets of interrupt lines (`KVM_SET_GSI_ROUTING`).

use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_hv_sint,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;

use super::{KvmError, ioctl_error};
use crate::units::{Gsi, VpIndex};

/// A message-signalled interrupt: the address and data of the device's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The address; bits 63:32 hold bits 31:8 of the APIC id when x2APIC ids are on (`KVM_CAP_X2APIC_API`).
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl Msi {
    /// Whether a write of it is an interrupt: its address is a local APIC's (Intel SDM 3A, 11.11.1), and KVM
    /// accepts it (`kvm_msi_route_invalid`: bits 39:32 are zero). KVM refuses a whole table for one invalid
    /// route, so a guest's messages must be checked before.
    pub fn is_interrupt(self) -> bool {
        let (high, low) = halves(self.address);
        low & 0xfff0_0000 == 0xfee0_0000 && high & 0xff == 0
    }
}

/// The target of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pin of a controller in KVM.
    Pin {
        /// `KVM_IRQCHIP_PIC_MASTER`, `KVM_IRQCHIP_PIC_SLAVE` or `KVM_IRQCHIP_IOAPIC`.
        irqchip: u32,
        /// The pin.
        pin: u32,
    },
    /// An MSI; also the form in which pins of a user-space I/O APIC reach KVM.
    Msi(Msi),
    /// A synthetic interrupt source of one virtual processor.
    HvSint {
        /// The virtual processor.
        vp: VpIndex,
        /// The source, 0..=15.
        sint: u32,
    },
}

/// A line and its target. A line may have several targets, on different controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The line.
    pub gsi: Gsi,
    /// Its target.
    pub to: Target,
}

impl From<Route> for kvm_irq_routing_entry {
    fn from(route: Route) -> Self {
        let (type_, u) = match route.to {
            Target::Pin { irqchip, pin } => (
                KVM_IRQ_ROUTING_IRQCHIP,
                kvm_irq_routing_entry__bindgen_ty_1 {
                    irqchip: kvm_irq_routing_irqchip { irqchip, pin },
                },
            ),
            Target::Msi(msi) => {
                let (address_hi, address_lo) = halves(msi.address);
                (
                    KVM_IRQ_ROUTING_MSI,
                    kvm_irq_routing_entry__bindgen_ty_1 {
                        msi: kvm_irq_routing_msi {
                            address_lo,
                            address_hi,
                            data: msi.data,
                            __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
                        },
                    },
                )
            }
            Target::HvSint { vp, sint } => (
                KVM_IRQ_ROUTING_HV_SINT,
                kvm_irq_routing_entry__bindgen_ty_1 {
                    hv_sint: kvm_irq_routing_hv_sint { vcpu: vp.0, sint },
                },
            ),
        };
        Self {
            gsi: route.gsi.0,
            type_,
            flags: 0,
            pad: 0,
            u,
        }
    }
}

/// Replaces the whole routing table of the VM.
///
/// # Errors
/// If there are more routes than KVM accepts, or one is invalid (a pin that its controller does not
/// have, a SINT above 15).
pub fn set_routes(vm: &VmFd, routes: &[Route]) -> Result<(), KvmError> {
    let entries: Vec<kvm_irq_routing_entry> = routes.iter().copied().map(Into::into).collect();
    let table = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::TooManyRoutes {
        count: routes.len(),
    })?;
    vm.set_gsi_routing(&table).map_err(ioctl_error(
        "KVM_SET_GSI_ROUTING",
        "set the interrupt routes",
    ))
}

/// Delivers `msi` now. Returns `false` if no local APIC accepted it.
///
/// # Errors
/// If the VM has no irqchip in the kernel.
pub fn signal_msi(vm: &VmFd, msi: Msi) -> Result<bool, KvmError> {
    let (address_hi, address_lo) = halves(msi.address);
    let message = kvm_msi {
        address_lo,
        address_hi,
        data: msi.data,
        ..Default::default()
    };
    vm.signal_msi(message)
        .map(|delivered| delivered > 0)
        .map_err(ioctl_error("KVM_SIGNAL_MSI", "deliver an interrupt"))
}

/// High and low 32 bits.
#[allow(
    clippy::cast_possible_truncation,
    reason = "splits a number into its halves"
)]
fn halves(address: u64) -> (u32, u32) {
    ((address >> 32) as u32, address as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_vm() -> Option<(VmFd, kvm_ioctls::VcpuFd)> {
        let kvm = kvm_ioctls::Kvm::new().ok()?;
        let vm = kvm.create_vm().unwrap();
        crate::kvm::cap::split_irqchip(&vm, 24).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        Some((vm, vcpu))
    }

    #[test]
    fn msi_routes_are_taken_and_too_many_are_refused() {
        let Some((vm, _vcpu)) = split_vm() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let route = |gsi| Route {
            gsi: Gsi(gsi),
            to: Target::Msi(Msi {
                address: 0xfee0_0000,
                data: 0x30,
            }),
        };
        set_routes(&vm, &(0..24).map(route).collect::<Vec<_>>()).unwrap();
        set_routes(&vm, &[]).unwrap();
        let too_many: Vec<_> = (0..5000).map(route).collect();
        assert!(matches!(
            set_routes(&vm, &too_many),
            Err(KvmError::TooManyRoutes { count: 5000 })
        ));
    }

    #[test]
    fn the_address_is_split_into_its_halves() {
        assert_eq!(halves(0x1234_5678_fee0_1000), (0x1234_5678, 0xfee0_1000));
    }
}
