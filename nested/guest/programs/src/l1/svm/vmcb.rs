//! L2's VMCB.

use core::mem::offset_of;

use hypernest_nested::l2exit::Touch;
use hypernest_nested::svm::intercept::{self, Intercept};
use hypernest_nested::svm::{self, clean, event};

use super::super::l2::{Environment, Start};
use super::super::vcpu::Intercepts;
use super::permissions::Permissions;
use crate::cpu;
use crate::pages::Page;
use crate::trap::{self, Segments};

/// The address space identifier of the one L2; only 0 is L1's.
const ASID: u32 = 1;
/// DR6 and DR7 after a reset.
const DR6: u64 = 0xFFFF_0FF0;
const DR7: u64 = 0x400;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;
const PAT: u32 = 0x277;
const EFER: u32 = 0xC000_0080;

macro_rules! at {
    ($($field:tt)+) => { offset_of!(svm::Vmcb, $($field)+) };
}

/// The intercepts of every L2: events that concern L1, and operations that L2 must not perform.
const ALWAYS: [Intercept; 15] = [
    intercept::INTERRUPT,
    intercept::NMI,
    intercept::INIT,
    intercept::CPUID,
    intercept::MSR,
    intercept::SHUTDOWN,
    intercept::VMRUN,
    intercept::VMMCALL,
    intercept::VMLOAD,
    intercept::VMSAVE,
    intercept::STGI,
    intercept::CLGI,
    intercept::SKINIT,
    intercept::XSETBV,
    intercept::INVD,
];

/// The VMCB of the one L2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vmcb(Page);

impl Vmcb {
    pub(super) fn new() -> Self {
        Self(Page::new())
    }

    pub(super) const fn page(self) -> Page {
        self.0
    }

    /// Sets L2's intercepts and permissions.
    pub(super) fn set_up(
        self,
        permissions: &mut Permissions,
        intercepts: &Intercepts,
        nested_cr3: u64,
    ) {
        let Self(page) = self;
        let chosen = [
            (intercepts.ports, intercept::IO),
            (intercepts.halt, intercept::HLT),
            (intercepts.pause, intercept::PAUSE),
            (intercepts.cr3, intercept::CR3_WRITE),
            (intercepts.page_fault, intercept::PAGE_FAULT),
        ];
        let chosen = chosen
            .into_iter()
            .filter_map(|(wanted, one)| wanted.then_some(one));
        let mut vectors = [0; 6];
        for (word, bit) in ALWAYS.into_iter().chain(chosen) {
            vectors[word] |= bit;
        }
        for (index, vector) in vectors.into_iter().enumerate() {
            page.write32(at!(control.intercepts) + index * 4, vector);
        }
        page.write64(at!(control.io_map), permissions.io());
        page.write64(at!(control.msr_map), permissions.msr());
        page.write32(at!(control.asid), ASID);
        page.write8(at!(control.tlb_control), svm::FLUSH_ALL);
        page.write32(at!(control.interrupt_control), svm::MASK_VIRTUAL_INTERRUPTS);
        page.write32(at!(control.interrupt_state), 0);
        page.write64(at!(control.event_injection), 0);
        page.write64(at!(control.nested_control), svm::NESTED_PAGING);
        page.write64(at!(control.nested_cr3), nested_cr3);
        // The first entry reads everything.
        page.write32(at!(control.clean), 0);
    }

    /// Sets L2's entry point: the state of L1's own code, with separate tables.
    pub(super) fn begin(self, environment: &Environment, start: Start) {
        let Self(page) = self;
        let segment = |at, selector: u16, attributes: u16, base: u64, limit: u64| {
            page.write64(
                at,
                u64::from(selector) | u64::from(attributes) << 16 | limit << 32,
            );
            page.write64(at + 8, base);
        };
        const FLAT: u64 = 0xFFFF_FFFF;
        segment(at!(save.cs), trap::CODE, svm::CODE_64, 0, FLAT);
        for at in [at!(save.es), at!(save.ss), at!(save.ds)] {
            segment(at, trap::DATA, svm::DATA, 0, FLAT);
        }
        segment(at!(save.fs), 0, 0, 0, 0);
        segment(at!(save.gs), 0, 0, environment.gs_base, 0);
        segment(at!(save.ldtr), 0, 0, 0, 0);
        let Segments { gdt, tss } = environment.segments;
        segment(
            at!(save.tr),
            trap::TSS,
            svm::TSS_64_BUSY,
            tss,
            Segments::TSS_LIMIT.into(),
        );
        segment(at!(save.gdtr), 0, 0, gdt, Segments::GDT_LIMIT.into());
        segment(
            at!(save.idtr),
            0,
            0,
            environment.idt,
            trap::IDT_LIMIT.into(),
        );
        page.write64(at!(save.efer), cpu::rdmsr(EFER).unwrap_or(0));
        page.write64(at!(save.cr0), cpu::cr0());
        page.write64(at!(save.cr3), cpu::page_table_root());
        page.write64(at!(save.cr4), cpu::cr4());
        page.write64(at!(save.pat), cpu::rdmsr(PAT).unwrap_or(0));
        page.write64(at!(save.dr6), DR6);
        page.write64(at!(save.dr7), DR7);
        page.write64(at!(save.rflags), RFLAGS);
        page.write64(at!(save.rip), start.rip);
        page.write64(at!(save.rsp), start.rsp);
        page.write64(at!(save.rax), 0);
        page.write64(at!(save.cr2), 0);
    }

    /// The area that Hyper-V defines for software (TLFS, "Nested virtualization": enlightened VMCB fields).
    pub(super) fn enlighten(self, control: u32, processor: u32, guest: u64, partition_assist: u64) {
        let Self(page) = self;
        page.write32(at!(control.enlightenments.control), control);
        page.write32(at!(control.enlightenments.vp_id), processor);
        page.write64(at!(control.enlightenments.vm_id), guest);
        page.write64(
            at!(control.enlightenments.partition_assist_page),
            partition_assist,
        );
    }

    /// A group of [`clean`](mod@clean) has changed.
    #[inline(always)]
    pub(super) fn mark(self, group: u32) {
        let clean = self.0.read32(at!(control.clean));
        self.0.write32(at!(control.clean), clean & !group);
    }

    /// After each exit: nothing is changed yet, and an event whose delivery to L2 was interrupted by the exit
    /// is injected again.
    #[inline(always)]
    pub(super) fn exited(self) {
        let Self(page) = self;
        page.write32(at!(control.clean), clean::ALL);
        page.write8(at!(control.tlb_control), svm::FLUSH_NOTHING);
        let cut_short = page.read32(at!(control.exit_interrupt_info));
        page.write32(
            at!(control.event_injection),
            if cut_short & event::VALID == 0 {
                0
            } else {
                cut_short
            },
        );
    }

    #[inline(always)]
    pub(super) fn exit_code(self) -> u64 {
        self.0.read64(at!(control.exit_code))
    }

    #[inline(always)]
    pub(super) fn exit_info_1(self) -> u64 {
        self.0.read64(at!(control.exit_info_1))
    }

    #[inline(always)]
    pub(super) fn exit_info_2(self) -> u64 {
        self.0.read64(at!(control.exit_info_2))
    }

    #[inline(always)]
    pub(super) fn rip(self) -> u64 {
        self.0.read64(at!(save.rip))
    }

    /// L2 continues after an instruction.
    #[inline(always)]
    pub(super) fn skip(self, length: u64) {
        self.0.write64(at!(save.rip), self.rip() + length);
    }

    /// The next entry delivers an interrupt.
    #[inline(always)]
    pub(super) fn inject(self, vector: u8) {
        self.0
            .write32(at!(control.event_injection), event::interrupt(vector));
        // The previous instruction is complete, and so is its interrupt shadow.
        self.0.write32(at!(control.interrupt_state), 0);
    }

    /// The next entry flushes translations.
    pub(super) fn flush(self) {
        self.0.write8(at!(control.tlb_control), svm::FLUSH_ALL);
        self.mark(clean::ASID);
    }

    /// Memory that a hypervisor like this one accesses on each exit beyond its own needs.
    #[inline(always)]
    pub(super) fn touch(self, touch: Touch) {
        match touch {
            Touch::Minimal => {}
            Touch::KvmLike => self.touch_like_kvm(),
            Touch::HypervLike => self.touch_like_hyperv(),
            Touch::Fields { reads, writes } => self.touch_fields(reads, writes),
        }
    }

    /// Linux 6.12, arch/x86/kvm/svm/svm.c: `svm_vcpu_run` copies RAX, RSP, RIP and CR2 in and out,
    /// `sync_lapic_to_cr8` writes INT_CTL and `sync_cr8_to_lapic` reads it, `svm_complete_interrupts` and
    /// `svm_handle_exit` read the exit code, EXITINTINFO, CR0 and CR3, and `svm_set_interrupt_shadow` clears
    /// the interrupt state.
    #[inline(always)]
    fn touch_like_kvm(self) {
        let Self(page) = self;
        for at in [at!(save.rax), at!(save.rsp), at!(save.cr2)] {
            page.write64(at, page.read64(at));
        }
        let control = page.read32(at!(control.interrupt_control));
        page.write32(at!(control.interrupt_control), control);
        for at in [
            at!(control.next_rip),
            at!(control.exit_info_1),
            at!(control.exit_info_2),
            at!(save.cr0),
            at!(save.cr3),
            at!(save.rflags),
        ] {
            page.read64(at);
        }
        page.write32(at!(control.interrupt_state), 0);
    }

    /// An estimate: reads the exit's information block and the general state, and writes the few fields that
    /// follow from handling it.
    #[inline(always)]
    fn touch_like_hyperv(self) {
        let Self(page) = self;
        for at in [
            at!(control.exit_info_1),
            at!(control.exit_info_2),
            at!(control.exit_interrupt_info),
            at!(control.next_rip),
            at!(save.rflags),
            at!(save.cs),
            at!(save.cr0),
            at!(save.cr3),
            at!(save.cr4),
            at!(save.efer),
        ] {
            page.read64(at);
        }
        page.write64(at!(save.rsp), page.read64(at!(save.rsp)));
        page.write32(
            at!(control.interrupt_control),
            page.read32(at!(control.interrupt_control)),
        );
        page.write32(at!(control.interrupt_state), 0);
    }

    /// Fields that no exit here depends on, in sequence; a written one keeps its value.
    #[inline(always)]
    fn touch_fields(self, reads: u32, writes: u32) {
        const FIELDS: [usize; 8] = [
            at!(save.rsp),
            at!(save.rflags),
            at!(save.cr0),
            at!(save.cr3),
            at!(save.cr4),
            at!(save.cr2),
            at!(save.dr6),
            at!(save.pat),
        ];
        let Self(page) = self;
        for (_, at) in (0..reads).zip(FIELDS.into_iter().cycle()) {
            page.read64(at);
        }
        for (_, at) in (0..writes).zip(FIELDS.into_iter().cycle()) {
            page.write64(at, page.read64(at));
        }
    }
}
