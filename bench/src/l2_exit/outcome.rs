//! The outcome of a mode, from the reports of a Linux L1.

use super::l1;
use crate::histogram::HistogramError;
use crate::report::{L1Facts, Measured, Outcome, Part, Parts};
use crate::unit::Unit;
use crate::wire::{Message, Mode, Round};

/// Lines of L1's console that are shown with a failure.
const CONSOLE_LINES: usize = 40;

/// The outcome of one mode from L1's messages; a measurement needs `wanted` rounds.
pub(super) fn outcome(
    mode: Mode,
    l1: &l1::Report,
    wanted: usize,
    unit: &Unit,
) -> Result<Outcome, HistogramError> {
    let mut facts = L1Facts {
        command_line: l1.command_line.clone(),
        ..L1Facts::default()
    };
    let mut rounds: Vec<Round> = Vec::new();
    let mut why = None;
    for message in &l1.messages {
        match message {
            Message::Started {
                kernel,
                clocksource,
                log,
            } => {
                facts.kernel.clone_from(kernel);
                facts.clocksource.clone_from(clocksource);
                facts.log.clone_from(log);
            }
            Message::Loaded { mode: of, log } if *of == mode => facts.kvm_log.clone_from(log),
            Message::Round(round) if round.mode == mode => rounds.push(round.clone()),
            Message::Failed {
                mode: of,
                why: because,
            } if *of == mode => {
                why = Some(because.clone());
            }
            _ => {}
        }
    }
    // Rounds that were complete before L1 failed count.
    if why.is_none() && rounds.len() < wanted {
        let short = || format!("L1 reported {} of {wanted} rounds", rounds.len());
        why = Some(l1.broken.clone().unwrap_or_else(short));
    }
    let measured = measured(facts, rounds, unit)?.map(Box::new);
    Ok(match (why, measured) {
        (None, Some(measured)) => Outcome::Measured(measured),
        (why, partial) => Outcome::Failed {
            why: why.unwrap_or_else(|| "L1 reported no samples".to_owned()),
            console: end_of(&l1.console),
            partial,
        },
    })
}

/// The figures of `rounds`; `None` if they contain no sample.
fn measured(
    facts: L1Facts,
    rounds: Vec<Round>,
    unit: &Unit,
) -> Result<Option<Measured>, HistogramError> {
    let exits: i64 = rounds.iter().map(|round| round.host_exits).sum();
    let out_of_range = rounds.iter().map(|round| round.out_of_range).sum();
    let (ticks, empty) = rounds
        .into_iter()
        .map(|round| (round.ticks, round.empty_ticks))
        .unzip();
    let Some(mut round_trip) = Part::of_encoded(ticks, unit)? else {
        return Ok(None);
    };
    round_trip.out_of_range = out_of_range;
    let samples = round_trip.summary.samples;
    Ok(Some(Measured {
        parts: Parts {
            l2_to_l1: None,
            l1: None,
            l1_to_l2: None,
            round_trip,
        },
        out_of_order: 0,
        host_exits_per_l2_exit: Some(exits as f64 / samples as f64),
        host_exits_by_reason: None,
        stopwatch: None,
        empty: Part::of_encoded(empty, unit)?,
        facts: Some(facts),
    }))
}

/// The last lines of the console.
pub(super) fn end_of(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    let from = lines.len().saturating_sub(CONSOLE_LINES);
    lines[from..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::round;
    use crate::unit::unit;

    fn l1(messages: Vec<Message>, broken: Option<&str>) -> l1::Report {
        l1::Report {
            messages,
            broken: broken.map(str::to_owned),
            interrupted: false,
            console: (0..100).map(|n| format!("line {n}\n")).collect(),
            command_line: "quiet".to_owned(),
        }
    }

    fn ticks() -> Unit {
        unit(None, None)
    }

    fn failed(outcome: Outcome) -> (String, String, u64) {
        match outcome {
            Outcome::Failed {
                why,
                console,
                partial,
            } => {
                let samples = partial.map_or(0, |p| p.parts.round_trip.summary.samples);
                (why, console, samples)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_complete_before_l1_broke_down_counts() {
        let messages = vec![
            Message::Loaded {
                mode: Mode::Evmcs,
                log: vec!["Using Hyper-V Enlightened VMCS".into()],
            },
            Message::Round(round(Mode::Evmcs, &[100], 3)),
            Message::Round(round(Mode::Evmcs, &[100], 4)),
            Message::Round(round(Mode::Vmcs, &[100], 3)),
        ];
        let l1 = l1(messages, Some("L1 crashed"));
        match outcome(Mode::Evmcs, &l1, 2, &ticks()).unwrap() {
            Outcome::Measured(measured) => {
                assert_eq!(measured.parts.round_trip.summary.samples, 2);
                assert_eq!(measured.host_exits_per_l2_exit, Some(3.5));
                assert!((measured.empty.unwrap().summary.p50 - 10.0).abs() < 1e-9);
                let facts = measured.facts.unwrap();
                assert_eq!((facts.kvm_log.len(), &*facts.command_line), (1, "quiet"));
            }
            other => panic!("{other:?}"),
        }
        let (why, console, partial) = failed(outcome(Mode::Vmcs, &l1, 2, &ticks()).unwrap());
        assert_eq!((&*why, partial), ("L1 crashed", 1));
        assert!(console.starts_with("line 60\n") && console.ends_with("line 99"));
    }

    #[test]
    fn a_mode_that_failed_has_its_own_reason() {
        let messages = vec![
            Message::Round(round(Mode::Evmcs, &[100], 3)),
            Message::Failed {
                mode: Mode::Evmcs,
                why: "L2 stuck".into(),
            },
            Message::Done,
        ];
        let l1 = l1(messages, None);
        let of = |mode, wanted| failed(outcome(mode, &l1, wanted, &ticks()).unwrap()).0;
        assert_eq!(of(Mode::Evmcs, 1), "L2 stuck");
        assert_eq!(of(Mode::Vmcs, 3), "L1 reported 0 of 3 rounds");
    }
}
