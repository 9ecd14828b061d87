//! What hangs on a VM in KVM, and is attached again to the VM that a reset makes.

use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::KvmError;

/// Something that outlives VMs in KVM and is part of each while it is powered on: memory slots, interrupt
/// routes with their irqfds, ioeventfds. `machine::attachments` holds the list of all, and their order.
pub trait VmAttachment: Send + Sync {
    /// Registers everything with `vm`, which has nothing of it, and follows changes until [`Self::detach`].
    ///
    /// # Errors
    /// If KVM refuses. The caller detaches then.
    fn attach(&self, vm: &Arc<VmFd>) -> Result<(), KvmError>;

    /// Lets go of the VM, which is about to end; does nothing without one. What a device asks for until the
    /// next VM is recorded and takes effect there.
    fn detach(&self);
}
