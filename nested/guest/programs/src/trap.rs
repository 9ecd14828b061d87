//! Exceptions and interrupts.
//!
//! Every vector is handled on a separate interrupt stack (so that the prebuilt `core`, which uses the red
//! zone, is never disturbed), and its processor counts it. Two exceptions are expected and stepped over: #GP
//! of RDMSR and WRMSR, which leaves R8 non-zero, and #UD of VMCALL and VMMCALL, which leaves RAX with
//! [`NO_HYPERCALL`]. Any other one is reported and ends the run.
#![allow(unsafe_code, reason = "descriptor tables and interrupt entry")]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::pages::{self, PAGE_SIZE, as_usize};
use crate::{Exit, MAX_CPUS, apic, cpu, l1, say};

/// The result of a hypercall whose instruction does not exist here; no hypervisor returns it.
pub(crate) const NO_HYPERCALL: u64 = u64::MAX;

const GP: u64 = 13;
const UD: u64 = 6;
pub(crate) const FIRST_INTERRUPT: u64 = 32;
pub(crate) const STUB_SIZE: u64 = 16;
const IST_PAGES: u64 = 4;
/// Selectors in the tables of [`Segments`].
pub(crate) const CODE: u16 = 0x08;
pub(crate) const DATA: u16 = 0x10;
pub(crate) const TSS: u16 = 0x18;
const GS_BASE: u32 = 0xC000_0101;

static COUNTS: [[AtomicU32; 256]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; 256] }; MAX_CPUS];

/// The number of times that `vector` was delivered to processor `order`.
pub(crate) fn count(order: usize, vector: u8) -> u32 {
    COUNTS[order][usize::from(vector)].load(Ordering::Acquire)
}

/// Sends the EOI of interrupt `vector` on processor `order` and counts it.
pub(crate) fn took(order: usize, vector: u8) {
    apic::end_of_interrupt(order, vector);
    COUNTS[order][usize::from(vector)].fetch_add(1, Ordering::Release);
}

/// The data that the entry stub pushed: registers, then what it and the processor pushed.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// 256 entries of [`STUB_SIZE`] bytes, each pushing an error code, if the processor did not, and its vector.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
        ".set vector, 0",
        ".rept 256",
        ".balign 16",
        // Vectors with an error code (SDM volume 3, table 7-1; APM volume 2, section 8.2).
        ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || \
         (vector == 29) || (vector == 30)",
        ".else",
        "push 0",
        ".endif",
        "push vector",
        "jmp {entry}",
        ".set vector, vector + 1",
        ".endr",
        entry = sym entry,
    )
}

#[unsafe(naked)]
extern "C" fn entry() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "mov rbp, rsp",
        "and rsp, -16",
        "sub rsp, 512",
        "fxsave64 [rsp]",
        "call {handle}",
        "fxrstor64 [rsp]",
        "mov rsp, rbp",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        handle = sym handle,
    )
}

extern "sysv64" fn handle(frame: &mut Frame) {
    // The stubs push no other vector.
    let vector = (frame.vector & 0xFF) as u8;
    let order = this_processor();
    if frame.vector >= FIRST_INTERRUPT {
        took(order, vector);
        return;
    }
    let code = if matches!(frame.vector, GP | UD) {
        let rip = core::ptr::with_exposed_provenance::<[u8; 3]>(as_usize(frame.rip));
        // SAFETY: the processor has just fetched an instruction there, and the image continues after it: none
        // of the decoded instructions is the last thing in a mapped region.
        unsafe { rip.read() }
    } else {
        [0; 3]
    };
    match (frame.vector, code) {
        // RDMSR, WRMSR.
        (GP, [0x0F, 0x32 | 0x30, _]) => {
            frame.r8 = 1;
            frame.rip += 2;
        }
        // VMCALL, VMMCALL.
        (UD, [0x0F, 0x01, 0xC1 | 0xD9]) => {
            frame.rax = NO_HYPERCALL;
            frame.rip += 3;
        }
        _ => {
            say!(
                "EXCEPTION {} on processor {order}: rip {:#x} error {:#x} cr2 {:#x} rsp {:#x} rflags {:#x}",
                frame.vector,
                frame.rip,
                frame.error,
                cpu::fault_address(),
                frame.rsp,
                frame.rflags
            );
            l1::say_last_stamp();
            crate::end(Exit::Panicked);
        }
    }
}

/// The number under which [`set_up`] was called on this processor.
pub(crate) fn this_processor() -> usize {
    let order: u64;
    // SAFETY: `set_up` stored the number at the start of GS, and no handler runs before.
    unsafe { asm!("mov {}, gs:[0]", out(reg) order, options(nostack, preserves_flags, readonly)) }
    // A bound for the compiler: the number is never beyond.
    as_usize(order).min(MAX_CPUS - 1)
}

/// A descriptor table and a task with a separate interrupt stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments {
    pub(crate) gdt: u64,
    pub(crate) tss: u64,
}

impl Segments {
    /// The limit of the descriptor table: its bytes minus one.
    pub(crate) const GDT_LIMIT: u16 = 5 * 8 - 1;
    /// The limit of the task: its bytes minus one.
    pub(crate) const TSS_LIMIT: u16 = 104 - 1;

    /// Writes them into `page`, the descriptor table at `at`, below 88.
    pub(crate) fn new(page: pages::Page, at: usize) -> Self {
        let segments = Self::at(page, at);
        let tss = segments.tss;
        let ist_top = pages::take(IST_PAGES) + IST_PAGES * PAGE_SIZE;
        // IST1 is at offset 36 of the TSS, misaligned for 64 bits.
        page.write32(TSS_AT + 36, (ist_top & 0xFFFF_FFFF) as u32);
        page.write32(TSS_AT + 40, (ist_top >> 32) as u32);
        page.write32(TSS_AT + 100, (u32::from(Self::TSS_LIMIT) + 1) << 16); // no I/O bitmap

        let gdt = [
            0,
            0x00AF_9B00_0000_FFFF, // 64-bit code
            0x00CF_9300_0000_FFFF, // data
            u64::from(Self::TSS_LIMIT)
                | (tss & 0xFF_FFFF) << 16
                | 0x89 << 40
                | (tss >> 24 & 0xFF) << 56, // available 64-bit TSS
            tss >> 32,
        ];
        for (index, entry) in gdt.iter().enumerate() {
            page.write64(at + index * 8, *entry);
        }
        segments
    }

    /// Those in `page`.
    const fn at(page: pages::Page, at: usize) -> Self {
        Self {
            gdt: page.address() + at as u64,
            tss: page.address() + TSS_AT as u64,
        }
    }
}

const TSS_AT: usize = 128;

/// A present 64-bit interrupt gate to `handler`, on the task's interrupt stack.
pub(crate) const fn gate(handler: u64) -> [u64; 2] {
    [
        handler & 0xFFFF
            | (CODE as u64) << 16
            | 1 << 32
            | 0x8E << 40
            | (handler >> 16 & 0xFFFF) << 48,
        handler >> 32,
    ]
}

/// A processor's tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tables {
    pub(crate) segments: Segments,
    pub(crate) idt: u64,
    pub(crate) gs_base: u64,
}

/// The limit of any interrupt descriptor table here: its bytes minus one.
pub(crate) const IDT_LIMIT: u16 = 256 * 16 - 1;
// Offsets in the page that GS points to.
const GDT_AT: usize = 8;
const IDT_ADDRESS_AT: usize = 48;

/// This processor's tables.
pub(crate) fn tables() -> Tables {
    let gs_base = cpu::rdmsr(GS_BASE).unwrap_or(0);
    let page = pages::Page::existing(gs_base).expect("tables are set up before they are asked for");
    Tables {
        segments: Segments::at(page, GDT_AT),
        idt: page.read64(IDT_ADDRESS_AT),
        gs_base,
    }
}

/// Sets up this processor's descriptor tables and interrupt stack.
pub(crate) fn set_up(order: usize) {
    // One page contains, at fixed offsets: this processor's number, its GDT, its TSS, the address of its IDT.
    let page = pages::Page::new();
    page.write64(0, order as u64);
    let segments = Segments::new(page, GDT_AT);

    let idt = pages::array(512);
    let stub = stubs as *const () as u64;
    for (vector, entry) in (0..).zip(idt.chunks_exact_mut(2)) {
        let at: u64 = stub + vector * STUB_SIZE;
        entry.copy_from_slice(&gate(at));
    }
    page.write64(IDT_ADDRESS_AT, idt.as_ptr().addr() as u64);

    let gdtr = table_register(segments.gdt, Segments::GDT_LIMIT);
    let idtr = table_register(page.read64(IDT_ADDRESS_AT), IDT_LIMIT);
    // SAFETY: the tables are never freed; code and data selectors have the same meaning as in the start-up's
    // table.
    unsafe {
        asm!(
            "lgdt [{gdtr}]",
            "lidt [{idtr}]",
            "ltr {tss:x}",
            gdtr = in(reg) &raw const gdtr,
            idtr = in(reg) &raw const idtr,
            tss = in(reg) TSS,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: no other code uses GS.
    let written = unsafe { cpu::wrmsr(GS_BASE, page.address()) };
    assert_eq!(written, Ok(()), "GS base");
}

/// The operand of LGDT and LIDT: limit and address, ten bytes.
fn table_register(address: u64, limit: u16) -> [u16; 5] {
    let word = |value: u64, shift: u32| (value >> shift & 0xFFFF) as u16;
    [
        limit,
        word(address, 0),
        word(address, 16),
        word(address, 32),
        word(address, 48),
    ]
}
