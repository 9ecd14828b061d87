//! The local APIC, accessed by MSRs if there is x2APIC, else by memory.
#![allow(unsafe_code, reason = "writes registers that route interrupts")]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use hypernest_nested::hyperv::msr;

use crate::cpu::{self, cpuid, rdmsr, wrmsr};
use crate::hypercall::write_register;
use crate::pages::{Device, Page};

const APIC_BASE: u32 = 0x1B;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const DEFAULT_ADDRESS: u64 = 0xFEE0_0000;

// Register numbers of the x2APIC (SDM volume 3, table 12-6); times 16 they are offsets in memory.
const X2APIC: u32 = 0x800;
const EOI: u32 = 0x0B;
const SPURIOUS: u32 = 0x0F;
const ICR: u32 = 0x30;
const LVT_TIMER: u32 = 0x32;
const INITIAL_COUNT: u32 = 0x38;
const DIVIDE: u32 = 0x3E;
/// [`DIVIDE`]: the timer counts each tick (SDM volume 3, figure 12-10).
const DIVIDE_BY_1: u32 = 0b1011;

/// [`LVT_TIMER`]: the timer counts the TSC (SDM volume 3, section 11.5.4.1).
const BY_DEADLINE: u32 = 2 << 17;
const TSC_DEADLINE: u32 = 0x6E0;

// Fields of the interrupt command register (SDM volume 3, figure 12-12).
const INIT: u32 = 5 << 8;
const START_UP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const SELF: u32 = 1 << 18;
const OTHERS: u32 = 3 << 18;

/// Software-enabled, with 0xFF as the spurious vector.
const ENABLE: u32 = 0x1FF;
const SPURIOUS_VECTOR: u8 = 0xFF;

static X2: AtomicBool = AtomicBool::new(false);

/// Enables this processor's local APIC; on the boot processor it also silences the two 8259s, whose
/// interrupts KVM lets through LINT0 after a reset.
pub(crate) fn set_up() {
    cpu::out8(0x21, 0xFF);
    cpu::out8(0xA1, 0xFF);
    let has_x2apic = cpuid(1, 0).ecx & 1 << 21 != 0;
    let base = rdmsr(APIC_BASE).unwrap_or(DEFAULT_ADDRESS);
    let mode = APIC_BASE_ENABLE | if has_x2apic { APIC_BASE_X2APIC } else { 0 };
    // SAFETY: enables the APIC at its current address.
    let written = unsafe { wrmsr(APIC_BASE, base | mode) };
    X2.store(has_x2apic && written.is_ok(), Ordering::Relaxed);
    write(SPURIOUS, ENABLE);
}

/// How the boot processor ends an interrupt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EndBy {
    /// The APIC's own register.
    Apic,
    /// The synthetic register.
    Synthetic,
    /// By no write if its VP assist page permits that, else by the APIC's own register.
    Assist(Page),
}

static SYNTHETIC_EOI: AtomicBool = AtomicBool::new(false);
/// The address of the boot processor's assist page while it is used, else 0.
static ASSIST: AtomicU64 = AtomicU64::new(0);
static SPARED: AtomicU32 = AtomicU32::new(0);

/// Sets how the boot processor ends interrupts from now on.
pub(crate) fn end_interrupts_by(way: EndBy) {
    SYNTHETIC_EOI.store(matches!(way, EndBy::Synthetic), Ordering::Relaxed);
    let assist = if let EndBy::Assist(page) = way {
        page.address()
    } else {
        0
    };
    ASSIST.store(assist, Ordering::Relaxed);
}

/// The number of EOIs that the assist page has avoided so far.
pub(crate) fn ends_spared() -> u32 {
    SPARED.load(Ordering::Relaxed)
}

/// Ends the interrupt `vector` on processor `order`.
pub(crate) fn end_of_interrupt(order: usize, vector: u8) {
    if vector == SPURIOUS_VECTOR {
        return;
    }
    let boot_processor = order == 0;
    if boot_processor && let Some(page) = Page::existing(ASSIST.load(Ordering::Relaxed)) {
        // TLFS, "Virtual interrupt controller": bit 0 of the first word is "no EOI required", reset by the
        // guest.
        if page.swap32(0, 0) & 1 != 0 {
            SPARED.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
    if boot_processor && SYNTHETIC_EOI.load(Ordering::Relaxed) {
        // A refused write is detected by the missing second interrupt.
        let _ = write_register(msr::EOI, 0);
    } else {
        write(EOI, 0);
    }
}

/// Resets every other processor.
pub(crate) fn init_others() {
    write(ICR, INIT | ASSERT | OTHERS);
}

/// Starts every other processor that waits for a start-up IPI, in real mode at `page * 4096`.
pub(crate) fn start_others(page: u8) {
    write(ICR, START_UP | ASSERT | OTHERS | u32::from(page));
}

pub(crate) fn interrupt_others(vector: u8) {
    write(ICR, ASSERT | OTHERS | u32::from(vector));
}

pub(crate) fn interrupt_self(vector: u8) {
    write(ICR, ASSERT | SELF | u32::from(vector));
}

/// Makes this processor's timer send `vector` when it expires, once per start.
pub(crate) fn aim_timer(vector: u8) {
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, vector.into());
}

/// Makes this processor's timer send `vector` when its TSC reaches `deadline`.
pub(crate) fn set_deadline(vector: u8, deadline: u64) {
    write(LVT_TIMER, BY_DEADLINE | u32::from(vector));
    // SAFETY: starts a timer.
    // A refused value is detected by the missing interrupt.
    let _ = unsafe { wrmsr(TSC_DEADLINE, deadline) };
}

/// Starts this processor's timer.
pub(crate) fn start_timer(ticks: u32) {
    write(INITIAL_COUNT, ticks);
}

/// This processor's APIC identifier.
pub(crate) fn id() -> u32 {
    // The extended topology leaf has all 32 bits, the older one 8.
    let (leaf, old) = (cpuid(0xB, 0), cpuid(1, 0).ebx >> 24);
    if cpuid(0, 0).eax >= 0xB && leaf.ebx != 0 {
        leaf.edx
    } else {
        old
    }
}

fn write(register: u32, value: u32) {
    if X2.load(Ordering::Relaxed) {
        // SAFETY: an APIC register: no memory of Rust's depends on it.
        // A refused value is detected by the missing interrupt.
        let _ = unsafe { wrmsr(X2APIC + register, value.into()) };
    } else if let Some(device) = Device::new(DEFAULT_ADDRESS + u64::from(register) * 16) {
        device.write32(value);
    }
}
