//! Interrupt lines and messages into KVM. Devices hold on to these across resets, while the VM behind them is replaced.

use std::sync::{Arc, PoisonError, RwLock};

use kvm_ioctls::VmFd;

use crate::irq::IrqSink;
use crate::units::Gsi;

/// The VM that is running now, for whoever injects interrupts. Empty between power cycles: interrupts raised then are lost,
/// as on a machine held in reset.
#[derive(Clone, Debug, Default)]
pub struct CurrentVm(Arc<RwLock<Option<Arc<VmFd>>>>);

impl CurrentVm {
    /// From now on interrupts go to `vm`.
    pub fn set(&self, vm: Option<Arc<VmFd>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = vm;
    }

    /// Calls `f` with the VM, if there is one.
    pub fn with<T>(&self, f: impl FnOnce(&VmFd) -> T) -> Option<T> {
        let vm = self.0.read().unwrap_or_else(PoisonError::into_inner);
        vm.as_deref().map(f)
    }
}

/// Lines into the interrupt controllers that are in the kernel.
#[derive(Debug)]
pub struct KernelLines(pub CurrentVm);

impl IrqSink for KernelLines {
    fn set_level(&self, gsi: Gsi, high: bool) {
        // KVM_IRQ_LINE fails only for a VM without an irqchip, and this sink is only wired to VMs with one.
        let _delivered = self.0.with(|vm| vm.set_irq_line(gsi.0, high));
    }
}
