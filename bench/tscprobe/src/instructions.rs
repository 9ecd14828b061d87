//! An instruction that has no safe form.
#![allow(unsafe_code, reason = "RDTSC exists as an instruction only")]

use std::arch::asm;

/// The time-stamp counter, read after all earlier instructions and before all later ones.
#[inline]
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
            options(nostack, preserves_flags)
        );
    }
    (high << 32) | low
}
