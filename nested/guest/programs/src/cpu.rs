//! Single instructions.
//!
//! Functions that can break only the VM's own state, which these programs do on purpose, are safe; functions
//! that could violate Rust's memory rules are `unsafe`.
#![allow(unsafe_code, reason = "instructions without a Rust equivalent")]

use core::arch::asm;

/// The result of CPUID.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cpuid {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

#[inline(always)]
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let (eax, ebx, ecx, edx);
    // SAFETY: CPUID only writes its four registers; RBX, which the compiler reserves, is restored.
    unsafe {
        asm!(
            "mov {saved:r}, rbx",
            "cpuid",
            "xchg {saved:r}, rbx",
            saved = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
            options(nostack, preserves_flags),
        );
    }
    Cpuid { eax, ebx, ecx, edx }
}

/// The time-stamp counter, read after all earlier instructions have finished and before any later one begins.
#[inline(always)]
pub(crate) fn tsc_serialised() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe {
        asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// An instruction raised an exception, which [`crate::trap`] converted to this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Faulted;

/// Reads a model-specific register; `Faulted` on #GP.
#[inline(always)]
pub(crate) fn rdmsr(msr: u32) -> Result<u64, Faulted> {
    let (low, high): (u32, u32);
    let faulted: u64;
    // SAFETY: reading a register changes no memory; the trap handler steps over the instruction and sets R8
    // on #GP.
    unsafe {
        asm!("xor r8d, r8d", "rdmsr", in("ecx") msr, out("eax") low, out("edx") high, out("r8") faulted,
            options(nostack));
    }
    if faulted == 0 {
        Ok(u64::from(high) << 32 | u64::from(low))
    } else {
        Err(Faulted)
    }
}

/// Writes a model-specific register; `Faulted` on #GP.
///
/// # Safety
/// The register must not take memory away that Rust uses: pages for the hypervisor come from
/// [`crate::pages`] and have no other use, and the registers of paging, segments and system calls stay
/// unchanged.
#[inline(always)]
pub(crate) unsafe fn wrmsr(msr: u32, value: u64) -> Result<(), Faulted> {
    let faulted: u64;
    // SAFETY: the caller guarantees a safe effect; the trap handler steps over the instruction and sets R8 on
    // #GP.
    unsafe {
        asm!(
            "xor r8d, r8d",
            "wrmsr",
            in("ecx") msr,
            in("eax") value & 0xFFFF_FFFF,
            in("edx") value >> 32,
            out("r8") faulted,
            options(nostack),
        );
    }
    if faulted == 0 { Ok(()) } else { Err(Faulted) }
}

#[inline(always)]
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: no device of these machines writes memory because of a port write that the programs make.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes each of `bytes` to `port` by one `rep outsb`.
pub(crate) fn out_string8(port: u16, bytes: &[u8]) {
    // SAFETY: as in `out8`; the instruction reads `bytes` and nothing else, and the ABI has the direction
    // flag clear.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly));
    }
}

#[inline(always)]
pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads `bytes` from a port in sequence, by one string instruction.
pub(crate) fn in8_string(port: u16, bytes: &mut [u8]) {
    // SAFETY: writes as many bytes as the slice has, upwards: the ABI keeps the direction flag clear.
    unsafe {
        asm!(
            "rep insb",
            in("dx") port,
            inout("rdi") bytes.as_mut_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags),
        );
    }
}

#[inline(always)]
pub(crate) fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

pub(crate) fn enable_interrupts() {
    // SAFETY: handlers are set up before this is called.
    unsafe { asm!("sti", options(nomem, nostack)) }
}

pub(crate) fn disable_interrupts() {
    // SAFETY: changes only when handlers run.
    unsafe { asm!("cli", options(nomem, nostack)) }
}

/// With interrupts off: enables them and waits for one, without a gap in between.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "hlt", options(nomem, nostack)) }
}

/// Waits for an interrupt.
#[inline(always)]
pub(crate) fn halt() {
    // SAFETY: waits.
    unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) }
}

/// Accepts pending interrupts, and then disables interrupts.
pub(crate) fn take_interrupts() {
    // An interrupt is delivered after the instruction that follows STI.
    // SAFETY: as for `enable_interrupts`.
    unsafe { asm!("sti", "nop", "cli", options(nomem, nostack)) }
}

pub(crate) fn cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

pub(crate) fn cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Whether the processor has XSAVE, and so XSETBV.
pub(crate) fn has_xsave() -> bool {
    cpuid(1, 0).ecx & 1 << 26 != 0
}

/// Enables XSETBV, if [`has_xsave`].
pub(crate) fn enable_xsave() {
    const OSXSAVE: u64 = 1 << 18;
    // SAFETY: sets a bit that the processor supports; it only enables more instructions.
    unsafe { asm!("mov cr4, {}", in(reg) cr4() | OSXSAVE, options(nostack, preserves_flags)) }
}

/// The address of the page tables.
pub(crate) fn page_table_root() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Flushes this processor's translations.
pub(crate) fn flush_own_translations() {
    // SAFETY: reloads the current value.
    unsafe {
        asm!("mov {value}, cr3", "mov cr3, {value}", value = out(reg) _, options(nostack, preserves_flags));
    }
}

/// Stops this processor permanently.
pub(crate) fn halt_forever() -> ! {
    loop {
        // SAFETY: waits; with interrupts off only a reset or an NMI ends it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Loops forever without an exit, interrupts off.
pub(crate) fn spin_forever() -> ! {
    loop {
        // SAFETY: does nothing.
        unsafe { asm!("cli", "pause", options(nomem, nostack)) }
    }
}

/// An undefined instruction.
pub(crate) fn undefined() {
    // SAFETY: raises #UD, which the trap handler reports before it ends the run.
    unsafe { asm!("ud2", options(nomem, nostack)) }
}

/// Makes the processor shut down: raises an exception with an empty descriptor table.
pub(crate) fn triple_fault() -> ! {
    let empty = [0_u16; 5];
    // SAFETY: the machine resets or stops here; nothing continues.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

/// Jumps to `address`.
///
/// # Safety
/// The code there must not return or break anything that Rust relies on while it still runs.
pub(crate) unsafe fn jump(address: u64) -> ! {
    // SAFETY: the caller's.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}
