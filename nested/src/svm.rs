//! AMD SVM: the virtual-machine control block and its numbers (AMD64 Architecture Programmer's Manual, "APM",
//! volume 2, chapter 15 and appendices B and C), with the area in which Hyper-V's interface extends it.

use core::mem::{offset_of, size_of};

pub mod exit_code;

/// CPUID leaf: EAX 7:0 revision, EBX address-space identifiers, EDX features.
pub const CPUID_LEAF: u32 = 0x8000_000A;
/// Bits of EDX in [`CPUID_LEAF`].
pub mod feature {
    /// Nested paging.
    pub const NESTED_PAGING: u32 = 1 << 0;
    /// VMCB fields LBR and virtual LBR.
    pub const LBR_VIRTUALIZATION: u32 = 1 << 1;
    /// [`super::Control::next_rip`] is supported.
    pub const NEXT_RIP: u32 = 1 << 3;
    /// TSC scaling.
    pub const TSC_RATE: u32 = 1 << 4;
    /// [Clean bits](super::clean).
    pub const CLEAN_BITS: u32 = 1 << 5;
    /// Flushes by address-space identifier.
    pub const FLUSH_BY_ASID: u32 = 1 << 6;
    /// [`super::Control::instruction_bytes`] are supported.
    pub const DECODE_ASSISTS: u32 = 1 << 7;
    /// PAUSE is counted before it exits.
    pub const PAUSE_FILTER: u32 = 1 << 10;
    /// VMLOAD and VMSAVE of a guest need no exit.
    pub const VIRTUAL_VMLOAD_VMSAVE: u32 = 1 << 15;
    /// STGI and CLGI of a guest need no exit.
    pub const VIRTUAL_GIF: u32 = 1 << 16;
}

/// MSRs.
pub mod msr {
    /// EFER.
    pub const EFER: u32 = 0xC000_0080;
    /// [`EFER`]: SVM is on. Must be set in the guest's EFER too.
    pub const EFER_SVME: u64 = 1 << 12;
    /// VM_CR.
    pub const VM_CR: u32 = 0xC001_0114;
    /// [`VM_CR`]: firmware disabled SVM.
    pub const VM_CR_SVMDIS: u64 = 1 << 4;
    /// The page in which VMRUN saves the host's state.
    pub const VM_HSAVE_PA: u32 = 0xC001_0117;
}

/// Words of [`Control::intercepts`] and bits in them.
pub mod intercept {
    /// A word and a bit of it.
    pub type Intercept = (usize, u32);

    /// Read of CR3.
    pub const CR3_READ: Intercept = (0, 1 << 3);
    /// Write of CR0.
    pub const CR0_WRITE: Intercept = (0, 1 << 16);
    /// Write of CR3.
    pub const CR3_WRITE: Intercept = (0, 1 << 19);
    /// Write of CR4.
    pub const CR4_WRITE: Intercept = (0, 1 << 20);
    /// The word of exceptions: one bit per vector.
    pub const EXCEPTIONS: usize = 2;
    /// Page fault.
    pub const PAGE_FAULT: Intercept = (EXCEPTIONS, 1 << 14);
    /// Physical interrupts.
    pub const INTERRUPT: Intercept = (3, 1 << 0);
    /// NMI.
    pub const NMI: Intercept = (3, 1 << 1);
    /// System-management interrupt.
    pub const SMI: Intercept = (3, 1 << 2);
    /// INIT.
    pub const INIT: Intercept = (3, 1 << 3);
    /// A virtual interrupt could be taken.
    pub const VIRTUAL_INTERRUPT: Intercept = (3, 1 << 4);
    /// RDTSC.
    pub const RDTSC: Intercept = (3, 1 << 14);
    /// CPUID.
    pub const CPUID: Intercept = (3, 1 << 18);
    /// INVD.
    pub const INVD: Intercept = (3, 1 << 22);
    /// PAUSE.
    pub const PAUSE: Intercept = (3, 1 << 23);
    /// HLT.
    pub const HLT: Intercept = (3, 1 << 24);
    /// INVLPG.
    pub const INVLPG: Intercept = (3, 1 << 25);
    /// Ports, by the I/O permission map.
    pub const IO: Intercept = (3, 1 << 27);
    /// MSRs, by the MSR permission map.
    pub const MSR: Intercept = (3, 1 << 28);
    /// Triple fault.
    pub const SHUTDOWN: Intercept = (3, 1 << 31);
    /// VMRUN; must be set.
    pub const VMRUN: Intercept = (4, 1 << 0);
    /// VMMCALL.
    pub const VMMCALL: Intercept = (4, 1 << 1);
    /// VMLOAD.
    pub const VMLOAD: Intercept = (4, 1 << 2);
    /// VMSAVE.
    pub const VMSAVE: Intercept = (4, 1 << 3);
    /// STGI.
    pub const STGI: Intercept = (4, 1 << 4);
    /// CLGI.
    pub const CLGI: Intercept = (4, 1 << 5);
    /// SKINIT.
    pub const SKINIT: Intercept = (4, 1 << 6);
    /// RDTSCP.
    pub const RDTSCP: Intercept = (4, 1 << 7);
    /// WBINVD.
    pub const WBINVD: Intercept = (4, 1 << 9);
    /// MONITOR.
    pub const MONITOR: Intercept = (4, 1 << 10);
    /// MWAIT.
    pub const MWAIT: Intercept = (4, 1 << 11);
    /// XSETBV.
    pub const XSETBV: Intercept = (4, 1 << 13);
}

/// Bits of [`Control::clean`]: state that has not changed since the last VMRUN of this VMCB.
pub mod clean {
    /// Intercepts, TSC offset, pause filter.
    pub const INTERCEPTS: u32 = 1 << 0;
    /// Addresses of the permission maps.
    pub const PERMISSION_MAPS: u32 = 1 << 1;
    /// Address-space identifier.
    pub const ASID: u32 = 1 << 2;
    /// Virtual interrupts and task priority.
    pub const INTERRUPTS: u32 = 1 << 3;
    /// Nested paging: its root and PAT.
    pub const NESTED_PAGING: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG_REGISTERS: u32 = 1 << 6;
    /// GDT and IDT.
    pub const DESCRIPTOR_TABLES: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u32 = 1 << 8;
    /// CR2.
    pub const CR2: u32 = 1 << 9;
    /// Last-branch records and DBGCTL.
    pub const LBR: u32 = 1 << 10;
    /// AVIC.
    pub const AVIC: u32 = 1 << 11;
    /// [`super::Enlightenments`], and the content of the MSR permission map if agreed.
    pub const ENLIGHTENMENTS: u32 = 1 << 31;
    /// Everything.
    pub const ALL: u32 = 0x8000_0FFF;
}

/// The format of [`Control::event_injection`] and [`Control::exit_interrupt_info`].
pub mod event {
    /// The field is valid.
    pub const VALID: u32 = 1 << 31;
    /// The event has an error code.
    pub const ERROR_CODE: u32 = 1 << 11;
    /// Type: interrupt.
    pub const INTERRUPT: u32 = 0 << 8;
    /// Type: NMI.
    pub const NMI: u32 = 2 << 8;
    /// Type: exception.
    pub const EXCEPTION: u32 = 3 << 8;
    /// Type: INT n.
    pub const SOFTWARE_INTERRUPT: u32 = 4 << 8;

    /// An interrupt to inject.
    #[must_use]
    pub const fn interrupt(vector: u8) -> u32 {
        VALID | INTERRUPT | vector as u32
    }

    /// An exception to inject; `with_error_code` if the VMCB contains one.
    #[must_use]
    pub const fn exception(vector: u8, with_error_code: bool) -> u32 {
        let error_code = if with_error_code { ERROR_CODE } else { 0 };
        VALID | EXCEPTION | error_code | vector as u32
    }
}

/// [`Control::interrupt_control`]: the guest's RFLAGS.IF masks virtual interrupts only, the host's the
/// physical ones.
pub const MASK_VIRTUAL_INTERRUPTS: u32 = 1 << 24;
/// [`Control::interrupt_control`]: a virtual interrupt is pending.
pub const VIRTUAL_INTERRUPT_PENDING: u32 = 1 << 8;
/// [`Control::interrupt_control`]: the virtual interrupt's priority is not compared with the task's.
pub const IGNORE_TASK_PRIORITY: u32 = 1 << 20;
/// [`Control::interrupt_state`]: the instruction after STI or MOV to SS.
pub const INTERRUPT_SHADOW: u32 = 1 << 0;
/// [`Control::nested_control`]: nested paging is on.
pub const NESTED_PAGING: u64 = 1 << 0;
/// [`Control::tlb_control`]: flush nothing.
pub const FLUSH_NOTHING: u8 = 0;
/// [`Control::tlb_control`]: flush everything.
pub const FLUSH_ALL: u8 = 1;
/// [`Control::tlb_control`]: flush this guest's entries.
pub const FLUSH_GUEST: u8 = 3;
/// Bytes of the I/O permission map.
pub const IO_MAP_LEN: usize = 3 * 4096;
/// Bytes of the MSR permission map.
pub const MSR_MAP_LEN: usize = 2 * 4096;

/// Port access, EXITINFO1: an input.
pub const IO_IN: u64 = 1 << 0;
/// Port access, EXITINFO1: INS or OUTS.
pub const IO_STRING: u64 = 1 << 2;

/// Port access: the port, from EXITINFO1.
#[must_use]
pub const fn io_port(exit_info_1: u64) -> u16 {
    let [_, _, low, high, ..] = exit_info_1.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Port access: its size in bytes, from EXITINFO1.
#[must_use]
pub const fn io_size(exit_info_1: u64) -> u8 {
    (exit_info_1.to_le_bytes()[0] >> 4) & 7
}

/// The position of `msr` in the MSR permission map: a byte, and the bit for reads in it; the next bit is for
/// writes. `None` if the map does not cover it, so that every access exits.
#[must_use]
pub const fn msr_map_bit(msr: u32) -> Option<(usize, u8)> {
    // APM volume 2, 15.11: 2 KiB for each of three ranges, two bits per MSR.
    let base = match msr {
        0..=0x1FFF => 0,
        0xC000_0000..=0xC000_1FFF => 0x800,
        0xC001_0000..=0xC001_1FFF => 0x1000,
        _ => return None,
    };
    let index = (msr & 0x1FFF) as usize;
    let shift = match index % 4 {
        0 => 0,
        1 => 2,
        2 => 4,
        _ => 6,
    };
    Some((base + index / 4, 1 << shift))
}

/// [`Enlightenments::control`]: L0 handles flush hypercalls of this L2.
pub const NESTED_FLUSH_HYPERCALL: u32 = 1 << 0;
/// [`Enlightenments::control`]: [`clean::ENLIGHTENMENTS`] also covers changes to the MSR permission map's
/// content.
pub const ENLIGHTENED_MSR_BITMAP: u32 = 1 << 1;
/// [`Enlightenments::control`]: L1 notifies L0 of changes to its nested page tables by hypercalls.
pub const ENLIGHTENED_NPT_TLB: u32 = 1 << 2;

/// The part of the control area that is reserved for software, as Hyper-V's interface uses it (TLFS,
/// "Enlightened VMCB fields").
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Enlightenments {
    /// The enlightenments that are on.
    pub control: u32,
    /// Virtual processor of L2, as L1 numbers them.
    pub vp_id: u32,
    /// Virtual machine of L2, as L1 numbers them.
    pub vm_id: u64,
    /// GPA of the [`crate::assist::PartitionAssist`].
    pub partition_assist_page: u64,
    /// Reserved.
    pub reserved: u64,
}

/// A segment register.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Access rights, bits 55:52 and 47:40 of the descriptor concatenated.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// [`Segment::attributes`] of 64-bit code at privilege level 0.
pub const CODE_64: u16 = 0x0A9B;
/// [`Segment::attributes`] of flat writable data at privilege level 0.
pub const DATA: u16 = 0x0C93;
/// [`Segment::attributes`] of a busy 64-bit task-state segment.
pub const TSS_64_BUSY: u16 = 0x008B;

macro_rules! area {
    ($(#[doc = $doc:literal])* $name:ident,
        $size:literal; $($(#[doc = $field_doc:literal])* $offset:literal $field:ident: $type:ty,)*) => {
        $(#[doc = $doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $field_doc])* #[doc = concat!("\n\nAt \
                ", stringify!($offset), ".")] pub $field: $type,)*
        }

        const _: () = {
            $(assert!(offset_of!($name, $field) == $offset);)*
            // The table names every gap.
            assert!(0 $(+ size_of::<$type>())* == $size);
            assert!(size_of::<$name>() == $size);
        };
    };
}

area! {
    /// The control area.
    Control, 0x400;
    /// The intercepts ([`intercept`]).
    0x000 intercepts: [u32; 6],
    /// Reserved.
    0x018 reserved_018: [u32; 9],
    /// The longest interval between the pauses of one loop.
    0x03C pause_filter_threshold: u16,
    /// The number of pauses before one exits.
    0x03E pause_filter_count: u16,
    /// I/O permission map.
    0x040 io_map: u64,
    /// MSR permission map.
    0x048 msr_map: u64,
    /// The offset added to the TSC that the guest reads.
    0x050 tsc_offset: u64,
    /// Address-space identifier; 0 is the host's.
    0x058 asid: u32,
    /// The entries that VMRUN flushes.
    0x05C tlb_control: u8,
    /// Reserved.
    0x05D reserved_05d: [u8; 3],
    /// Virtual interrupt and its masking.
    0x060 interrupt_control: u32,
    /// Vector of the virtual interrupt.
    0x064 interrupt_vector: u32,
    /// Interrupt shadow.
    0x068 interrupt_state: u32,
    /// Reserved.
    0x06C reserved_06c: u32,
    /// The reason for the exit ([`exit_code`]).
    0x070 exit_code: u64,
    /// Further information about the exit.
    0x078 exit_info_1: u64,
    /// Further information about the exit.
    0x080 exit_info_2: u64,
    /// The event that was being delivered at the exit ([`event`]).
    0x088 exit_interrupt_info: u32,
    /// That event's error code.
    0x08C exit_interrupt_error_code: u32,
    /// Nested paging and encryption.
    0x090 nested_control: u64,
    /// AVIC's APIC page.
    0x098 avic_apic_bar: u64,
    /// GHCB of an encrypted guest.
    0x0A0 ghcb: u64,
    /// The event that VMRUN injects ([`event`]).
    0x0A8 event_injection: u32,
    /// That event's error code.
    0x0AC event_error_code: u32,
    /// Root of the nested page tables.
    0x0B0 nested_cr3: u64,
    /// Last-branch records, virtual VMLOAD and VMSAVE.
    0x0B8 virtual_extensions: u64,
    /// The state that has not changed ([`clean`](mod@clean)).
    0x0C0 clean: u32,
    /// Reserved.
    0x0C4 reserved_0c4: u32,
    /// RIP of the instruction after the one that exited.
    0x0C8 next_rip: u64,
    /// The number of bytes fetched.
    0x0D0 instruction_length: u8,
    /// The bytes fetched.
    0x0D1 instruction_bytes: [u8; 15],
    /// AVIC's backing page.
    0x0E0 avic_backing_page: u64,
    /// Reserved.
    0x0E8 reserved_0e8: u64,
    /// AVIC's table by logical identifier.
    0x0F0 avic_logical_table: u64,
    /// AVIC's table by physical identifier.
    0x0F8 avic_physical_table: u64,
    /// Reserved.
    0x100 reserved_100: u64,
    /// Save area of an encrypted guest.
    0x108 vmsa: u64,
    /// Reserved.
    0x110 reserved_110: [u8; 720],
    /// Reserved for software.
    0x3E0 enlightenments: Enlightenments,
}

area! {
    /// The state save area.
    Save, 0x2E8;
    /// ES.
    0x000 es: Segment,
    /// CS.
    0x010 cs: Segment,
    /// SS.
    0x020 ss: Segment,
    /// DS.
    0x030 ds: Segment,
    /// FS.
    0x040 fs: Segment,
    /// GS.
    0x050 gs: Segment,
    /// GDTR.
    0x060 gdtr: Segment,
    /// LDTR.
    0x070 ldtr: Segment,
    /// IDTR.
    0x080 idtr: Segment,
    /// TR.
    0x090 tr: Segment,
    /// Reserved.
    0x0A0 reserved_0a0: [u8; 42],
    /// Virtual-machine privilege level.
    0x0CA vmpl: u8,
    /// Privilege level.
    0x0CB cpl: u8,
    /// Reserved.
    0x0CC reserved_0cc: u32,
    /// EFER.
    0x0D0 efer: u64,
    /// Reserved.
    0x0D8 reserved_0d8: [u8; 112],
    /// CR4.
    0x148 cr4: u64,
    /// CR3.
    0x150 cr3: u64,
    /// CR0.
    0x158 cr0: u64,
    /// DR7.
    0x160 dr7: u64,
    /// DR6.
    0x168 dr6: u64,
    /// RFLAGS.
    0x170 rflags: u64,
    /// RIP.
    0x178 rip: u64,
    /// Reserved.
    0x180 reserved_180: [u8; 88],
    /// RSP.
    0x1D8 rsp: u64,
    /// S_CET.
    0x1E0 s_cet: u64,
    /// Shadow-stack pointer.
    0x1E8 ssp: u64,
    /// Interrupt shadow-stack table.
    0x1F0 isst_address: u64,
    /// RAX.
    0x1F8 rax: u64,
    /// STAR.
    0x200 star: u64,
    /// LSTAR.
    0x208 lstar: u64,
    /// CSTAR.
    0x210 cstar: u64,
    /// SFMASK.
    0x218 sfmask: u64,
    /// KernelGSBase.
    0x220 kernel_gs_base: u64,
    /// SYSENTER_CS.
    0x228 sysenter_cs: u64,
    /// SYSENTER_ESP.
    0x230 sysenter_esp: u64,
    /// SYSENTER_EIP.
    0x238 sysenter_eip: u64,
    /// CR2.
    0x240 cr2: u64,
    /// Reserved.
    0x248 reserved_248: [u8; 32],
    /// The guest's PAT under nested paging.
    0x268 pat: u64,
    /// DBGCTL.
    0x270 debugctl: u64,
    /// Last branch, from.
    0x278 branch_from: u64,
    /// Last branch, to.
    0x280 branch_to: u64,
    /// Last exception, from.
    0x288 last_exception_from: u64,
    /// Last exception, to.
    0x290 last_exception_to: u64,
    /// Reserved.
    0x298 reserved_298: [u8; 72],
    /// SPEC_CTRL.
    0x2E0 spec_ctrl: u64,
}

/// The virtual-machine control block: one page.
#[repr(C, align(4096))]
#[derive(Debug, Clone)]
pub struct Vmcb {
    /// Control area.
    pub control: Control,
    /// State save area.
    pub save: Save,
}

const _: () = {
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(size_of::<Vmcb>() == 4096);
    assert!(size_of::<Segment>() == 16);
    assert!(size_of::<Enlightenments>() == 32);
    assert!(offset_of!(Enlightenments, vp_id) == 4);
    assert!(offset_of!(Enlightenments, vm_id) == 8);
    assert!(offset_of!(Enlightenments, partition_assist_page) == 16);
};

#[cfg(test)]
mod tests;
