//! What came of a configuration, from what L1 reported.

use super::l1;
use crate::histogram::HistogramError;
use crate::report::{L1Facts, Measured, Outcome};
use crate::unit::Unit;
use crate::wire::{Message, Mode, Round};

/// Lines of L1's console that are shown with a failure.
const CONSOLE_LINES: usize = 40;

/// What L1 reported of one mode, of which `wanted` rounds make a measurement.
pub(super) fn outcome(
    mode: Mode,
    l1: &l1::Report,
    wanted: usize,
    unit: &Unit,
) -> Result<Outcome, HistogramError> {
    let mut facts = L1Facts::default();
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
    // What was complete before L1 broke down counts.
    if why.is_none() && rounds.len() < wanted {
        let short = || format!("L1 reported {} of {wanted} rounds", rounds.len());
        why = Some(l1.broken.clone().unwrap_or_else(short));
    }
    match why {
        None => Ok(Outcome::Measured(Box::new(Measured::new(
            facts, rounds, unit,
        )?))),
        Some(why) => Ok(Outcome::Failed {
            why,
            console: end_of(&l1.console),
        }),
    }
}

fn end_of(console: &str) -> String {
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
        }
    }

    fn ticks() -> Unit {
        unit(None, None)
    }

    fn failed(outcome: Outcome) -> (String, String) {
        match outcome {
            Outcome::Failed { why, console } => (why, console),
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
            Message::Round(round(Mode::Evmcs, &[100], 3)),
            Message::Round(round(Mode::Vmcs, &[100], 3)),
        ];
        let l1 = l1(messages, Some("L1 crashed"));
        match outcome(Mode::Evmcs, &l1, 2, &ticks()).unwrap() {
            Outcome::Measured(measured) => {
                assert_eq!(measured.all.samples, 2);
                assert_eq!(measured.l1_kvm_log.len(), 1);
            }
            other => panic!("{other:?}"),
        }
        let (why, console) = failed(outcome(Mode::Vmcs, &l1, 2, &ticks()).unwrap());
        assert_eq!(why, "L1 crashed");
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
