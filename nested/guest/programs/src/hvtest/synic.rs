//! The synthetic interrupt controller and its timers.

use hypernest_nested::hyperv::{msr, synic};

use super::clock::COUNTER;
use super::{Check, Feature, Guest, equal, failed, keeps, read, refuses, write};
use crate::hypercall::write_page_register;
use crate::pages::Page;
use crate::trap;

pub(super) const SYNIC: Feature = Feature::privilege(2);
pub(super) const TIMERS: Feature = Feature::privilege(3);
const DIRECT_TIMERS: Feature = Feature::available(19);

const SINT: u8 = 2;
const SINT_VECTOR: u8 = 0x71;
const DIRECT_VECTOR: u8 = 0x72;
/// 100 µs.
const SOON: u64 = 1000;

pub(super) fn registers(guest: &mut Guest) -> Check {
    guest.needs(SYNIC)?;
    equal("version", read(msr::SVERSION)?, 1)?;
    refuses(msr::SVERSION, 2)?;
    keeps(msr::SCONTROL, 1)?;
    for number in 0..16 {
        equal(
            "reset value of a source",
            read(msr::SINT0 + number)?,
            synic::SINT_MASKED,
        )?;
    }
    let source = msr::SINT0 + u32::from(SINT);
    keeps(source, SINT_VECTOR.into())?;
    // Vectors of exceptions cannot be raised.
    refuses(source, 0x0F)?;
    keeps(source, synic::SINT_MASKED)?;
    for register in [msr::SIEFP, msr::SIMP] {
        let page = Page::new();
        write_page_register(register, page).map_err(|_| failed!("writing {register:#x} faults"))?;
        equal("page register", read(register)?, page.address() | 1)?;
        keeps(register, 0)?;
    }
    write(msr::EOM, 0)
}

/// Runs `test` with a message page and an unmasked source; restores both.
fn with_messages(test: impl FnOnce(Page) -> Check) -> Check {
    let (page, source) = (Page::new(), msr::SINT0 + u32::from(SINT));
    write(msr::SCONTROL, 1)?;
    write_page_register(msr::SIMP, page).map_err(|_| failed!("writing {:#x} faults", msr::SIMP))?;
    write(source, SINT_VECTOR.into())?;
    let result = test(page);
    write(msr::STIMER0_CONFIG, 0)?;
    write(source, synic::SINT_MASKED)?;
    write(msr::SIMP, 0)?;
    result
}

/// Waits for the next message, checks that it is timer 0's, frees its slot and returns its two times.
fn take_timer_message(guest: &Guest, page: Page) -> Result<(u64, u64), super::Stop> {
    // TLFS, HV_MESSAGE: type, payload size, flags; payload from 16: timer index, expiration and delivery
    // time.
    let slot = usize::from(SINT) * synic::MESSAGE_SLOT;
    guest.expect("a message of the timer", || page.read32(slot) != 0)?;
    equal("message type", page.read32(slot), synic::TIMER_EXPIRED)?;
    equal("size of the payload", page.read8(slot + 4), 24)?;
    equal("timer", page.read32(slot + 16), 0)?;
    let times = (page.read64(slot + 24), page.read64(slot + 32));
    page.write32(slot, 0);
    write(msr::EOM, 0)?;
    Ok(times)
}

pub(super) fn timer_message(guest: &mut Guest) -> Check {
    guest.needs(TIMERS)?;
    guest.needs(SYNIC)?;
    guest.needs(COUNTER)?;
    with_messages(|page| {
        let interrupts = trap::count(0, SINT_VECTOR);
        let due = read(msr::TIME_REF_COUNT)? + SOON;
        write(msr::STIMER0_COUNT, due)?;
        write(msr::STIMER0_CONFIG, synic::stimer_message(SINT))?;
        let (expiration, delivery) = take_timer_message(guest, page)?;
        equal("expiration time", expiration, due)?;
        let now = read(msr::TIME_REF_COUNT)?;
        if !(due..=now).contains(&delivery) {
            return Err(failed!(
                "delivered at {delivery}, due at {due}, now it is {now}"
            ));
        }
        guest.expect("the interrupt of the source", || {
            trap::count(0, SINT_VECTOR) != interrupts
        })?;
        equal(
            "enable bit of a timer that expired",
            read(msr::STIMER0_CONFIG)? & synic::STIMER_ENABLE,
            0,
        )
    })
}

pub(super) fn timer_periodic(guest: &mut Guest) -> Check {
    guest.needs(TIMERS)?;
    guest.needs(SYNIC)?;
    guest.needs(COUNTER)?;
    with_messages(|page| {
        write(msr::STIMER0_COUNT, SOON)?;
        write(
            msr::STIMER0_CONFIG,
            synic::stimer_message(SINT) | synic::STIMER_PERIODIC,
        )?;
        let (first, _) = take_timer_message(guest, page)?;
        let (second, _) = take_timer_message(guest, page)?;
        // Periods may be skipped, but not shortened.
        if second < first + SOON {
            return Err(failed!(
                "expired at {first} and at {second}, less than {SOON} later"
            ));
        }
        let config = read(msr::STIMER0_CONFIG)?;
        equal(
            "enable bit of a periodic timer",
            config & synic::STIMER_ENABLE,
            synic::STIMER_ENABLE,
        )
    })
}

pub(super) fn timer_direct(guest: &mut Guest) -> Check {
    guest.needs(TIMERS)?;
    guest.needs(DIRECT_TIMERS)?;
    guest.needs(COUNTER)?;
    let before = trap::count(0, DIRECT_VECTOR);
    let due = read(msr::TIME_REF_COUNT)? + SOON;
    write(msr::STIMER0_COUNT, due)?;
    write(msr::STIMER0_CONFIG, synic::stimer_direct(DIRECT_VECTOR))?;
    guest.expect("the timer's own interrupt", || {
        trap::count(0, DIRECT_VECTOR) != before
    })?;
    let now = read(msr::TIME_REF_COUNT)?;
    write(msr::STIMER0_CONFIG, 0)?;
    if now < due {
        Err(failed!("came at {now}, due at {due}"))
    } else {
        Ok(())
    }
}
