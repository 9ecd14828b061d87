//! The enlightened VMCS, version 1: a VMCS that L1 reads and writes as memory (TLFS, "Enlightened VMCS").
//!
//! L1 sets the page's GPA in its [VP assist page](crate::assist), writes fields by plain stores, and clears
//! the [clean bit](clean) of each group that it changed; L0 need not read the others. After an exit L0 has
//! set all clean bits.
//!
//! One table below contains the layout. Where the sources disagree with the SDM or each other, the table
//! follows the SDM:
//!
//! - the TLFS gives IA32_SYSENTER_CS of the host the encoding of its RIP, and has no row for RIP;
//! - the TLFS names the tertiary controls at 1016, padding in Linux 6.12 (`struct hv_enlightened_vmcs`);
//! - a comment in Linux's table (`vmcs_field_to_evmcs_1`) gives two encodings to RSI at I/O; the second is
//!   RDI's.
//!
//! KVM as L0 does not copy the fields whose clean mask is [`clean::ALL`] (MSR lists, CR3 targets, masks of
//! page faults' error codes: no group is defined for them), nor the IO_*, CET, SSP and LBR fields, nor the
//! tertiary controls (`copy_enlightened_to_vmcs12`).

use core::mem::{offset_of, size_of};

use crate::vmx::{Field, Width};

/// The first word of the page.
pub const VERSION: u32 = 1;
/// The size of its page.
pub const PAGE: usize = 4096;
/// The exit reason by which L1 is notified of a direct flush while
/// [`crate::assist::PartitionAssist::tlb_lock_count`] is not zero.
pub const EXIT_TRAP_AFTER_FLUSH: u32 = 0x1000_0031;

/// [`Evmcs::hv_enlightenments_control`]: L0 handles flush hypercalls of this L2.
pub const NESTED_FLUSH_HYPERCALL: u32 = 1 << 0;
/// [`Evmcs::hv_enlightenments_control`]: [`clean::MSR_BITMAP`] also covers changes to the bitmap's content.
pub const ENLIGHTENED_MSR_BITMAP: u32 = 1 << 1;

/// Bits of [`Evmcs::hv_clean_fields`]: a group that L1 has not changed since the last exit.
pub mod clean {
    /// No bit: L0 reads the field at every entry, or only writes it.
    pub const NONE: u32 = 0;
    /// Addresses of the I/O bitmaps.
    pub const IO_BITMAP: u32 = 1 << 0;
    /// Address of the MSR bitmap and, if agreed, its content.
    pub const MSR_BITMAP: u32 = 1 << 1;
    /// TSC offset, virtual-APIC page and other rare controls.
    pub const CONTROL_GRP2: u32 = 1 << 2;
    /// Pin-based, secondary and exit controls.
    pub const CONTROL_GRP1: u32 = 1 << 3;
    /// Primary processor-based controls.
    pub const CONTROL_PROC: u32 = 1 << 4;
    /// Event injection.
    pub const CONTROL_EVENT: u32 = 1 << 5;
    /// Entry controls.
    pub const CONTROL_ENTRY: u32 = 1 << 6;
    /// Exception bitmap.
    pub const CONTROL_EXCPN: u32 = 1 << 7;
    /// Guest control registers, their masks and shadows, and DR7.
    pub const CRDR: u32 = 1 << 8;
    /// EPT pointer and VPID.
    pub const CONTROL_XLAT: u32 = 1 << 9;
    /// RSP, RFLAGS, interruptibility.
    pub const GUEST_BASIC: u32 = 1 << 10;
    /// Guest MSRs, PDPTEs, activity.
    pub const GUEST_GRP1: u32 = 1 << 11;
    /// Guest segments and tables.
    pub const GUEST_GRP2: u32 = 1 << 12;
    /// Host bases and RSP.
    pub const HOST_POINTER: u32 = 1 << 13;
    /// The host's other state.
    pub const HOST_GRP1: u32 = 1 << 14;
    /// Enlightenments, VM and VP identity, partition assist page.
    pub const ENLIGHTENMENTS_CONTROL: u32 = 1 << 15;
    /// Every group.
    pub const ALL: u32 = 0xFFFF;

    /// Every group and its name.
    pub const GROUPS: &[(u32, &str)] = &[
        (IO_BITMAP, "io-bitmap"),
        (MSR_BITMAP, "msr-bitmap"),
        (CONTROL_GRP2, "control-grp2"),
        (CONTROL_GRP1, "control-grp1"),
        (CONTROL_PROC, "control-proc"),
        (CONTROL_EVENT, "control-event"),
        (CONTROL_ENTRY, "control-entry"),
        (CONTROL_EXCPN, "control-excpn"),
        (CRDR, "crdr"),
        (CONTROL_XLAT, "control-xlat"),
        (GUEST_BASIC, "guest-basic"),
        (GUEST_GRP1, "guest-grp1"),
        (GUEST_GRP2, "guest-grp2"),
        (HOST_POINTER, "host-pointer"),
        (HOST_GRP1, "host-grp1"),
        (ENLIGHTENMENTS_CONTROL, "enlightenments-control"),
    ];
}

/// Control bits that can exist in a VMX with an enlightened VMCS, since KVM filters the capability MSRs for a
/// guest once the capability is enabled (`nested_evmcs_filter_control_msr`). Any other bit fails the entry
/// with [`crate::vmx::instruction_error::ENTRY_CONTROLS`], for a plain VMCS too.
pub mod supported {
    /// Pin-based controls.
    pub const PIN: u32 = 0x0000_003F;
    /// Primary processor-based controls.
    pub const PRIMARY: u32 = 0xFFF9_FFFE;
    /// Secondary processor-based controls.
    pub const SECONDARY: u32 = 0xC519_98FE;
    /// Exit controls; IA32_PERF_GLOBAL_CTRL only if CPUID 0x4000000A EBX bit 0 is set.
    pub const EXIT: u32 = 0x03BF_FFFF;
    /// Entry controls, likewise.
    pub const ENTRY: u32 = 0x0007_F3FF;
}

/// The position of a VMCS field in the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the page's start.
    pub offset: u16,
    /// Its width in the page.
    pub width: Width,
    /// The [clean bits](clean) to clear after a write.
    pub clean: u32,
}

macro_rules! layout {
    ($($offset:literal $name:ident: $type:ty $(= $field:ident, $clean:ident)?;)*) => {
        /// The structure; the rest of its page is unused.
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Evmcs {
            $(
                #[doc = concat!("At ", stringify!($offset), $(" the field \
                    [`Field::", stringify!($field), "`]", )? ".")]
                pub $name: $type,
            )*
        }

        const _: () = {
            $(
                assert!(offset_of!(Evmcs, $name) == $offset);
                $(
                    // The page keeps every field at the width that its encoding specifies.
                    assert!(size_of::<$type>() == Field::$field.width().bytes());
                )?
            )*
            // The table names every gap.
            assert!(0 $(+ size_of::<$type>())* == size_of::<Evmcs>());
            assert!(size_of::<Evmcs>() == 1024);
        };

        /// The position of `field`; `None` if the enlightened VMCS does not contain it.
        #[must_use]
        pub const fn place(field: Field) -> Option<Place> {
            match field {
                $($(
                    Field::$field => Some(Place {
                        offset: $offset,
                        width: Field::$field.width(),
                        clean: clean::$clean,
                    }),
                )?)*
                _ => None,
            }
        }

        /// Every field in the page, in its order.
        pub const FIELDS: &[Field] = &[$($(Field::$field,)?)*];
    };
}

layout! {
    0 revision_id: u32;
    4 abort: u32;
    8 host_es_selector: u16 = HOST_ES_SELECTOR, HOST_GRP1;
    10 host_cs_selector: u16 = HOST_CS_SELECTOR, HOST_GRP1;
    12 host_ss_selector: u16 = HOST_SS_SELECTOR, HOST_GRP1;
    14 host_ds_selector: u16 = HOST_DS_SELECTOR, HOST_GRP1;
    16 host_fs_selector: u16 = HOST_FS_SELECTOR, HOST_GRP1;
    18 host_gs_selector: u16 = HOST_GS_SELECTOR, HOST_GRP1;
    20 host_tr_selector: u16 = HOST_TR_SELECTOR, HOST_GRP1;
    22 padding16_1: u16;
    24 host_ia32_pat: u64 = HOST_PAT, HOST_GRP1;
    32 host_ia32_efer: u64 = HOST_EFER, HOST_GRP1;
    40 host_cr0: u64 = HOST_CR0, HOST_GRP1;
    48 host_cr3: u64 = HOST_CR3, HOST_GRP1;
    56 host_cr4: u64 = HOST_CR4, HOST_GRP1;
    64 host_ia32_sysenter_esp: u64 = HOST_SYSENTER_ESP, HOST_GRP1;
    72 host_ia32_sysenter_eip: u64 = HOST_SYSENTER_EIP, HOST_GRP1;
    80 host_rip: u64 = HOST_RIP, HOST_GRP1;
    88 host_ia32_sysenter_cs: u32 = HOST_SYSENTER_CS, HOST_GRP1;
    92 pin_based_vm_exec_control: u32 = PIN_CONTROLS, CONTROL_GRP1;
    96 vm_exit_controls: u32 = EXIT_CONTROLS, CONTROL_GRP1;
    100 secondary_vm_exec_control: u32 = SECONDARY_CONTROLS, CONTROL_GRP1;
    104 io_bitmap_a: u64 = IO_BITMAP_A, IO_BITMAP;
    112 io_bitmap_b: u64 = IO_BITMAP_B, IO_BITMAP;
    120 msr_bitmap: u64 = MSR_BITMAP, MSR_BITMAP;
    128 guest_es_selector: u16 = GUEST_ES_SELECTOR, GUEST_GRP2;
    130 guest_cs_selector: u16 = GUEST_CS_SELECTOR, GUEST_GRP2;
    132 guest_ss_selector: u16 = GUEST_SS_SELECTOR, GUEST_GRP2;
    134 guest_ds_selector: u16 = GUEST_DS_SELECTOR, GUEST_GRP2;
    136 guest_fs_selector: u16 = GUEST_FS_SELECTOR, GUEST_GRP2;
    138 guest_gs_selector: u16 = GUEST_GS_SELECTOR, GUEST_GRP2;
    140 guest_ldtr_selector: u16 = GUEST_LDTR_SELECTOR, GUEST_GRP2;
    142 guest_tr_selector: u16 = GUEST_TR_SELECTOR, GUEST_GRP2;
    144 guest_es_limit: u32 = GUEST_ES_LIMIT, GUEST_GRP2;
    148 guest_cs_limit: u32 = GUEST_CS_LIMIT, GUEST_GRP2;
    152 guest_ss_limit: u32 = GUEST_SS_LIMIT, GUEST_GRP2;
    156 guest_ds_limit: u32 = GUEST_DS_LIMIT, GUEST_GRP2;
    160 guest_fs_limit: u32 = GUEST_FS_LIMIT, GUEST_GRP2;
    164 guest_gs_limit: u32 = GUEST_GS_LIMIT, GUEST_GRP2;
    168 guest_ldtr_limit: u32 = GUEST_LDTR_LIMIT, GUEST_GRP2;
    172 guest_tr_limit: u32 = GUEST_TR_LIMIT, GUEST_GRP2;
    176 guest_gdtr_limit: u32 = GUEST_GDTR_LIMIT, GUEST_GRP2;
    180 guest_idtr_limit: u32 = GUEST_IDTR_LIMIT, GUEST_GRP2;
    184 guest_es_ar_bytes: u32 = GUEST_ES_ACCESS_RIGHTS, GUEST_GRP2;
    188 guest_cs_ar_bytes: u32 = GUEST_CS_ACCESS_RIGHTS, GUEST_GRP2;
    192 guest_ss_ar_bytes: u32 = GUEST_SS_ACCESS_RIGHTS, GUEST_GRP2;
    196 guest_ds_ar_bytes: u32 = GUEST_DS_ACCESS_RIGHTS, GUEST_GRP2;
    200 guest_fs_ar_bytes: u32 = GUEST_FS_ACCESS_RIGHTS, GUEST_GRP2;
    204 guest_gs_ar_bytes: u32 = GUEST_GS_ACCESS_RIGHTS, GUEST_GRP2;
    208 guest_ldtr_ar_bytes: u32 = GUEST_LDTR_ACCESS_RIGHTS, GUEST_GRP2;
    212 guest_tr_ar_bytes: u32 = GUEST_TR_ACCESS_RIGHTS, GUEST_GRP2;
    216 guest_es_base: u64 = GUEST_ES_BASE, GUEST_GRP2;
    224 guest_cs_base: u64 = GUEST_CS_BASE, GUEST_GRP2;
    232 guest_ss_base: u64 = GUEST_SS_BASE, GUEST_GRP2;
    240 guest_ds_base: u64 = GUEST_DS_BASE, GUEST_GRP2;
    248 guest_fs_base: u64 = GUEST_FS_BASE, GUEST_GRP2;
    256 guest_gs_base: u64 = GUEST_GS_BASE, GUEST_GRP2;
    264 guest_ldtr_base: u64 = GUEST_LDTR_BASE, GUEST_GRP2;
    272 guest_tr_base: u64 = GUEST_TR_BASE, GUEST_GRP2;
    280 guest_gdtr_base: u64 = GUEST_GDTR_BASE, GUEST_GRP2;
    288 guest_idtr_base: u64 = GUEST_IDTR_BASE, GUEST_GRP2;
    296 padding64_1: [u64; 3];
    320 vm_exit_msr_store_addr: u64 = EXIT_MSR_STORE_ADDRESS, ALL;
    328 vm_exit_msr_load_addr: u64 = EXIT_MSR_LOAD_ADDRESS, ALL;
    336 vm_entry_msr_load_addr: u64 = ENTRY_MSR_LOAD_ADDRESS, ALL;
    344 cr3_target_value0: u64 = CR3_TARGET_VALUE0, ALL;
    352 cr3_target_value1: u64 = CR3_TARGET_VALUE1, ALL;
    360 cr3_target_value2: u64 = CR3_TARGET_VALUE2, ALL;
    368 cr3_target_value3: u64 = CR3_TARGET_VALUE3, ALL;
    376 page_fault_error_code_mask: u32 = PAGE_FAULT_ERROR_CODE_MASK, ALL;
    380 page_fault_error_code_match: u32 = PAGE_FAULT_ERROR_CODE_MATCH, ALL;
    384 cr3_target_count: u32 = CR3_TARGET_COUNT, ALL;
    388 vm_exit_msr_store_count: u32 = EXIT_MSR_STORE_COUNT, ALL;
    392 vm_exit_msr_load_count: u32 = EXIT_MSR_LOAD_COUNT, ALL;
    396 vm_entry_msr_load_count: u32 = ENTRY_MSR_LOAD_COUNT, ALL;
    400 tsc_offset: u64 = TSC_OFFSET, CONTROL_GRP2;
    408 virtual_apic_page_addr: u64 = VIRTUAL_APIC_ADDRESS, CONTROL_GRP2;
    416 vmcs_link_pointer: u64 = VMCS_LINK_POINTER, GUEST_GRP1;
    424 guest_ia32_debugctl: u64 = GUEST_DEBUGCTL, GUEST_GRP1;
    432 guest_ia32_pat: u64 = GUEST_PAT, GUEST_GRP1;
    440 guest_ia32_efer: u64 = GUEST_EFER, GUEST_GRP1;
    448 guest_pdptr0: u64 = GUEST_PDPTE0, GUEST_GRP1;
    456 guest_pdptr1: u64 = GUEST_PDPTE1, GUEST_GRP1;
    464 guest_pdptr2: u64 = GUEST_PDPTE2, GUEST_GRP1;
    472 guest_pdptr3: u64 = GUEST_PDPTE3, GUEST_GRP1;
    480 guest_pending_dbg_exceptions: u64 = GUEST_PENDING_DEBUG_EXCEPTIONS, GUEST_GRP1;
    488 guest_sysenter_esp: u64 = GUEST_SYSENTER_ESP, GUEST_GRP1;
    496 guest_sysenter_eip: u64 = GUEST_SYSENTER_EIP, GUEST_GRP1;
    504 guest_activity_state: u32 = GUEST_ACTIVITY, GUEST_GRP1;
    508 guest_sysenter_cs: u32 = GUEST_SYSENTER_CS, GUEST_GRP1;
    512 cr0_guest_host_mask: u64 = CR0_MASK, CRDR;
    520 cr4_guest_host_mask: u64 = CR4_MASK, CRDR;
    528 cr0_read_shadow: u64 = CR0_READ_SHADOW, CRDR;
    536 cr4_read_shadow: u64 = CR4_READ_SHADOW, CRDR;
    544 guest_cr0: u64 = GUEST_CR0, CRDR;
    552 guest_cr3: u64 = GUEST_CR3, CRDR;
    560 guest_cr4: u64 = GUEST_CR4, CRDR;
    568 guest_dr7: u64 = GUEST_DR7, CRDR;
    576 host_fs_base: u64 = HOST_FS_BASE, HOST_POINTER;
    584 host_gs_base: u64 = HOST_GS_BASE, HOST_POINTER;
    592 host_tr_base: u64 = HOST_TR_BASE, HOST_POINTER;
    600 host_gdtr_base: u64 = HOST_GDTR_BASE, HOST_POINTER;
    608 host_idtr_base: u64 = HOST_IDTR_BASE, HOST_POINTER;
    616 host_rsp: u64 = HOST_RSP, HOST_POINTER;
    624 ept_pointer: u64 = EPT_POINTER, CONTROL_XLAT;
    632 virtual_processor_id: u16 = VPID, CONTROL_XLAT;
    634 padding16_2: [u16; 3];
    640 padding64_2: [u64; 5];
    680 guest_physical_address: u64 = GUEST_PHYSICAL_ADDRESS, NONE;
    688 vm_instruction_error: u32 = INSTRUCTION_ERROR, NONE;
    692 vm_exit_reason: u32 = EXIT_REASON, NONE;
    696 vm_exit_intr_info: u32 = EXIT_INTERRUPTION_INFO, NONE;
    700 vm_exit_intr_error_code: u32 = EXIT_INTERRUPTION_ERROR_CODE, NONE;
    704 idt_vectoring_info_field: u32 = IDT_VECTORING_INFO, NONE;
    708 idt_vectoring_error_code: u32 = IDT_VECTORING_ERROR_CODE, NONE;
    712 vm_exit_instruction_len: u32 = EXIT_INSTRUCTION_LENGTH, NONE;
    716 vmx_instruction_info: u32 = EXIT_INSTRUCTION_INFO, NONE;
    720 exit_qualification: u64 = EXIT_QUALIFICATION, NONE;
    728 exit_io_instruction_ecx: u64 = IO_RCX, NONE;
    736 exit_io_instruction_esi: u64 = IO_RSI, NONE;
    744 exit_io_instruction_edi: u64 = IO_RDI, NONE;
    752 exit_io_instruction_eip: u64 = IO_RIP, NONE;
    760 guest_linear_address: u64 = GUEST_LINEAR_ADDRESS, NONE;
    768 guest_rsp: u64 = GUEST_RSP, GUEST_BASIC;
    776 guest_rflags: u64 = GUEST_RFLAGS, GUEST_BASIC;
    784 guest_interruptibility_info: u32 = GUEST_INTERRUPTIBILITY, GUEST_BASIC;
    788 cpu_based_vm_exec_control: u32 = PRIMARY_CONTROLS, CONTROL_PROC;
    792 exception_bitmap: u32 = EXCEPTION_BITMAP, CONTROL_EXCPN;
    796 vm_entry_controls: u32 = ENTRY_CONTROLS, CONTROL_ENTRY;
    800 vm_entry_intr_info_field: u32 = ENTRY_INTERRUPTION_INFO, CONTROL_EVENT;
    804 vm_entry_exception_error_code: u32 = ENTRY_EXCEPTION_ERROR_CODE, CONTROL_EVENT;
    808 vm_entry_instruction_len: u32 = ENTRY_INSTRUCTION_LENGTH, CONTROL_EVENT;
    812 tpr_threshold: u32 = TPR_THRESHOLD, NONE;
    816 guest_rip: u64 = GUEST_RIP, NONE;
    824 hv_clean_fields: u32;
    828 padding32_1: u32;
    832 hv_synthetic_controls: u32;
    836 hv_enlightenments_control: u32;
    840 hv_vp_id: u32;
    844 padding32_2: u32;
    848 hv_vm_id: u64;
    856 partition_assist_page: u64;
    864 padding64_4: [u64; 4];
    896 guest_bndcfgs: u64 = GUEST_BNDCFGS, GUEST_GRP1;
    904 guest_ia32_perf_global_ctrl: u64 = GUEST_PERF_GLOBAL_CTRL, GUEST_GRP1;
    912 guest_ia32_s_cet: u64 = GUEST_S_CET, GUEST_GRP1;
    920 guest_ssp: u64 = GUEST_SSP, GUEST_BASIC;
    928 guest_ia32_int_ssp_table_addr: u64 = GUEST_INTERRUPT_SSP_TABLE, GUEST_GRP1;
    936 guest_ia32_lbr_ctl: u64 = GUEST_LBR_CTL, GUEST_GRP1;
    944 padding64_5: [u64; 2];
    960 xss_exit_bitmap: u64 = XSS_EXIT_BITMAP, CONTROL_GRP2;
    968 encls_exiting_bitmap: u64 = ENCLS_EXIT_BITMAP, CONTROL_GRP2;
    976 host_ia32_perf_global_ctrl: u64 = HOST_PERF_GLOBAL_CTRL, HOST_GRP1;
    984 tsc_multiplier: u64 = TSC_MULTIPLIER, CONTROL_GRP2;
    992 host_ia32_s_cet: u64 = HOST_S_CET, HOST_GRP1;
    1000 host_ssp: u64 = HOST_SSP, HOST_GRP1;
    1008 host_ia32_int_ssp_table_addr: u64 = HOST_INTERRUPT_SSP_TABLE, HOST_GRP1;
    1016 tertiary_vm_exec_control: u64 = TERTIARY_CONTROLS, CONTROL_GRP1;
}

/// The offset of `field`; `None` if the enlightened VMCS does not contain it.
#[must_use]
pub const fn offset_of(field: Field) -> Option<u16> {
    match place(field) {
        Some(place) => Some(place.offset),
        None => None,
    }
}

#[cfg(test)]
mod tests;
