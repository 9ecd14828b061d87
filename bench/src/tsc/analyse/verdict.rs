//! The rules that decide which errors of the clocks are failures.

use std::collections::BTreeMap;

use hypernest_nested::tsc::Clock;

use super::super::model::{Bounds, ClockResult, GuestKind, Move, Report, Segment};
use super::super::record::Record;
use super::forward::Step;
use super::{AcrossMoves, Doings};

/// A time service slews a Linux clock by up to 500 ppm (`MAXFREQ`, include/linux/timex.h): beyond that a
/// guest cannot correct its clocks. Twice what KVM leaves unscaled (`tsc_tolerance_ppm`, 250).
const DRIFT_PPM: f64 = 500.0;
/// The maximum offset of a clock after a move or a step, in ms.
const STEP_MS: f64 = 10.0;
/// An error must exceed its bound by this multiple of the median delay, or of the drift that the delay could
/// cause.
const UNCERTAINTIES: f64 = 3.0;
/// KVM does not scale a rate that is this close (`tsc_tolerance_ppm`).
const SAME_FREQUENCY: f64 = 250.0;

/// The basis of a verdict.
pub(super) struct Evidence<'a> {
    pub(super) record: &'a Record,
    pub(super) doings: &'a Doings,
    pub(super) tsc_khz: f64,
    pub(super) clocks: &'a [ClockResult],
    pub(super) moves: &'a [Move],
    /// The advance of each clock around each move, in ms.
    pub(super) advances: &'a [BTreeMap<&'static str, f64>],
    pub(super) segments: &'a [Segment],
    pub(super) steps: &'a [Step],
}

/// The verdict.
pub(super) struct Verdict {
    pub(super) bounds: Option<Bounds>,
    pub(super) failures: Vec<String>,
    /// Checks that the data did not allow.
    pub(super) undecided: Vec<String>,
}

pub(super) fn verdict(evidence: &Evidence<'_>) -> Verdict {
    let mut failures: Vec<String> = evidence
        .record
        .anew
        .iter()
        .map(|run| match run {
            0 => "the guest started anew, without a move".to_owned(),
            run => format!("the guest started anew after move {run}: it did not survive it"),
        })
        .collect();
    failures.extend(steps_back(evidence.clocks));
    failures.extend(missing_acks(evidence));
    let mut undecided = Vec::new();
    failures.extend(disagreements(evidence, &mut undecided));
    let timed = evidence.doings.clocks != AcrossMoves::Unknown;
    if timed {
        failures.extend(steps_forward(evidence));
        jumps(evidence, &mut failures, &mut undecided);
        drifts(evidence, &mut failures, &mut undecided);
    }
    Verdict {
        bounds: timed.then_some(Bounds {
            drift_ppm: DRIFT_PPM,
            step_ms: STEP_MS,
        }),
        failures,
        undecided,
    }
}

fn steps_back(clocks: &[ClockResult]) -> impl Iterator<Item = String> {
    clocks.iter().filter_map(|result| {
        let figures = result.measured.as_ref()?;
        (figures.backward_steps > 0).then(|| {
            format!(
                "{} stepped back {} times, by {:.0} ns at most",
                result.clock, figures.backward_steps, figures.largest_backward_ns
            )
        })
    })
}

fn missing_acks(evidence: &Evidence<'_>) -> Vec<String> {
    let mut khz = evidence.tsc_khz;
    let mut missing = Vec::new();
    let expected = evidence.doings.expects_acks;
    for of_move in evidence.moves.iter().filter(|_| expected) {
        let Some(target) = of_move.host_khz else {
            continue;
        };
        let changed = (target / khz - 1.0).abs() * 1e6 > SAME_FREQUENCY;
        match &of_move.acknowledged {
            Some(ack) => khz = ack.frequency_khz[1],
            None if changed => missing.push(format!(
                "the guest did not acknowledge move {} to {target:.0} kHz",
                of_move.number
            )),
            None => {}
        }
    }
    missing
}

/// Clocks of one guest that advanced differently at a move. This needs no clock of the host.
fn disagreements(evidence: &Evidence<'_>, undecided: &mut Vec<String>) -> Vec<String> {
    // A clock that is seldom read has larger gaps.
    let resolution = evidence.clocks.iter().filter_map(|result| {
        let figures = result.measured.as_ref()?;
        Some(figures.largest_quiet_gap_ns / 1e6)
    });
    let resolution = resolution.fold(0.0, f64::max);
    let mut found = Vec::new();
    for (of_move, advances) in evidence.moves.iter().zip(evidence.advances) {
        let number = of_move.number;
        let each = advances.iter().map(|(name, ms)| (*name, *ms));
        let least = each.clone().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = each.max_by(|a, b| a.1.total_cmp(&b.1));
        let (Some(least), Some(most)) = (least, most) else {
            undecided.push(format!(
                "move {number}: too few reports to compare the guest's clocks"
            ));
            continue;
        };
        // The rates may differ as much as drift may.
        let bound = STEP_MS + resolution + most.1.abs() * DRIFT_PPM / 1e6;
        if most.1 - least.1 > bound {
            found.push(format!(
                "move {number}: between two reports around it, {} went on by {:.1} ms, {} by {:.1} ms",
                most.0, most.1, least.0, least.1
            ));
        }
    }
    found
}

fn steps_forward(evidence: &Evidence<'_>) -> impl Iterator<Item = String> {
    evidence.steps.iter().filter_map(|step| {
        let ms = step.ns / 1e6;
        let bound = STEP_MS + UNCERTAINTIES * step.noise_ns / 1e6;
        (ms > bound).then(|| {
            format!(
                "{} stepped forward by {ms:.1} ms {}",
                step.clock.name(),
                when(step.after_move, false)
            )
        })
    })
}

/// The offset of each clock after each move.
fn jumps(evidence: &Evidence<'_>, failures: &mut Vec<String>, undecided: &mut Vec<String>) {
    let noise_ms = |run: u32| {
        let of_run = evidence.segments.iter().filter(|s| s.after_move == run);
        of_run.filter_map(|s| s.noise_us).fold(0.0, f64::max) / 1e3
    };
    for of_move in evidence.moves {
        let number = of_move.number;
        let bound = STEP_MS + UNCERTAINTIES * (noise_ms(number - 1) + noise_ms(number));
        let judged = of_move.clocks.values().any(|jump| jump.ahead_us.is_some());
        if !judged {
            undecided.push(format!(
                "move {number}: too few reports to hold its jump to a bound"
            ));
        }
        for (name, jump) in &of_move.clocks {
            let Some(ahead_us) = jump.ahead_us else {
                continue;
            };
            let (off, of_what) = match evidence.doings.clocks {
                // A paused clock should not have advanced at all.
                AcrossMoves::Pause => (jump.gap_ms, "a clock that is paused"),
                _ => (ahead_us / 1e3, "the host's clock"),
            };
            if off > bound {
                failures.push(format!(
                    "{name} jumped {off:.1} ms ahead of {of_what} at move {number}"
                ));
            } else if off < -bound {
                failures.push(format!(
                    "{name} lost {:.1} ms against {of_what} at move {number}",
                    -off
                ));
            }
        }
    }
}

fn drifts(evidence: &Evidence<'_>, failures: &mut Vec<String>, undecided: &mut Vec<String>) {
    let mut coarsest: f64 = 0.0;
    for segment in evidence.segments {
        let when = when(segment.after_move, segment.acknowledged);
        if segment.drift.is_empty() {
            undecided.push(format!("{when}: too few reports to hold drift to a bound"));
        }
        for (name, drift) in &segment.drift {
            let uncertainty = UNCERTAINTIES * drift.about_ppm;
            coarsest = coarsest.max(uncertainty);
            if drift.ppm.abs() > DRIFT_PPM + uncertainty {
                failures.push(format!(
                    "{name} drifted by {:+.0} ppm {when} (±{uncertainty:.0})",
                    drift.ppm
                ));
            }
        }
    }
    if coarsest > DRIFT_PPM {
        undecided.push(format!(
            "drift is known to ±{coarsest:.0} ppm only: less than that cannot be told from noise (longer \
             runs by --between-ms can)"
        ));
    }
}

fn when(after_move: u32, acknowledged: bool) -> String {
    match (after_move, acknowledged) {
        (0, _) => "before any move".to_owned(),
        (number, false) => format!("after move {number}"),
        (number, true) => format!("after acknowledgement {number}"),
    }
}

/// The summary of a result without failures.
pub(in crate::tsc) fn all_well(report: &Report) -> String {
    let well = match report.bounds {
        None => "No clock stepped back.".to_owned(),
        Some(bounds) => format!(
            "No clock stepped back, was more than {:.0} ms off after a move or a step, or drifted by more \
             than {:.0} ppm (each beyond the \
             uncertainty of its measurement).",
            bounds.step_ms, bounds.drift_ppm
        ),
    };
    format!("{well} {}", checked(report))
}

/// The clocks that the verdict covers, and those that such a guest usually has as well.
fn checked(report: &Report) -> String {
    let usual = match report.guest.kind {
        GuestKind::Micro => [Clock::Page, Clock::Counter],
        GuestKind::Linux | GuestKind::LinuxL2 => [Clock::Monotonic, Clock::Raw],
    };
    let measured = report
        .clocks
        .iter()
        .filter(|clock| clock.measured.is_some());
    let measured: Vec<_> = measured.map(|clock| clock.clock.as_str()).collect();
    let absent = usual.map(Clock::name).into_iter();
    let absent: Vec<_> = absent.filter(|name| !measured.contains(name)).collect();
    let which = match measured.as_slice() {
        ["tsc"] => "Only the TSC was checked".to_owned(),
        names => format!("Checked: {}", names.join(", ")),
    };
    match absent.as_slice() {
        [] => format!("{which}."),
        absent => format!("{which}: the guest had no {}.", absent.join(" and no ")),
    }
}
