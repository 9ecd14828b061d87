//! Reference time and frequencies.

use hypernest_nested::hyperv::msr;

use super::{Check, Feature, Guest, Stop, failed, read, refuses, write};
use crate::cpu::{rdmsr, tsc_serialised};
use crate::hypercall::write_page_register;
use crate::pages::Page;
use crate::smp::Patience;

pub(super) const COUNTER: Feature = Feature::privilege(1);
pub(super) const TSC_PAGE: Feature = Feature::privilege(9);
pub(super) const FREQUENCIES: Feature = Feature::privilege(11);
const FREQUENCY_REGISTERS: Feature = Feature::available(8);

pub(super) fn reference_counter(guest: &mut Guest) -> Check {
    guest.needs(COUNTER)?;
    let before = read(msr::TIME_REF_COUNT)?;
    guest.expect("the counter grows", || {
        rdmsr(msr::TIME_REF_COUNT).is_ok_and(|now| now > before)
    })?;
    refuses(msr::TIME_REF_COUNT, 0)
}

pub(super) fn reference_tsc_page(guest: &mut Guest) -> Check {
    guest.needs(TSC_PAGE)?;
    guest.needs(COUNTER)?;
    let page = Page::new();
    if write_page_register(msr::REFERENCE_TSC, page).is_err() {
        return Err(failed!("writing {:#x} faults", msr::REFERENCE_TSC));
    }
    let result = compare(guest, page);
    write(msr::REFERENCE_TSC, 0)?;
    result
}

/// The page's time must be between the counter's readings before and after it, apart from rounding.
fn compare(guest: &Guest, page: Page) -> Check {
    guest.expect(
        "the page becomes valid (the host's TSC may be unstable)",
        || page.read32(0) != 0,
    )?;
    for _ in 0..20 {
        let before = read(msr::TIME_REF_COUNT)?;
        let time = reference_time(page)?;
        let after = read(msr::TIME_REF_COUNT)?;
        if time + 1 < before || time > after + 1 {
            return Err(failed!(
                "the page says {time}, the counter {before} before and {after} after"
            ));
        }
    }
    Ok(())
}

/// TLFS, "Partition reference TSC mechanism".
fn reference_time(page: Page) -> Result<u64, Stop> {
    for _ in 0..1000 {
        let sequence = page.read32(0);
        let (scale, offset) = (page.read64(8), page.read64(16));
        let tsc = tsc_serialised();
        if sequence != 0 && page.read32(0) == sequence {
            // The high half of the product is below 2^64.
            let scaled = (u128::from(tsc) * u128::from(scale)) >> 64;
            return Ok((scaled as u64).wrapping_add(offset));
        }
    }
    Err(failed!("the page's sequence does not come to rest"))
}

pub(super) fn frequencies(guest: &mut Guest) -> Check {
    guest.needs(FREQUENCIES)?;
    guest.needs(FREQUENCY_REGISTERS)?;
    let (tsc, apic) = (read(msr::TSC_FREQUENCY)?, read(msr::APIC_FREQUENCY)?);
    refuses(msr::TSC_FREQUENCY, 1_000_000_000)?;
    refuses(msr::APIC_FREQUENCY, 1_000_000_000)?;
    if !(1_000_000..=100_000_000_000).contains(&apic) {
        return Err(failed!("the APIC timer at {apic} Hz"));
    }
    if !(100_000_000..=10_000_000_000).contains(&tsc) {
        return Err(failed!("the TSC at {tsc} Hz"));
    }
    if !COUNTER.is_announced() {
        return Ok(());
    }
    // The two clocks agree on a duration; a wrong unit is off by a factor of 1000, so a tolerance of one half
    // suffices.
    let start = (tsc_serialised(), read(msr::TIME_REF_COUNT)?);
    let _ = Patience(tsc / 50).until(|| false);
    let (ticks, units) = (
        tsc_serialised() - start.0,
        read(msr::TIME_REF_COUNT)? - start.1,
    );
    let measured = u128::from(ticks) * 10_000_000 / u128::from(units.max(1));
    if measured * 2 < u128::from(tsc) || measured > u128::from(tsc) * 2 {
        return Err(failed!(
            "the TSC at {tsc} Hz, but {ticks} ticks in {units} * 100 ns"
        ));
    }
    Ok(())
}
