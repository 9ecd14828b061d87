//! The world switch.
#![allow(unsafe_code, reason = "enters L2")]

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;

use crate::l1::vcpu::Registers;
use crate::pages::{self, PAGE_SIZE};

/// The data that the switch requires on the way back, at the address in the VMCS's host RSP: so that field
/// never changes, independent of the depth of L1's stack.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Frame {
    /// L1's stack pointer while L2 runs.
    rsp: u64,
    resumed: *const AtomicU64,
    exited: *const AtomicU64,
    pub(super) registers: Registers,
}

/// How a VMX instruction failed (SDM volume 3, 32.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// VMfailInvalid: there is no current VMCS.
    Invalid,
    /// VMfailValid: the VMCS has the error.
    Valid,
}

impl Failed {
    /// The failure in RFLAGS after a VMX instruction; `None` if it succeeded.
    pub(super) const fn in_flags(flags: u64) -> Option<Self> {
        if flags & CARRY != 0 {
            Some(Self::Invalid)
        } else if flags & ZERO != 0 {
            Some(Self::Valid)
        } else {
            None
        }
    }
}

impl Frame {
    /// An empty frame in a separate page.
    pub(super) fn new() -> &'static mut Self {
        const { assert!(size_of::<Self>() as u64 <= PAGE_SIZE) }
        let place = pages::pointer::<Self>(pages::take(1));
        let empty = Self {
            rsp: 0,
            resumed: core::ptr::null(),
            exited: core::ptr::null(),
            registers: Registers::default(),
        };
        // SAFETY: a separate page, which is aligned and long enough.
        unsafe { place.write(empty) };
        // SAFETY: the same, just initialised, and never freed.
        unsafe { &mut *place }
    }

    /// The value for the host's RSP.
    pub(super) fn host_rsp(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }

    /// The value for the host's RIP.
    pub(super) fn host_rip() -> u64 {
        leave as *const () as u64
    }

    /// Enters L2 by VMLAUNCH or VMRESUME and returns after its next exit. The stamps are stored as near to
    /// the entry and the exit as possible.
    ///
    /// # Safety
    /// VMX is on; the current VMCS has this frame's [`Frame::host_rsp`] and [`Frame::host_rip`] and otherwise
    /// the state that the processor has now, and lets L2 change no memory that Rust relies on.
    #[inline(always)]
    pub(super) unsafe fn enter(
        &mut self,
        launch: bool,
        resumed: &AtomicU64,
        exited: &AtomicU64,
    ) -> Result<(), Failed> {
        self.resumed = resumed;
        self.exited = exited;
        // SAFETY: as for the caller.
        let flags = unsafe { switch(self, u64::from(launch)) };
        Failed::in_flags(flags).map_or(Ok(()), Err)
    }
}

/// Bits of RFLAGS.
const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;

/// Returns 0 after an exit, and RFLAGS.CF and ZF if the entry failed.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(frame: &mut Frame, launch: u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {rsp}], rsp",
        "mov rsp, rdi",
        "mov rbx, [rsp + {registers} + {rbx}]",
        "mov rbp, [rsp + {registers} + {rbp}]",
        "mov rdi, [rsp + {registers} + {rdi}]",
        "mov r8, [rsp + {registers} + {r8}]",
        "mov r9, [rsp + {registers} + {r9}]",
        "mov r10, [rsp + {registers} + {r10}]",
        "mov r11, [rsp + {registers} + {r11}]",
        "mov r12, [rsp + {registers} + {r12}]",
        "mov r13, [rsp + {registers} + {r13}]",
        "mov r14, [rsp + {registers} + {r14}]",
        "mov r15, [rsp + {registers} + {r15}]",
        "mov rcx, [rsp + {resumed}]",
        "test esi, esi",
        "mov rsi, [rsp + {registers} + {rsi}]",
        "jnz 2f",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rcx], rax",
        "mov rax, [rsp + {registers} + {rax}]",
        "mov rcx, [rsp + {registers} + {rcx}]",
        "mov rdx, [rsp + {registers} + {rdx}]",
        "vmresume",
        "jmp 3f",
        "2:",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rcx], rax",
        "mov rax, [rsp + {registers} + {rax}]",
        "mov rcx, [rsp + {registers} + {rcx}]",
        "mov rdx, [rsp + {registers} + {rdx}]",
        "vmlaunch",
        "3:",
        "mov rsp, [rsp + {rsp}]",
        "pushfq",
        "pop rax",
        "and eax, {carry_and_zero}",
        "jmp {done}",
        rsp = const offset_of!(Frame, rsp),
        resumed = const offset_of!(Frame, resumed),
        registers = const offset_of!(Frame, registers),
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
        carry_and_zero = const CARRY | ZERO,
        done = sym done,
    )
}

/// The target of L2's exits: RSP is the frame's address, RFLAGS are clear, everything else is L2's.
#[unsafe(naked)]
extern "C" fn leave() {
    naked_asm!(
        "mov [rsp + {registers} + {rax}], rax",
        "mov [rsp + {registers} + {rdx}], rdx",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rsp + {registers} + {rcx}], rcx",
        "mov rcx, [rsp + {exited}]",
        "mov [rcx], rax",
        "mov [rsp + {registers} + {rbx}], rbx",
        "mov [rsp + {registers} + {rbp}], rbp",
        "mov [rsp + {registers} + {rsi}], rsi",
        "mov [rsp + {registers} + {rdi}], rdi",
        "mov [rsp + {registers} + {r8}], r8",
        "mov [rsp + {registers} + {r9}], r9",
        "mov [rsp + {registers} + {r10}], r10",
        "mov [rsp + {registers} + {r11}], r11",
        "mov [rsp + {registers} + {r12}], r12",
        "mov [rsp + {registers} + {r13}], r13",
        "mov [rsp + {registers} + {r14}], r14",
        "mov [rsp + {registers} + {r15}], r15",
        "mov rsp, [rsp + {rsp}]",
        "xor eax, eax",
        "jmp {done}",
        rsp = const offset_of!(Frame, rsp),
        exited = const offset_of!(Frame, exited),
        registers = const offset_of!(Frame, registers),
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
        done = sym done,
    )
}

/// The end of [`switch`], on L1's stack.
#[unsafe(naked)]
extern "C" fn done() {
    naked_asm!(
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret",
    )
}
