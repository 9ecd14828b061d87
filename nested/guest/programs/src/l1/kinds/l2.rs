//! L2's part of each kind: the same instruction repeatedly, with timestamps before and after.
#![allow(unsafe_code, reason = "instructions that L2 exits by")]

use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::Ordering;

use hypernest_nested::hyperv::hypercall;
use hypernest_nested::l2exit::Kind;

use super::super::l2::{Entry, Sample, Shared, Vendor};
use super::super::second_level::{WINDOW, WINDOW_PAGES};
use super::{GIVE_WAY, KERNEL_GS_BASE, NOWHERE, PORT, SELF, TIMER_TICKS};
use crate::pages::{PAGE_SIZE, Page};
use crate::{apic, cpu};

/// L2's code for `kind`, with or without [`Shared::spins`].
pub(crate) fn entry(kind: Kind, spins: bool) -> Entry {
    match kind {
        Kind::Cpuid if spins => cpuid_after_spins,
        Kind::Cpuid | Kind::BitmapSame | Kind::BitmapChanged => cpuid,
        Kind::Hypercall => hypercalls,
        Kind::Rdmsr | Kind::RdmsrDirect => rdmsr,
        Kind::Wrmsr | Kind::WrmsrDirect => wrmsr,
        Kind::PioOut => output,
        Kind::PioIn => input,
        Kind::Hlt => halt,
        Kind::Interrupt => interrupt,
        Kind::Ipi => interrupt_other,
        Kind::SecondLevelFault => touch_new_pages,
        Kind::Mmio => read_device,
        Kind::CrWrite => write_cr3,
        Kind::PageFault => page_fault,
        Kind::Xsetbv => xsetbv,
        Kind::Pause => pause,
        Kind::Timer => timer,
        Kind::PreemptionTimer => preemption_timer,
        Kind::FlushHypercall => flush,
    }
}

extern "sysv64" fn cpuid(shared: &'static Shared) -> ! {
    dated(shared, || _ = cpu::cpuid(0, 0))
}

/// With interrupts enabled: Bochs 2.7 defers a host's interrupts while its guest has IF = 0, so L0 could not
/// stop L2 in the loop.
extern "sysv64" fn cpuid_after_spins(shared: &'static Shared) -> ! {
    cpu::enable_interrupts();
    repeat(shared, |sample| {
        for turn in 0..shared.spins {
            core::hint::black_box(turn);
        }
        date(sample, || _ = cpu::cpuid(0, 0));
    })
}

extern "sysv64" fn hypercalls(shared: &'static Shared) -> ! {
    dated(shared, || _ = call(shared.vendor, 0, 0))
}

extern "sysv64" fn rdmsr(shared: &'static Shared) -> ! {
    dated(shared, || _ = cpu::rdmsr(KERNEL_GS_BASE))
}

extern "sysv64" fn wrmsr(shared: &'static Shared) -> ! {
    dated(shared, || {
        // SAFETY: only SWAPGS uses it, which no code here uses.
        _ = unsafe { cpu::wrmsr(KERNEL_GS_BASE, 0) };
    })
}

extern "sysv64" fn output(shared: &'static Shared) -> ! {
    dated(shared, || cpu::out8(PORT, 0))
}

extern "sysv64" fn input(shared: &'static Shared) -> ! {
    dated(shared, || _ = cpu::in8(PORT))
}

extern "sysv64" fn write_cr3(shared: &'static Shared) -> ! {
    let root = cpu::page_table_root();
    dated(shared, || {
        // SAFETY: reloads the current value.
        unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
    })
}

extern "sysv64" fn pause(shared: &'static Shared) -> ! {
    dated(shared, core::hint::spin_loop)
}

extern "sysv64" fn xsetbv(shared: &'static Shared) -> ! {
    /// XCR0 with the one state component that must be on.
    const X87: u32 = 1;
    dated(shared, || {
        // SAFETY: L1 intercepts it and does nothing.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") X87, in("edx") 0, options(nostack, preserves_flags));
        }
    })
}

extern "sysv64" fn read_device(shared: &'static Shared) -> ! {
    dated(shared, || read(WINDOW))
}

extern "sysv64" fn page_fault(shared: &'static Shared) -> ! {
    dated(shared, || read(NOWHERE))
}

extern "sysv64" fn touch_new_pages(shared: &'static Shared) -> ! {
    let next = Cell::new(0);
    repeat(shared, |sample| {
        if next.get() == WINDOW_PAGES {
            // All have been touched: requests that L1 unmaps them again.
            call(shared.vendor, 0, 0);
            next.set(0);
        }
        let page = WINDOW + next.get() * PAGE_SIZE;
        date(sample, || read(page));
        next.set(next.get() + 1);
    })
}

extern "sysv64" fn flush(shared: &'static Shared) -> ! {
    // Address space, flags, processors (TLFS, "HvFlushVirtualAddressSpace").
    let page = Page::new();
    page.write64(
        8,
        hypercall::FLUSH_ALL_SPACES | hypercall::FLUSH_ALL_PROCESSORS,
    );
    let control = hypercall::input(hypercall::FLUSH_SPACE, 0, 0);
    dated(shared, || {
        let result = call(shared.vendor, control, page.address());
        if result != 0 {
            shared.refused.store(result, Ordering::Relaxed);
        }
    })
}

extern "sysv64" fn halt(shared: &'static Shared) -> ! {
    interrupted(shared, cpu::halt)
}

extern "sysv64" fn interrupt(shared: &'static Shared) -> ! {
    interrupted(shared, || apic::interrupt_self(SELF))
}

extern "sysv64" fn timer(shared: &'static Shared) -> ! {
    // L1 resumes L2 with its timer running. If the time to the interrupt is too short for L2 to observe it,
    // it is increased.
    let ticks = Cell::new(TIMER_TICKS);
    let again = Cell::new(false);
    spinning(
        shared,
        || {
            if again.replace(true) {
                ticks.set(ticks.get().saturating_mul(2));
            }
            apic::start_timer(ticks.get());
        },
        || again.set(false),
    )
}

extern "sysv64" fn preemption_timer(shared: &'static Shared) -> ! {
    // It runs from each entry on.
    spinning(shared, || (), || ())
}

extern "sysv64" fn interrupt_other(shared: &'static Shared) -> ! {
    // L1 runs this only if there is another processor.
    let other = shared.other.unwrap_or(shared);
    repeat(shared, |sample| {
        other.begin_sample(sample);
        wait_until(shared, || other.is_halted());
        let before = cpu::tsc_serialised();
        call(shared.vendor, 0, 0);
        wait_until(shared, || sample.is_taken());
        sample.begin(before);
    })
}

/// Spins for the usual duration of another processor's part; after that it yields each time, since both may
/// share one CPU of the host.
#[inline(always)]
fn wait_until(shared: &'static Shared, condition: impl Fn() -> bool) {
    const PATIENCE: u32 = 10_000;
    loop {
        for _ in 0..PATIENCE {
            if condition() {
                return;
            }
            core::hint::spin_loop();
        }
        call(shared.vendor, GIVE_WAY, 0);
    }
}

/// L2's code on the second processor: halted except for the first one's interrupts.
pub(crate) extern "sysv64" fn wait(_: &'static Shared) -> ! {
    cpu::enable_interrupts();
    loop {
        cpu::halt();
    }
}

/// Stamps `operation`, which ends before the next instruction.
#[inline(always)]
fn date(sample: &'static Sample, operation: impl Fn()) {
    let before = cpu::tsc_serialised();
    operation();
    let after = cpu::tsc_serialised();
    sample.take(before, after);
}

#[inline(always)]
fn dated(shared: &'static Shared, operation: impl Fn()) -> ! {
    repeat(shared, |sample| date(sample, &operation))
}

/// `provoke` ends in an interrupt, whose handler stamps `after`.
#[inline(always)]
fn interrupted(shared: &'static Shared, provoke: impl Fn()) -> ! {
    cpu::enable_interrupts();
    repeat(shared, |sample| {
        let interrupts = shared.interrupts();
        let before = cpu::tsc_serialised();
        provoke();
        while shared.interrupts() == interrupts {
            core::hint::spin_loop();
        }
        sample.begin(before);
    })
}

/// Spins until the interrupt that `arm` requested arrives: the last time seen before it is `before`. A sample
/// without such a time is repeated; `done` follows one that was not.
#[inline(always)]
fn spinning(shared: &'static Shared, arm: impl Fn(), done: impl Fn()) -> ! {
    cpu::enable_interrupts();
    repeat(shared, |sample| {
        let mut seen = None;
        while seen.is_none() {
            let interrupts = shared.interrupts();
            arm();
            loop {
                let now = cpu::tsc_serialised();
                // Read after the time: a recorded time is before the interrupt.
                if shared.interrupts() != interrupts {
                    break;
                }
                seen = Some(now);
            }
        }
        done();
        sample.begin(seen.unwrap_or(0));
    })
}

/// Takes all samples.
#[inline(always)]
fn repeat(shared: &'static Shared, take: impl Fn(&'static Sample)) -> ! {
    for sample in shared.warmup {
        shared.begin_sample(sample);
        take(sample);
    }
    shared.begin();
    for sample in shared.samples {
        shared.begin_sample(sample);
        take(sample);
    }
    shared.end()
}

/// Two bytes long, a constant in L1.
#[inline(always)]
fn read(address: u64) {
    // SAFETY: reads memory that L1 maps, or L1 steps over the instruction.
    unsafe {
        asm!("mov eax, [rdx]", in("rdx") address, out("eax") _, options(nostack, preserves_flags, readonly));
    }
}

/// A hypercall, directly to L1: L2 has no hypercall page.
#[inline(always)]
fn call(vendor: Vendor, control: u64, input: u64) -> u64 {
    let result;
    match vendor {
        // SAFETY: L1 or L0 changes only RAX.
        Vendor::Intel => unsafe {
            asm!("vmcall", inout("rax") 0_u64 => result, in("rcx") control, in("rdx") input,
                in("r8") 0_u64, options(nostack));
        },
        // SAFETY: the same.
        Vendor::Amd => unsafe {
            asm!("vmmcall", inout("rax") 0_u64 => result, in("rcx") control, in("rdx") input,
                in("r8") 0_u64, options(nostack));
        },
    }
    result
}
