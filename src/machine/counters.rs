//! KVM's own count of each vCPU's exits, for devices that a user of the library adds.

use std::sync::{Arc, PoisonError, RwLock};

use kvm_ioctls::VcpuFd;

use crate::kvm::stats::{Counter, Stats, StatsError};
use crate::units::VpIndex;

/// The number of times that each vCPU has left guest mode since power-on, for any reason: KVM's statistic
/// `exits`.
///
/// Clones share the counts. Between power cycles there are none.
#[derive(Clone, Debug, Default)]
pub struct ExitCounters(Arc<RwLock<Vec<Counter>>>);

impl ExitCounters {
    /// The exits of one vCPU so far; `None` while the VM is off, or if there is no such vCPU.
    pub fn read(&self, vp: VpIndex) -> Option<u64> {
        let counters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(vp.0).ok()?;
        counters.get(index)?.read().ok()
    }

    /// Adds the next vCPU, `fd`.
    pub(super) fn push(&self, fd: &VcpuFd) -> Result<(), StatsError> {
        let counter = Stats::of_vcpu(fd)?.counter("exits")?;
        self.write().push(counter);
        Ok(())
    }

    /// The VM is off. A counter that is kept would prevent KVM from freeing it.
    pub(super) fn clear(&self) {
        self.write().clear();
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Counter>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
