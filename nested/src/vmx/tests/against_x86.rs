//! The constants against those of the `x86` crate.

extern crate std;

use std::collections::HashSet;
use std::vec::Vec;

use x86::vmx::vmcs::{control, guest, host, ro};

use super::super::controls::{entry, exit, pin, primary, secondary};
use super::super::*;

/// Compares every field with its name in the `x86` crate.
#[rustfmt::skip]
const IN_X86: &[(Field, u32)] = &[
    (Field::VPID, control::VPID),
    (Field::POSTED_INTERRUPT_VECTOR, control::POSTED_INTERRUPT_NOTIFICATION_VECTOR),
    (Field::EPTP_INDEX, control::EPTP_INDEX),
    (Field::IO_BITMAP_A, control::IO_BITMAP_A_ADDR_FULL),
    (Field::IO_BITMAP_B, control::IO_BITMAP_B_ADDR_FULL),
    (Field::MSR_BITMAP, control::MSR_BITMAPS_ADDR_FULL),
    (Field::EXIT_MSR_STORE_ADDRESS, control::VMEXIT_MSR_STORE_ADDR_FULL),
    (Field::EXIT_MSR_LOAD_ADDRESS, control::VMEXIT_MSR_LOAD_ADDR_FULL),
    (Field::ENTRY_MSR_LOAD_ADDRESS, control::VMENTRY_MSR_LOAD_ADDR_FULL),
    (Field::EXECUTIVE_VMCS, control::EXECUTIVE_VMCS_PTR_FULL),
    (Field::PML_ADDRESS, control::PML_ADDR_FULL),
    (Field::TSC_OFFSET, control::TSC_OFFSET_FULL),
    (Field::VIRTUAL_APIC_ADDRESS, control::VIRT_APIC_ADDR_FULL),
    (Field::APIC_ACCESS_ADDRESS, control::APIC_ACCESS_ADDR_FULL),
    (Field::POSTED_INTERRUPT_DESCRIPTOR, control::POSTED_INTERRUPT_DESC_ADDR_FULL),
    (Field::VM_FUNCTION_CONTROLS, control::VM_FUNCTION_CONTROLS_FULL),
    (Field::EPT_POINTER, control::EPTP_FULL),
    (Field::EOI_EXIT_BITMAP0, control::EOI_EXIT0_FULL),
    (Field::EOI_EXIT_BITMAP1, control::EOI_EXIT1_FULL),
    (Field::EOI_EXIT_BITMAP2, control::EOI_EXIT2_FULL),
    (Field::EOI_EXIT_BITMAP3, control::EOI_EXIT3_FULL),
    (Field::EPTP_LIST_ADDRESS, control::EPTP_LIST_ADDR_FULL),
    (Field::VMREAD_BITMAP, control::VMREAD_BITMAP_ADDR_FULL),
    (Field::VMWRITE_BITMAP, control::VMWRITE_BITMAP_ADDR_FULL),
    (Field::VIRTUALIZATION_EXCEPTION_INFO, control::VIRT_EXCEPTION_INFO_ADDR_FULL),
    (Field::XSS_EXIT_BITMAP, control::XSS_EXITING_BITMAP_FULL),
    (Field::ENCLS_EXIT_BITMAP, control::ENCLS_EXITING_BITMAP_FULL),
    (Field::SUB_PAGE_PERMISSIONS, control::SUBPAGE_PERM_TABLE_PTR_FULL),
    (Field::TSC_MULTIPLIER, control::TSC_MULTIPLIER_FULL),
    (Field::PIN_CONTROLS, control::PINBASED_EXEC_CONTROLS),
    (Field::PRIMARY_CONTROLS, control::PRIMARY_PROCBASED_EXEC_CONTROLS),
    (Field::EXCEPTION_BITMAP, control::EXCEPTION_BITMAP),
    (Field::PAGE_FAULT_ERROR_CODE_MASK, control::PAGE_FAULT_ERR_CODE_MASK),
    (Field::PAGE_FAULT_ERROR_CODE_MATCH, control::PAGE_FAULT_ERR_CODE_MATCH),
    (Field::CR3_TARGET_COUNT, control::CR3_TARGET_COUNT),
    (Field::EXIT_CONTROLS, control::VMEXIT_CONTROLS),
    (Field::EXIT_MSR_STORE_COUNT, control::VMEXIT_MSR_STORE_COUNT),
    (Field::EXIT_MSR_LOAD_COUNT, control::VMEXIT_MSR_LOAD_COUNT),
    (Field::ENTRY_CONTROLS, control::VMENTRY_CONTROLS),
    (Field::ENTRY_MSR_LOAD_COUNT, control::VMENTRY_MSR_LOAD_COUNT),
    (Field::ENTRY_INTERRUPTION_INFO, control::VMENTRY_INTERRUPTION_INFO_FIELD),
    (Field::ENTRY_EXCEPTION_ERROR_CODE, control::VMENTRY_EXCEPTION_ERR_CODE),
    (Field::ENTRY_INSTRUCTION_LENGTH, control::VMENTRY_INSTRUCTION_LEN),
    (Field::TPR_THRESHOLD, control::TPR_THRESHOLD),
    (Field::SECONDARY_CONTROLS, control::SECONDARY_PROCBASED_EXEC_CONTROLS),
    (Field::PLE_GAP, control::PLE_GAP),
    (Field::PLE_WINDOW, control::PLE_WINDOW),
    (Field::CR0_MASK, control::CR0_GUEST_HOST_MASK),
    (Field::CR4_MASK, control::CR4_GUEST_HOST_MASK),
    (Field::CR0_READ_SHADOW, control::CR0_READ_SHADOW),
    (Field::CR4_READ_SHADOW, control::CR4_READ_SHADOW),
    (Field::CR3_TARGET_VALUE0, control::CR3_TARGET_VALUE0),
    (Field::CR3_TARGET_VALUE1, control::CR3_TARGET_VALUE1),
    (Field::CR3_TARGET_VALUE2, control::CR3_TARGET_VALUE2),
    (Field::CR3_TARGET_VALUE3, control::CR3_TARGET_VALUE3),
    (Field::GUEST_ES_SELECTOR, guest::ES_SELECTOR),
    (Field::GUEST_CS_SELECTOR, guest::CS_SELECTOR),
    (Field::GUEST_SS_SELECTOR, guest::SS_SELECTOR),
    (Field::GUEST_DS_SELECTOR, guest::DS_SELECTOR),
    (Field::GUEST_FS_SELECTOR, guest::FS_SELECTOR),
    (Field::GUEST_GS_SELECTOR, guest::GS_SELECTOR),
    (Field::GUEST_LDTR_SELECTOR, guest::LDTR_SELECTOR),
    (Field::GUEST_TR_SELECTOR, guest::TR_SELECTOR),
    (Field::GUEST_INTERRUPT_STATUS, guest::INTERRUPT_STATUS),
    (Field::PML_INDEX, guest::PML_INDEX),
    (Field::VMCS_LINK_POINTER, guest::LINK_PTR_FULL),
    (Field::GUEST_DEBUGCTL, guest::IA32_DEBUGCTL_FULL),
    (Field::GUEST_PAT, guest::IA32_PAT_FULL),
    (Field::GUEST_EFER, guest::IA32_EFER_FULL),
    (Field::GUEST_PERF_GLOBAL_CTRL, guest::IA32_PERF_GLOBAL_CTRL_FULL),
    (Field::GUEST_PDPTE0, guest::PDPTE0_FULL),
    (Field::GUEST_PDPTE1, guest::PDPTE1_FULL),
    (Field::GUEST_PDPTE2, guest::PDPTE2_FULL),
    (Field::GUEST_PDPTE3, guest::PDPTE3_FULL),
    (Field::GUEST_BNDCFGS, guest::IA32_BNDCFGS_FULL),
    (Field::GUEST_RTIT_CTL, guest::IA32_RTIT_CTL_FULL),
    (Field::GUEST_ES_LIMIT, guest::ES_LIMIT),
    (Field::GUEST_CS_LIMIT, guest::CS_LIMIT),
    (Field::GUEST_SS_LIMIT, guest::SS_LIMIT),
    (Field::GUEST_DS_LIMIT, guest::DS_LIMIT),
    (Field::GUEST_FS_LIMIT, guest::FS_LIMIT),
    (Field::GUEST_GS_LIMIT, guest::GS_LIMIT),
    (Field::GUEST_LDTR_LIMIT, guest::LDTR_LIMIT),
    (Field::GUEST_TR_LIMIT, guest::TR_LIMIT),
    (Field::GUEST_GDTR_LIMIT, guest::GDTR_LIMIT),
    (Field::GUEST_IDTR_LIMIT, guest::IDTR_LIMIT),
    (Field::GUEST_ES_ACCESS_RIGHTS, guest::ES_ACCESS_RIGHTS),
    (Field::GUEST_CS_ACCESS_RIGHTS, guest::CS_ACCESS_RIGHTS),
    (Field::GUEST_SS_ACCESS_RIGHTS, guest::SS_ACCESS_RIGHTS),
    (Field::GUEST_DS_ACCESS_RIGHTS, guest::DS_ACCESS_RIGHTS),
    (Field::GUEST_FS_ACCESS_RIGHTS, guest::FS_ACCESS_RIGHTS),
    (Field::GUEST_GS_ACCESS_RIGHTS, guest::GS_ACCESS_RIGHTS),
    (Field::GUEST_LDTR_ACCESS_RIGHTS, guest::LDTR_ACCESS_RIGHTS),
    (Field::GUEST_TR_ACCESS_RIGHTS, guest::TR_ACCESS_RIGHTS),
    (Field::GUEST_INTERRUPTIBILITY, guest::INTERRUPTIBILITY_STATE),
    (Field::GUEST_ACTIVITY, guest::ACTIVITY_STATE),
    (Field::GUEST_SMBASE, guest::SMBASE),
    (Field::GUEST_SYSENTER_CS, guest::IA32_SYSENTER_CS),
    (Field::PREEMPTION_TIMER, guest::VMX_PREEMPTION_TIMER_VALUE),
    (Field::GUEST_CR0, guest::CR0),
    (Field::GUEST_CR3, guest::CR3),
    (Field::GUEST_CR4, guest::CR4),
    (Field::GUEST_ES_BASE, guest::ES_BASE),
    (Field::GUEST_CS_BASE, guest::CS_BASE),
    (Field::GUEST_SS_BASE, guest::SS_BASE),
    (Field::GUEST_DS_BASE, guest::DS_BASE),
    (Field::GUEST_FS_BASE, guest::FS_BASE),
    (Field::GUEST_GS_BASE, guest::GS_BASE),
    (Field::GUEST_LDTR_BASE, guest::LDTR_BASE),
    (Field::GUEST_TR_BASE, guest::TR_BASE),
    (Field::GUEST_GDTR_BASE, guest::GDTR_BASE),
    (Field::GUEST_IDTR_BASE, guest::IDTR_BASE),
    (Field::GUEST_DR7, guest::DR7),
    (Field::GUEST_RSP, guest::RSP),
    (Field::GUEST_RIP, guest::RIP),
    (Field::GUEST_RFLAGS, guest::RFLAGS),
    (Field::GUEST_PENDING_DEBUG_EXCEPTIONS, guest::PENDING_DBG_EXCEPTIONS),
    (Field::GUEST_SYSENTER_ESP, guest::IA32_SYSENTER_ESP),
    (Field::GUEST_SYSENTER_EIP, guest::IA32_SYSENTER_EIP),
    (Field::HOST_ES_SELECTOR, host::ES_SELECTOR),
    (Field::HOST_CS_SELECTOR, host::CS_SELECTOR),
    (Field::HOST_SS_SELECTOR, host::SS_SELECTOR),
    (Field::HOST_DS_SELECTOR, host::DS_SELECTOR),
    (Field::HOST_FS_SELECTOR, host::FS_SELECTOR),
    (Field::HOST_GS_SELECTOR, host::GS_SELECTOR),
    (Field::HOST_TR_SELECTOR, host::TR_SELECTOR),
    (Field::HOST_PAT, host::IA32_PAT_FULL),
    (Field::HOST_EFER, host::IA32_EFER_FULL),
    (Field::HOST_PERF_GLOBAL_CTRL, host::IA32_PERF_GLOBAL_CTRL_FULL),
    (Field::HOST_SYSENTER_CS, host::IA32_SYSENTER_CS),
    (Field::HOST_CR0, host::CR0),
    (Field::HOST_CR3, host::CR3),
    (Field::HOST_CR4, host::CR4),
    (Field::HOST_FS_BASE, host::FS_BASE),
    (Field::HOST_GS_BASE, host::GS_BASE),
    (Field::HOST_TR_BASE, host::TR_BASE),
    (Field::HOST_GDTR_BASE, host::GDTR_BASE),
    (Field::HOST_IDTR_BASE, host::IDTR_BASE),
    (Field::HOST_SYSENTER_ESP, host::IA32_SYSENTER_ESP),
    (Field::HOST_SYSENTER_EIP, host::IA32_SYSENTER_EIP),
    (Field::HOST_RSP, host::RSP),
    (Field::HOST_RIP, host::RIP),
    (Field::GUEST_PHYSICAL_ADDRESS, ro::GUEST_PHYSICAL_ADDR_FULL),
    (Field::INSTRUCTION_ERROR, ro::VM_INSTRUCTION_ERROR),
    (Field::EXIT_REASON, ro::EXIT_REASON),
    (Field::EXIT_INTERRUPTION_INFO, ro::VMEXIT_INTERRUPTION_INFO),
    (Field::EXIT_INTERRUPTION_ERROR_CODE, ro::VMEXIT_INTERRUPTION_ERR_CODE),
    (Field::IDT_VECTORING_INFO, ro::IDT_VECTORING_INFO),
    (Field::IDT_VECTORING_ERROR_CODE, ro::IDT_VECTORING_ERR_CODE),
    (Field::EXIT_INSTRUCTION_LENGTH, ro::VMEXIT_INSTRUCTION_LEN),
    (Field::EXIT_INSTRUCTION_INFO, ro::VMEXIT_INSTRUCTION_INFO),
    (Field::EXIT_QUALIFICATION, ro::EXIT_QUALIFICATION),
    (Field::IO_RCX, ro::IO_RCX),
    (Field::IO_RSI, ro::IO_RSI),
    (Field::IO_RDI, ro::IO_RDI),
    (Field::IO_RIP, ro::IO_RIP),
    (Field::GUEST_LINEAR_ADDRESS, ro::GUEST_LINEAR_ADDR),
];

/// Newer than the `x86` crate; SDM volume 3, appendix B.
const NOT_IN_X86: &[Field] = &[
    Field::TERTIARY_CONTROLS,
    Field::NOTIFY_WINDOW,
    Field::GUEST_LBR_CTL,
    Field::GUEST_S_CET,
    Field::GUEST_SSP,
    Field::GUEST_INTERRUPT_SSP_TABLE,
    Field::HOST_S_CET,
    Field::HOST_SSP,
    Field::HOST_INTERRUPT_SSP_TABLE,
];

#[test]
fn every_field_has_the_encoding_that_the_x86_crate_gives_it() {
    for &(field, encoding) in IN_X86 {
        assert_eq!(field.encoding(), encoding, "{field:?}");
    }
    let compared: HashSet<_> = IN_X86.iter().map(|&(field, _)| field).collect();
    let left: Vec<_> = Field::ALL
        .iter()
        .copied()
        .filter(|field| !compared.contains(field))
        .collect();
    assert_eq!(left, NOT_IN_X86);
}

#[test]
fn control_bits_are_those_of_the_x86_crate() {
    use control::{
        EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
    };
    let table = [
        (
            pin::EXTERNAL_INTERRUPT_EXITING,
            PinbasedControls::EXTERNAL_INTERRUPT_EXITING.bits(),
        ),
        (pin::NMI_EXITING, PinbasedControls::NMI_EXITING.bits()),
        (pin::VIRTUAL_NMIS, PinbasedControls::VIRTUAL_NMIS.bits()),
        (
            pin::PREEMPTION_TIMER,
            PinbasedControls::VMX_PREEMPTION_TIMER.bits(),
        ),
        (
            pin::POSTED_INTERRUPTS,
            PinbasedControls::POSTED_INTERRUPTS.bits(),
        ),
        (
            primary::INTERRUPT_WINDOW_EXITING,
            PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(),
        ),
        (
            primary::TSC_OFFSETTING,
            PrimaryControls::USE_TSC_OFFSETTING.bits(),
        ),
        (primary::HLT_EXITING, PrimaryControls::HLT_EXITING.bits()),
        (
            primary::INVLPG_EXITING,
            PrimaryControls::INVLPG_EXITING.bits(),
        ),
        (
            primary::MWAIT_EXITING,
            PrimaryControls::MWAIT_EXITING.bits(),
        ),
        (
            primary::RDPMC_EXITING,
            PrimaryControls::RDPMC_EXITING.bits(),
        ),
        (
            primary::RDTSC_EXITING,
            PrimaryControls::RDTSC_EXITING.bits(),
        ),
        (
            primary::CR3_LOAD_EXITING,
            PrimaryControls::CR3_LOAD_EXITING.bits(),
        ),
        (
            primary::CR3_STORE_EXITING,
            PrimaryControls::CR3_STORE_EXITING.bits(),
        ),
        (
            primary::CR8_LOAD_EXITING,
            PrimaryControls::CR8_LOAD_EXITING.bits(),
        ),
        (
            primary::CR8_STORE_EXITING,
            PrimaryControls::CR8_STORE_EXITING.bits(),
        ),
        (primary::TPR_SHADOW, PrimaryControls::USE_TPR_SHADOW.bits()),
        (
            primary::NMI_WINDOW_EXITING,
            PrimaryControls::NMI_WINDOW_EXITING.bits(),
        ),
        (
            primary::MOV_DR_EXITING,
            PrimaryControls::MOV_DR_EXITING.bits(),
        ),
        (
            primary::UNCONDITIONAL_IO_EXITING,
            PrimaryControls::UNCOND_IO_EXITING.bits(),
        ),
        (primary::IO_BITMAPS, PrimaryControls::USE_IO_BITMAPS.bits()),
        (
            primary::MONITOR_TRAP_FLAG,
            PrimaryControls::MONITOR_TRAP_FLAG.bits(),
        ),
        (
            primary::MSR_BITMAPS,
            PrimaryControls::USE_MSR_BITMAPS.bits(),
        ),
        (
            primary::MONITOR_EXITING,
            PrimaryControls::MONITOR_EXITING.bits(),
        ),
        (
            primary::PAUSE_EXITING,
            PrimaryControls::PAUSE_EXITING.bits(),
        ),
        (
            primary::SECONDARY_CONTROLS,
            PrimaryControls::SECONDARY_CONTROLS.bits(),
        ),
        (
            secondary::VIRTUALIZE_APIC_ACCESSES,
            SecondaryControls::VIRTUALIZE_APIC.bits(),
        ),
        (secondary::EPT, SecondaryControls::ENABLE_EPT.bits()),
        (
            secondary::DESCRIPTOR_TABLE_EXITING,
            SecondaryControls::DTABLE_EXITING.bits(),
        ),
        (secondary::RDTSCP, SecondaryControls::ENABLE_RDTSCP.bits()),
        (
            secondary::VIRTUALIZE_X2APIC,
            SecondaryControls::VIRTUALIZE_X2APIC.bits(),
        ),
        (secondary::VPID, SecondaryControls::ENABLE_VPID.bits()),
        (
            secondary::WBINVD_EXITING,
            SecondaryControls::WBINVD_EXITING.bits(),
        ),
        (
            secondary::UNRESTRICTED_GUEST,
            SecondaryControls::UNRESTRICTED_GUEST.bits(),
        ),
        (
            secondary::APIC_REGISTER_VIRTUALIZATION,
            SecondaryControls::VIRTUALIZE_APIC_REGISTER.bits(),
        ),
        (
            secondary::VIRTUAL_INTERRUPT_DELIVERY,
            SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY.bits(),
        ),
        (
            secondary::PAUSE_LOOP_EXITING,
            SecondaryControls::PAUSE_LOOP_EXITING.bits(),
        ),
        (
            secondary::RDRAND_EXITING,
            SecondaryControls::RDRAND_EXITING.bits(),
        ),
        (secondary::INVPCID, SecondaryControls::ENABLE_INVPCID.bits()),
        (
            secondary::VM_FUNCTIONS,
            SecondaryControls::ENABLE_VM_FUNCTIONS.bits(),
        ),
        (
            secondary::VMCS_SHADOWING,
            SecondaryControls::VMCS_SHADOWING.bits(),
        ),
        (
            secondary::ENCLS_EXITING,
            SecondaryControls::ENCLS_EXITING.bits(),
        ),
        (
            secondary::RDSEED_EXITING,
            SecondaryControls::RDSEED_EXITING.bits(),
        ),
        (
            secondary::PAGE_MODIFICATION_LOG,
            SecondaryControls::ENABLE_PML.bits(),
        ),
        (
            secondary::EPT_VIOLATION_EXCEPTION,
            SecondaryControls::EPT_VIOLATION_VE.bits(),
        ),
        (
            secondary::CONCEAL_VMX_FROM_PT,
            SecondaryControls::CONCEAL_VMX_FROM_PT.bits(),
        ),
        (
            secondary::XSAVES,
            SecondaryControls::ENABLE_XSAVES_XRSTORS.bits(),
        ),
        (
            secondary::MODE_BASED_EXECUTE,
            SecondaryControls::MODE_BASED_EPT.bits(),
        ),
        (
            secondary::SUB_PAGE_PERMISSIONS,
            SecondaryControls::SUB_PAGE_EPT.bits(),
        ),
        (
            secondary::PT_GUEST_PHYSICAL,
            SecondaryControls::INTEL_PT_GUEST_PHYSICAL.bits(),
        ),
        (
            secondary::TSC_SCALING,
            SecondaryControls::USE_TSC_SCALING.bits(),
        ),
        (
            secondary::USER_WAIT_PAUSE,
            SecondaryControls::ENABLE_USER_WAIT_PAUSE.bits(),
        ),
        (
            secondary::ENCLV_EXITING,
            SecondaryControls::ENCLV_EXITING.bits(),
        ),
        (
            exit::SAVE_DEBUG_CONTROLS,
            ExitControls::SAVE_DEBUG_CONTROLS.bits(),
        ),
        (
            exit::HOST_ADDRESS_SPACE_SIZE,
            ExitControls::HOST_ADDRESS_SPACE_SIZE.bits(),
        ),
        (
            exit::LOAD_PERF_GLOBAL_CTRL,
            ExitControls::LOAD_IA32_PERF_GLOBAL_CTRL.bits(),
        ),
        (
            exit::ACKNOWLEDGE_INTERRUPT,
            ExitControls::ACK_INTERRUPT_ON_EXIT.bits(),
        ),
        (exit::SAVE_PAT, ExitControls::SAVE_IA32_PAT.bits()),
        (exit::LOAD_PAT, ExitControls::LOAD_IA32_PAT.bits()),
        (exit::SAVE_EFER, ExitControls::SAVE_IA32_EFER.bits()),
        (exit::LOAD_EFER, ExitControls::LOAD_IA32_EFER.bits()),
        (
            exit::SAVE_PREEMPTION_TIMER,
            ExitControls::SAVE_VMX_PREEMPTION_TIMER.bits(),
        ),
        (exit::CLEAR_BNDCFGS, ExitControls::CLEAR_IA32_BNDCFGS.bits()),
        (
            exit::CONCEAL_VMX_FROM_PT,
            ExitControls::CONCEAL_VMX_FROM_PT.bits(),
        ),
        (
            exit::CLEAR_RTIT_CTL,
            ExitControls::CLEAR_IA32_RTIT_CTL.bits(),
        ),
        (
            entry::LOAD_DEBUG_CONTROLS,
            EntryControls::LOAD_DEBUG_CONTROLS.bits(),
        ),
        (
            entry::IA32E_MODE_GUEST,
            EntryControls::IA32E_MODE_GUEST.bits(),
        ),
        (entry::ENTRY_TO_SMM, EntryControls::ENTRY_TO_SMM.bits()),
        (
            entry::DEACTIVATE_DUAL_MONITOR,
            EntryControls::DEACTIVATE_DUAL_MONITOR.bits(),
        ),
        (
            entry::LOAD_PERF_GLOBAL_CTRL,
            EntryControls::LOAD_IA32_PERF_GLOBAL_CTRL.bits(),
        ),
        (entry::LOAD_PAT, EntryControls::LOAD_IA32_PAT.bits()),
        (entry::LOAD_EFER, EntryControls::LOAD_IA32_EFER.bits()),
        (entry::LOAD_BNDCFGS, EntryControls::LOAD_IA32_BNDCFGS.bits()),
        (
            entry::CONCEAL_VMX_FROM_PT,
            EntryControls::CONCEAL_VMX_FROM_PT.bits(),
        ),
        (
            entry::LOAD_RTIT_CTL,
            EntryControls::LOAD_IA32_RTIT_CTL.bits(),
        ),
    ];
    for (row, (ours, theirs)) in table.into_iter().enumerate() {
        assert_eq!(ours, theirs, "row {row}");
    }
}

#[test]
fn capability_msrs_are_those_of_the_x86_crate() {
    let table = [
        (msr::FEATURE_CONTROL, x86::msr::IA32_FEATURE_CONTROL),
        (msr::BASIC, x86::msr::IA32_VMX_BASIC),
        (msr::PIN_CONTROLS, x86::msr::IA32_VMX_PINBASED_CTLS),
        (msr::PRIMARY_CONTROLS, x86::msr::IA32_VMX_PROCBASED_CTLS),
        (msr::EXIT_CONTROLS, x86::msr::IA32_VMX_EXIT_CTLS),
        (msr::ENTRY_CONTROLS, x86::msr::IA32_VMX_ENTRY_CTLS),
        (msr::MISC, x86::msr::IA32_VMX_MISC),
        (msr::CR0_FIXED0, x86::msr::IA32_VMX_CR0_FIXED0),
        (msr::CR0_FIXED1, x86::msr::IA32_VMX_CR0_FIXED1),
        (msr::CR4_FIXED0, x86::msr::IA32_VMX_CR4_FIXED0),
        (msr::CR4_FIXED1, x86::msr::IA32_VMX_CR4_FIXED1),
        (msr::VMCS_ENUM, x86::msr::IA32_VMX_VMCS_ENUM),
        (msr::SECONDARY_CONTROLS, x86::msr::IA32_VMX_PROCBASED_CTLS2),
        (msr::EPT_VPID_CAP, x86::msr::IA32_VMX_EPT_VPID_CAP),
        (
            msr::TRUE_PIN_CONTROLS,
            x86::msr::IA32_VMX_TRUE_PINBASED_CTLS,
        ),
        (
            msr::TRUE_PRIMARY_CONTROLS,
            x86::msr::IA32_VMX_TRUE_PROCBASED_CTLS,
        ),
        (msr::TRUE_EXIT_CONTROLS, x86::msr::IA32_VMX_TRUE_EXIT_CTLS),
        (msr::TRUE_ENTRY_CONTROLS, x86::msr::IA32_VMX_TRUE_ENTRY_CTLS),
        (msr::VM_FUNCTIONS, x86::msr::IA32_VMX_VMFUNC),
    ];
    for (ours, theirs) in table {
        assert_eq!(ours, theirs);
    }
}
