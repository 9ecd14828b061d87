//! Instructions and system calls that have no safe form.
#![allow(
    unsafe_code,
    reason = "CPUID, RDTSC and raw system calls exist as instructions only"
)]

use std::arch::asm;

/// The registers after CPUID: EAX, EBX, ECX, EDX.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: CPUID changes these registers and no memory; RBX, which the compiler reserves, is restored.
    unsafe {
        asm!(
            "mov {saved}, rbx",
            "cpuid",
            "xchg {saved}, rbx",
            saved = out(reg) b,
            inout("eax") leaf => a,
            inout("ecx") subleaf => c,
            out("edx") d,
            options(nomem, nostack, preserves_flags)
        );
    }
    let b = u32::try_from(b).expect("CPUID clears the upper half");
    [a, b, c, d]
}

/// The time-stamp counter, read after all earlier instructions and before all later ones.
pub(crate) fn tsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: RDTSC between fences reads a counter and touches no memory.
    unsafe {
        asm!(
            "lfence",
            "rdtsc",
            "lfence",
            out("rax") low,
            out("rdx") high,
            options(nomem, nostack, preserves_flags)
        );
    }
    (high << 32) | low
}

/// Two readings of the time-stamp counter in a row, without fences.
pub(crate) fn tsc_twice() -> (u64, u64) {
    let (low, high, low2, high2): (u64, u64, u64, u64);
    // SAFETY: RDTSC reads a counter and touches no memory.
    unsafe {
        asm!(
            "rdtsc",
            "mov {low}, rax",
            "mov {high}, rdx",
            "rdtsc",
            low = out(reg) low,
            high = out(reg) high,
            out("rax") low2,
            out("rdx") high2,
            options(nomem, nostack, preserves_flags)
        );
    }
    ((high << 32) | low, (high2 << 32) | low2)
}

/// Whether the kernel permits these instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// RDTSC works.
    pub(crate) tsc: bool,
    /// CPUID works.
    pub(crate) cpuid: bool,
}

/// Queries the kernel whether RDTSC or CPUID would end this process (prctl(2), PR_GET_TSC; arch_prctl(2),
/// ARCH_GET_CPUID). A kernel without these calls permits both instructions.
pub(crate) fn allowed() -> Allowed {
    const ARCH_GET_CPUID: libc::c_ulong = 0x1011;
    let mut mode: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `mode`.
    let asked = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut mode) };
    // SAFETY: the call takes no pointer and changes nothing.
    let cpuid = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_CPUID, 0) };
    Allowed {
        tsc: asked != 0 || mode != libc::PR_TSC_SIGSEGV,
        cpuid: cpuid != 0,
    }
}

/// Requests timers of maximum precision for this thread (prctl(2), PR_SET_TIMERSLACK).
pub(crate) fn exact_timers() -> bool {
    let ns: libc::c_ulong = 1;
    // SAFETY: the call takes no pointer and concerns timers of this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ns) == 0 }
}

/// Reads CLOCK_MONOTONIC by a system call, without the vDSO; the time itself is discarded.
pub(crate) fn clock_by_system_call() -> bool {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec to `time`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clock_gettime,
            libc::CLOCK_MONOTONIC,
            &raw mut time,
        )
    };
    result == 0
}
