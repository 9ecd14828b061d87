//! Attachments to a VM in KVM, which are re-created in the VM after a reset.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::KvmError;

/// A resource that outlives VMs in KVM and is part of each while it is powered on: memory slots, interrupt
/// routes with their irqfds, ioeventfds. `machine::attachments` holds the list of all, and their order.
pub trait VmAttachment: Send + Sync {
    /// Registers everything with `vm`, where nothing of it is registered yet, and follows changes until
    /// [`Self::detach`].
    ///
    /// # Errors
    /// If KVM refuses. The caller then detaches.
    fn attach(&self, vm: &Arc<VmFd>) -> Result<(), KvmError>;

    /// Releases the VM, which is about to end; does nothing without one. Device requests until the next VM
    /// are recorded and take effect there.
    fn detach(&self);
}
