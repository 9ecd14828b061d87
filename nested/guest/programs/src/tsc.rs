//! Samples clocks in a tight loop on every processor: whether they ever step back, and how a migration
//! affects them.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypernest_nested::hyperv::{leaf, msr};
use hypernest_nested::tsc::{
    Ack, Clock, Clocks, Hello, MAX_WORDS, Moment, ReferencePage, Report, Sampler, Shared,
};

use crate::args::Args;
use crate::cpu::{self, Faulted, cpuid, rdmsr};
use crate::hypercall::{write_page_register, write_register};
use crate::pages::Page;
use crate::smp::{Patience, Processors};
use crate::{Exit, MAX_CPUS, console, say, trap};

/// Notifies of a change of the TSC's frequency; Linux uses the same number.
const VECTOR: u8 = 0xEE;
/// REENLIGHTENMENT_CONTROL: enabled, to virtual processor 0 (TLFS, "TSC frequency changes").
const CONTROL: u64 = 1 << 16 | VECTOR as u64;

// Bits of leaf FEATURES, EAX.
const HAS_COUNTER: u32 = 1 << 1;
const HAS_PAGE: u32 = 1 << 9;
const HAS_FREQUENCIES: u32 = 1 << 11;
const HAS_REENLIGHTENMENT: u32 = 1 << 13;

/// The requested and the available features.
struct Plan {
    beat: AtomicU64,
    counter_every: AtomicU64,
    reports: AtomicU64,
    /// The reference TSC page's address; 0 if there is none.
    page: AtomicU64,
    counter: AtomicBool,
    /// Ticks from the interrupt to the acknowledgement; [`NEVER`] for none.
    ack_after: AtomicU64,
}

const NEVER: u64 = u64::MAX;

static PLAN: Plan = Plan {
    beat: AtomicU64::new(0),
    counter_every: AtomicU64::new(0),
    reports: AtomicU64::new(0),
    page: AtomicU64::new(0),
    counter: AtomicBool::new(false),
    ack_after: AtomicU64::new(NEVER),
};

static SHARED: Shared = Shared::new();

/// `tsc [cpus=N] [beat=TICKS] [counter-every=TURNS] [reports=N] [reenlighten=no|notify|emulate]
/// [ack-after=TICKS|never]`.
///
/// A report of each processor every `beat` ticks; ends after the boot processor's report number `reports` (0:
/// never).
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    match set_up(args) {
        Ok((cpus, hello)) => {
            let Ok(processors) = Processors::start(trampoline, cpus, Patience::DEFAULT) else {
                say!("FAIL processors: not all of {cpus} run");
                return Exit::Failed;
            };
            cpu::enable_interrupts();
            console::frame(Hello::NAME, || hello.encode(words()));
            for order in processors.others() {
                processors.begin(order, sample);
            }
            sample(0);
            Exit::Done
        }
        Err((name, value)) => {
            say!("wrong use: {name}={value}");
            Exit::WrongUse
        }
    }
}

fn set_up<'a>(args: &Args<'a>) -> Result<(usize, Hello), (&'static str, &'a str)> {
    let number = |name: &'static str, default| {
        let number = args.number(name).map_err(|value| (name, value))?;
        Ok::<u64, (&str, &str)>(number.unwrap_or(default))
    };
    let cpus = number("cpus", 1)?;
    let cpus = usize::try_from(cpus)
        .ok()
        .filter(|cpus| (1..=MAX_CPUS).contains(cpus))
        .ok_or(("cpus", "more than there can be"))?;
    PLAN.beat
        .store(number("beat", 10_000_000)?, Ordering::Relaxed);
    PLAN.counter_every
        .store(number("counter-every", 64)?.max(1), Ordering::Relaxed);
    PLAN.reports.store(number("reports", 0)?, Ordering::Relaxed);
    if args.value("ack-after") != Some("never") {
        PLAN.ack_after
            .store(number("ack-after", 0)?, Ordering::Relaxed);
    }

    let features = features();
    let mut hello = Hello {
        vcpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        clocks: Clocks::NONE.with(Clock::Tsc),
        tsc_hz: frequency(features),
        offered: features & HAS_REENLIGHTENMENT != 0,
        ..Hello::default()
    };
    if features & HAS_COUNTER != 0 && rdmsr(msr::TIME_REF_COUNT).is_ok() {
        hello.clocks = hello.clocks.with(Clock::Counter);
        PLAN.counter.store(true, Ordering::Relaxed);
        let page = Page::new();
        if features & HAS_PAGE != 0 && write_page_register(msr::REFERENCE_TSC, page).is_ok() {
            hello.clocks = hello.clocks.with(Clock::Page);
            PLAN.page.store(page.address(), Ordering::Relaxed);
        }
    }
    let (opt_in, emulation) = match args.value("reenlighten").unwrap_or("emulate") {
        "no" => (false, false),
        "notify" => (true, false),
        "emulate" => (true, true),
        other => return Err(("reenlighten", other)),
    };
    if hello.offered && opt_in {
        // Linux' order: the target of the notification, then the request for the old frequency meanwhile.
        hello.opted_in = write_register(msr::REENLIGHTENMENT_CONTROL, CONTROL).is_ok();
        hello.emulation =
            hello.opted_in && emulation && write_register(msr::TSC_EMULATION_CONTROL, 1).is_ok();
    }
    Ok((cpus, hello))
}

/// Leaf FEATURES, EAX; 0 if the hypervisor does not implement this interface.
fn features() -> u32 {
    let is_hyperv = cpuid(leaf::INTERFACE, 0).eax == leaf::SIGNATURE_HV1
        && cpuid(leaf::VENDOR, 0).eax >= leaf::FEATURES;
    // CPUID 1, ECX bit 31: a hypervisor is present.
    if is_hyperv && cpuid(1, 0).ecx >> 31 != 0 {
        cpuid(leaf::FEATURES, 0).eax
    } else {
        0
    }
}

/// The TSC's frequency in Hz; 0 if it is not reported.
fn frequency(features: u32) -> u64 {
    if features & HAS_FREQUENCIES == 0 {
        return 0;
    }
    rdmsr(msr::TSC_FREQUENCY).unwrap_or(0)
}

/// Room for a frame; one processor at a time uses the console, so a separate one for each is sufficient.
fn words() -> &'static mut [u64; MAX_WORDS] {
    let room: &'static mut [u64] = crate::pages::array(MAX_WORDS);
    room.first_chunk_mut().expect("as long as was asked for")
}

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

fn counter() -> u64 {
    rdmsr(msr::TIME_REF_COUNT).unwrap_or(0)
}

/// The clocks of this processor.
struct Clockwork {
    sampler: Sampler<'static>,
    page: Option<TscPage>,
    counter: bool,
}

impl Clockwork {
    #[inline(always)]
    fn tsc(&mut self) -> u64 {
        self.sampler.read(Clock::Tsc, cpu::tsc_serialised)
    }

    #[inline(always)]
    fn page(&mut self) -> u64 {
        match &self.page {
            Some(page) => self.sampler.read_page(page, cpu::tsc_serialised, counter),
            None => 0,
        }
    }

    #[inline(always)]
    fn counter(&mut self) -> u64 {
        if self.counter {
            self.sampler.read(Clock::Counter, counter)
        } else {
            0
        }
    }

    fn moment(&mut self) -> Moment {
        Moment {
            tsc: self.tsc(),
            page: self.page(),
            counter: self.counter(),
        }
    }

    fn report(&mut self, turns: u64, words: &mut [u64; MAX_WORDS]) -> u64 {
        let mut number = 0;
        console::frame(Report::NAME, || {
            let now = self.moment();
            let mut report = self.sampler.report();
            number = report.number;
            report.turns = turns;
            report.now[Clock::Tsc.index()] = now.tsc;
            report.now[Clock::Page.index()] = now.page;
            report.now[Clock::Counter.index()] = now.counter;
            report.encode(words)
        });
        number
    }
}

/// The loop of processor `order` until the end.
fn sample(order: usize) -> u64 {
    let page = Page::existing(PLAN.page.load(Ordering::Relaxed)).map(TscPage);
    let counter = PLAN.counter.load(Ordering::Relaxed);
    let mut clocks = Clocks::NONE.with(Clock::Tsc);
    if counter {
        clocks = clocks.with(Clock::Counter);
    }
    if page.is_some() {
        clocks = clocks.with(Clock::Page);
    }
    let vcpu = u32::try_from(order).unwrap_or(u32::MAX);
    let mut clockwork = Clockwork {
        sampler: Sampler::new(&SHARED, vcpu, clocks),
        page,
        counter,
    };
    let words = words();
    let beat = PLAN.beat.load(Ordering::Relaxed);
    let every = PLAN.counter_every.load(Ordering::Relaxed);
    let last_report = PLAN.reports.load(Ordering::Relaxed);
    let mut notice = Notice::default();
    let mut reported = clockwork.tsc();
    for turn in 1_u64.. {
        let tsc = clockwork.tsc();
        clockwork.page();
        if turn.is_multiple_of(every) {
            clockwork.counter();
        }
        if order == 0 {
            notice.look(tsc, &mut clockwork, words);
        }
        // A TSC that stepped back is far ahead of its report in this arithmetic, and so is reported at once.
        if tsc.wrapping_sub(reported) >= beat {
            reported = tsc;
            let number = clockwork.report(turn, words);
            if order == 0 && number == last_report {
                break;
            }
        }
    }
    0
}

/// Interrupts about the TSC's frequency, and their handling.
#[derive(Default)]
struct Notice {
    seen: u32,
    pending: Option<Moment>,
}

impl Notice {
    #[inline(always)]
    fn look(&mut self, tsc: u64, clockwork: &mut Clockwork, words: &mut [u64; MAX_WORDS]) {
        let interrupts = trap::count(0, VECTOR);
        if interrupts != self.seen {
            self.seen = interrupts;
            self.pending = Some(clockwork.moment());
        }
        let wait = PLAN.ack_after.load(Ordering::Relaxed);
        if let Some(noticed) = self.pending
            && wait != NEVER
            && tsc.wrapping_sub(noticed.tsc) >= wait
            // Noticed after `tsc` was read.
            && tsc >= noticed.tsc
        {
            self.pending = None;
            self.acknowledge(noticed, clockwork, words);
        }
    }

    /// As Linux does: the write, and then the new frequency, which must be visible at once.
    fn acknowledge(
        &self,
        noticed: Moment,
        clockwork: &mut Clockwork,
        words: &mut [u64; MAX_WORDS],
    ) {
        let status = || rdmsr(msr::TSC_EMULATION_STATUS).unwrap_or(u64::MAX);
        let features = features();
        let (status_before, frequency_before) = (status(), frequency(features));
        let before = clockwork.moment();
        let written = write_register(msr::TSC_EMULATION_STATUS, 0);
        let frequency_after = frequency(features);
        let after = clockwork.moment();
        if let Err(Faulted) = written {
            say!("FAIL tsc: TSC_EMULATION_STATUS cannot be written");
        }
        let ack = Ack {
            interrupts: self.seen.into(),
            sequence: clockwork.page.as_ref().map_or(0, |page| page.sequence()),
            noticed,
            before,
            after,
            status: [status_before, status()],
            frequency: [frequency_before, frequency_after],
        };
        console::frame(Ack::NAME, || ack.encode(words));
    }
}
