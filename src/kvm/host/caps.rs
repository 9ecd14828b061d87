//! The KVM capabilities that hypernest uses, as named fields.

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

/// A result type of `KVM_CHECK_EXTENSION`. Negative results count as 0: "not supported".
trait Answer {
    fn of(answer: i32) -> Self;
    fn there(&self) -> bool;
}

impl Answer for bool {
    fn of(answer: i32) -> Self {
        answer > 0
    }
    fn there(&self) -> bool {
        *self
    }
}

impl Answer for u32 {
    fn of(answer: i32) -> Self {
        Self::try_from(answer).unwrap_or(0)
    }
    fn there(&self) -> bool {
        *self > 0
    }
}

macro_rules! capabilities {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $cap:ident,)+) => {
        /// The results of `KVM_CHECK_EXTENSION` on `/dev/kvm`: `bool` where a capability is only present or
        /// absent, a number where it has a value.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct KvmCaps {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl KvmCaps {
            /// Queries all of them.
            pub(super) fn probe(kvm: &Kvm) -> Self {
                Self {
                    $($field: <$type>::of(kvm.check_extension_raw(kvm_bindings::$cap.into())),)+
                }
            }

            /// Every capability's number and name in the KVM API, and whether it is present.
            pub fn list(&self) -> Vec<(u32, &'static str, bool)> {
                vec![$((kvm_bindings::$cap, stringify!($cap), self.$field.there()),)+]
            }
        }
    };
}

capabilities! {
    /// `KVM_CREATE_IRQCHIP`.
    irqchip: bool = KVM_CAP_IRQCHIP,
    /// `KVM_SET_USER_MEMORY_REGION`.
    user_memory: bool = KVM_CAP_USER_MEMORY,
    /// `KVM_SET_TSS_ADDR`.
    set_tss_addr: bool = KVM_CAP_SET_TSS_ADDR,
    /// `KVM_SET_IDENTITY_MAP_ADDR`.
    set_identity_map_addr: bool = KVM_CAP_SET_IDENTITY_MAP_ADDR,
    /// `KVM_GET_SUPPORTED_CPUID`.
    ext_cpuid: bool = KVM_CAP_EXT_CPUID,
    /// `KVM_CREATE_PIT2`.
    pit2: bool = KVM_CAP_PIT2,
    /// `KVM_SET_MP_STATE`.
    mp_state: bool = KVM_CAP_MP_STATE,
    /// `KVM_SET_VCPU_EVENTS`.
    vcpu_events: bool = KVM_CAP_VCPU_EVENTS,
    /// `KVM_SET_DEBUGREGS`.
    debugregs: bool = KVM_CAP_DEBUGREGS,
    /// `KVM_SET_XSAVE`.
    xsave: bool = KVM_CAP_XSAVE,
    /// The size of `KVM_GET_XSAVE2`'s buffer.
    xsave2: u32 = KVM_CAP_XSAVE2,
    /// `KVM_SET_XCRS`: present where the CPU has XSAVE.
    xcrs: bool = KVM_CAP_XCRS,
    /// `KVM_SET_GSI_ROUTING`, and the maximum number of routes.
    irq_routing: u32 = KVM_CAP_IRQ_ROUTING,
    /// `KVM_IRQFD`.
    irqfd: bool = KVM_CAP_IRQFD,
    /// `KVM_IOEVENTFD`.
    ioeventfd: bool = KVM_CAP_IOEVENTFD,
    /// `KVM_SIGNAL_MSI`.
    signal_msi: bool = KVM_CAP_SIGNAL_MSI,
    /// The flag in `kvm_run` that keeps a vCPU from entering the guest.
    immediate_exit: bool = KVM_CAP_IMMEDIATE_EXIT,
    /// Local APICs in KVM, I/O APIC in user space.
    split_irqchip: bool = KVM_CAP_SPLIT_IRQCHIP,
    /// 32-bit APIC ids; the value is the supported flags.
    x2apic_api: u32 = KVM_CAP_X2APIC_API,
    /// `KVM_SET_BOOT_CPU_ID`.
    set_boot_cpu_id: bool = KVM_CAP_SET_BOOT_CPU_ID,
    /// System management mode.
    x86_smm: bool = KVM_CAP_X86_SMM,
    /// Read-only memory slots.
    readonly_mem: bool = KVM_CAP_READONLY_MEM,
    /// The number of vCPUs that KVM recommends as a maximum.
    nr_vcpus: u32 = KVM_CAP_NR_VCPUS,
    /// The number of vCPUs that KVM allows.
    max_vcpus: u32 = KVM_CAP_MAX_VCPUS,
    /// The highest vCPU id.
    max_vcpu_id: u32 = KVM_CAP_MAX_VCPU_ID,
    /// The number of memory slots.
    nr_memslots: u32 = KVM_CAP_NR_MEMSLOTS,
    /// Feature MSRs at system scope.
    get_msr_features: bool = KVM_CAP_GET_MSR_FEATURES,
    /// Exits for MSR accesses that fail.
    x86_user_space_msr: bool = KVM_CAP_X86_USER_SPACE_MSR,
    /// `KVM_X86_SET_MSR_FILTER`.
    x86_msr_filter: bool = KVM_CAP_X86_MSR_FILTER,
    /// Exits that can be disabled; a mask.
    x86_disable_exits: u32 = KVM_CAP_X86_DISABLE_EXITS,
    /// Payloads of pending exceptions.
    exception_payload: bool = KVM_CAP_EXCEPTION_PAYLOAD,
    /// Pending triple faults in the vCPU's events.
    x86_triple_fault_event: bool = KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    /// Exits for guests that block events too long; a mask of modes.
    x86_notify_vmexit: u32 = KVM_CAP_X86_NOTIFY_VMEXIT,
    /// `KVM_GET_SREGS2`.
    sregs2: bool = KVM_CAP_SREGS2,
    /// The saved state of nested guests; the value is the size of its largest form.
    nested_state: u32 = KVM_CAP_NESTED_STATE,
    /// Hyper-V's basic MSRs.
    hyperv: bool = KVM_CAP_HYPERV,
    /// Hyper-V's APIC MSRs and assist page.
    hyperv_vapic: bool = KVM_CAP_HYPERV_VAPIC,
    /// Hyper-V's long-spin-wait hypercall.
    hyperv_spin: bool = KVM_CAP_HYPERV_SPIN,
    /// Hyper-V's reference clocks.
    hyperv_time: bool = KVM_CAP_HYPERV_TIME,
    /// The synthetic interrupt controller, first form.
    hyperv_synic: bool = KVM_CAP_HYPERV_SYNIC,
    /// The synthetic interrupt controller.
    hyperv_synic2: bool = KVM_CAP_HYPERV_SYNIC2,
    /// A VP index that user space may set.
    hyperv_vp_index: bool = KVM_CAP_HYPERV_VP_INDEX,
    /// `KVM_HYPERV_EVENTFD`.
    hyperv_eventfd: bool = KVM_CAP_HYPERV_EVENTFD,
    /// Hyper-V's TLB flush hypercalls.
    hyperv_tlbflush: bool = KVM_CAP_HYPERV_TLBFLUSH,
    /// Hyper-V's IPI hypercalls.
    hyperv_send_ipi: bool = KVM_CAP_HYPERV_SEND_IPI,
    /// Enlightened VMCS. Means only that `kvm_intel` supports it: the version is read from a vCPU.
    hyperv_enlightened_vmcs: bool = KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
    /// `KVM_GET_SUPPORTED_HV_CPUID` on a vCPU.
    hyperv_cpuid: bool = KVM_CAP_HYPERV_CPUID,
    /// `KVM_GET_SUPPORTED_HV_CPUID` on `/dev/kvm`.
    sys_hyperv_cpuid: bool = KVM_CAP_SYS_HYPERV_CPUID,
    /// Hyper-V below KVM flushes for KVM's guests. (Unrelated to Hyper-V guests of KVM.)
    hyperv_direct_tlbflush: bool = KVM_CAP_HYPERV_DIRECT_TLBFLUSH,
    /// Restricts Hyper-V MSRs and hypercalls to those that CPUID announces.
    hyperv_enforce_cpuid: bool = KVM_CAP_HYPERV_ENFORCE_CPUID,
    /// `KVM_SET_CLOCK`; the value is the supported flags.
    adjust_clock: u32 = KVM_CAP_ADJUST_CLOCK,
    /// TSC scaling in hardware.
    tsc_control: bool = KVM_CAP_TSC_CONTROL,
    /// `KVM_GET_TSC_KHZ`.
    get_tsc_khz: bool = KVM_CAP_GET_TSC_KHZ,
    /// `KVM_SET_TSC_KHZ` on the VM.
    vm_tsc_control: bool = KVM_CAP_VM_TSC_CONTROL,
    /// The APIC timer's deadline mode.
    tsc_deadline_timer: bool = KVM_CAP_TSC_DEADLINE_TIMER,
    /// A settable APIC bus frequency.
    x86_apic_bus_cycles_ns: u32 = KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    /// `KVM_KVMCLOCK_CTRL`.
    kvmclock_ctrl: bool = KVM_CAP_KVMCLOCK_CTRL,
    /// Attributes of a vCPU, the TSC offset among them.
    vcpu_attributes: bool = KVM_CAP_VCPU_ATTRIBUTES,
    /// Dirty pages in rings; the value is the largest ring in bytes.
    dirty_log_ring: u32 = KVM_CAP_DIRTY_LOG_RING,
    /// Dirty pages in rings, with the barriers that weakly ordered hosts need.
    dirty_log_ring_acq_rel: u32 = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    /// Dirty logs that are cleared explicitly; a mask of flags.
    manual_dirty_log_protect2: u32 = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    /// `KVM_GET_STATS_FD`.
    binary_stats_fd: bool = KVM_CAP_BINARY_STATS_FD,
    /// Data with system events.
    system_event_data: bool = KVM_CAP_SYSTEM_EVENT_DATA,
    /// Halt polling per VM.
    halt_poll: bool = KVM_CAP_HALT_POLL,
}

impl KvmCaps {
    /// The capabilities that every VM of hypernest requires and this KVM lacks: (name, first
    /// Linux).
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        [
            (self.user_memory, "KVM_CAP_USER_MEMORY", "2.6.25"),
            (self.irqchip, "KVM_CAP_IRQCHIP", "2.6.22"),
            (self.set_tss_addr, "KVM_CAP_SET_TSS_ADDR", "2.6.24"),
            (self.ext_cpuid, "KVM_CAP_EXT_CPUID", "2.6.26"),
            (self.mp_state, "KVM_CAP_MP_STATE", "2.6.26"),
            (self.vcpu_events, "KVM_CAP_VCPU_EVENTS", "2.6.33"),
            (self.xsave, "KVM_CAP_XSAVE", "2.6.36"),
            (self.signal_msi, "KVM_CAP_SIGNAL_MSI", "3.5"),
            (self.immediate_exit, "KVM_CAP_IMMEDIATE_EXIT", "4.13"),
        ]
        .into_iter()
        .filter(|(there, ..)| !there)
        .map(|(_, name, since)| (name, since))
        .collect()
    }

    /// Whether KVM has any Hyper-V support: all of it depends on `CONFIG_KVM_HYPERV`.
    pub fn any_hyperv(&self) -> bool {
        self.list()
            .iter()
            .any(|(_, name, there)| *there && name.contains("HYPERV"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_answers_mean_not_there() {
        assert!(!bool::of(-1));
        assert_eq!(u32::of(-1), 0);
        assert_eq!(u32::of(7), 7);
        assert!(bool::of(7));
    }

    #[test]
    fn what_is_missing_is_named() {
        let nothing = KvmCaps::default();
        assert_eq!(nothing.missing().len(), 9);
        assert!(!nothing.any_hyperv());
        let hyperv = KvmCaps {
            hyperv_vapic: true,
            signal_msi: true,
            ..KvmCaps::default()
        };
        assert!(hyperv.any_hyperv());
        assert!(
            hyperv
                .missing()
                .iter()
                .all(|(n, _)| *n != "KVM_CAP_SIGNAL_MSI")
        );
        assert!(hyperv.list().contains(&(45, "KVM_CAP_HYPERV_VAPIC", true)));
    }
}
