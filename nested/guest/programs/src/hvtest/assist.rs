//! The virtual processor assist page and the synthetic APIC registers.

use core::sync::atomic::{AtomicBool, Ordering};

use hypernest_nested::hyperv::msr;

use super::{Check, Feature, Guest, equal, failed, read, refuses, write};
use crate::apic::{self, EndBy};
use crate::hypercall::write_page_register;
use crate::pages::Page;
use crate::{say, trap};

pub(super) const APIC_REGISTERS: Feature = Feature::privilege(4);

const VECTOR: u8 = 0x51;

/// The hypervisor initializes only the first word: the rest may contain state of a nested guest.
pub(super) fn page(guest: &mut Guest) -> Check {
    guest.needs(APIC_REGISTERS)?;
    let page = Page::new();
    page.write64(0, u64::MAX);
    enable(page)?;
    equal(
        "assist page register",
        read(msr::VP_ASSIST_PAGE)?,
        page.address() | 1,
    )?;
    equal("first word of the page", page.read32(0) & 1, 0)?;
    equal("second word of the page", page.read32(4), u32::MAX)?;
    write(msr::VP_ASSIST_PAGE, 0)?;

    static FAILED: AtomicBool = AtomicBool::new(false);
    FAILED.store(false, Ordering::Relaxed);
    for order in guest.processors.others() {
        let answer = guest.processors.run(order, |_| {
            let page = Page::new();
            let refused = write_page_register(msr::VP_ASSIST_PAGE, page).is_err();
            FAILED.fetch_or(refused, Ordering::Relaxed);
            u64::from(crate::hypercall::write_register(msr::VP_ASSIST_PAGE, 0).is_ok())
        });
        equal("answer of another processor", answer.unwrap_or(0), 1)?;
    }
    if FAILED.load(Ordering::Relaxed) {
        Err(failed!("another processor cannot enable its page"))
    } else {
        Ok(())
    }
}

fn enable(page: Page) -> Check {
    write_page_register(msr::VP_ASSIST_PAGE, page)
        .map_err(|_| failed!("writing {:#x} faults", msr::VP_ASSIST_PAGE))
}

/// Interrupts whose EOI goes through the page, where it is set, continue to arrive.
pub(super) fn end_of_interrupt(guest: &mut Guest) -> Check {
    guest.needs(APIC_REGISTERS)?;
    let page = Page::new();
    enable(page)?;
    apic::end_interrupts_by(EndBy::Assist(page));
    let spared = apic::ends_spared();
    let result = interrupts_come(guest, 8);
    apic::end_interrupts_by(EndBy::Apic);
    write(msr::VP_ASSIST_PAGE, 0)?;
    say!(
        "info assist-eoi: {} of 8 interrupts needed no end",
        apic::ends_spared() - spared
    );
    result
}

fn interrupts_come(guest: &Guest, times: u32) -> Check {
    let before = trap::count(0, VECTOR);
    for time in 1..=times {
        apic::interrupt_self(VECTOR);
        guest.expect("an interrupt of its own", || {
            trap::count(0, VECTOR) >= before + time
        })?;
    }
    equal("interrupts", trap::count(0, VECTOR) - before, times)
}

pub(super) fn apic_registers(guest: &mut Guest) -> Check {
    guest.needs(APIC_REGISTERS)?;
    apic::end_interrupts_by(EndBy::Synthetic);
    let result = interrupts_come(guest, 3);
    apic::end_interrupts_by(EndBy::Apic);
    result?;

    write(msr::TPR, 0x20)?;
    equal("task priority", read(msr::TPR)?, 0x20)?;
    write(msr::TPR, 0)?;

    // To itself, fixed.
    let before = trap::count(0, VECTOR);
    write(msr::ICR, 1 << 18 | u64::from(VECTOR))?;
    guest.expect("the interrupt of the command register", || {
        trap::count(0, VECTOR) == before + 1
    })?;
    refuses(msr::VP_ASSIST_PAGE, 0x000F_FFFF_FFFF_F000 | 1)
}
