//! The world switch.
#![allow(unsafe_code, reason = "instructions of SVM")]

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use hypernest_nested::svm::Vmcb;

use super::super::vcpu::Registers;
use crate::pages::Page;

/// Runs the L2 of `vmcb` until its next exit, between [`enter`] and [`leave`].
///
/// # Safety
/// The save area for L1's state is set, and the L2 of `vmcb` accesses none of Rust's memory except
/// L2's.
#[inline(always)]
pub(super) unsafe fn run(
    registers: &mut Registers,
    vmcb: Page,
    resumed: &AtomicU64,
    exited: &AtomicU64,
) {
    // SAFETY: as for the caller; the references are valid for writes during the call.
    unsafe { switch(registers, vmcb.address(), resumed.as_ptr(), exited.as_ptr()) }
}

#[unsafe(naked)]
unsafe extern "sysv64" fn switch(
    registers: *mut Registers,
    vmcb: u64,
    resumed: *mut u64,
    exited: *mut u64,
) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rsi",
        "push rcx",
        "push rdi",
        "mov rax, [rdi + {rax}]",
        "mov [rsi + {vmcb_rax}], rax",
        "mov rbx, rdx",
        // The flag at VMRUN determines whether interrupts for L1 end L2; until then none arrive, since the
        // global flag is clear.
        "sti",
        "lfence",
        "rdtsc",
        "lfence",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rbx], rax",
        "mov rax, rsi",
        "mov rcx, [rdi + {rcx}]",
        "mov rdx, [rdi + {rdx}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rbp, [rdi + {rbp}]",
        "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + {r8}]",
        "mov r9, [rdi + {r9}]",
        "mov r10, [rdi + {r10}]",
        "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]",
        "mov r13, [rdi + {r13}]",
        "mov r14, [rdi + {r14}]",
        "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "vmrun rax",
        // RAX and RSP are L1's again, all others still L2's.
        "mov rax, [rsp]",
        "mov [rax + {rdx}], rdx",
        "mov [rax + {rcx}], rcx",
        "mov rcx, [rsp + 8]",
        "lfence",
        "rdtsc",
        "lfence",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rcx], rax",
        "cli",
        "pop rax",
        "pop rcx",
        "pop rdx",
        "mov [rax + {rbx}], rbx",
        "mov [rax + {rbp}], rbp",
        "mov [rax + {rsi}], rsi",
        "mov [rax + {rdi}], rdi",
        "mov [rax + {r8}], r8",
        "mov [rax + {r9}], r9",
        "mov [rax + {r10}], r10",
        "mov [rax + {r11}], r11",
        "mov [rax + {r12}], r12",
        "mov [rax + {r13}], r13",
        "mov [rax + {r14}], r14",
        "mov [rax + {r15}], r15",
        "mov rcx, [rdx + {vmcb_rax}]",
        "mov [rax + {rax}], rcx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rax = const offset_of!(Registers, rax),
        rcx = const offset_of!(Registers, rcx),
        rdx = const offset_of!(Registers, rdx),
        rbx = const offset_of!(Registers, rbx),
        rbp = const offset_of!(Registers, rbp),
        rsi = const offset_of!(Registers, rsi),
        rdi = const offset_of!(Registers, rdi),
        r8 = const offset_of!(Registers, r8),
        r9 = const offset_of!(Registers, r9),
        r10 = const offset_of!(Registers, r10),
        r11 = const offset_of!(Registers, r11),
        r12 = const offset_of!(Registers, r12),
        r13 = const offset_of!(Registers, r13),
        r14 = const offset_of!(Registers, r14),
        r15 = const offset_of!(Registers, r15),
        vmcb_rax = const offset_of!(Vmcb, save.rax),
    )
}

/// Switches from L1's own state to that of `l2`, up to the switch: interrupts are blocked, and the state that
/// VMRUN does not load (FS, GS, TR, LDTR and the registers of system calls) is L2's.
///
/// # Safety
/// SVM is on, and the code up to [`leave`] can run with the values of that kind in `l2`.
#[inline(always)]
pub(super) unsafe fn enter(l2: Page) {
    // SAFETY: the caller's.
    unsafe { asm!("clgi", "vmload rax", in("rax") l2.address(), options(nostack, preserves_flags)) }
}

/// Switches back to L1's own state, which [`keep`] stored in `own`.
///
/// # Safety
/// After [`enter`] with the same `l2`.
#[inline(always)]
pub(super) unsafe fn leave(l2: Page, own: Page) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "vmsave rax",
            "mov rax, {own}",
            "vmload rax",
            "stgi",
            own = in(reg) own.address(),
            inout("rax") l2.address() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Stores the state that [`leave`] will load in `own`.
///
/// # Safety
/// SVM is on, and `own` has no other use.
pub(super) unsafe fn keep(own: Page) {
    // SAFETY: the caller's.
    unsafe { asm!("vmsave rax", in("rax") own.address(), options(nostack, preserves_flags)) }
}
