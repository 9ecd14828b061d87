//! L2's environment: memory that it shares with L1, and its own descriptor tables.
//!
//! L2 runs in L1's page tables. GS points to [`Shared`], so that L2's handlers find it.
#![allow(unsafe_code, reason = "L2's entry code and interrupt handlers")]

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::board::BoardPage;
use crate::cpu;
use crate::pages::{self, PAGE_SIZE};
use crate::trap::{self, Segments};

/// Time stamps of one exit; 0 is none.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// L2, just before the exit.
    pub(crate) before: AtomicU64,
    /// L1, just after it.
    pub(crate) exited: AtomicU64,
    /// L1, just before it resumes L2.
    pub(crate) resumed: AtomicU64,
    /// L2, just after that.
    pub(crate) after: AtomicU64,
}

impl Sample {
    /// L2 has passed the exit.
    #[inline(always)]
    pub(crate) fn take(&self, before: u64, after: u64) {
        self.before.store(before, Ordering::Relaxed);
        self.after.store(after, Ordering::Relaxed);
    }

    /// L2 was about to exit; its interrupt handler ran first after the exit.
    #[inline(always)]
    pub(crate) fn begin(&self, before: u64) {
        self.before.store(before, Ordering::Relaxed);
    }

    /// Whether L2 has passed the exit.
    #[inline(always)]
    pub(crate) fn is_taken(&self) -> bool {
        self.after.load(Ordering::Acquire) != 0
    }

    fn clear(&self) {
        for stamp in [&self.before, &self.exited, &self.resumed, &self.after] {
            stamp.store(0, Ordering::Relaxed);
        }
    }
}

/// The data that L1 and L2 share on one processor.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Shared {
    /// The processor's number, where [`trap::this_processor`] reads it: L1 may fail while GS is
    /// still L2's.
    pub(crate) order: usize,
    /// The sample that is being taken. L2 sets it before the exit; L1 and L2's interrupt handler fill it in.
    current: AtomicPtr<Sample>,
    /// Interrupts that L2 received.
    interrupts: AtomicU64,
    /// L2: a hypercall's result that was not success.
    pub(crate) refused: AtomicU64,
    /// 1 + the vector of a fatal exception in L2.
    exception: AtomicU64,
    exception_error: AtomicU64,
    exception_rip: AtomicU64,
    exception_address: AtomicU64,
    /// Not 0 while L1 has L2's processor halted.
    halted: AtomicU64,
    /// Not 0 when L1 has aborted this L2.
    failed: AtomicU64,
    /// The data that the second processor's L2 shares with its L1, if there is a second one.
    pub(crate) other: Option<&'static Self>,
    /// Not 0 when L2 has taken all samples; it then executes CPUID forever.
    finished: AtomicU64,
    /// The vendor, for the hypercall instruction.
    pub(crate) vendor: Vendor,
    /// Progress of L1 and L2.
    pub(crate) board: BoardPage,
    /// The warm-up samples, taken first.
    pub(crate) warmup: &'static [Sample],
    /// The samples that count.
    pub(crate) samples: &'static [Sample],
    /// The turns of an empty loop that L2 makes before each exit by CPUID.
    pub(crate) spins: u64,
}

/// The vendor of the virtualization extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    Intel,
    Amd,
}

/// An exception that ended L2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exception {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) address: u64,
}

impl Shared {
    /// For processor `order`, with room for `warmup` samples that do not count and `count` that do.
    pub(crate) fn new(
        order: usize,
        vendor: Vendor,
        board: BoardPage,
        warmup: usize,
        count: usize,
    ) -> &'static mut Self {
        let warmup = samples(warmup.max(1));
        let shared = Self {
            current: AtomicPtr::new(core::ptr::from_ref(&warmup[0]).cast_mut()),
            interrupts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            exception: AtomicU64::new(0),
            exception_error: AtomicU64::new(0),
            exception_rip: AtomicU64::new(0),
            exception_address: AtomicU64::new(0),
            halted: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            other: None,
            finished: AtomicU64::new(0),
            vendor,
            board,
            order,
            warmup,
            samples: samples(count),
            spins: 0,
        };
        const { assert!(size_of::<Self>() as u64 <= PAGE_SIZE) }
        const { assert!(offset_of!(Self, order) == 0) }
        let place = pages::pointer::<Self>(pages::take(1));
        // SAFETY: a separate page, which is aligned and long enough.
        unsafe { place.write(shared) };
        // SAFETY: the same, just initialised, and never freed.
        unsafe { &mut *place }
    }

    /// Discards the last run.
    pub(crate) fn clear(&self) {
        for sample in self.warmup.iter().chain(self.samples) {
            sample.clear();
        }
        for word in [
            &self.interrupts,
            &self.refused,
            &self.exception,
            &self.halted,
            &self.failed,
            &self.finished,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.begin_sample(&self.warmup[0]);
    }

    /// Selects the sample to which the next timestamps belong.
    #[inline(always)]
    pub(crate) fn begin_sample(&self, sample: &'static Sample) {
        let sample = core::ptr::from_ref(sample).cast_mut();
        self.current.store(sample, Ordering::Relaxed);
    }

    /// The current sample.
    #[inline(always)]
    pub(crate) fn sample(&self) -> &'static Sample {
        // SAFETY: `begin_sample` took it from a reference that is never freed; L2's handlers only read it.
        unsafe { &*self.current.load(Ordering::Relaxed) }
    }

    /// The number of interrupts that L2's handler received.
    #[inline(always)]
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// L2's last step before the first sample that counts.
    pub(crate) fn begin(&self) {
        // L0 fills its translations for L2 at L2's first access to a page, which must not cause an exit
        // within a sample.
        self.write_samples();
        self.board.measuring();
    }

    /// Writes to each page of the samples that count.
    pub(crate) fn write_samples(&self) {
        for sample in self.samples {
            sample.clear();
        }
    }

    /// L2's end: all samples are taken.
    pub(crate) fn end(&self) -> ! {
        self.board.measured();
        self.finished.store(1, Ordering::Release);
        loop {
            cpu::cpuid(0, 0);
        }
    }

    /// The address of the samples, for the host.
    pub(crate) fn samples_address(&self) -> u64 {
        self.samples.as_ptr().addr() as u64
    }

    /// The index of the current sample, if it counts.
    pub(crate) fn at(&self) -> Option<usize> {
        let offset = self.current.load(Ordering::Relaxed).addr();
        let offset = offset.checked_sub(self.samples.as_ptr().addr())?;
        Some(offset / size_of::<Sample>()).filter(|&at| at < self.samples.len())
    }

    /// L1 marks L2 as finished from outside. An interrupt that arrives later belongs to no sample.
    pub(crate) fn finish(&self) {
        self.begin_sample(&self.warmup[0]);
        self.finished.store(1, Ordering::Release);
    }

    /// L1 halts L2's processor, or wakes it.
    #[inline(always)]
    pub(crate) fn set_halted(&self, halted: bool) {
        self.halted.store(halted.into(), Ordering::Release);
    }

    /// Whether L2's processor is halted, or about to be.
    #[inline(always)]
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire) != 0
    }

    /// L1 has aborted this L2.
    pub(crate) fn fail(&self) {
        self.failed.store(1, Ordering::Release);
    }

    /// Whether L1 has aborted it.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != 0
    }

    /// Whether L2 has finished.
    #[inline(always)]
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire) != 0
    }

    /// The exception that ended L2, if one did.
    #[inline(always)]
    pub(crate) fn exception(&self) -> Option<Exception> {
        let vector = self.exception.load(Ordering::Acquire).checked_sub(1)?;
        Some(Exception {
            vector,
            error: self.exception_error.load(Ordering::Relaxed),
            rip: self.exception_rip.load(Ordering::Relaxed),
            address: self.exception_address.load(Ordering::Relaxed),
        })
    }
}

fn samples(count: usize) -> &'static [Sample] {
    let bytes = (count * size_of::<Sample>()) as u64;
    let place = pages::pointer::<Sample>(pages::take(bytes.div_ceil(PAGE_SIZE)));
    // SAFETY: separate pages that are never freed, aligned and long enough; zeros are valid samples.
    unsafe { core::slice::from_raw_parts(place, count) }
}

/// L2's entry point: a function in this image, and its stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// An `extern "sysv64" fn(&'static Shared) -> !`.
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    /// The function's argument, in RDI.
    pub(crate) rdi: u64,
}

/// L2's code for a kind.
pub(crate) type Entry = extern "sysv64" fn(&'static Shared) -> !;

const STACK_PAGES: u64 = 4;

/// L2's descriptor tables and stack on one processor. Code is selector 0x08, data 0x10, the task 0x18, as in
/// L1.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) segments: Segments,
    /// 256 gates.
    pub(crate) idt: u64,
    pub(crate) gs_base: u64,
    stack_top: u64,
    shared: &'static Shared,
}

impl Environment {
    pub(crate) fn new(shared: &'static Shared) -> Self {
        let idt = pages::array(512);
        for (vector, gate) in (0..).zip(idt.chunks_exact_mut(2)) {
            let handler = if vector < trap::FIRST_INTERRUPT {
                exceptions as *const () as u64 + vector * trap::STUB_SIZE
            } else {
                interrupted as *const () as u64
            };
            gate.copy_from_slice(&trap::gate(handler));
        }
        Self {
            segments: Segments::new(pages::Page::new(), 0),
            idt: idt.as_ptr().addr() as u64,
            gs_base: core::ptr::from_ref(shared).addr() as u64,
            stack_top: pages::take(STACK_PAGES) + STACK_PAGES * PAGE_SIZE,
            shared,
        }
    }

    /// The entry point of an L2 that runs `entry`.
    pub(crate) fn start(&self, entry: Entry) -> Start {
        Start {
            rip: entry as *const () as u64,
            // The ABI requires RSP = 8 modulo 16 at a function's entry.
            rsp: self.stack_top - 8,
            rdi: core::ptr::from_ref(self.shared).addr() as u64,
        }
    }
}

/// Any interrupt in L2: stamps the current sample's `after`. There is no EOI: the interrupt controller is
/// L1's.
#[unsafe(naked)]
extern "C" fn interrupted() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rcx, gs:[{current}]",
        "mov [rcx + {after}], rax",
        "inc qword ptr gs:[{interrupts}]",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
        current = const offset_of!(Shared, current),
        after = const offset_of!(Sample, after),
        interrupts = const offset_of!(Shared, interrupts),
    )
}

/// 32 entries of [`trap::STUB_SIZE`] bytes. Every exception in L2 is fatal: it is recorded, and L2 waits for
/// L1 to see it.
#[unsafe(naked)]
extern "C" fn exceptions() {
    naked_asm!(
        ".set vector, 0",
        ".rept 32",
        ".balign 16",
        // As in L1's stubs: vectors for which the processor pushes an error code.
        ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || \
         (vector == 29) || (vector == 30)",
        ".else",
        "push 0",
        ".endif",
        "push vector",
        "jmp 2f",
        ".set vector, vector + 1",
        ".endr",
        "2:",
        "pop rax",
        "inc rax",
        "pop rcx",
        "mov gs:[{error}], rcx",
        "pop rcx",
        "mov gs:[{rip}], rcx",
        "mov rcx, cr2",
        "mov gs:[{address}], rcx",
        "mov gs:[{exception}], rax",
        "3:",
        "xor eax, eax",
        "cpuid",
        "jmp 3b",
        error = const offset_of!(Shared, exception_error),
        rip = const offset_of!(Shared, exception_rip),
        address = const offset_of!(Shared, exception_address),
        exception = const offset_of!(Shared, exception),
    )
}
