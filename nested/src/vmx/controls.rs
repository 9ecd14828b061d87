//! Bits of the control fields (SDM volume 3, 26.6 to 26.8).

/// Pin-based controls.
pub mod pin {
    /// External interrupts exit.
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    /// NMIs exit.
    pub const NMI_EXITING: u32 = 1 << 3;
    /// Virtual NMIs.
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    /// The VMX-preemption timer runs.
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    /// Posted interrupts.
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Primary processor-based controls.
pub mod primary {
    /// Exits as soon as interrupts are open.
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    /// The TSC offset is used.
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    /// HLT exits.
    pub const HLT_EXITING: u32 = 1 << 7;
    /// INVLPG exits.
    pub const INVLPG_EXITING: u32 = 1 << 9;
    /// MWAIT exits.
    pub const MWAIT_EXITING: u32 = 1 << 10;
    /// RDPMC exits.
    pub const RDPMC_EXITING: u32 = 1 << 11;
    /// RDTSC and RDTSCP exit.
    pub const RDTSC_EXITING: u32 = 1 << 12;
    /// MOV to CR3 exits.
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    /// MOV from CR3 exits.
    pub const CR3_STORE_EXITING: u32 = 1 << 16;
    /// The tertiary controls are used.
    pub const TERTIARY_CONTROLS: u32 = 1 << 17;
    /// MOV to CR8 exits.
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    /// MOV from CR8 exits.
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    /// The virtual-APIC page's task priority is used.
    pub const TPR_SHADOW: u32 = 1 << 21;
    /// Exits as soon as NMIs are open.
    pub const NMI_WINDOW_EXITING: u32 = 1 << 22;
    /// Accesses to debug registers exit.
    pub const MOV_DR_EXITING: u32 = 1 << 23;
    /// Every port access exits; without effect where the I/O bitmaps are used.
    pub const UNCONDITIONAL_IO_EXITING: u32 = 1 << 24;
    /// The I/O bitmaps are used.
    pub const IO_BITMAPS: u32 = 1 << 25;
    /// Exits after each instruction.
    pub const MONITOR_TRAP_FLAG: u32 = 1 << 27;
    /// The MSR bitmap is used; without it every access to an MSR exits.
    pub const MSR_BITMAPS: u32 = 1 << 28;
    /// MONITOR exits.
    pub const MONITOR_EXITING: u32 = 1 << 29;
    /// PAUSE exits.
    pub const PAUSE_EXITING: u32 = 1 << 30;
    /// The secondary controls are used.
    pub const SECONDARY_CONTROLS: u32 = 1 << 31;
}

/// Secondary processor-based controls.
pub mod secondary {
    /// Accesses to the APIC-access page are virtualized.
    pub const VIRTUALIZE_APIC_ACCESSES: u32 = 1 << 0;
    /// Extended page tables.
    pub const EPT: u32 = 1 << 1;
    /// LGDT, SIDT and related instructions exit.
    pub const DESCRIPTOR_TABLE_EXITING: u32 = 1 << 2;
    /// RDTSCP is available.
    pub const RDTSCP: u32 = 1 << 3;
    /// x2APIC registers are virtualized.
    pub const VIRTUALIZE_X2APIC: u32 = 1 << 4;
    /// Translations are tagged with the VPID.
    pub const VPID: u32 = 1 << 5;
    /// WBINVD exits.
    pub const WBINVD_EXITING: u32 = 1 << 6;
    /// The guest may run without paging and without protection.
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    /// APIC registers are virtualized.
    pub const APIC_REGISTER_VIRTUALIZATION: u32 = 1 << 8;
    /// Virtual interrupts are delivered without exits.
    pub const VIRTUAL_INTERRUPT_DELIVERY: u32 = 1 << 9;
    /// Long loops of PAUSE exit.
    pub const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    /// RDRAND exits.
    pub const RDRAND_EXITING: u32 = 1 << 11;
    /// INVPCID is available.
    pub const INVPCID: u32 = 1 << 12;
    /// VMFUNC is available.
    pub const VM_FUNCTIONS: u32 = 1 << 13;
    /// VMREAD and VMWRITE go to a shadow VMCS.
    pub const VMCS_SHADOWING: u32 = 1 << 14;
    /// ENCLS exits by bitmap.
    pub const ENCLS_EXITING: u32 = 1 << 15;
    /// RDSEED exits.
    pub const RDSEED_EXITING: u32 = 1 << 16;
    /// Dirty pages are logged.
    pub const PAGE_MODIFICATION_LOG: u32 = 1 << 17;
    /// EPT violations may become exceptions in the guest.
    pub const EPT_VIOLATION_EXCEPTION: u32 = 1 << 18;
    /// Processor trace does not show VMX.
    pub const CONCEAL_VMX_FROM_PT: u32 = 1 << 19;
    /// XSAVES and XRSTORS are available.
    pub const XSAVES: u32 = 1 << 20;
    /// EPT distinguishes user from supervisor execution.
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    /// Sub-page write permissions.
    pub const SUB_PAGE_PERMISSIONS: u32 = 1 << 23;
    /// Processor trace uses guest-physical addresses.
    pub const PT_GUEST_PHYSICAL: u32 = 1 << 24;
    /// The TSC multiplier is used.
    pub const TSC_SCALING: u32 = 1 << 25;
    /// TPAUSE, UMONITOR and UMWAIT are available.
    pub const USER_WAIT_PAUSE: u32 = 1 << 26;
    /// ENCLV exits by bitmap.
    pub const ENCLV_EXITING: u32 = 1 << 28;
    /// Bus locks exit.
    pub const BUS_LOCK_DETECTION: u32 = 1 << 30;
    /// Long times without an event window exit.
    pub const NOTIFY_EXITING: u32 = 1 << 31;
}

/// Exit controls.
pub mod exit {
    /// DR7 and IA32_DEBUGCTL are saved.
    pub const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    /// The host runs in 64-bit mode.
    pub const HOST_ADDRESS_SPACE_SIZE: u32 = 1 << 9;
    /// IA32_PERF_GLOBAL_CTRL is loaded.
    pub const LOAD_PERF_GLOBAL_CTRL: u32 = 1 << 12;
    /// The exit acknowledges the interrupt controller and reads the vector.
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    /// IA32_PAT is saved.
    pub const SAVE_PAT: u32 = 1 << 18;
    /// IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 19;
    /// IA32_EFER is saved.
    pub const SAVE_EFER: u32 = 1 << 20;
    /// IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 21;
    /// The VMX-preemption timer is saved.
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
    /// IA32_BNDCFGS is cleared.
    pub const CLEAR_BNDCFGS: u32 = 1 << 23;
    /// Processor trace does not show exits.
    pub const CONCEAL_VMX_FROM_PT: u32 = 1 << 24;
    /// IA32_RTIT_CTL is cleared.
    pub const CLEAR_RTIT_CTL: u32 = 1 << 25;
}

/// Entry controls.
pub mod entry {
    /// DR7 and IA32_DEBUGCTL are loaded.
    pub const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    /// The guest runs in IA-32e mode.
    pub const IA32E_MODE_GUEST: u32 = 1 << 9;
    /// Entry to system-management mode.
    pub const ENTRY_TO_SMM: u32 = 1 << 10;
    /// Ends dual-monitor treatment.
    pub const DEACTIVATE_DUAL_MONITOR: u32 = 1 << 11;
    /// IA32_PERF_GLOBAL_CTRL is loaded.
    pub const LOAD_PERF_GLOBAL_CTRL: u32 = 1 << 13;
    /// IA32_PAT is loaded.
    pub const LOAD_PAT: u32 = 1 << 14;
    /// IA32_EFER is loaded.
    pub const LOAD_EFER: u32 = 1 << 15;
    /// IA32_BNDCFGS is loaded.
    pub const LOAD_BNDCFGS: u32 = 1 << 16;
    /// Processor trace does not show entries.
    pub const CONCEAL_VMX_FROM_PT: u32 = 1 << 17;
    /// IA32_RTIT_CTL is loaded.
    pub const LOAD_RTIT_CTL: u32 = 1 << 18;
}

/// Splits a control capability MSR: `wanted` with the bits that must be one, or the bits of `wanted` that the
/// processor does not allow (SDM volume 3, A.2: low half must-be-one, high half may-be-one).
///
/// # Errors
/// The bits of `wanted` that may not be set.
pub const fn adjust(capability: u64, wanted: u32) -> Result<u32, u32> {
    let [required, allowed] = halves(capability);
    if wanted & !allowed == 0 {
        Ok(wanted | required)
    } else {
        Err(wanted & !allowed)
    }
}

const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}
