//! The kinds of exits: what L2 does, and what L1 does about it in words common to both vendors.
#![allow(unsafe_code, reason = "instructions that L2 exits by")]

use core::arch::asm;

use hypernest_nested::l2exit::Kind;

use super::l2::{Entry, Sample, Shared, Vendor};
use super::vcpu::{Cause, Intercepts, Vcpu};
use crate::cpu;
use crate::text::Text;

/// What L1 does after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was the exit that is measured: its stamps count.
    Resume,
    /// It was another one, which the kind needs beside it.
    ResumeUnmeasured,
    /// Not an exit of this kind.
    Unexpected,
}

/// Why `kind` cannot be had here.
pub(crate) fn lacking(kind: Kind) -> Option<Text> {
    match kind {
        Kind::Cpuid | Kind::Hypercall => None,
        _ => Some(Text::new(format_args!("not made for this guest"))),
    }
}

/// What L1 intercepts for `kind`.
pub(crate) fn intercepts(_kind: Kind) -> Intercepts {
    Intercepts::default()
}

/// L2's code for `kind`.
pub(crate) fn entry(kind: Kind) -> Entry {
    match kind {
        Kind::Hypercall => hypercall,
        _ => cpuid,
    }
}

/// L1's part in one exit of `kind`.
#[inline(always)]
pub(crate) fn handle<V: Vcpu>(kind: Kind, vcpu: &mut V, cause: Cause) -> Step {
    match (kind, cause) {
        (Kind::Cpuid, Cause::Cpuid) => {
            let registers = vcpu.registers();
            registers.rax = 0;
            registers.rbx = 0;
            registers.rcx = 0;
            registers.rdx = 0;
            vcpu.skip(2);
            Step::Resume
        }
        (Kind::Hypercall, Cause::Hypercall) => {
            vcpu.registers().rax = 0;
            vcpu.skip(3);
            Step::Resume
        }
        _ => Step::Unexpected,
    }
}

extern "sysv64" fn cpuid(shared: &'static Shared) -> ! {
    repeat(shared, || _ = cpu::cpuid(0, 0))
}

extern "sysv64" fn hypercall(shared: &'static Shared) -> ! {
    match shared.vendor {
        // SAFETY: L1 changes RAX and nothing else.
        Vendor::Intel => repeat(shared, || unsafe {
            asm!("vmcall", inout("rax") 0_u64 => _, options(nomem, nostack));
        }),
        // SAFETY: the same.
        Vendor::Amd => repeat(shared, || unsafe {
            asm!("vmmcall", inout("rax") 0_u64 => _, options(nomem, nostack));
        }),
    }
}

/// Takes all samples of `operation`.
#[inline(always)]
fn repeat(shared: &'static Shared, operation: impl Fn()) -> ! {
    let take = |sample: &'static Sample| {
        shared.begin_sample(sample);
        let before = cpu::tsc_serialised();
        operation();
        let after = cpu::tsc_serialised();
        sample.take(before, after);
    };
    shared.warmup.iter().for_each(take);
    shared.begin();
    shared.samples.iter().for_each(take);
    shared.end()
}
