//! The vCPUs of one KVM VM, with their threads.

use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use super::control::Control;
use super::thread::VcpuThread;
use crate::units::VpIndex;

/// A vCPU cannot be reached.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("vCPU {vp} cannot be reached: its thread has ended")]
pub struct VcpuGone {
    /// The vCPU.
    pub vp: VpIndex,
}

/// The vCPUs of a VM. Dropping them ends their threads, then the VM.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<VcpuThread>,
    vm: Arc<VmFd>,
}

impl Vcpus {
    /// The vCPUs of `vm`, in the order of their VP indices.
    pub(crate) fn new(vm: Arc<VmFd>, threads: Vec<VcpuThread>) -> Self {
        Self { threads, vm }
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// All vCPUs' indices.
    pub fn vps(&self) -> impl Iterator<Item = VpIndex> + Clone + use<> {
        (0..).map(VpIndex).take(self.threads.len())
    }

    /// Runs `work` with a vCPU on its own thread, and waits for the result. KVM has completed the vCPU's
    /// last exit by then, unless that waits for the main thread's decision on a guest event. The vCPU need
    /// not be paused; values read from a running vCPU are soon out of date.
    ///
    /// # Errors
    /// If there is no such vCPU, or its thread has ended or ends meanwhile.
    pub fn on_vcpu<R: Send + 'static>(
        &self,
        vp: VpIndex,
        work: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Result<R, VcpuGone> {
        let thread = usize::try_from(vp.0)
            .ok()
            .and_then(|index| self.threads.get(index));
        let done = thread.map(|thread| thread.control().run_on_vcpu(work));
        done.and_then(Result::ok).ok_or(VcpuGone { vp })
    }

    /// The controls that start and stop each vCPU.
    pub(crate) fn controls(&self) -> Vec<Arc<Control<VcpuFd>>> {
        let each = self.threads.iter();
        each.map(|vcpu| Arc::clone(vcpu.control())).collect()
    }

    /// Lets all vCPUs run.
    pub(crate) fn resume(&self) {
        for vcpu in &self.threads {
            vcpu.control().resume();
        }
    }

    /// Makes KVM complete the instructions of the parked vCPUs' last exits: until then their registers are
    /// those before the instruction. Completion may reach devices (a repeated string instruction exits per
    /// element), and so raise guest events.
    pub(crate) fn complete_exits(&self) {
        for vp in self.vps() {
            // A vCPU whose thread has ended has no state to complete.
            let _ended = self.on_vcpu(vp, |_| ());
        }
    }

    /// Stops all vCPUs and waits until none runs guest code.
    pub(crate) fn pause(&self) {
        for vcpu in &self.threads {
            vcpu.control().pause();
        }
        for vcpu in &self.threads {
            vcpu.control().wait_parked();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        // Request all first, so that the threads end in parallel; dropping each then waits for it.
        for vcpu in &self.threads {
            vcpu.control().leave();
        }
    }
}
