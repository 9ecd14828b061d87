//! `--l1 micro`: L1 is the micro-hypervisor that comes with this program, which runs an L2 through exits of
//! chosen kinds.
//!
//! A VM measures all kinds in one mode; modes alternate, cycle after cycle, until every median is precise
//! enough. L1 and L2 timestamp each exit and keep the timestamps in their memory, from which they are read
//! when L1 rings the doorbell ([`record`]).

mod devices;
mod plan;
pub(crate) mod reasons;
mod record;
mod rival;
mod said;
mod tally;
pub(super) mod threads;
mod vm;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use hypernest_nested::l2exit::{Kind, Mode, Touch};

pub(super) use rival::Rival;

use super::interrupt::Interrupts;
use super::modes;
use super::shadow::ShadowVmcs;
use crate::histogram::HistogramError;
use crate::kvm_module::Vendor;
use crate::progress::{Progress, cycles_needed};
use crate::report::{Entry, L1, Outcome, StoppedBy, Vmm};
use crate::unit::Unit;
use plan::Limits;
use reasons::{Counting, Tracing};
use record::Ending;
use tally::Tally;
use vm::{Job, Run};

/// The measurements to run.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) modes: Vec<Mode>,
    /// The VMMs that run L1, in sequence.
    pub(super) vmms: Vec<Runner>,
    pub(super) touches: Vec<Touch>,
    pub(super) kinds: Vec<Kind>,
    /// L1's vCPUs; `None` for as many as the kind needs.
    pub(super) cpus: Option<u32>,
    /// Samples per round.
    pub(super) samples: u32,
    pub(super) warmup: u32,
    /// The maximum time without progress of a VM.
    pub(super) silence: Duration,
    /// The maximum width of a median's interval, relative to the median.
    pub(super) precision: f64,
    pub(super) max_cycles: u32,
    pub(super) time_limit: Duration,
    /// The host CPUs to which vCPUs are bound.
    pub(super) pins: Vec<u32>,
    /// Whether host exits are counted by reason.
    pub(super) reasons: bool,
}

/// The VMM that runs L1.
#[derive(Debug)]
pub(super) enum Runner {
    /// This program.
    Hypernest,
    /// QEMU.
    Qemu(Box<Rival>),
}

impl Runner {
    fn vmm(&self) -> Vmm {
        match self {
            Self::Hypernest => Vmm::Hypernest,
            Self::Qemu(_) => Vmm::Qemu,
        }
    }
}

/// The result of the measurements.
#[derive(Debug)]
pub(super) struct Measurement {
    pub(super) entries: Vec<Entry>,
    pub(super) interrupted: bool,
    pub(super) stopped_by: Option<StoppedBy>,
    pub(super) warnings: Vec<String>,
}

/// Samples in the run that counts host exits by reason: their number hardly varies.
const COUNTED_SAMPLES: u32 = 32;
const COUNTED_WARMUP: u32 = 8;

/// Runs all measurements; failures are recorded in the entries.
pub(super) fn measure(
    wish: &Wish,
    vendor: Vendor,
    shadow: &mut ShadowVmcs,
    interrupts: &Interrupts,
    unit: &Unit,
) -> Result<Measurement, MicroError> {
    let mut image = tempfile::NamedTempFile::new().map_err(MicroError::Image)?;
    image
        .write_all(hypernest_guest::GUEST)
        .map_err(MicroError::Image)?;
    let mut bench = Bench {
        wish,
        vendor,
        image: image.path(),
        interrupts,
        tallies: BTreeMap::new(),
        warnings: Vec::new(),
        interrupted: false,
        progress: Progress::on_stderr(Some(wish.time_limit)),
    };
    let stopped_by = bench.cycles(shadow);
    bench.report(stopped_by, unit)
}

/// The measurement cannot start, or gives no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MicroError {
    #[error("cannot write the guest program into a temporary file")]
    Image(#[source] io::Error),
    #[error(transparent)]
    Histogram(#[from] HistogramError),
}

/// One measurement; a touch profile is identified by its index in the plan.
type Cell = (Vmm, Mode, usize, Kind);

struct Bench<'a> {
    wish: &'a Wish,
    vendor: Vendor,
    image: &'a Path,
    interrupts: &'a Interrupts,
    tallies: BTreeMap<Cell, Tally>,
    warnings: Vec<String>,
    interrupted: bool,
    progress: Progress,
}

/// The place of a series of VMs in a cycle.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    vmm: &'a Runner,
    mode: Mode,
    touch: usize,
    cpus: u32,
}

impl<'a> Bench<'a> {
    fn cycles(&mut self, shadow: &mut ShadowVmcs) -> Option<StoppedBy> {
        let limits = Limits {
            precision: self.wish.precision,
            cycles: self.wish.max_cycles,
            time: self.wish.time_limit,
        };
        let order = plan::order(&self.wish.modes, shadow.now());
        let start = Instant::now();
        let mut expected = f64::from(plan::FEWEST_CYCLES.min(limits.cycles));
        let tracing = self.wish.reasons.then(Tracing::new);
        let tracing = tracing.transpose().unwrap_or_else(|error| {
            self.warn(crate::chain(&error));
            None
        });
        for cycle in 1.. {
            let kinds = self.unfinished(cycle);
            self.progress.cycle(cycle, expected, self.steps(&kinds));
            for &mode in &order {
                if cycle > 1 && start.elapsed() >= limits.time {
                    return Some(StoppedBy::TimeLimit);
                }
                self.progress.steps().mode(mode.name());
                let said = format!("cycle {cycle}: {mode}");
                self.progress.say_without_line(&said);
                match shadow.set(mode.shadow_vmcs()) {
                    Ok(()) => self.visit(mode, &kinds, cycle, tracing.as_ref()),
                    Err(why) => self.fail_mode(mode, &why),
                }
                if self.interrupted || self.interrupts.arrived() {
                    self.interrupted = true;
                    return None;
                }
            }
            let widest = self.widest();
            if let Some((width, (_, mode, _, kind))) = widest {
                self.progress.say(&format!(
                    "after cycle {cycle}: the widest interval of a median is {:.2} % of it ({mode}, {kind})",
                    width * 100.0
                ));
                expected = cycles_needed(cycle, width, limits.precision, limits.cycles)
                    .max(f64::from(plan::FEWEST_CYCLES.min(limits.cycles)));
            }
            let stop = limits.reached(cycle, start.elapsed(), widest.map(|(width, _)| width));
            if stop.is_some() {
                return stop;
            }
        }
        None
    }

    /// The kinds that need another run: in all modes, so that the modes keep alternating.
    fn unfinished(&self, cycle: u32) -> Vec<Kind> {
        let wide = |kind: Kind| {
            let of_kind = self.tallies.iter().filter(|((.., of), _)| *of == kind);
            of_kind
                .filter_map(|(_, tally)| tally.width())
                .any(|width| width > self.wish.precision)
        };
        let kinds = self.wish.kinds.iter().copied();
        kinds
            .filter(|&kind| cycle <= plan::FEWEST_CYCLES || wide(kind))
            .collect()
    }

    /// The number of measurements in a cycle of these kinds.
    fn steps(&self, kinds: &[Kind]) -> usize {
        let mut steps = 0;
        for vmm in self.wish.vmms.iter().map(Runner::vmm) {
            for &mode in &self.wish.modes {
                for touch in 0..self.wish.touches.len() {
                    let over = |kind: &Kind| {
                        let tally = self.tallies.get(&(vmm, mode, touch, *kind));
                        tally.is_some_and(Tally::is_over)
                    };
                    steps += kinds.iter().filter(|kind| !over(kind)).count();
                }
            }
        }
        steps
    }

    fn widest(&self) -> Option<(f64, Cell)> {
        let widths = self.tallies.iter();
        let widths = widths.filter_map(|(cell, tally)| Some((tally.width()?, *cell)));
        widths.max_by(|(a, _), (b, _)| a.total_cmp(b))
    }

    /// Runs one mode in a cycle.
    fn visit(&mut self, mode: Mode, kinds: &[Kind], cycle: u32, tracing: Option<&Tracing>) {
        for touch in 0..self.wish.touches.len() {
            let mut by_cpus: BTreeMap<u32, Vec<Kind>> = BTreeMap::new();
            for &kind in kinds {
                let cpus = self.wish.cpus.unwrap_or(kind.cpus());
                by_cpus.entry(cpus).or_default().push(kind);
            }
            for (&cpus, kinds) in &by_cpus {
                for vmm in &self.wish.vmms {
                    let place = Place {
                        vmm,
                        mode,
                        touch,
                        cpus,
                    };
                    self.series(place, kinds);
                    if self.interrupted {
                        return;
                    }
                }
            }
            let counting = tracing.filter(|_| cycle == 1).map(Tracing::count);
            let counting = match counting.transpose() {
                Ok(Some(counting)) => counting,
                Ok(None) => continue,
                Err(error) => {
                    self.warn(crate::chain(&error));
                    continue;
                }
            };
            // QEMU's exits would be the same, and cannot be distinguished from those of other VMs.
            let vmms = self.wish.vmms.iter();
            for vmm in vmms.filter(|vmm| vmm.vmm() == Vmm::Hypernest) {
                for (&cpus, kinds) in &by_cpus {
                    let place = Place {
                        vmm,
                        mode,
                        touch,
                        cpus,
                    };
                    self.count(place, kinds, &counting);
                }
            }
        }
    }

    fn tally(&mut self, place: Place<'a>, kind: Kind) -> &mut Tally {
        let cell = (place.vmm.vmm(), place.mode, place.touch, kind);
        self.tallies.entry(cell).or_default()
    }

    fn may_go_on(&mut self, place: Place<'a>, kinds: &[Kind]) -> Vec<Kind> {
        let kinds = kinds.iter().copied();
        kinds
            .filter(|&kind| !self.tally(place, kind).is_over())
            .collect()
    }

    /// Runs VMs until every kind has ended: a VM that ends early is followed by one that runs the remaining
    /// kinds.
    fn series(&mut self, place: Place<'a>, kinds: &[Kind]) {
        let mut left = self.may_go_on(place, kinds);
        while !left.is_empty() {
            let job = self.job(place, &left);
            let run = match place.vmm {
                Runner::Hypernest => vm::run(&job, None),
                Runner::Qemu(rival) => rival::run(&job, rival, self.interrupts),
            };
            let run = match run {
                Ok(run) => run,
                Err(error) => return self.fail(place, &left, &crate::chain(&error), ""),
            };
            let before = left.len();
            for (kind, ending) in run.endings {
                let Some(at) = left.iter().position(|&l| l == kind) else {
                    continue;
                };
                left.remove(at);
                let tally = self.tally(place, kind);
                if run.interrupted {
                    tally.interrupt(ending);
                } else {
                    tally.add(ending, &run.console);
                }
            }
            self.note(run.warnings);
            if run.interrupted {
                self.interrupted = true;
                return;
            }
            if let Some(why) = &run.refused {
                return self.fail(place, &left, &format!("refused: {why}"), &run.console);
            }
            if left.len() == before {
                let why = run.broken.as_deref();
                let why = why.unwrap_or("L1 ended without a report");
                return self.fail(place, &left, why, &run.console);
            }
        }
    }

    /// Runs VMs that count host exits by reason; their times do not count. Of a VM that ends early only the
    /// finished kinds count.
    fn count(&mut self, place: Place<'a>, kinds: &[Kind], counting: &Counting) {
        let left = self.may_go_on(place, kinds);
        if left.is_empty() || self.interrupted {
            return;
        }
        let job = Job {
            samples: self.wish.samples.min(COUNTED_SAMPLES),
            warmup: self.wish.warmup.min(COUNTED_WARMUP),
            steps: self.progress.steps().uncounted(),
            ..self.job(place, &left)
        };
        match vm::run(&job, Some(counting.counter(self.vendor))) {
            Ok(run) => self.counted(place, run),
            Err(error) => self.warn(crate::chain(&error)),
        }
    }

    fn counted(&mut self, place: Place<'a>, run: Run) {
        self.interrupted |= run.interrupted;
        self.note(run.warnings);
        for (kind, ending) in run.endings {
            match ending {
                Ending::Failed { why, .. } => self.warn(format!(
                    "{} {kind}: host exits are not counted by reason: {why}",
                    place.mode
                )),
                complete => self.tally(place, kind).count(&complete),
            }
        }
    }

    fn job<'b>(&'b self, place: Place<'a>, kinds: &'b [Kind]) -> Job<'b> {
        Job {
            image: self.image,
            mode: place.mode,
            touch: self.wish.touches[place.touch],
            kinds,
            cpus: place.cpus,
            samples: self.wish.samples,
            warmup: self.wish.warmup,
            pins: &self.wish.pins,
            limit: self.wish.silence,
            steps: self.progress.steps().clone(),
        }
    }

    fn fail(&mut self, place: Place<'a>, kinds: &[Kind], why: &str, console: &str) {
        for &kind in kinds {
            self.tally(place, kind).fail(why, console);
        }
    }

    fn fail_mode(&mut self, mode: Mode, why: &str) {
        let wish = self.wish;
        for (touch, vmm) in
            (0..wish.touches.len()).flat_map(|t| wish.vmms.iter().map(move |v| (t, v)))
        {
            for &kind in &wish.kinds {
                let cell = (vmm.vmm(), mode, touch, kind);
                self.tallies.entry(cell).or_default().fail(why, "");
            }
        }
    }

    fn note(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            self.warn(warning);
        }
    }

    /// Adds a warning, unless it is already there.
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.progress.say(&warning);
            self.warnings.push(warning);
        }
    }

    fn report(
        mut self,
        stopped_by: Option<StoppedBy>,
        unit: &Unit,
    ) -> Result<Measurement, MicroError> {
        let mut entries = Vec::new();
        let mut modes = self.wish.modes.clone();
        modes.sort();
        modes.dedup();
        let vmms = self.wish.vmms.iter().map(Runner::vmm);
        let places = vmms.flat_map(|vmm| modes.iter().map(move |&mode| (vmm, mode)));
        for (vmm, mode) in places {
            for (touch, profile) in self.wish.touches.iter().enumerate() {
                for &kind in &self.wish.kinds {
                    let tally = self.tallies.remove(&(vmm, mode, touch, kind));
                    let outcome = match tally.filter(|t| !(t.is_empty() && self.interrupted)) {
                        Some(tally) => tally.outcome(self.vendor, unit)?,
                        None => Outcome::LeftOut {
                            why: "it was not reached before the interruption".to_owned(),
                        },
                    };
                    entries.push(Entry {
                        l1: L1::Micro,
                        vmm,
                        mode,
                        kind: kind.name().to_owned(),
                        touch: Some(profile.to_string()),
                        cpus: self.wish.cpus.unwrap_or(kind.cpus()),
                        hv: modes::hv(mode).to_owned(),
                        shadow_vmcs: mode.shadow_vmcs(),
                        runs: None,
                        outcome,
                    });
                }
            }
        }
        Ok(Measurement {
            entries,
            interrupted: self.interrupted,
            stopped_by,
            warnings: self.warnings,
        })
    }
}
