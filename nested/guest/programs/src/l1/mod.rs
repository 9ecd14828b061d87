//! L1: a hypervisor that runs an L2 through exits of selected kinds and stamps each of them.

mod board;
mod drive;
mod kinds;
mod l2;
mod second;
mod second_level;
mod svm;
mod vcpu;
mod vmx;

use core::sync::atomic::{AtomicU64, Ordering};

use board::BoardPage;
pub(crate) use drive::say_last_stamp;
use hypernest_nested::l2exit::{Kind, Mode, Touch};
use kinds::Part;
use l2::{Environment, Sample, Shared, Vendor};

use second::Second;
use vcpu::Vcpu;
pub(crate) use vmx::evmcs_rules;

use crate::args::Args;
use crate::smp::{Patience, Processors};
use crate::text::Text;
use crate::{Exit, MAX_CPUS, console, pages, say};

/// The command line's settings.
struct Plan<'a> {
    mode: Mode,
    kinds: &'a str,
    touch: Touch,
    samples: usize,
    warmup: usize,
    cpus: usize,
    /// See [`Shared::spins`].
    spins: usize,
}

/// The maximum number of samples in one frame.
const MOST: u64 = hypernest_nested::probe::MAX_COUNT as u64;

impl<'a> Plan<'a> {
    fn new(args: &Args<'a>) -> Result<Self, (&'static str, &'a str)> {
        let mode = args.value("mode").unwrap_or("");
        let touch = args.value("touch").unwrap_or("kvm-like");
        let kinds = args.value("kinds").unwrap_or("cpuid");
        let number = |name, default| {
            let n = args.number(name).map_err(|value| (name, value))?;
            let n = n.unwrap_or(default);
            usize::try_from(n)
                .ok()
                .filter(|_| n <= MOST)
                .ok_or((name, "more than 1048576"))
        };
        let plan = Self {
            mode: Mode::parse(mode).ok_or(("mode", mode))?,
            kinds,
            touch: Touch::parse(touch).ok_or(("touch", touch))?,
            samples: number("n", 1000)?,
            warmup: number("warmup", 100)?,
            cpus: number("cpus", 1)?.clamp(1, MAX_CPUS),
            spins: number("spins", 0)?,
        };
        if plan.spins > 0 && kinds != Kind::Cpuid.name() {
            return Err(("kinds", kinds));
        }
        match kinds.split(',').find(|name| Kind::parse(name).is_none()) {
            None => Ok(plan),
            Some(name) => Err(("kinds", name)),
        }
    }
}

impl Plan<'_> {
    fn has(&self, kind: Kind) -> bool {
        self.kinds.split(',').any(|name| name == kind.name())
    }
}

/// `l1 mode=MODE kinds=A,B,C touch=TOUCH n=N warmup=W cpus=C spins=S [resume-first]`.
///
/// [`hypernest_nested::l2exit`] documents the values. Before each of the N exits by CPUID L2 makes S turns of
/// an empty loop, so that it runs for a larger part of the time. With `resume-first` each kind begins with
/// VMRESUME, which only an enlightened VMCS accepts.
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let plan = match Plan::new(args) {
        Ok(plan) => plan,
        Err((name, value)) => {
            say!("wrong use: {name}={value}");
            return Exit::WrongUse;
        }
    };
    vmx::RESUME_FIRST.store(args.has("resume-first"), Ordering::Relaxed);
    let vendor = if plan.mode.is_svm() {
        Vendor::Amd
    } else {
        Vendor::Intel
    };
    let shared = Shared::new(0, vendor, BoardPage::announced(), plan.warmup, plan.samples);
    shared.spins = plan.spins as u64;
    let second = if plan.cpus > 1 && plan.has(Kind::Ipi) {
        match Processors::start(trampoline, plan.cpus, Patience::DEFAULT) {
            Ok(processors) => {
                let second: &Shared = Shared::new(1, vendor, BoardPage::unheard(), 1, 0);
                shared.other = Some(second);
                Some((processors, second))
            }
            Err(running) => {
                say!("refused: {running} of {} processors run", plan.cpus);
                return Exit::Failed;
            }
        }
    } else {
        None
    };
    let result = match plan.mode {
        Mode::Classic | Mode::ClassicShadow | Mode::Offered | Mode::OfferedShadow => {
            Session::<vmx::Vmx<vmx::Classic>>::new(&plan, shared, second).map(Session::run)
        }
        Mode::Svm | Mode::SvmEmsr | Mode::SvmDirectFlush => {
            Session::<svm::Svm>::new(&plan, shared, second).map(Session::run)
        }
        Mode::Evmcs | Mode::EvmcsEmsr | Mode::EvmcsDirectFlush => {
            Session::<vmx::Vmx<vmx::Enlightened>>::new(&plan, shared, second).map(Session::run)
        }
    };
    match result {
        Ok(exit) => exit,
        Err(why) => {
            say!("refused: {why}");
            Exit::Failed
        }
    }
}

/// Why there are no samples of a kind.
enum NotMeasured {
    /// This processor lacks a required feature.
    Lacking(Text),
    Failed(Text),
}

/// One run: a virtual processor, and its measurements.
struct Session<'a, V> {
    plan: &'a Plan<'a>,
    vcpu: V,
    environment: Environment,
    shared: &'static Shared,
    second: Option<Second<V>>,
}

impl<'a, V: Vcpu> Session<'a, V> {
    fn new(
        plan: &'a Plan<'a>,
        shared: &'static Shared,
        second: Option<(Processors, &'static Shared)>,
    ) -> Result<Self, Text> {
        Ok(Self {
            plan,
            vcpu: V::new(plan.mode, shared.order)?,
            environment: Environment::new(shared),
            shared,
            second: second.map(|(processors, shared)| Second::new(processors, plan, shared)),
        })
    }

    fn run(mut self) -> Exit {
        let mut exit = Exit::Done;
        for kind in self.plan.kinds.split(',').filter_map(Kind::parse) {
            if let Some(why) = kinds::lacking(kind, self.plan.mode, self.plan.cpus) {
                say!("skip {kind}: {why}");
                continue;
            }
            say!("l1: running {kind}");
            match self.measure_on_all(kind) {
                Ok(()) if self.shared.board.is_heard() => self.shared.board.complete(),
                Ok(()) => stream(kind, self.plan.mode, self.shared),
                Err(NotMeasured::Lacking(why)) => say!("skip {kind}: {why}"),
                Err(NotMeasured::Failed(why)) => {
                    self.shared.board.fail(self.vcpu.last_exit());
                    say!("fail {kind}: {why}");
                    exit = Exit::Failed;
                }
            }
        }
        say!("l1: done");
        exit
    }

    /// Measures `kind` with as many processors as it requires.
    fn measure_on_all(&mut self, kind: Kind) -> Result<(), NotMeasured> {
        let Some(mut second) = self.second.take() else {
            return self.measure(kind);
        };
        let measured = match kind {
            Kind::Ipi => second.beside(|| self.measure(kind)),
            _ => self.measure(kind),
        };
        self.second = Some(second);
        measured
    }

    /// Runs L2 until it has taken all samples of `kind`.
    fn measure(&mut self, kind: Kind) -> Result<(), NotMeasured> {
        let shared = self.shared;
        shared.clear();
        shared
            .board
            .begin(kind, shared.samples.len() as u64, shared.samples_address());
        let mut part = Part::begin(kind, self.plan.mode, shared, &mut self.vcpu);
        let prepared = self.vcpu.prepare(
            &kinds::intercepts(kind),
            &self.environment,
            self.environment.start(kinds::entry(kind, shared.spins > 0)),
            self.plan.touch,
        );
        prepared.map_err(NotMeasured::Lacking)?;
        let result = drive::run(&mut self.vcpu, shared, &mut part, self.plan.touch);
        self.vcpu.leave();
        result
            .and_then(|()| self.check(kind))
            .map_err(NotMeasured::Failed)
    }

    /// Checks that every sample is of the intended exit.
    fn check(&self, kind: Kind) -> Result<(), Text> {
        let refused = self.shared.refused.load(Ordering::Relaxed);
        if refused != 0 {
            return Err(Text::new(format_args!(
                "L2's hypercall returned {refused:#x}"
            )));
        }
        let parted = kind.has_l1_part(self.plan.mode);
        let wrong = |sample: &&Sample| (sample.exited.load(Ordering::Relaxed) != 0) != parted;
        match self.shared.samples.iter().filter(wrong).count() {
            0 => Ok(()),
            some if parted => Err(Text::new(format_args!(
                "{some} of {} times L2 went on without an exit",
                self.shared.samples.len()
            ))),
            some => Err(Text::new(format_args!(
                "{some} of {} times L2 came out where it should not",
                self.shared.samples.len()
            ))),
        }
    }
}

/// Two stamps of a sample.
type Ends = fn(&Sample) -> (&AtomicU64, &AtomicU64);

/// Writes the parts of all samples to the console: only the round trip, if L1 was not entered.
fn stream(kind: Kind, mode: Mode, shared: &Shared) {
    let values = pages::array(shared.samples.len());
    let parts: [(&str, Ends); 4] = [
        ("round-trip", |sample| (&sample.before, &sample.after)),
        ("l2-to-l1", |sample| (&sample.before, &sample.exited)),
        ("l1", |sample| (&sample.exited, &sample.resumed)),
        ("l1-to-l2", |sample| (&sample.resumed, &sample.after)),
    ];
    let parts = if kind.has_l1_part(mode) {
        &parts[..]
    } else {
        &parts[..1]
    };
    for (part, ends) in parts {
        for (value, sample) in values.iter_mut().zip(shared.samples) {
            let (from, to) = ends(sample);
            let from = from.load(Ordering::Relaxed);
            *value = to.load(Ordering::Relaxed).wrapping_sub(from);
        }
        let name = Text::new(format_args!("{kind}.{part}"));
        console::samples(name.as_str(), values);
    }
    say!("stopwatch {kind} {}", shared.board.stopwatch());
}
