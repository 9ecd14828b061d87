//! Interprets the record of a sampler. Pure functions.

mod forward;
mod verdict;

use std::collections::BTreeMap;

use hypernest_nested::tsc::{Clock, Hello};

use super::fit::Fit;
use super::model::{
    Acknowledgement, Bounds, ClockFigures, ClockResult, Drift, Jump, Move, PageFigures,
    Reenlightenment, Segment, Series,
};
use super::record::{Acknowledged, Gap, Record, Sample};
use crate::histogram::{self, HistogramError};

pub(super) use verdict::all_well;

/// A move, as recorded by the process that made it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moved {
    /// The time of the command, in ns of the host's clock.
    pub(super) started: u64,
    /// The time of the guest's first output at the destination.
    pub(super) resumed: u64,
    /// The frequency of the destination, in kHz.
    pub(super) khz: Option<f64>,
}

/// The actions on the guest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Doings {
    /// The time of the start, in ns of the host's clock.
    pub(super) began: u64,
    /// The requested initial frequency of its TSC, in kHz.
    pub(super) khz: f64,
    /// The moves in order.
    pub(super) moves: Vec<Moved>,
    /// Whether an acknowledgement must follow each move to another frequency.
    pub(super) expects_acks: bool,
    /// The effect of a move on the clocks.
    pub(super) clocks: AcrossMoves,
}

/// The effect of a move on a guest's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcrossMoves {
    /// They continue: `--clock continue`.
    Continue,
    /// They are paused: `--clock pause`.
    Pause,
    /// Unknown, and so are the times of arrival: the reports were captured by hand.
    Unknown,
}

/// The result of the analysis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meaning {
    pub(super) tsc_khz: f64,
    pub(super) reenlightenment: Reenlightenment,
    pub(super) clocks: Vec<ClockResult>,
    pub(super) moves: Vec<Move>,
    pub(super) segments: Vec<Segment>,
    pub(super) offsets: Vec<Series>,
    /// The bounds on the clocks; `None` without times of arrival.
    pub(super) bounds: Option<Bounds>,
    pub(super) failures: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Maximum number of points in a plotted line.
const POINTS: usize = 400;

/// An interval without events.
struct Span<'a> {
    run: usize,
    /// The acknowledgement that it begins with.
    ack: Option<&'a Acknowledged>,
    samples: Vec<Sample>,
    /// The expected frequency of the TSC, in kHz.
    khz: f64,
    /// A value of the TSC, and its time in ns after the first sample.
    origin: (u64, f64),
    fits: [Option<Fit>; Clock::COUNT],
}

impl Span<'_> {
    fn tsc_ns(&self, tsc: u64) -> f64 {
        self.origin.1 + difference(tsc, self.origin.0) * 1e6 / self.khz
    }
}

/// `a - b`.
fn difference(a: u64, b: u64) -> f64 {
    (i128::from(a) - i128::from(b)) as f64
}

/// Interprets `record`, given the actions on the guest.
pub(super) fn analyse(record: &Record, doings: &Doings) -> Result<Meaning, HistogramError> {
    let stated = record.hello.map_or(0.0, |hello| hello.tsc_hz as f64 / 1e3);
    let tsc_khz = if stated > 0.0 { stated } else { doings.khz };
    let spans = spans(record, doings, tsc_khz);
    let seconds = |at: u64| difference(at, doings.began) / 1e9;
    let moves: Vec<Move> = doings
        .moves
        .iter()
        .zip(1..)
        .map(|(moved, number)| {
            let run = number as usize;
            let (clocks, downtime_ms) = jumps(record, &spans, run);
            let sequence = |run: usize| record.sequences.get(&run).copied().unwrap_or(0);
            Move {
                number,
                at_s: seconds(moved.started),
                host_khz: moved.khz,
                command_ms: difference(moved.resumed, moved.started) / 1e6,
                downtime_ms,
                clocks,
                sequence: [sequence(run - 1), sequence(run)],
                acknowledged: acknowledgement(record, run, tsc_khz),
            }
        })
        .collect();
    let clocks = Clock::ALL
        .into_iter()
        .map(|clock| {
            let measured = figures(record, clock, tsc_khz, &spans)?;
            Ok(ClockResult {
                clock: clock.name().to_owned(),
                measured,
            })
        })
        .collect::<Result<Vec<_>, HistogramError>>()?;
    let segments: Vec<_> = spans
        .iter()
        .filter_map(|span| segment(span, &seconds))
        .collect();
    let steps = forward::steps(record, &spans);
    let advances: Vec<_> = (1..=moves.len())
        .map(|run| advances(record, &spans, run))
        .collect();
    let verdict = verdict::verdict(&verdict::Evidence {
        record,
        doings,
        tsc_khz,
        clocks: &clocks,
        moves: &moves,
        advances: &advances,
        segments: &segments,
        steps: &steps,
    });
    let mut warnings = warnings(record);
    warnings.extend(verdict.undecided);
    Ok(Meaning {
        tsc_khz,
        reenlightenment: reenlightenment(record.hello.as_ref()),
        offsets: offsets(record, &spans, doings.began),
        segments,
        clocks,
        moves,
        bounds: verdict.bounds,
        failures: verdict.failures,
        warnings,
    })
}

fn reenlightenment(hello: Option<&Hello>) -> Reenlightenment {
    match hello {
        // A greeting without a hypervisor's clocks is that of a program in an operating system.
        None => Reenlightenment::Unknown,
        Some(hello) if hello.clocks.has(Clock::Monotonic) => Reenlightenment::Unknown,
        Some(hello) if !hello.offered => Reenlightenment::NotOffered,
        Some(hello) if !hello.opted_in => Reenlightenment::Declined,
        Some(hello) if hello.emulation => Reenlightenment::Emulation,
        Some(_) => Reenlightenment::Notification,
    }
}

/// Splits the run at moves and acknowledgements, and determines the frequency and the fits of each span.
fn spans<'a>(record: &'a Record, doings: &Doings, tsc_khz: f64) -> Vec<Span<'a>> {
    const TSC: usize = Clock::Tsc.index();
    let mut spans: Vec<Span<'a>> = Vec::new();
    for run in 0..=doings.moves.len() {
        let acks: Vec<_> = record.acks.iter().filter(|ack| ack.run == run).collect();
        let samples: Vec<_> = record.samples.iter().filter(|s| s.run == run).collect();
        for part in 0..=acks.len() {
            let ack = part.checked_sub(1).map(|index| acks[index]);
            let acknowledged = |sample: &Sample| {
                let past = acks
                    .iter()
                    .filter(|ack| ack.ack.after.tsc <= sample.now[TSC]);
                past.count()
            };
            let samples: Vec<Sample> = samples
                .iter()
                .filter(|sample| acknowledged(sample) == part)
                .map(|sample| **sample)
                .collect();
            let Some(first) = samples.first() else {
                continue;
            };
            let begins = match (ack, record.across.get(&run)) {
                (Some(ack), _) => ack.ack.after.tsc,
                (None, Some(gaps)) if gaps[TSC].size > 0 => {
                    gaps[TSC].at.saturating_add(gaps[TSC].size)
                }
                _ => first.now[TSC],
            };
            let before = spans.last();
            let likely = before.map_or(tsc_khz, |span| span.khz);
            let stated = match ack {
                Some(ack) => Some(ack.ack.frequency[1]),
                None => acks.first().map(|ack| ack.ack.frequency[0]),
            };
            let khz = match stated.map(|hz| hz as f64 / 1e3) {
                // TSC_FREQUENCY, as the guest read it.
                Some(khz) if khz > 0.0 => khz,
                _ if keeps_unless_acknowledged(record) => likely,
                _ => {
                    let target = run.checked_sub(1).and_then(|index| doings.moves[index].khz);
                    nearest_frequency(&samples, likely, target)
                }
            };
            // The step across a move is in ticks of the new frequency, which the guest has from its first
            // instruction on.
            let across = match (ack, record.across.get(&run)) {
                (None, Some(gaps)) if gaps[TSC].size > 0 => gaps[TSC].size,
                _ => 0,
            };
            let origin = (
                begins,
                before.map_or(0.0, |span| {
                    span.tsc_ns(begins.saturating_sub(across)) + across as f64 * 1e6 / khz
                }),
            );
            let mut span = Span {
                run,
                ack,
                samples,
                khz,
                origin,
                fits: [None; Clock::COUNT],
            };
            for clock in Clock::ALL {
                span.fits[clock.index()] = Fit::of(&times(record, &span, clock));
            }
            spans.push(span);
        }
    }
    spans
}

/// Whether the guest's TSC keeps its old frequency until the guest has acknowledged another. This is true of
/// any guest that reports its acknowledgements, unless it accepts another frequency at once.
fn keeps_unless_acknowledged(record: &Record) -> bool {
    !matches!(
        reenlightenment(record.hello.as_ref()),
        Reenlightenment::Unknown | Reenlightenment::Notification
    )
}

/// The frequency of a TSC whose guest does not report it: `likely` or `target`, whichever is closer to the
/// measured one.
fn nearest_frequency(samples: &[Sample], likely: f64, target: Option<f64>) -> f64 {
    let Some(first) = samples.first() else {
        return likely;
    };
    let tsc = |sample: &Sample| difference(sample.now[0], first.now[0]) * 1e6 / likely;
    let times: Vec<_> = samples.iter().map(|s| (tsc(s), s.at as f64)).collect();
    let Some(fit) = Fit::of(&times) else {
        return likely;
    };
    let measured = likely * (1.0 + fit.drift_ppm() / 1e6);
    match target {
        Some(target) if target > 0.0 && (target - measured).abs() < (likely - measured).abs() => {
            target
        }
        _ => likely,
    }
}

/// A clock and the host's since the first sample of all, in ns.
fn times(record: &Record, span: &Span<'_>, clock: Clock) -> Vec<(f64, f64)> {
    let own = span.samples.iter();
    own.filter_map(|sample| {
        Some((
            clock_ns(record, span, clock, sample.now[clock.index()])?,
            sample.at as f64,
        ))
    })
    .collect()
}

/// The value of `clock`, in ns since the first sample; `None` if the guest does not have it.
fn clock_ns(record: &Record, span: &Span<'_>, clock: Clock, value: u64) -> Option<f64> {
    if !record.has(clock) {
        return None;
    }
    match clock.unit_ns() {
        None => Some(span.tsc_ns(value)),
        Some(unit) => {
            let first = record.samples.first()?.now[clock.index()];
            Some(difference(value, first) * unit as f64)
        }
    }
}

/// The effect on each clock of the move with which run `run` began, and the time for which the guest was
/// stopped.
fn jumps(record: &Record, spans: &[Span<'_>], run: usize) -> (BTreeMap<String, Jump>, Option<f64>) {
    let before = spans.iter().rev().find(|span| span.run + 1 == run);
    let after = spans.iter().find(|span| span.run == run);
    let (Some(before), Some(after)) = (before, after) else {
        return (BTreeMap::new(), None);
    };
    let (Some(last), Some(first)) = (before.samples.last(), after.samples.first()) else {
        return (BTreeMap::new(), None);
    };
    let gaps = record.across.get(&run).copied().unwrap_or_default();
    let mut downtimes = Vec::new();
    let mut of_clocks = BTreeMap::new();
    for clock in Clock::ALL {
        let index = clock.index();
        let ns = |span, sample: &Sample| clock_ns(record, span, clock, sample.now[index]);
        let (Some(from), Some(to)) = (ns(before, last), ns(after, first)) else {
            continue;
        };
        // Over the whole run: by the frequencies of its spans the TSC is continuous across an
        // acknowledgement.
        let fit = |run: usize| {
            let own = spans.iter().filter(|span| span.run == run);
            let times: Vec<_> = own.flat_map(|span| times(record, span, clock)).collect();
            Fit::of(&times)
        };
        let host = match (fit(run - 1), fit(run)) {
            (Some(before), Some(after)) => Some(after.host(to) - before.host(from)),
            _ => None,
        };
        let gap = gaps[index].size as f64 * unit_ns(clock, after.khz);
        let ahead = host.map(|host| (to - from) - host);
        // The clock's advance outside the gap is the time for which the guest ran.
        downtimes.extend(ahead.map(|ahead| gap - ahead));
        of_clocks.insert(
            clock.name().to_owned(),
            Jump {
                gap_ms: gap / 1e6,
                ahead_us: ahead.map(|ns| ns / 1e3),
            },
        );
    }
    downtimes.sort_by(f64::total_cmp);
    let downtime = downtimes.get(downtimes.len() / 2);
    (of_clocks, downtime.map(|ns| ns / 1e6))
}

/// The advance of each clock, in ms, between the last report of a processor before run `run` and its second
/// one in it; empty without a second one. The first may be of a guest that was stopped between two reads of
/// one sample: some of its clocks were read before the stop and some after it.
fn advances(record: &Record, spans: &[Span<'_>], run: usize) -> BTreeMap<&'static str, f64> {
    let reports = |run: usize| {
        let own = spans.iter().filter(move |span| span.run == run);
        own.flat_map(|span| span.samples.iter().map(move |sample| (span, sample)))
    };
    let pair = reports(run).find_map(|(_, first)| {
        let of_first = |(_, sample): &(_, &Sample)| sample.vcpu == first.vcpu;
        let before = reports(run - 1).rfind(of_first)?;
        Some((before, reports(run).filter(of_first).nth(1)?))
    });
    let Some(((span, from), (later_span, to))) = pair else {
        return BTreeMap::new();
    };
    let advance = |clock: Clock| {
        let ns = |span, sample: &Sample| clock_ns(record, span, clock, sample.now[clock.index()]);
        Some((clock.name(), (ns(later_span, to)? - ns(span, from)?) / 1e6))
    };
    Clock::ALL.into_iter().filter_map(advance).collect()
}

fn unit_ns(clock: Clock, khz: f64) -> f64 {
    clock.unit_ns().map_or(1e6 / khz, |unit| unit as f64)
}

fn acknowledgement(record: &Record, run: usize, tsc_khz: f64) -> Option<Acknowledgement> {
    let ack = record.acks.iter().find(|ack| ack.run == run)?.ack;
    let gaps = record.across.get(&run)?;
    let resumed = |clock: Clock| {
        let Gap { size, at } = gaps[clock.index()];
        at.saturating_add(size)
    };
    // In us, by the page, the register, or the TSC.
    let since = |moment: hypernest_nested::tsc::Moment| {
        if record.has(Clock::Page) {
            difference(moment.page, resumed(Clock::Page)) / 10.0
        } else if record.has(Clock::Counter) {
            difference(moment.counter, resumed(Clock::Counter)) / 10.0
        } else {
            difference(moment.tsc, resumed(Clock::Tsc)) * 1e3 / tsc_khz
        }
    };
    Some(Acknowledgement {
        noticed_after_us: since(ack.noticed),
        acknowledged_after_us: since(ack.after),
        write_us: since(ack.after) - since(ack.before),
        status: ack.status,
        frequency_khz: ack.frequency.map(|hz| hz as f64 / 1e3),
    })
}

fn figures(
    record: &Record,
    clock: Clock,
    tsc_khz: f64,
    spans: &[Span<'_>],
) -> Result<Option<ClockFigures>, HistogramError> {
    if !record.has(clock) {
        return Ok(None);
    }
    let index = clock.index();
    let unit = unit_ns(clock, tsc_khz);
    let tallies = record
        .last
        .values()
        .filter_map(|report| report.tally(clock));
    let sum = |field: fn(&hypernest_nested::tsc::Tally) -> u64| {
        tallies.clone().map(field).fold(0_u64, u64::saturating_add)
    };
    let reads = sum(|tally| tally.reads);
    let seen = record.steps[index];
    let largest = tallies.clone().map(|tally| tally.largest_backward).max();
    let empty = histogram::new();
    // The TSC's unit is that of the interval of the gap.
    let quiet = record.largest_quiet[index];
    let then = spans.iter().rev().find(|span| span.origin.0 <= quiet.at);
    let khz = then.map_or(tsc_khz, |span| span.khz);
    let page = (clock == Clock::Page).then(|| {
        let fallbacks = record.last.values().map(|report| report.fallbacks);
        PageFigures {
            sequence_changes: record
                .last
                .values()
                .map(|report| report.sequence_changes)
                .max()
                .unwrap_or(0),
            fallback_share: fallbacks.fold(0_u64, u64::saturating_add) as f64 / reads.max(1) as f64,
        }
    });
    Ok(Some(ClockFigures {
        reads,
        // The guest's own counts may be rolled back with its memory; the host's are not.
        backward_steps: sum(|tally| tally.backward).max(seen.count),
        largest_backward_ns: largest.unwrap_or(0).max(seen.largest) as f64 * unit,
        largest_quiet_gap_ns: quiet.size as f64 * unit_ns(clock, khz),
        quiet_gaps: histogram::encode(record.quiet[index].as_ref().unwrap_or(&empty))?,
        unit_ns: unit,
        page,
    }))
}

fn segment(span: &Span<'_>, seconds: &impl Fn(u64) -> f64) -> Option<Segment> {
    let (first, last) = (span.samples.first()?, span.samples.last()?);
    let drifts = Clock::ALL.into_iter().filter_map(|clock| {
        let fit = span.fits[clock.index()]?;
        let drift = Drift {
            ppm: fit.drift_ppm(),
            about_ppm: fit.about_ppm,
        };
        Some((clock.name().to_owned(), drift))
    });
    Some(Segment {
        after_move: u32::try_from(span.run).unwrap_or(u32::MAX),
        acknowledged: span.ack.is_some(),
        from_s: seconds(first.at),
        to_s: seconds(last.at),
        samples: span.samples.len() as u64,
        tsc_khz: span.khz,
        noise_us: span.fits[Clock::Tsc.index()].map(|fit| fit.noise_ns / 1e3),
        drift: drifts.collect(),
    })
}

fn offsets(record: &Record, spans: &[Span<'_>], began: u64) -> Vec<Series> {
    let Some(first) = spans.first().and_then(|span| span.samples.first()) else {
        return Vec::new();
    };
    let (start, end) = (first.at, record.samples.last().map_or(first.at, |s| s.at));
    let width = (difference(end, start) / POINTS as f64).max(1.0);
    let present = Clock::ALL.into_iter().filter(|clock| record.has(*clock));
    present
        .map(|clock| {
            // The sample furthest ahead in each interval, by span so that none hides another.
            let mut points: BTreeMap<(u64, usize), (f64, f64)> = BTreeMap::new();
            for (number, span) in spans.iter().enumerate() {
                for sample in &span.samples {
                    let Some(ns) = clock_ns(record, span, clock, sample.now[clock.index()]) else {
                        continue;
                    };
                    let since = difference(sample.at, start);
                    let ahead = ns - since;
                    let place = (super::round(since / width), number);
                    let point = (difference(sample.at, began) / 1e9, ahead / 1e3);
                    let kept = points.entry(place).or_insert(point);
                    if point.1 > kept.1 {
                        *kept = point;
                    }
                }
            }
            Series {
                clock: clock.name().to_owned(),
                points: points.into_values().collect(),
            }
        })
        .collect()
}

fn warnings(record: &Record) -> Vec<String> {
    let mut warnings = Vec::new();
    if record.broken_bytes > 0 {
        warnings.push(format!(
            "{} bytes of the guest's reports were lost or incomplete",
            record.broken_bytes
        ));
    }
    let complaints = record.lines.iter().filter(|line| line.starts_with("FAIL"));
    warnings.extend(complaints.map(|line| format!("the guest reports: {line}")));
    warnings
}

#[cfg(test)]
pub(super) mod tests;
