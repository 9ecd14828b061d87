//! The resources that are attached to each new VM in KVM, in order, and detached from the old one.
//!
//! A reset creates a new VM (docs/decisions/0001-reset-makes-a-new-vm.md). Resources of a device in KVM
//! outlive it by being in this list.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::config::Irqchip;
use crate::irq::{Controllers, Doorbells, Routes};
use crate::kvm::KvmError;
use crate::kvm::attachment::VmAttachment;
use crate::kvm::host::KvmCaps;
use crate::kvm::memory::MemorySlots;

/// A step of creating a VM that other steps depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Guest memory as memory slots.
    Memory,
    /// `KVM_CREATE_IRQCHIP` or `KVM_CAP_SPLIT_IRQCHIP`.
    InterruptControllers,
    /// The vCPUs, which do not run yet.
    Vcpus,
    /// The GSI table, irqfds, and the levels of lines.
    Routes,
    /// Ioeventfds.
    Doorbells,
}

use Stage::{InterruptControllers, Memory, Routes as GsiRoutes, Vcpus};

/// The order. The vCPUs run after all of it.
const ORDER: [Stage; 5] = [
    Memory,
    InterruptControllers,
    Vcpus,
    GsiRoutes,
    Stage::Doorbells,
];

/// The first stage must come before the second, with the reason.
#[cfg(test)]
const EDGES: [(Stage, Stage, &str); 3] = [
    (
        Memory,
        InterruptControllers,
        "a change of memory slots waits for KVM's cleanup after creating controllers, several \
         milliseconds (kvm_swap_active_memslots)",
    ),
    (
        InterruptControllers,
        GsiRoutes,
        "without controllers there is no table, and an irqfd is refused (EAGAIN, kvm_irqfd_assign)",
    ),
    (
        Vcpus,
        GsiRoutes,
        "a route to a SINT is entered at its vCPU's SynIC (kvm_hv_irq_routing_update); interrupts before \
         there \
         are vCPUs are lost",
    ),
];

/// All attachments of a machine.
#[derive(Debug)]
pub(super) struct Attachments {
    memory: MemorySlots,
    pub(super) routes: Routes,
    pub(super) doorbells: Doorbells,
}

impl Attachments {
    /// Only `memory` so far, for VMs with these controllers on a host with these capabilities.
    pub(super) fn new(irqchip: Irqchip, caps: &KvmCaps, memory: MemorySlots) -> Self {
        Self {
            memory,
            routes: Routes::new(irqchip.into(), caps.irq_routing),
            doorbells: Doorbells::default(),
        }
    }

    /// The attachment of a stage, if there is one.
    fn of(&self, stage: Stage) -> Option<&dyn VmAttachment> {
        match stage {
            // Created by `vm` and `cycle`.
            InterruptControllers | Vcpus => None,
            Memory => Some(&self.memory),
            GsiRoutes => Some(&self.routes),
            Stage::Doorbells => Some(&self.doorbells),
        }
    }

    /// Attaches the stages after `stage`, which is done, to `vm`.
    ///
    /// # Errors
    /// If KVM refuses; nothing is attached then.
    pub(super) fn attach_after(&self, stage: Stage, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        self.attach(ORDER.iter().skip_while(|s| **s != stage).skip(1), vm)
    }

    /// Attaches the stages before `stage` to `vm`, which is new.
    ///
    /// # Errors
    /// If KVM refuses; nothing is attached then.
    pub(super) fn attach_before(&self, stage: Stage, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        self.attach(ORDER.iter().take_while(|s| **s != stage), vm)
    }

    fn attach<'a>(
        &self,
        stages: impl Iterator<Item = &'a Stage>,
        vm: &Arc<VmFd>,
    ) -> Result<(), KvmError> {
        for attachment in stages.filter_map(|s| self.of(*s)) {
            if let Err(e) = attachment.attach(vm) {
                self.detach();
                return Err(e);
            }
        }
        Ok(())
    }

    /// Detaches everything, in reverse order, from the VM that is about to end.
    pub(super) fn detach(&self) {
        for attachment in ORDER.iter().rev().filter_map(|s| self.of(*s)) {
            attachment.detach();
        }
    }
}

impl From<Irqchip> for Controllers {
    fn from(irqchip: Irqchip) -> Self {
        match irqchip {
            Irqchip::Kernel => Self::Kernel,
            Irqchip::Split => Self::Split,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_keeps_to_its_edges() {
        let at = |stage| ORDER.iter().position(|s| *s == stage).unwrap();
        for (first, then, why) in EDGES {
            assert!(at(first) < at(then), "{first:?} before {then:?}: {why}");
        }
    }

    /// `vm` attaches the stages before the controllers, and `Machine::create_vm` those after the vCPUs.
    #[test]
    fn nothing_is_attached_between_the_controllers_and_the_vcpus() {
        let at = |stage| ORDER.iter().position(|s| *s == stage).unwrap();
        assert_eq!(at(InterruptControllers) + 1, at(Vcpus));
    }
}
