//! Capabilities that are off until user space enables them.

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_HYPERV_ENFORCE_CPUID,
    KVM_CAP_HYPERV_ENLIGHTENED_VMCS, KVM_CAP_HYPERV_SYNIC, KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{MsrExitReason, VcpuFd, VmFd};

use super::KvmError;

/// A capability by its name in the KVM API, with the usual reason why KVM refuses it.
struct Named {
    cap: u32,
    name: &'static str,
    advice: &'static str,
}

fn on_vm(vm: &VmFd, what: &Named, arg: u64) -> Result<(), KvmError> {
    let request = kvm_enable_cap {
        cap: what.cap,
        args: [arg, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&request).map_err(|e| KvmError::EnableCap {
        name: what.name,
        scope: "VM",
        advice: what.advice,
        source: e.into(),
    })
}

fn on_vcpu(vcpu: &VcpuFd, what: &Named, arg: u64) -> Result<(), KvmError> {
    let request = kvm_enable_cap {
        cap: what.cap,
        args: [arg, 0, 0, 0],
        ..Default::default()
    };
    vcpu.enable_cap(&request).map_err(|e| KvmError::EnableCap {
        name: what.name,
        scope: "vCPU",
        advice: what.advice,
        source: e.into(),
    })
}

/// Gives vCPUs that are created later a ring of `bytes` for the pages that they dirty.
///
/// # Errors
/// If KVM refuses.
pub fn dirty_ring(vm: &VmFd, bytes: u64) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        name: "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
        advice: "the ring is too small or too large, or the kernel is older than 6.1: `--dirty-ring-size \
                 0` disables it",
    };
    on_vm(vm, &what, bytes)
}

/// Splits the interrupt controllers: local APICs in KVM, I/O APIC in user space. `pins` routes are reserved
/// for the latter, and their EOIs exit with `KVM_EXIT_IOAPIC_EOI`. Before the first vCPU, and instead of
/// `KVM_CREATE_IRQCHIP`.
///
/// # Errors
/// If KVM refuses.
pub fn split_irqchip(vm: &VmFd, pins: u8) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        name: "KVM_CAP_SPLIT_IRQCHIP",
        advice: "the VM already has an irqchip or a vCPU, or the kernel is older than 4.4",
    };
    on_vm(vm, &what, pins.into())
}

/// 32-bit APIC ids in interrupt routes and MSIs, without the quirk that turns 0xff into a broadcast in x2APIC
/// mode: needed for more than 255 APIC ids, harmless below.
///
/// # Errors
/// If KVM refuses.
pub fn x2apic_ids(vm: &VmFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_X2APIC_API,
        name: "KVM_CAP_X2APIC_API",
        advice: "the kernel is older than 4.8",
    };
    on_vm(
        vm,
        &what,
        u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK),
    )
}

/// MSR accesses that fail for one of `reasons` exit to user space instead of raising #GP.
///
/// # Errors
/// If KVM refuses.
pub fn user_space_msrs(vm: &VmFd, reasons: MsrExitReason) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        name: "KVM_CAP_X86_USER_SPACE_MSR",
        advice: "the kernel is older than 5.10",
    };
    on_vm(vm, &what, reasons.bits().into())
}

/// Pending exceptions keep their payload (CR2, DR6) apart in `kvm_vcpu_events`: needed to save a vCPU that
/// has one pending.
///
/// # Errors
/// If KVM refuses.
pub fn exception_payload(vm: &VmFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_EXCEPTION_PAYLOAD,
        name: "KVM_CAP_EXCEPTION_PAYLOAD",
        advice: "the kernel is older than 4.20",
    };
    on_vm(vm, &what, 1)
}

/// A pending triple fault is part of `kvm_vcpu_events`: needed to save a vCPU that has one pending (an L2
/// that shut down).
///
/// # Errors
/// If KVM refuses.
pub fn triple_fault_event(vm: &VmFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_X86_TRIPLE_FAULT_EVENT,
        name: "KVM_CAP_X86_TRIPLE_FAULT_EVENT",
        advice: "the kernel is older than 6.0",
    };
    on_vm(vm, &what, 1)
}

/// Gives the vCPU Hyper-V's synthetic interrupt controller. AutoEOI no longer switches APICv off for good
/// (`SYNIC2`), and KVM does not clear the guest's message and event pages.
///
/// # Errors
/// If KVM refuses: it needs a local APIC in the kernel.
pub fn synic2(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_HYPERV_SYNIC2,
        name: "KVM_CAP_HYPERV_SYNIC2",
        advice: "the kernel has no Hyper-V support (CONFIG_KVM_HYPERV), is older than 4.13, or the VM has \
            no irqchip in the kernel",
    };
    on_vcpu(vcpu, &what, 0)
}

/// The first form of [`synic2`], for kernels before 4.13.
///
/// # Errors
/// If KVM refuses: it needs a local APIC in the kernel.
pub fn synic(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_HYPERV_SYNIC,
        name: "KVM_CAP_HYPERV_SYNIC",
        advice: "the kernel has no Hyper-V support (CONFIG_KVM_HYPERV), or the VM has no irqchip in the \
            kernel",
    };
    on_vcpu(vcpu, &what, 0)
}

/// Restricts synthetic MSRs and hypercalls to those that the vCPU's Hyper-V leaves announce.
///
/// # Errors
/// If KVM refuses.
pub fn enforce_hv_cpuid(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let what = Named {
        cap: KVM_CAP_HYPERV_ENFORCE_CPUID,
        name: "KVM_CAP_HYPERV_ENFORCE_CPUID",
        advice: "the kernel has no Hyper-V support (CONFIG_KVM_HYPERV), or is older than 5.14",
    };
    on_vcpu(vcpu, &what, 1)
}

/// The eVMCS versions that KVM implements, as bits 15:0 of CPUID 0x4000000A EAX state them: lowest in the low
/// byte, highest in the high byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvmcsVersions(pub u16);

/// Lets the vCPU use an enlightened VMCS. Cannot be undone, and hides VMX features from the guest whether it
/// uses an eVMCS or not (`evmcs_filter` in arch/x86/kvm/vmx/hyperv.c). Before `KVM_SET_CPUID2`. `None`: the
/// host's CPU has no VMX, so there is no version either.
///
/// # Errors
/// If KVM refuses: it has no eVMCS, as on AMD.
pub fn enable_evmcs(vcpu: &VcpuFd) -> Result<Option<EvmcsVersions>, KvmError> {
    let mut versions: u16 = 0;
    let what = Named {
        cap: KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
        name: "KVM_CAP_HYPERV_ENLIGHTENED_VMCS",
        advice: "only kvm_intel of a kernel with CONFIG_KVM_HYPERV has eVMCS",
    };
    // The kernel stores a u16 at this address (kvm_vcpu_ioctl_enable_cap in arch/x86/kvm/x86.c), which
    // `versions` outlives.
    on_vcpu(vcpu, &what, (&raw mut versions).expose_provenance() as u64)?;
    // SAFETY: `versions` is a live, aligned, initialised local; the kernel may have written it behind the
    // compiler's back.
    let versions = unsafe { (&raw const versions).read_volatile() };
    Ok((versions != 0).then_some(EvmcsVersions(versions)))
}
