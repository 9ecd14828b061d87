//! Timers that are armed while the TSC's frequency changes.

use hypernest_nested::hyperv::{msr, synic};

use crate::cpu::{rdmsr, tsc_serialised};
use crate::hypercall::{write_page_register, write_register};
use crate::pages::Page;
use crate::{apic, say, trap};

const DIRECT: u8 = 0x71;
const PERIODIC: u8 = 0x72;
const MESSAGE: u8 = 0x73;
const LAPIC: u8 = 0x74;
const SINT: u8 = 2;
/// The number of the periodic timer's periods until the others expire.
const PERIODS: u8 = 4;

/// One timer.
struct Timer {
    name: &'static str,
    vector: u8,
    /// Interrupts that are waited for, in addition to earlier ones.
    wanted: u32,
    before: u32,
    /// Reference time and TSC when the last of them had arrived.
    fired: Option<(u64, u64)>,
}

/// All of them.
pub(super) struct Timers {
    due: u64,
    /// The TSC at which the deadline timer expires.
    deadline: Option<u64>,
    timers: [Timer; 4],
}

impl Timers {
    /// Arms them `ahead` units after `now`: synthetic ones (direct, periodic, by message) and the local
    /// APIC's, by the TSC or by its own clock.
    pub(super) fn arm(now: u64, ahead: u64, by_tsc: bool) -> Self {
        let timer = |name, vector, wanted| Timer {
            name,
            vector,
            wanted,
            before: trap::count(0, vector),
            fired: None,
        };
        let timers = [
            timer("direct", DIRECT, 1),
            timer("periodic", PERIODIC, PERIODS.into()),
            timer("message", MESSAGE, 1),
            timer(if by_tsc { "deadline" } else { "oneshot" }, LAPIC, 1),
        ];
        let due = now + ahead;
        let stimer = |number: u32, count, config| {
            let number = number * 2;
            let armed = write_register(msr::STIMER0_COUNT + number, count)
                .and_then(|()| write_register(msr::STIMER0_CONFIG + number, config));
            if armed.is_err() {
                say!("FAIL timers: a synthetic timer is not there");
            }
        };
        let message_page = Page::new();
        let source = msr::SINT0 + u32::from(SINT);
        let ready = [
            write_register(msr::SCONTROL, 1),
            write_page_register(msr::SIMP, message_page),
            write_register(source, MESSAGE.into()),
        ];
        if ready.iter().any(Result::is_err) {
            say!("FAIL timers: there is no synthetic interrupt controller");
        }
        stimer(1, due, synic::stimer_direct(DIRECT));
        let periodic = synic::stimer_direct(PERIODIC) | synic::STIMER_PERIODIC;
        stimer(2, ahead / u64::from(PERIODS), periodic);
        stimer(3, due, synic::stimer_message(SINT));
        // Units of 100 ns; far below the limit of 64 bits.
        let clocks = |register| ahead * (rdmsr(register).unwrap_or(0) / 1000) / 10_000;
        let deadline = by_tsc.then(|| tsc_serialised() + clocks(msr::TSC_FREQUENCY));
        match deadline {
            Some(deadline) => apic::set_deadline(LAPIC, deadline),
            None => {
                apic::aim_timer(LAPIC);
                let count = u32::try_from(clocks(msr::APIC_FREQUENCY));
                apic::start_timer(count.unwrap_or(u32::MAX));
            }
        }
        Self {
            due,
            deadline,
            timers,
        }
    }

    /// Polls them until all have fired or four times as long has passed. `now` returns reference time.
    pub(super) fn wait(&mut self, mut now: impl FnMut() -> u64) {
        let patience = now() + 4 * self.due.saturating_sub(now()).max(100_000);
        loop {
            let reference = now();
            let tsc = tsc_serialised();
            for timer in &mut self.timers {
                let came = trap::count(0, timer.vector).wrapping_sub(timer.before);
                if timer.fired.is_none() && came >= timer.wanted {
                    timer.fired = Some((reference, tsc));
                }
            }
            let all = self.timers.iter().all(|timer| timer.fired.is_some());
            if all || reference > patience {
                break;
            }
        }
        // STIMER2, the periodic one.
        let _ = write_register(msr::STIMER0_CONFIG + 4, 0);
    }

    /// Prints the delay of each, in units of 100 ns or, by the TSC, in ticks; and its number of interrupts.
    pub(super) fn say(&self) {
        for timer in &self.timers {
            let came = trap::count(0, timer.vector).wrapping_sub(timer.before);
            match timer.fired {
                None => say!("timer {} never", timer.name),
                Some((reference, tsc)) => {
                    let late = match (timer.vector, self.deadline) {
                        (LAPIC, Some(deadline)) => difference(tsc, deadline),
                        _ => difference(reference, self.due),
                    };
                    say!("timer {} late={late} came={came}", timer.name);
                }
            }
        }
    }
}

fn difference(now: u64, due: u64) -> i64 {
    now.wrapping_sub(due).cast_signed()
}
