//! The local APIC, by MSRs where there is x2APIC, else by memory.
#![allow(unsafe_code, reason = "writes registers that route interrupts")]

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{self, cpuid, rdmsr, wrmsr};
use crate::pages::Device;

const APIC_BASE: u32 = 0x1B;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const DEFAULT_ADDRESS: u64 = 0xFEE0_0000;

// Register numbers of the x2APIC (SDM volume 3, table 12-6); times 16 they are offsets in memory.
const X2APIC: u32 = 0x800;
const EOI: u32 = 0x0B;
const SPURIOUS: u32 = 0x0F;

/// Software-enabled, with 0xFF as the spurious vector.
const ENABLE: u32 = 0x1FF;
const SPURIOUS_VECTOR: u8 = 0xFF;

static X2: AtomicBool = AtomicBool::new(false);

/// Enables this processor's local APIC; on the boot processor it also silences the two 8259s, whose interrupts KVM
/// lets through LINT0 after a reset.
pub(crate) fn set_up() {
    cpu::out8(0x21, 0xFF);
    cpu::out8(0xA1, 0xFF);
    let has_x2apic = cpuid(1, 0).ecx & 1 << 21 != 0;
    let base = rdmsr(APIC_BASE).unwrap_or(DEFAULT_ADDRESS);
    let mode = APIC_BASE_ENABLE | if has_x2apic { APIC_BASE_X2APIC } else { 0 };
    // SAFETY: turns the APIC on where it is.
    let written = unsafe { wrmsr(APIC_BASE, base | mode) };
    X2.store(has_x2apic && written.is_ok(), Ordering::Relaxed);
    write(SPURIOUS, ENABLE);
}

/// Ends the interrupt `vector` on this processor.
pub(crate) fn end_of_interrupt(vector: u8) {
    if vector != SPURIOUS_VECTOR {
        write(EOI, 0);
    }
}

fn write(register: u32, value: u32) {
    if X2.load(Ordering::Relaxed) {
        // SAFETY: an APIC register: no memory of Rust's depends on it.
        // A refused value shows as a missing interrupt.
        let _ = unsafe { wrmsr(X2APIC + register, value.into()) };
    } else if let Some(device) = Device::new(DEFAULT_ADDRESS + u64::from(register) * 16) {
        device.write32(value);
    }
}
