//! The state of a VM's interrupt controllers and timer in KVM.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use zerocopy::{FromBytes, IntoBytes};

use super::TransferError;

/// The size of an interrupt controller's state, equal for all.
pub(super) const CHIP: usize = size_of::<kvm_bindings::kvm_irqchip__bindgen_ty_1>();

/// The order in which they are read and written. The I/O APIC comes last because KVM delivers its pending
/// interrupts at once (`kvm_set_ioapic`); for the same reason all come after the local APICs, which receive
/// them. The timer, whose interrupts pass through them, comes after them.
const CHIPS: [(u32, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, "first 8259"),
    (KVM_IRQCHIP_PIC_SLAVE, "second 8259"),
    (KVM_IRQCHIP_IOAPIC, "I/O APIC"),
];

/// The interrupt controllers and the 8254 of a VM with the whole irqchip in KVM.
#[derive(Clone, Debug, PartialEq)]
pub struct VmState {
    /// First 8259, second 8259, I/O APIC.
    pub chips: [[u8; CHIP]; CHIPS.len()],
    /// The timer.
    pub pit: kvm_pit_state2,
}

impl VmState {
    /// Reads it from KVM, while no vCPU runs.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn save(vm: &VmFd) -> Result<Self, TransferError> {
        let mut chips = [[0; CHIP]; CHIPS.len()];
        for ((chip_id, what), bytes) in CHIPS.into_iter().zip(&mut chips) {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).map_err(failed("save", what))?;
            bytes.copy_from_slice(chip.chip.as_bytes());
        }
        let pit = vm.get_pit2().map_err(failed("save", "8254"))?;
        Ok(Self { chips, pit })
    }

    /// Restores it to KVM, after the state of all vCPUs.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn restore(&self, vm: &VmFd) -> Result<(), TransferError> {
        for ((chip_id, what), bytes) in CHIPS.into_iter().zip(&self.chips) {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            if let Ok(state) = FromBytes::read_from_bytes(bytes) {
                chip.chip = state;
            }
            vm.set_irqchip(&chip).map_err(failed("restore", what))?;
        }
        vm.set_pit2(&self.pit).map_err(failed("restore", "8254"))
    }
}

fn failed(
    doing: &'static str,
    what: &'static str,
) -> impl FnOnce(kvm_ioctls::Error) -> TransferError {
    move |e| TransferError::Vm {
        doing,
        what,
        source: e.into(),
    }
}
