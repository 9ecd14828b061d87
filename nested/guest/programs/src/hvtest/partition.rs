//! The interface itself, and registers that only store or report values.

use core::sync::atomic::{AtomicU32, Ordering};

use hypernest_nested::hyperv::{crash, leaf, msr};

use super::{Check, Feature, Guest, Register, equal, failed, keeps, read, refuses, write};
use crate::cpu::{cpuid, rdmsr};
use crate::hypercall::{GUEST_OS_ID, Hypercalls, write_page_register};
use crate::pages::Page;
use crate::{MAX_CPUS, apic};

pub(super) const HYPERVISOR: Feature = Feature {
    leaf: 1,
    register: Register::Ecx,
    bit: 31,
};
pub(super) const RUNTIME: Feature = Feature::privilege(0);
pub(super) const HYPERCALLS: Feature = Feature::privilege(5);
pub(super) const VP_INDEX: Feature = Feature::privilege(6);
pub(super) const RESET: Feature = Feature::privilege(7);
pub(super) const REENLIGHTENMENT: Feature = Feature::privilege(13);
pub(super) const TSC_INVARIANT: Feature = Feature::privilege(15);
pub(super) const CRASH: Feature = Feature::available(10);
const RELAXED: Feature = Feature::recommended(5);
const EVMCS: Feature = Feature::recommended(14);
const INVARIANT_TSC: Feature = Feature {
    leaf: 0x8000_0007,
    register: Register::Edx,
    bit: 8,
};

/// TLFS, "Feature and interface discovery": the conditions before any other check.
pub(super) fn interface(guest: &mut Guest) -> Check {
    guest.needs(HYPERVISOR)?;
    // Another hypervisor's leaves, or none: not Hyper-V, which is not an error.
    if cpuid(leaf::INTERFACE, 0).eax != leaf::SIGNATURE_HV1 {
        guest.needs(HYPERCALLS)?;
        return Err(failed!("leaf {:#x} does not say Hv#1", leaf::INTERFACE));
    }
    let highest = cpuid(leaf::VENDOR, 0).eax;
    if highest < 0x4000_0005 {
        return Err(failed!(
            "the highest leaf is {highest:#x}, below 0x40000005"
        ));
    }
    // A partition that may create partitions or manage processors is the root, which no guest of the tests
    // is.
    let privileges = cpuid(leaf::FEATURES, 0).ebx;
    equal(
        "privileges of the root partition",
        privileges & (1 << 0 | 1 << 12),
        0,
    )
}

pub(super) fn hypercall_page(guest: &mut Guest) -> Check {
    guest.needs(HYPERCALLS)?;
    // Without an identity the page stays off, and resetting the identity disables it.
    write(msr::GUEST_OS_ID, 0)?;
    // The register shows the outcome.
    let _ = write_page_register(msr::HYPERCALL, Page::new());
    equal(
        "hypercall page enabled without an identity",
        read(msr::HYPERCALL)? & 1,
        0,
    )?;
    let calls = Hypercalls::enable().ok_or_else(|| failed!("the page does not come up"))?;
    equal("identity", read(msr::GUEST_OS_ID)?, GUEST_OS_ID)?;
    let code = calls.code();
    let calls_out = |window: &[u8]| matches!(window, [0x0F, 0x01, 0xC1 | 0xD9, 0xC3]);
    if !code.windows(4).any(calls_out) {
        return Err(failed!("no vmcall or vmmcall and ret in {code:02x?}"));
    }
    write(msr::GUEST_OS_ID, 0)?;
    equal(
        "hypercall page enabled after the identity was taken back",
        read(msr::HYPERCALL)? & 1,
        0,
    )?;
    guest.calls = Hypercalls::enable();
    guest.calls().map(|_| ())
}

/// APIC identifiers, by processor in the order of their start.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

pub(super) fn vp_index(guest: &mut Guest) -> Check {
    guest.needs(VP_INDEX)?;
    equal("index of the boot processor", read(msr::VP_INDEX)?, 0)?;
    refuses(msr::VP_INDEX, 1)?;

    let mut processors = [(0, 0); MAX_CPUS];
    processors[0] = (apic::id(), 0);
    for order in guest.processors.others() {
        let index = guest.processors.run(order, |order| {
            APIC_IDS[order].store(apic::id(), Ordering::Release);
            rdmsr(msr::VP_INDEX).unwrap_or(u64::MAX)
        });
        let index = index.ok_or_else(|| failed!("processor {order} does not answer"))?;
        processors[order] = (APIC_IDS[order].load(Ordering::Acquire), index);
    }
    // Independent of their order of start, processors are created in the order of their APIC identifiers.
    let processors = &mut processors[..guest.processors.count];
    processors.sort_unstable();
    for (wanted, (apic_id, index)) in (0..).zip(processors.iter()) {
        if *index != wanted {
            return Err(failed!(
                "index {index:#x} instead of {wanted} on the processor with APIC id {apic_id}"
            ));
        }
    }
    Ok(())
}

/// The virtual processor index of the processor that started as number `order`.
pub(super) fn vp_index_of(guest: &Guest, order: usize) -> Result<u64, super::Stop> {
    let index = guest
        .processors
        .run(order, |_| rdmsr(msr::VP_INDEX).unwrap_or(u64::MAX));
    index.ok_or_else(|| failed!("processor {order} does not answer"))
}

pub(super) fn runtime(guest: &mut Guest) -> Check {
    guest.needs(RUNTIME)?;
    let before = read(msr::VP_RUNTIME)?;
    guest.expect("the run time grows", || {
        rdmsr(msr::VP_RUNTIME).is_ok_and(|now| now > before)
    })?;
    refuses(msr::VP_RUNTIME, 0)
}

pub(super) fn crash_registers(guest: &mut Guest) -> Check {
    guest.needs(CRASH)?;
    for (number, register) in (0..5).zip(msr::CRASH_P0..) {
        keeps(register, 0x1122_3344_5566_7700 + number)?;
        keeps(register, 0)?;
    }
    // The control register must offer at least the notification of a crash.
    equal(
        "notification offered",
        read(msr::CRASH_CTL)? & crash::NOTIFY,
        crash::NOTIFY,
    )
}

pub(super) fn reset_register(guest: &mut Guest) -> Check {
    guest.needs(RESET)?;
    equal("reset register", read(msr::RESET)?, 0)
}

pub(super) fn reenlightenment(guest: &mut Guest) -> Check {
    guest.needs(REENLIGHTENMENT)?;
    // Vector 0xEE to virtual processor 0, enabled.
    keeps(msr::REENLIGHTENMENT_CONTROL, 1 << 16 | 0xEE)?;
    keeps(msr::TSC_EMULATION_CONTROL, 1)?;
    // No emulation is active, and a guest's write cannot change that.
    equal("emulation status", read(msr::TSC_EMULATION_STATUS)?, 0)?;
    write(msr::TSC_EMULATION_STATUS, 0)?;
    refuses(msr::TSC_EMULATION_STATUS, 1)?;
    keeps(msr::TSC_EMULATION_CONTROL, 0)?;
    keeps(msr::REENLIGHTENMENT_CONTROL, 0)
}

pub(super) fn tsc_invariant(guest: &mut Guest) -> Check {
    guest.needs(TSC_INVARIANT)?;
    match read(msr::TSC_INVARIANT_CONTROL)? {
        0 => {
            if INVARIANT_TSC.is_announced() {
                return Err(failed!(
                    "CPUID shows an invariant TSC before the guest asked for it"
                ));
            }
            refuses(msr::TSC_INVARIANT_CONTROL, 2)?;
            keeps(msr::TSC_INVARIANT_CONTROL, 1)?;
        }
        // Set before, and cleared only by a reset.
        value => equal("control register", value, 1)?,
    }
    refuses(msr::TSC_INVARIANT_CONTROL, 0)?;
    if INVARIANT_TSC.is_announced() {
        Ok(())
    } else {
        Err(failed!("set, but {INVARIANT_TSC}"))
    }
}

/// Only a hint.
pub(super) fn relaxed(guest: &mut Guest) -> Check {
    guest.needs(RELAXED)
}

/// The hint and the leaf that it announces; its use requires a hypervisor.
pub(super) fn evmcs(guest: &mut Guest) -> Check {
    guest.needs(EVMCS)?;
    const NESTED: u32 = 0x4000_000A;
    let highest = cpuid(leaf::VENDOR, 0).eax;
    if highest < NESTED {
        return Err(failed!(
            "the highest leaf is {highest:#x}, below {NESTED:#x}"
        ));
    }
    equal(
        "versions of the enlightened VMCS",
        cpuid(NESTED, 0).eax & 0xFFFF,
        0x0101,
    )
}
