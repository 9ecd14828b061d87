//! One power cycle: a KVM VM with its vCPU threads, from power-on to reset or power-off.

use std::sync::Arc;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{VcpuFd, VmFd};

use super::counters::ExitCounters;
use super::error::MachineError;
use super::plan::Plan;
use crate::boot::Entry;
use crate::config::VmConfig;
use crate::cpuid::{CpuidEntry, feature_msrs};
use crate::hyperv::VcpuSetup;
use crate::kvm::host::stale_tsc_khz;
use crate::kvm::{KvmError, cap, dirty_ring, tsc};
use crate::memory::GuestRam;
use crate::memory::dirty::PageSet;
use crate::units::{TscKhz, VpIndex};
use crate::vcpu::create::{self, CreateError};
use crate::vcpu::platform::VcpuPlatform;
use crate::vcpu::ring::Ring;
use crate::vcpu::set::Vcpus;
use crate::vcpu::stats::{ExitClock, Reader, Recorder};
use crate::vcpu::thread::Vcpu;

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the sub-leaf is significant.
const SIGNIFICANT_INDEX: u32 = 1;

/// Default number of entries of a vCPU's dirty ring: 64 KiB.
const DIRTY_RING: u32 = 4096;

/// How the vCPUs start.
#[derive(Debug)]
pub(super) enum Start {
    /// The boot vCPU enters a kernel; all are in the state that firmware leaves.
    Kernel(Entry),
    /// As after a reset: the boot vCPU enters firmware.
    ResetVector,
    /// Their state is to be loaded.
    Saved,
}

/// A VM that is powered on. Dropping it ends the vCPU threads, then the VM.
#[derive(Debug)]
pub struct PowerCycle {
    vcpus: Vcpus,
    /// A dirty ring of each vCPU, or none.
    rings: Vec<Arc<Ring>>,
    host_khz: Option<TscKhz>,
}

impl PowerCycle {
    /// Creates the vCPUs of `vm`, all of them paused. Also returns their exit counters.
    pub(super) fn new(
        vm: Arc<VmFd>,
        config: &VmConfig,
        plan: &Plan,
        platform: &Arc<VcpuPlatform>,
        tsc_is_a_clock: bool,
        start: &Start,
        exit_counters: Option<&ExitCounters>,
    ) -> Result<(Self, Vec<Reader>), MachineError> {
        let mut host_khz = tsc::vm_khz(&vm).ok();
        let vendor = plan.cpuid.vendor();
        if let Some(khz) = host_khz.filter(|khz| khz.0 > 0) {
            stale_tsc_khz(khz, tsc::kernel_khz_of_vm(&vm)?, vendor)?;
        }
        if let Some(khz) = plan.tsc_khz
            && host_khz.is_some()
        {
            // Before the first vCPU, so that all are created with this frequency and with equal offsets.
            tsc::set_vm_khz(&vm, khz)?;
        }
        let ring_size = dirty_rings(&vm, config.dirty_ring_size, plan.dirty_rings)?;
        let mut vcpus = Vec::new();
        let mut rings = Vec::new();
        let mut readers = Vec::new();
        let mut clock = ExitClock::new(None);
        for vp in (0..config.cpus.count).map(VpIndex) {
            let fd = create_vcpu(&vm, vp, config, plan)?;
            if !matches!(start, Start::ResetVector) {
                create::set_firmware_state(vp, &fd)?;
            }
            if vp == VpIndex(0) {
                if let Start::Kernel(entry) = start {
                    create::set_entry(vp, &fd, entry)?;
                }
                // If KVM stores no frequency for the VM, it scales none, and the vCPU's is the host's. KVM
                // fails this where the host's TSC is unstable.
                if host_khz.is_none()
                    && let Ok(khz) = tsc::khz(&fd)
                {
                    stale_tsc_khz(khz, tsc::kernel_khz(&fd)?, vendor)?;
                    host_khz = Some(khz);
                }
                clock = ExitClock::new(host_khz.filter(|_| tsc_is_a_clock));
            }
            if let Some(khz) = plan.tsc_khz
                && tsc::khz(&fd).is_ok_and(|has| has != khz)
            {
                // Before Linux 5.17, KVM accepts no frequency for a whole VM.
                tsc::set_khz(&fd, khz)?;
            }
            if let Some(counters) = exit_counters {
                counters.push(&fd)?;
            }
            let recorder = Recorder::new(clock)?;
            readers.push(recorder.reader());
            let ring = ring_size
                .map(|entries| Ring::of(&fd, &vm, entries, platform.slots.ram()).map(Arc::new));
            let ring = ring.transpose()?;
            rings.extend(ring.clone());
            let vcpu = Vcpu::new(vp, fd, Arc::clone(platform), recorder, ring)
                .pinned(config.pins.get(&vp.0).cloned());
            let thread = vcpu.spawn().map_err(|source| MachineError::Thread {
                what: "vCPU",
                source,
            })?;
            vcpus.push(thread);
        }
        let cycle = Self {
            vcpus: Vcpus::new(vm, vcpus),
            rings,
            host_khz,
        };
        Ok((cycle, readers))
    }

    /// The vCPUs, and the VM.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// The host's TSC frequency, if KVM reports it.
    pub fn host_khz(&self) -> Option<TscKhz> {
        self.host_khz
    }

    /// Adds the pages of RAM that were written since the last call, or since logging started, to `set` or to
    /// those that the RAM itself has marked.
    pub(super) fn take_log(
        &self,
        platform: &VcpuPlatform,
        set: &mut PageSet,
    ) -> Result<(), KvmError> {
        if self.rings.is_empty() {
            return platform.slots.take_log(set);
        }
        self.empty_rings(&platform.ram)
    }

    /// Marks the pages in the vCPUs' rings as written in `ram`, if there are any.
    pub(super) fn empty_rings(&self, ram: &GuestRam) -> Result<(), KvmError> {
        if self.rings.is_empty() {
            return Ok(());
        }
        for vp in self.vcpus.vps() {
            // The writes of a vCPU in the guest may still be in its processor until it exits. A vCPU whose
            // thread has ended has exited.
            let _out = self.vcpus.on_vcpu(vp, |_| ());
        }
        for ring in &self.rings {
            ring.harvest(ram.written());
        }
        if self.rings.iter().any(|ring| ring.has_overflowed()) {
            return Err(KvmError::DirtyRingOverflowed);
        }
        // Before these pages are read: later writes are recorded again.
        dirty_ring::reset(self.vcpus.vm())
    }
}

/// Enables dirty rings on the vCPUs that `vm` will have, of the requested size, or of the default size where
/// they are supported. Returns the size.
fn dirty_rings(vm: &VmFd, asked: Option<u32>, supported: bool) -> Result<Option<u32>, KvmError> {
    let entries = match asked {
        Some(0) => return Ok(None),
        Some(entries) => entries,
        None if supported && dirty_ring::max_entries(vm) >= DIRTY_RING => DIRTY_RING,
        None => return Ok(None),
    };
    dirty_ring::enable(vm, entries)?;
    Ok(Some(entries))
}

/// KVM's vCPU id is the initial APIC id; the creation order is the VP index.
fn create_vcpu(
    vm: &VmFd,
    vp: VpIndex,
    config: &VmConfig,
    plan: &Plan,
) -> Result<VcpuFd, CreateError> {
    let fd = vm
        .create_vcpu(plan.cpuid.apic_id(vp.0).into())
        .map_err(create::ioctl_failed(vp, "KVM_CREATE_VCPU"))?;
    let leaves = plan.cpuid.for_vcpu(vp.0);
    for step in plan.hyperv.vcpu_setup(vp) {
        let kvm = |source| CreateError::Kvm { vp, source };
        match step {
            VcpuSetup::EnableSynic => cap::synic2(&fd).map_err(kvm)?,
            VcpuSetup::EnableEvmcs { version } => {
                let got = cap::enable_evmcs(&fd).map_err(kvm)?.map_or(0, |v| v.0);
                if got != version {
                    return Err(CreateError::Evmcs { vp, version, got });
                }
            }
            VcpuSetup::EnforceCpuid => cap::enforce_hv_cpuid(&fd).map_err(kvm)?,
            VcpuSetup::SetCpuid => {
                let entries: Vec<_> = leaves.iter().map(to_kvm).collect();
                create::set_cpuid(vp, &fd, &entries)?;
                let features = feature_msrs(
                    &leaves,
                    plan.cpuid.vendor(),
                    config.cpus.model,
                    &plan.feature_msrs,
                );
                create::set_msrs(vp, &fd, &features)?;
            }
            VcpuSetup::SetMsr(msr, value) => create::set_msrs(vp, &fd, &[(msr, value)])?,
        }
    }
    Ok(fd)
}

fn to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.indexed { SIGNIFICANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    }
}
