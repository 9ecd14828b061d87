//! The table of enlightenments. A new one needs a row here, and code only where user space has work to do.
//!
//! Bits and MSRs: TLFS, "Feature and Interface Discovery" and "Virtual Processors"; what KVM reports and
//! enforces: `kvm_get_hv_cpuid`, `hv_check_msr_access` and `hv_check_hypercall_access` in
//! arch/x86/kvm/hyperv.c.

use super::cpuid::{FEATURES, NESTED_FEATURES, RECOMMENDATIONS};
use super::enlightenment::{
    Argument, CpuidBits, Enlightenment as E, EnlightenmentMsrs, Migration, Need, Owner,
    Requirement, Row, Scope,
};
use super::host::{HvCap, KernelVersion};
use super::msr;
use crate::cpuid::CpuVendor;
use crate::cpuid::Reg;
use crate::units::Msr;

const fn bit(leaf: u32, reg: Reg, bit: u8) -> CpuidBits {
    CpuidBits {
        leaf,
        reg,
        bit,
        reported: true,
    }
}

/// A bit that KVM does not report, or whose report does not decide.
const fn silent(leaf: u32, reg: Reg, bit: u8) -> CpuidBits {
    CpuidBits {
        leaf,
        reg,
        bit,
        reported: false,
    }
}

/// MSRs that keep written values.
const STATE: bool = true;
/// Clocks, commands, registers of the local APIC, and values fixed at creation.
const NO_STATE: bool = false;

const fn range(first: Msr, last: Msr, scope: Scope, state: bool) -> EnlightenmentMsrs {
    EnlightenmentMsrs {
        first,
        last,
        scope,
        state,
    }
}

const fn vm(number: Msr, state: bool) -> EnlightenmentMsrs {
    range(number, number, Scope::Vm, state)
}

const fn vcpu(number: Msr, state: bool) -> EnlightenmentMsrs {
    range(number, number, Scope::Vcpu, state)
}

const fn req(id: E) -> Requirement {
    Requirement { id, only: None }
}

const fn on_intel(id: E) -> Requirement {
    Requirement {
        id,
        only: Some(CpuVendor::Intel),
    }
}

const fn linux(major: u16, minor: u16) -> KernelVersion {
    KernelVersion::new(major, minor)
}

/// Guests detect Hyper-V only if the hypercall MSRs, which every VM with an enlightenment gets, and the VP
/// index exist: the minimal interface of "Requirements for Implementing the Microsoft Hypervisor
/// Interface", and Linux' ms_hyperv_platform in arch/x86/kernel/cpu/mshyperv.c.
const RECOGNITION: &[E] = &[E::VpIndex];

/// The defaults of a row; each row names only its differences.
const PLAIN: Row = Row {
    id: E::Relaxed,
    name: "",
    aliases: &[],
    argument: Argument::None,
    bits: &[],
    msrs: &[],
    hypercalls: &[],
    needs: &[Need::Bits],
    requires: &[],
    recommends: &[],
    used_with: &[RECOGNITION],
    conflicts: &[],
    harmless: true,
    since: linux(2, 34),
    owner: Owner::Kvm,
    migration: Migration::Free,
    summary: "",
    detail: "",
};

/// A field of the version leaf.
const VERSION: Row = Row {
    needs: &[],
    owner: Owner::Guest,
    detail: "Part of leaf 0x40000002, which guests read for diagnosis. The default is 10.0.14393 (Windows \
             Server 2016), as in QEMU.",
    ..PLAIN
};

/// One row per enlightenment, in the order of [`E`].
pub(super) static TABLE: [Row; 34] = [
    Row {
        id: E::Relaxed,
        name: "hv-relaxed",
        bits: &[bit(RECOMMENDATIONS, Reg::Eax, 5)],
        needs: &[Need::Cap(HvCap::Hyperv), Need::Bits],
        owner: Owner::Guest,
        summary: "The guest relaxes its watchdogs, since its vCPUs may be prevented from running.",
        detail: "Without it Windows may stop with CLOCK_WATCHDOG_TIMEOUT on a busy host.",
        ..PLAIN
    },
    Row {
        id: E::Vapic,
        name: "hv-vapic",
        bits: &[
            bit(FEATURES, Reg::Eax, 4),
            silent(RECOMMENDATIONS, Reg::Eax, 3),
        ],
        msrs: &[
            range(msr::EOI, msr::TPR, Scope::Vcpu, NO_STATE),
            vcpu(msr::VP_ASSIST_PAGE, STATE),
        ],
        needs: &[Need::Cap(HvCap::Vapic), Need::Bits],
        summary: "APIC registers as MSRs, and an assist page that avoids the exit at end of interrupt.",
        detail: "The assist page is also required for the enlightened VMCS. With hv-avic the APIC MSRs \
                 remain, but are no longer recommended: they would cause exits that the hardware's APIC \
                 avoids.",
        ..PLAIN
    },
    Row {
        id: E::Spinlocks,
        name: "hv-spinlocks",
        argument: Argument::Number {
            min: 1,
            max: u32::MAX,
        },
        hypercalls: &[0x08],
        needs: &[Need::Cap(HvCap::Spin)],
        summary: "The number of attempts at a spinlock before a guest notifies the host that it waits.",
        detail: "A value of leaf 0x40000004.EBX. The usual values for Windows are 0xfff and 0x1fff \
                 (8191); 0xffffffff means never.",
        ..PLAIN
    },
    Row {
        id: E::VpIndex,
        name: "hv-vpindex",
        aliases: &["vp-index"],
        bits: &[bit(FEATURES, Reg::Eax, 6)],
        msrs: &[vcpu(msr::VP_INDEX, NO_STATE)],
        needs: &[Need::Cap(HvCap::VpIndex), Need::Bits],
        used_with: &[],
        since: linux(4, 14),
        owner: Owner::Both,
        summary: "Each vCPU can read its number.",
        detail: "Linux and Windows detect Hyper-V only with this one. In hypernest the VP index is the \
                 order of creation.",
        ..PLAIN
    },
    Row {
        id: E::Runtime,
        name: "hv-runtime",
        aliases: &["vp-runtime"],
        bits: &[bit(FEATURES, Reg::Eax, 0)],
        msrs: &[vcpu(msr::VP_RUNTIME, STATE)],
        since: linux(4, 5),
        summary: "The time that a vCPU has really run, in 100 ns.",
        detail: "A guest can distinguish stolen time from its own.",
        ..PLAIN
    },
    Row {
        id: E::Crash,
        name: "hv-crash",
        bits: &[bit(FEATURES, Reg::Edx, 10)],
        msrs: &[range(msr::CRASH_P0, msr::CRASH_CTL, Scope::Vm, STATE)],
        needs: &[
            Need::Cap(HvCap::UserSpaceMsr),
            Need::Cap(HvCap::MsrFilter),
            Need::Bits,
        ],
        since: linux(5, 10),
        owner: Owner::Hypernest,
        summary: "A guest that crashes reports its stop code, four parameters and a message.",
        detail: "KVM has these MSRs too (since Linux 4.5), but does not report which bits the guest wrote \
                 to the control register, and so not whether there is a message: hypernest owns them \
                 through the MSR filter. The guest continues after its report unless --on-crash is set \
                 otherwise, so that Windows can write its dump.",
        ..PLAIN
    },
    Row {
        id: E::Reset,
        name: "hv-reset",
        bits: &[bit(FEATURES, Reg::Eax, 7)],
        msrs: &[vm(msr::RESET, NO_STATE)],
        since: linux(4, 5),
        owner: Owner::Both,
        summary: "The guest can reset the machine by an MSR.",
        detail: "Current Hyper-V does not offer it and Windows resets through ACPI, so no profile but \
                 `all` contains it.",
        ..PLAIN
    },
    Row {
        id: E::Time,
        name: "hv-time",
        bits: &[bit(FEATURES, Reg::Eax, 1), bit(FEATURES, Reg::Eax, 9)],
        msrs: &[
            vm(msr::TIME_REF_COUNT, NO_STATE),
            vm(msr::REFERENCE_TSC, STATE),
        ],
        needs: &[Need::Cap(HvCap::Time), Need::Bits],
        since: linux(4, 9),
        summary: "The reference clock, and a page that converts the TSC to it without an exit.",
        detail: "The page requires a host whose clock source is the TSC and vCPUs whose TSCs agree; \
                 otherwise the guest falls back to an MSR, with an exit for each reading.",
        ..PLAIN
    },
    Row {
        id: E::Frequencies,
        name: "hv-frequencies",
        bits: &[bit(FEATURES, Reg::Eax, 11), bit(FEATURES, Reg::Edx, 8)],
        msrs: &[range(
            msr::TSC_FREQUENCY,
            msr::APIC_FREQUENCY,
            Scope::Vm,
            NO_STATE,
        )],
        since: linux(4, 14),
        summary: "The frequencies of the TSC and the APIC timer as MSRs, so that no guest has to measure \
                  them.",
        detail: "Avoids a guest's calibration at boot.",
        ..PLAIN
    },
    Row {
        id: E::Reenlightenment,
        name: "hv-reenlightenment",
        bits: &[bit(FEATURES, Reg::Eax, 13)],
        msrs: &[range(
            msr::REENLIGHTENMENT_CONTROL,
            msr::TSC_EMULATION_STATUS,
            Scope::Vm,
            STATE,
        )],
        needs: &[
            Need::Cap(HvCap::UserSpaceMsr),
            Need::Cap(HvCap::MsrFilter),
            Need::Bits,
        ],
        recommends: &[E::Frequencies],
        since: linux(5, 10),
        owner: Owner::Hypernest,
        summary: "A guest that is a hypervisor is notified when the TSC's frequency changes.",
        detail: "KVM stores these MSRs (since Linux 4.17) but never acts on them: hypernest owns them \
                 through the MSR filter. TSC_EMULATION_CONTROL is forwarded to KVM, which does not update \
                 the reference TSC page while it is set. Linux uses it only if hv-frequencies is on as \
                 well.",
        ..PLAIN
    },
    Row {
        id: E::TscInvariant,
        name: "hv-tsc-invariant",
        aliases: &["invtsc", "tsc-invariant-control"],
        bits: &[bit(FEATURES, Reg::Eax, 15)],
        msrs: &[vm(msr::TSC_INVARIANT_CONTROL, STATE)],
        needs: &[Need::Bits, Need::InvariantTsc],
        since: linux(6, 3),
        migration: Migration::If(
            "the destination can provide exactly the same TSC frequency (TSC scaling)",
        ),
        summary: "The guest may request an invariant TSC, and then use it as its clock.",
        detail: "KVM shows CPUID 0x80000007.EDX[8] only after the guest has set the MSR. It promises that \
                 the frequency never changes, so no profile but `all` contains it. QEMU has no flag for \
                 it.",
        ..PLAIN
    },
    Row {
        id: E::Synic,
        name: "hv-synic",
        bits: &[
            bit(FEATURES, Reg::Eax, 2),
            bit(FEATURES, Reg::Ebx, 4),
            bit(FEATURES, Reg::Ebx, 5),
        ],
        msrs: &[
            vcpu(msr::SCONTROL, STATE),
            vcpu(msr::SVERSION, STATE),
            range(msr::SIEFP, msr::SIMP, Scope::Vcpu, STATE),
            vcpu(msr::EOM, NO_STATE),
            range(msr::SINT0, msr::SINT15, Scope::Vcpu, STATE),
        ],
        hypercalls: &[0x5c, 0x5d],
        needs: &[Need::Cap(HvCap::Synic2), Need::Bits],
        requires: &[req(E::VpIndex)],
        since: linux(4, 14),
        owner: Owner::Both,
        summary: "The synthetic interrupt controller: sixteen sources, with messages and event flags.",
        detail: "Required by synthetic timers. There is no VMBus: a message or event that the guest sends \
                 fails with INVALID_CONNECTION_ID.",
        ..PLAIN
    },
    Row {
        id: E::Stimer,
        name: "hv-stimer",
        bits: &[bit(FEATURES, Reg::Eax, 3)],
        msrs: &[range(
            msr::STIMER0_CONFIG,
            msr::STIMER3_COUNT,
            Scope::Vcpu,
            STATE,
        )],
        requires: &[req(E::Synic), req(E::Time)],
        recommends: &[E::StimerDirect],
        since: linux(4, 5),
        summary: "Four timers for each vCPU.",
        detail: "Without them Windows uses the HPET or RTC as its timer, and uses the host's CPU when \
                 idle.",
        ..PLAIN
    },
    Row {
        id: E::StimerDirect,
        name: "hv-stimer-direct",
        bits: &[bit(FEATURES, Reg::Edx, 19)],
        requires: &[req(E::Stimer)],
        since: linux(5, 0),
        summary: "Synthetic timers that interrupt without a message.",
        detail: "Hyper-V inside the guest uses synthetic timers in this mode only.",
        ..PLAIN
    },
    Row {
        id: E::TlbFlush,
        name: "hv-tlbflush",
        bits: &[
            bit(RECOMMENDATIONS, Reg::Eax, 2),
            bit(RECOMMENDATIONS, Reg::Eax, 11),
        ],
        hypercalls: &[0x02, 0x03, 0x13, 0x14],
        needs: &[Need::Cap(HvCap::TlbFlush), Need::Bits],
        requires: &[req(E::VpIndex)],
        since: linux(4, 18),
        summary: "One hypercall flushes the TLBs of other vCPUs, and does not wait for those that are not \
                  running.",
        detail: "Useful if there are more vCPUs than CPUs; costs little otherwise.",
        ..PLAIN
    },
    Row {
        id: E::TlbFlushExt,
        name: "hv-tlbflush-ext",
        bits: &[bit(FEATURES, Reg::Edx, 14)],
        requires: &[req(E::TlbFlush)],
        since: linux(6, 2),
        summary: "Larger ranges in one TLB flush hypercall.",
        ..PLAIN
    },
    Row {
        id: E::TlbFlushDirect,
        name: "hv-tlbflush-direct",
        bits: &[bit(NESTED_FEATURES, Reg::Eax, 17)],
        needs: &[Need::Bits, Need::Nested],
        requires: &[req(E::Vapic), on_intel(E::Evmcs)],
        since: linux(6, 2),
        summary: "The host's KVM itself handles the TLB flush hypercalls of guests inside the guest.",
        detail: "The hypervisor in the guest enables it through its assist page and the enlightened VMCS \
                 (Intel) or the VMCB (AMD).",
        ..PLAIN
    },
    Row {
        id: E::Ipi,
        name: "hv-ipi",
        bits: &[
            bit(RECOMMENDATIONS, Reg::Eax, 10),
            bit(RECOMMENDATIONS, Reg::Eax, 11),
        ],
        hypercalls: &[0x0b, 0x15],
        needs: &[Need::Cap(HvCap::SendIpi), Need::Bits],
        requires: &[req(E::VpIndex)],
        since: linux(4, 20),
        summary: "One hypercall interrupts many vCPUs.",
        ..PLAIN
    },
    Row {
        id: E::XmmInput,
        name: "hv-xmm-input",
        bits: &[bit(FEATURES, Reg::Edx, 4)],
        // No other hypercall takes its input in XMM registers (is_xmm_fast_hypercall in
        // arch/x86/kvm/hyperv.c).
        used_with: &[RECOGNITION, &[E::TlbFlush, E::Ipi]],
        since: linux(5, 14),
        summary: "Flush and IPI hypercalls may carry their input in XMM registers.",
        ..PLAIN
    },
    Row {
        id: E::ExtHypercalls,
        name: "hv-ext-hypercalls",
        aliases: &["extended-hypercalls"],
        bits: &[bit(FEATURES, Reg::Ebx, 20)],
        hypercalls: &[0x8001],
        since: linux(6, 3),
        owner: Owner::Hypernest,
        summary: "The guest may query the extended hypercalls. There are none.",
        detail: "HvExtCallQueryCapabilities returns 0. Reserved for memory hot-add and page reporting. \
                 QEMU has no flag for it.",
        ..PLAIN
    },
    Row {
        id: E::Avic,
        name: "hv-avic",
        aliases: &["apicv"],
        bits: &[bit(RECOMMENDATIONS, Reg::Eax, 9)],
        needs: &[Need::Bits, Need::ActiveApicv],
        // AutoEOI is a mode of the SynIC's interrupt sources.
        used_with: &[RECOGNITION, &[E::Synic]],
        harmless: false,
        since: linux(5, 15),
        owner: Owner::Guest,
        summary: "The guest stops using AutoEOI, which would disable the hardware's virtual APIC.",
        detail: "Only for hosts where KVM uses APICv or AVIC: elsewhere the guest gives up AutoEOI \
                 without a benefit. Removes the recommendation of hv-vapic's MSRs. hypernest disables the \
                 PIT's re-injection, which would inhibit AVIC for as long as the VM runs. KVM's other \
                 reasons (a vCPU that runs an L2, a pending ExtINT, a changed APIC id) are temporary; the \
                 kernel shows them only by its trace event kvm:kvm_apicv_inhibit_changed.",
        ..PLAIN
    },
    Row {
        id: E::Evmcs,
        name: "hv-evmcs",
        bits: &[bit(RECOMMENDATIONS, Reg::Eax, 14)],
        needs: &[
            Need::Intel,
            Need::Nested,
            Need::Cap(HvCap::EnlightenedVmcs),
            Need::EvmcsVersion,
            Need::Bits,
        ],
        requires: &[req(E::Vapic)],
        harmless: false,
        since: linux(4, 20),
        owner: Owner::Both,
        migration: Migration::If("the destination's KVM has an enlightened VMCS of this version"),
        summary: "The hypervisor in the guest keeps its VMCS in a shared page, so that VMREAD and VMWRITE \
                  cause no exit.",
        detail: "Leaf 0x4000000A reports version 1, and, where KVM has it (Linux 6.1), that \
                 PERF_GLOBAL_CTRL is part of it. Offering it removes posted interrupts, virtual APIC \
                 registers, the preemption timer, shadow VMCS, PML, TSC scaling and more from the guest's \
                 VMX even if the guest never uses it, and cannot be undone for a running VM.",
        ..PLAIN
    },
    Row {
        id: E::EmsrBitmap,
        name: "hv-emsr-bitmap",
        bits: &[bit(NESTED_FEATURES, Reg::Eax, 19)],
        needs: &[Need::Bits, Need::Nested],
        requires: &[on_intel(E::Evmcs)],
        since: linux(5, 17),
        summary: "The host's KVM merges the MSR bitmap of a guest inside the guest again only after a \
                  notification that it changed.",
        ..PLAIN
    },
    Row {
        id: E::NoNonarchCoresharing,
        name: "hv-no-nonarch-coresharing",
        argument: Argument::OnOffAuto,
        bits: &[silent(RECOMMENDATIONS, Reg::Eax, 18)],
        needs: &[],
        harmless: false,
        since: linux(5, 5),
        owner: Owner::Guest,
        migration: Migration::BlockedIfAuto("it depends on this host; give on or off instead"),
        summary: "Reports that two of the guest's vCPUs share a core only where its topology shows it.",
        detail: "`on` is the user's promise that vCPUs are pinned so; `auto` uses KVM's report, which is \
                 yes only where SMT is impossible. A guest that relies on it may omit mitigations between \
                 siblings.",
        ..PLAIN
    },
    Row {
        id: E::VendorId,
        name: "hv-vendor-id",
        argument: Argument::Text { max: 12 },
        needs: &[],
        harmless: false,
        owner: Owner::Guest,
        summary: "The vendor string in leaf 0x40000000, up to 12 bytes.",
        detail: "The default is \"Microsoft Hv\". Linux guests detect Hyper-V by this string alone; no \
                 Windows is known to depend on it.",
        ..PLAIN
    },
    Row {
        id: E::VersionIdBuild,
        name: "hv-version-id-build",
        argument: Argument::Number {
            min: 0,
            max: u32::MAX,
        },
        summary: "The build number in the version leaf.",
        ..VERSION
    },
    Row {
        id: E::VersionIdMajor,
        name: "hv-version-id-major",
        argument: Argument::Number {
            min: 0,
            max: 0xffff,
        },
        summary: "The major version.",
        ..VERSION
    },
    Row {
        id: E::VersionIdMinor,
        name: "hv-version-id-minor",
        argument: Argument::Number {
            min: 0,
            max: 0xffff,
        },
        summary: "The minor version.",
        ..VERSION
    },
    Row {
        id: E::VersionIdSpack,
        name: "hv-version-id-spack",
        argument: Argument::Number {
            min: 0,
            max: u32::MAX,
        },
        summary: "The service pack.",
        ..VERSION
    },
    Row {
        id: E::VersionIdSbranch,
        name: "hv-version-id-sbranch",
        argument: Argument::Number { min: 0, max: 0xff },
        summary: "The service branch.",
        ..VERSION
    },
    Row {
        id: E::VersionIdSnumber,
        name: "hv-version-id-snumber",
        argument: Argument::Number {
            min: 0,
            max: 0x00ff_ffff,
        },
        summary: "The service number.",
        ..VERSION
    },
    Row {
        id: E::EnforceCpuid,
        name: "hv-enforce-cpuid",
        needs: &[Need::Cap(HvCap::EnforceCpuid)],
        harmless: false,
        since: linux(5, 14),
        summary: "KVM refuses the MSRs and hypercalls that CPUID does not announce.",
        detail: "Without it every synthetic MSR and hypercall that KVM has works for any guest that sees \
                 Hyper-V. The attack surface is smaller; but a guest that ignores the bits gets #GP.",
        ..PLAIN
    },
    Row {
        id: E::Passthrough,
        name: "hv-passthrough",
        needs: &[Need::Cap(HvCap::Hyperv)],
        conflicts: &[E::Syndbg],
        harmless: false,
        since: linux(5, 11),
        migration: Migration::Blocked(
            "the hardware that the guest sees depends on the host's kernel",
        ),
        summary: "Everything that this host's KVM reports, with its values.",
        detail: "The profile `passthrough`. The vendor string is then KVM's own (\"Linux KVM Hv\"), so \
                 that Linux guests do not detect Hyper-V unless hv-vendor-id sets another. For \
                 experiments.",
        ..PLAIN
    },
    Row {
        id: E::Syndbg,
        name: "hv-syndbg",
        bits: &[bit(FEATURES, Reg::Edx, 11)],
        msrs: &[
            range(
                msr::SYNDBG_CONTROL,
                msr::SYNDBG_PENDING_BUFFER,
                Scope::Vm,
                NO_STATE,
            ),
            vm(msr::SYNDBG_OPTIONS, NO_STATE),
        ],
        hypercalls: &[0x69, 0x6a, 0x6b],
        needs: &[Need::NotYet],
        requires: &[req(E::Synic), req(E::Relaxed)],
        conflicts: &[E::Passthrough],
        harmless: false,
        since: linux(5, 8),
        owner: Owner::Hypernest,
        migration: Migration::Blocked("a debugger's connection cannot be migrated"),
        summary: "The synthetic debugger channel for Windows' kernel debugger. Not yet.",
        detail: "Announcing it without a debugger keeps Windows from booting.",
        ..PLAIN
    },
];

#[cfg(test)]
mod tests;
