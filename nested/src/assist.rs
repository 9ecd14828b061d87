//! The VP assist page: what a guest and its hypervisor tell each other per virtual processor (TLFS, "Virtual
//! Processor Assist Page"). The guest places it with [`crate::hyperv::msr::VP_ASSIST_PAGE`].
//!
//! KVM reads it anew at every entry into an L2.

use core::mem::{offset_of, size_of};

/// The part of the page that is defined here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VpAssist {
    /// Bit 0: this interrupt needs no EOI.
    pub apic_assist: u32,
    /// Reserved.
    pub reserved: u32,
    /// Why the virtual trust level was entered.
    pub vtl_entry_reason: u32,
    /// Reserved.
    pub vtl_reserved: u32,
    /// RAX at the return to the lower trust level.
    pub vtl_return_rax: u64,
    /// RCX at the return to the lower trust level.
    pub vtl_return_rcx: u64,
    /// Nested features that are on: [`DIRECT_HYPERCALL`].
    pub nested_features: u32,
    /// Bit 0: hypercalls for communication between partitions are direct as well.
    pub hypercall_controls: u32,
    /// 1 if entries use the enlightened VMCS below.
    pub enlighten_vm_entry: u8,
    /// Reserved.
    pub entry_reserved: [u8; 7],
    /// GPA of the current enlightened VMCS.
    pub current_nested_vmcs: u64,
}

/// [`VpAssist::nested_features`]: L2's flush hypercalls go straight to L0, for guests that ask for it in
/// their [enlightened VMCS](crate::evmcs::NESTED_FLUSH_HYPERCALL) or VMCB.
pub const DIRECT_HYPERCALL: u32 = 1 << 0;

/// Bytes of the whole page.
pub const PAGE: usize = 4096;

const _: () = {
    assert!(offset_of!(VpAssist, vtl_entry_reason) == 0x08);
    assert!(offset_of!(VpAssist, vtl_return_rax) == 0x10);
    assert!(offset_of!(VpAssist, vtl_return_rcx) == 0x18);
    assert!(offset_of!(VpAssist, nested_features) == 0x20);
    assert!(offset_of!(VpAssist, hypercall_controls) == 0x24);
    assert!(offset_of!(VpAssist, enlighten_vm_entry) == 0x28);
    assert!(offset_of!(VpAssist, current_nested_vmcs) == 0x30);
    assert!(size_of::<VpAssist>() == 0x38);
};

/// The partition assist page, by which L1 delays flushes that L2 made directly.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionAssist {
    /// If not zero, a direct flush is followed by a synthetic exit to L1
    /// ([`crate::evmcs::EXIT_TRAP_AFTER_FLUSH`]).
    pub tlb_lock_count: u32,
}
