//! Handles a change of the TSC's frequency as a hypervisor does, and reports its clocks to the tick.

mod timers;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypernest_nested::hyperv::{msr, synic};
use hypernest_nested::tsc::{Clock, ReferencePage, Shared, Tally};

use self::timers::Timers;
use crate::args::Args;
use crate::cpu::{self, rdmsr};
use crate::hypercall::{write_page_register, write_register};
use crate::pages::Page;
use crate::smp::{Patience, Processors};
use crate::{Exit, MAX_CPUS, say, trap};

/// The number that Linux uses.
const VECTOR: u8 = 0xEE;
/// REENLIGHTENMENT_CONTROL: enabled, to virtual processor 0.
const CONTROL: u64 = 1 << 16 | VECTOR as u64;
/// Wakes the boot processor while it waits.
const WAKE_VECTOR: u8 = 0x70;
/// 10 ms of reference time.
const NAP: u64 = 100_000;

static PAGE: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static SHARED: Shared = Shared::new();

/// The reference TSC page.
#[derive(Clone, Copy)]
struct TscPage(Page);

impl ReferencePage for TscPage {
    #[inline(always)]
    fn sequence(&self) -> u32 {
        self.0.read32(0)
    }
    #[inline(always)]
    fn scale(&self) -> u64 {
        self.0.read64(8)
    }
    #[inline(always)]
    fn offset(&self) -> u64 {
        self.0.read64(16)
    }
}

/// The clocks at one instant: the page's time is computed from this reading of the TSC.
#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    reference: u64,
    sequence: u32,
    scale: u64,
}

impl TscPage {
    #[inline(always)]
    fn sample(self) -> Sample {
        loop {
            let (sequence, scale) = (self.sequence(), self.scale());
            let tsc = core::cell::Cell::new(0);
            let read = self.time(|| {
                tsc.set(cpu::tsc_serialised());
                tsc.get()
            });
            match read {
                Some((reference, at)) if at == sequence => {
                    let tsc = tsc.get();
                    return Sample {
                        tsc,
                        reference,
                        sequence,
                        scale,
                    };
                }
                Some(_) => {}
                None => {
                    return Sample {
                        tsc: cpu::tsc_serialised(),
                        reference: rdmsr(msr::TIME_REF_COUNT).unwrap_or(0),
                        sequence: 0,
                        scale: 0,
                    };
                }
            }
        }
    }
}

/// `reenlighten [cpus=N] [moves=N] [hold=UNITS] [ahead=UNITS] [lapic=deadline|oneshot] [control=VALUE]
/// [emulate=0] [silent]`.
///
/// After each interrupt about the TSC's frequency, waits `hold` units of 100 ns, arms timers that expire in
/// `ahead` units if that is given, and reports that the old frequency is no longer needed. With `silent`, it
/// does not report that. Ends after `moves`. Further processors check for clocks that step back meanwhile.
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let number = |name, default| args.number(name).ok().flatten().unwrap_or(default);
    let cpus = usize::try_from(number("cpus", 1))
        .unwrap_or(MAX_CPUS)
        .clamp(1, MAX_CPUS);
    let (moves, hold, ahead) = (number("moves", 1), number("hold", 0), number("ahead", 0));
    let page = Page::new();
    let opted_in = [
        write_page_register(msr::REFERENCE_TSC, page),
        write_register(msr::REENLIGHTENMENT_CONTROL, number("control", CONTROL)),
        write_register(msr::TSC_EMULATION_CONTROL, number("emulate", 1)),
    ];
    if opted_in.iter().any(Result::is_err) {
        say!("FAIL reenlighten: a register is not there");
        return Exit::Failed;
    }
    let page = TscPage(page);
    if !Patience::DEFAULT.until(|| page.sequence() != 0) {
        say!("FAIL reenlighten: the reference TSC page stays empty");
        return Exit::Failed;
    }
    PAGE.store(page.0.address(), Ordering::Release);
    let Ok(processors) = Processors::start(trampoline, cpus, Patience::DEFAULT) else {
        say!("FAIL reenlighten: not all of {cpus} processors run");
        return Exit::Failed;
    };
    cpu::enable_interrupts();
    for order in processors.others() {
        processors.begin(order, look_for_steps);
    }
    let mut tallies = Tallies::default();
    say!("ready");
    for count in 1..=moves {
        while u64::from(trap::count(0, VECTOR)) < count {
            tallies.sample(page);
        }
        told(page);
        wait(page, hold, &mut tallies);
        let mut timers = (ahead != 0).then(|| {
            let lapic = args.value("lapic").unwrap_or("deadline");
            Timers::arm(page.sample().reference, ahead, lapic == "deadline")
        });
        if args.has("silent") {
            say!("silent");
        } else {
            adapt(page, &mut tallies);
        }
        if let Some(timers) = &mut timers {
            timers.wait(|| tallies.sample(page).reference);
            timers.say();
        }
        say!("moved {count}");
    }
    STOP.store(true, Ordering::Release);
    tallies.say(0);
    for order in processors.others() {
        if processors.end(order).is_none() {
            say!("FAIL reenlighten: processor {order} does not come back");
            return Exit::Failed;
        }
    }
    say!("done");
    Exit::Done
}

/// The state at the interrupt.
fn told(page: TscPage) {
    let now = page.sample();
    say!(
        "told status={} tsc={} ref={} freq={}",
        rdmsr(msr::TSC_EMULATION_STATUS).unwrap_or(u64::MAX),
        now.tsc,
        now.reference,
        rdmsr(msr::TSC_FREQUENCY).unwrap_or(0)
    );
}

/// Ends the emulation as Linux does: the write, and at once the new frequency.
fn adapt(page: TscPage, tallies: &mut Tallies) {
    let before = tallies.sample(page);
    let written = write_register(msr::TSC_EMULATION_STATUS, 0);
    let frequency = rdmsr(msr::TSC_FREQUENCY);
    let after = tallies.sample(page);
    say!(
        "switch tsc={},{} ref={},{} seq={},{} scale={},{} freq={} status={} counter={} written={}",
        before.tsc,
        after.tsc,
        before.reference,
        after.reference,
        before.sequence,
        after.sequence,
        before.scale,
        after.scale,
        frequency.unwrap_or(0),
        rdmsr(msr::TSC_EMULATION_STATUS).unwrap_or(u64::MAX),
        rdmsr(msr::TIME_REF_COUNT).unwrap_or(0),
        written.is_ok()
    );
}

/// Waits for `units` of reference time, asleep except for reading the clocks every 10 ms: an emulated host
/// has little work then.
fn wait(page: TscPage, units: u64, tallies: &mut Tallies) {
    let end = tallies.sample(page).reference + units;
    loop {
        let now = tallies.sample(page).reference;
        if now >= end {
            return;
        }
        let before = trap::count(0, WAKE_VECTOR);
        let due = end.min(now + NAP);
        let armed = write_register(msr::STIMER0_COUNT, due).is_ok()
            && write_register(msr::STIMER0_CONFIG, synic::stimer_direct(WAKE_VECTOR)).is_ok();
        cpu::disable_interrupts();
        while armed && trap::count(0, WAKE_VECTOR) == before {
            cpu::wait_for_interrupt();
            cpu::disable_interrupts();
        }
        cpu::enable_interrupts();
    }
}

/// One processor's observations of the clocks' steps.
#[derive(Default)]
struct Tallies {
    tsc: Tally,
    reference: Tally,
}

impl Tallies {
    #[inline(always)]
    fn sample(&mut self, page: TscPage) -> Sample {
        let last = (SHARED.last(Clock::Tsc), SHARED.last(Clock::Page));
        let now = page.sample();
        self.tsc.saw(last.0, now.tsc);
        self.reference.saw(last.1, now.reference);
        if now.tsc > last.0 {
            SHARED.publish(Clock::Tsc, now.tsc);
        }
        if now.reference > last.1 {
            SHARED.publish(Clock::Page, now.reference);
        }
        now
    }

    fn say(&self, order: usize) {
        say!(
            "cpu {order} reads={} tsc-back={},{} ref-back={},{}",
            self.tsc.reads,
            self.tsc.backward,
            self.tsc.largest_backward,
            self.reference.backward,
            self.reference.largest_backward
        );
    }
}

fn look_for_steps(order: usize) -> u64 {
    let mut tallies = Tallies::default();
    if let Some(page) = Page::existing(PAGE.load(Ordering::Acquire)) {
        while !STOP.load(Ordering::Acquire) {
            tallies.sample(TscPage(page));
        }
    }
    tallies.say(order);
    0
}
