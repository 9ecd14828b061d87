//! The VP assist page: data that a guest and its hypervisor exchange per virtual processor (TLFS, "Virtual
//! Processor Assist Page"). The guest sets its address with [`crate::hyperv::msr::VP_ASSIST_PAGE`].
//!
//! KVM reads it again at every entry into an L2.

use core::mem::{offset_of, size_of};

/// The part of the page that is defined here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VpAssist {
    /// Bit 0: this interrupt needs no EOI.
    pub apic_assist: u32,
    /// Reserved.
    pub reserved: u32,
    /// The reason for the entry to the virtual trust level.
    pub vtl_entry_reason: u32,
    /// Reserved.
    pub vtl_reserved: u32,
    /// RAX at the return to the lower trust level.
    pub vtl_return_rax: u64,
    /// RCX at the return to the lower trust level.
    pub vtl_return_rcx: u64,
    /// The nested features that are on: [`DIRECT_HYPERCALL`].
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

/// [`VpAssist::nested_features`]: L0 handles L2's flush hypercalls, for guests that request it in
/// their [enlightened VMCS](crate::evmcs::NESTED_FLUSH_HYPERCALL) or VMCB.
pub const DIRECT_HYPERCALL: u32 = 1 << 0;

/// The size of the whole page.
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

/// The partition assist page, by which L1 delays L2's direct flushes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionAssist {
    /// If not zero, a direct flush is followed by a synthetic exit to L1
    /// ([`crate::evmcs::EXIT_TRAP_AFTER_FLUSH`]).
    pub tlb_lock_count: u32,
}
