//! What follows from the figures, in words, with the rule that made them.

use hypernest_nested::l2exit::Mode;

use super::groups::{Group, groups, in_words, ratio};
use super::model::{Measured, Recommendation, Report};
use crate::unit::Unit;

/// Smaller differences are not worth a word.
const NOTABLE: f64 = 0.03;
/// The least samples of a median that is believed.
const LEAST_SAMPLES: u64 = 30;
/// Kinds that a sentence names; the rule has them all.
const NAMED: usize = 4;

/// A question, and the two modes that answer it.
struct Question {
    /// What it is about.
    what: &'static str,
    with: Mode,
    without: Mode,
    /// Said if it only gains.
    gains: &'static str,
    /// Said if it only costs.
    costs: &'static str,
    /// Said if it makes no difference.
    same: &'static str,
}

const USE: [&str; 3] = ["use it", "leave it out", "makes no difference here"];
const SHADOW: [&str; 3] = [
    "leave it on (kvm_intel.enable_shadow_vmcs=1)",
    "switch it off (kvm_intel.enable_shadow_vmcs=0)",
    "makes no difference here",
];
const OFFER: [&str; 3] = ["gains even so", "costs you", "costs nothing here"];

const fn question(
    what: &'static str,
    with: Mode,
    without: Mode,
    [gains, costs, same]: [&'static str; 3],
) -> Question {
    Question {
        what,
        with,
        without,
        gains,
        costs,
        same,
    }
}

const QUESTIONS: [Question; 9] = [
    question(
        "hv-evmcs, where the host has no shadow VMCS",
        Mode::Evmcs,
        Mode::Classic,
        USE,
    ),
    question(
        "hv-evmcs, where the host shadows the VMCS",
        Mode::Evmcs,
        Mode::ClassicShadow,
        USE,
    ),
    question(
        "hv-emsr-bitmap, with hv-evmcs",
        Mode::EvmcsEmsr,
        Mode::Evmcs,
        USE,
    ),
    question("hv-emsr-bitmap", Mode::SvmEmsr, Mode::Svm, USE),
    question(
        "hv-tlbflush-direct, with hv-evmcs",
        Mode::EvmcsDirectFlush,
        Mode::Evmcs,
        USE,
    ),
    question("hv-tlbflush-direct", Mode::SvmDirectFlush, Mode::Svm, USE),
    question(
        "shadow VMCS, without hv-evmcs",
        Mode::ClassicShadow,
        Mode::Classic,
        SHADOW,
    ),
    question(
        "offering hv-evmcs to an L1 that does not use it, without shadow VMCS",
        Mode::Offered,
        Mode::Classic,
        OFFER,
    ),
    question(
        "offering hv-evmcs to an L1 that does not use it, with shadow VMCS",
        Mode::OfferedShadow,
        Mode::ClassicShadow,
        OFFER,
    ),
];

/// A kind's median round trip with the feature in parts of that without it.
#[derive(Clone, Copy, Debug)]
struct Change<'a> {
    kind: &'a str,
    ratio: f64,
    low: f64,
    high: f64,
    /// Host exits for each exit of L2, with and without.
    exits: Option<(f64, f64)>,
}

/// What a change says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Gain,
    Cost,
    Same,
    /// The intervals are too wide for any of these.
    Nothing,
}

impl Change<'_> {
    fn of<'a>(kind: &'a str, with: &Measured, without: &Measured) -> Option<Change<'a>> {
        let (with_trip, without_trip) = (&with.parts.round_trip, &without.parts.round_trip);
        let samples = with_trip.summary.samples.min(without_trip.summary.samples);
        let ([a_low, a_high], [b_low, b_high]) = (with_trip.p50_ci?, without_trip.p50_ci?);
        let change = Change {
            kind,
            ratio: ratio(with_trip.summary.p50, without_trip.summary.p50)?,
            low: ratio(a_low, b_high)?,
            high: ratio(a_high, b_low)?,
            exits: with
                .host_exits_per_l2_exit
                .zip(without.host_exits_per_l2_exit),
        };
        (samples >= LEAST_SAMPLES && change.ratio > 0.0).then_some(change)
    }

    fn says(&self) -> Says {
        if self.ratio <= 1.0 - NOTABLE && self.high < 1.0 {
            Says::Gain
        } else if self.ratio >= 1.0 + NOTABLE && self.low > 1.0 {
            Says::Cost
        } else if self.low > 1.0 - 2.0 * NOTABLE && self.high < 1.0 + 2.0 * NOTABLE {
            Says::Same
        } else {
            Says::Nothing
        }
    }
}

/// What the results support. A question whose modes were not both measured, or whose intervals are too wide, gets no answer.
pub(crate) fn recommend(report: &Report) -> Vec<Recommendation> {
    let groups = groups(report);
    let several = groups
        .iter()
        .filter(|group| group.modes().len() > 1)
        .count()
        > 1;
    groups
        .iter()
        .flat_map(|group| {
            QUESTIONS
                .iter()
                .filter_map(move |question| answer(question, group, several, &report.unit))
        })
        .collect()
}

fn answer(
    question: &Question,
    group: &Group<'_>,
    several: bool,
    unit: &Unit,
) -> Option<Recommendation> {
    let changes: Vec<Change<'_>> = group
        .kinds()
        .into_iter()
        .filter_map(|kind| {
            let with = group.complete(question.with, kind)?;
            let without = group.complete(question.without, kind)?;
            Change::of(kind, with, without)
        })
        .collect();
    let those = |says: Says| -> Vec<Change<'_>> {
        let mut those: Vec<_> = changes
            .iter()
            .copied()
            .filter(|c| c.says() == says)
            .collect();
        those.sort_by(|a, b| a.ratio.ln().abs().total_cmp(&b.ratio.ln().abs()).reverse());
        those
    };
    let (gains, costs, same) = (those(Says::Gain), those(Says::Cost), those(Says::Same));
    let verdict = match (gains.is_empty(), costs.is_empty(), same.is_empty()) {
        (false, true, _) => format!("{} — {}", question.gains, list(&gains)),
        (true, false, _) => format!("{} — {}", question.costs, list(&costs)),
        (false, false, _) => format!(
            "it depends on what your L1 does most: gains {}; costs you {}",
            list(&gains),
            list(&costs)
        ),
        (true, true, false) => format!("{} — {}", question.same, list(&same)),
        (true, true, true) => return None,
    };
    let whose = if several {
        format!(" [{}]", group.title())
    } else {
        String::new()
    };
    let all: Vec<_> = changes
        .iter()
        .map(|c| format!("{} {:.3} [{:.3}, {:.3}]", c.kind, c.ratio, c.low, c.high))
        .collect();
    Some(Recommendation {
        text: format!("{}{whose}: {verdict}", question.what),
        rule: format!(
            "{} against {}, medians of round trips with the ratio's interval from both 95 % intervals: {}. A gain: at most {:.2}, interval \
             below 1; a cost: at least {:.2}, interval above 1; the same: interval within {:.2} and {:.2}; else, or with fewer \
             than {LEAST_SAMPLES} samples, no word. {}; in {}",
            question.with.name(),
            question.without.name(),
            all.join(", "),
            1.0 - NOTABLE,
            1.0 + NOTABLE,
            1.0 - 2.0 * NOTABLE,
            1.0 + 2.0 * NOTABLE,
            group.title(),
            unit.name
        ),
    })
}

/// `CPUID exits 0.56x (host exits 2.0 instead of 9.0), interrupts 0.90x and 3 more`.
fn list(changes: &[Change<'_>]) -> String {
    let mut parts: Vec<String> = changes
        .iter()
        .take(NAMED)
        .enumerate()
        .map(|(index, change)| {
            let exits = match change.exits {
                Some((with, without)) if index == 0 && (with - without).abs() >= 0.1 => {
                    format!(" (host exits {with:.1} instead of {without:.1})")
                }
                _ => String::new(),
            };
            format!("{} {:.2}x{exits}", in_words(change.kind), change.ratio)
        })
        .collect();
    if let Some(more) = changes.len().checked_sub(NAMED + 1) {
        parts.push(format!("and {} more kinds", more + 1));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::{Entry, Outcome};
    use crate::report::sample::{failed, measured, report_of};

    /// An entry with this median and this half-width of its interval, in parts of it.
    fn known(mode: Mode, kind: &str, p50: f64, within: f64) -> Entry {
        let mut entry = measured(mode, kind, p50);
        if let Outcome::Measured(figures) = &mut entry.outcome {
            let trip = &mut figures.parts.round_trip;
            trip.summary.p50 = p50;
            trip.p50_ci = Some([p50 * (1.0 - within), p50 * (1.0 + within)]);
        }
        entry
    }

    fn texts(entries: &[Entry]) -> Vec<String> {
        let all = recommend(&report_of(entries.to_vec())).into_iter();
        all.map(|recommendation| recommendation.text).collect()
    }

    #[test]
    fn one_kind_decides_by_ratio_and_interval() {
        for (with, within, wanted) in [
            (560.0, 0.001, Some("use it — CPUID exits 0.56x")),
            (1400.0, 0.001, Some("leave it out — CPUID exits 1.40x")),
            (1000.0, 0.001, Some("makes no difference here")),
            (980.0, 0.001, Some("makes no difference here")),
            (969.0, 0.001, Some("use it")),
            // Too wide for any word.
            (900.0, 0.10, None),
            (1100.0, 0.10, None),
            (1000.0, 0.05, None),
            (1000.0, f64::NAN, None),
        ] {
            let entries = [
                known(Mode::Evmcs, "cpuid", with, within),
                known(Mode::Classic, "cpuid", 1000.0, within),
            ];
            match (texts(&entries).as_slice(), wanted) {
                ([], None) => {}
                ([text], Some(wanted)) => assert!(text.contains(wanted), "{text}"),
                (texts, wanted) => panic!("{with} within {within}: {texts:?}, wanted {wanted:?}"),
            }
        }
    }

    #[test]
    fn gains_and_costs_are_both_told() {
        let entries = [
            known(Mode::Evmcs, "cpuid", 560.0, 0.001),
            known(Mode::Classic, "cpuid", 1000.0, 0.001),
            known(Mode::Evmcs, "interrupt", 1400.0, 0.001),
            known(Mode::Classic, "interrupt", 1000.0, 0.001),
            known(Mode::Evmcs, "hlt", 1000.0, 0.001),
            known(Mode::Classic, "hlt", 1000.0, 0.001),
        ];
        assert_eq!(
            texts(&entries),
            [
                "hv-evmcs, where the host has no shadow VMCS: it depends on what your L1 does most: gains CPUID exits 0.56x (host exits 5.6 instead of 10.0); costs you interrupts 1.40x (host exits 14.0 instead of 10.0)"
            ]
        );
        let rule = &recommend(&report_of(entries.to_vec()))[0].rule;
        for part in [
            "evmcs against classic, medians of round trips",
            "cpuid 0.560 [0.559, 0.561]",
            "interrupt 1.400",
            "hlt 1.000",
            "at most 0.97",
            "the micro-hypervisor",
            "; in ns",
        ] {
            assert!(rule.contains(part), "{part:?} is not in {rule}");
        }
    }

    #[test]
    fn each_question_has_its_modes_and_words() {
        for (with, without, better, wanted) in [
            (
                Mode::Evmcs,
                Mode::ClassicShadow,
                true,
                "where the host shadows the VMCS: use it",
            ),
            (
                Mode::EvmcsEmsr,
                Mode::Evmcs,
                true,
                "hv-emsr-bitmap, with hv-evmcs: use it",
            ),
            (
                Mode::SvmEmsr,
                Mode::Svm,
                false,
                "hv-emsr-bitmap: leave it out",
            ),
            (
                Mode::EvmcsDirectFlush,
                Mode::Evmcs,
                true,
                "hv-tlbflush-direct, with hv-evmcs: use it",
            ),
            (
                Mode::SvmDirectFlush,
                Mode::Svm,
                true,
                "hv-tlbflush-direct: use it",
            ),
            (
                Mode::ClassicShadow,
                Mode::Classic,
                true,
                "shadow VMCS, without hv-evmcs: leave it on",
            ),
            (
                Mode::Offered,
                Mode::Classic,
                false,
                "without shadow VMCS: costs you — CPUID exits 2.00x",
            ),
            (
                Mode::OfferedShadow,
                Mode::ClassicShadow,
                false,
                "with shadow VMCS: costs you",
            ),
        ] {
            let p50 = if better { 500.0 } else { 2000.0 };
            let entries = [
                known(with, "cpuid", p50, 0.01),
                known(without, "cpuid", 1000.0, 0.01),
            ];
            let texts = texts(&entries);
            assert_eq!(texts.len(), 1, "{texts:?}");
            assert!(
                texts[0].contains(wanted),
                "{:?} has no {wanted:?}",
                texts[0]
            );
        }
    }

    #[test]
    fn nothing_is_said_without_data() {
        assert!(texts(&[]).is_empty());
        assert!(texts(&[known(Mode::Evmcs, "cpuid", 1.0, 0.0)]).is_empty());
        let with = known(Mode::Evmcs, "cpuid", 500.0, 0.0);
        assert!(texts(&[with.clone(), failed(Mode::Classic, "cpuid")]).is_empty());
        // Another kind is no comparison, and neither is nothing at all.
        assert!(texts(&[with.clone(), known(Mode::Classic, "hlt", 1000.0, 0.0)]).is_empty());
        assert!(texts(&[with.clone(), known(Mode::Classic, "cpuid", 0.0, 0.0)]).is_empty());
        let mut few = known(Mode::Classic, "cpuid", 1000.0, 0.0);
        let mut unsure = few.clone();
        if let Outcome::Measured(figures) = &mut few.outcome {
            figures.parts.round_trip.summary.samples = LEAST_SAMPLES - 1;
        }
        if let Outcome::Measured(figures) = &mut unsure.outcome {
            figures.parts.round_trip.p50_ci = None;
        }
        assert!(texts(&[with.clone(), few]).is_empty());
        assert!(texts(&[with, unsure]).is_empty());
    }

    #[test]
    fn long_lists_are_cut_short_and_the_strongest_come_first() {
        let kinds = ["cpuid", "hypercall", "rdmsr", "wrmsr", "hlt", "ipi"];
        let mut entries = Vec::new();
        for (kind, p50) in kinds
            .into_iter()
            .zip([900.0, 800.0, 700.0, 600.0, 500.0, 400.0])
        {
            entries.push(known(Mode::Evmcs, kind, p50, 0.0));
            entries.push(known(Mode::Classic, kind, 1000.0, 0.0));
        }
        let text = &texts(&entries)[0];
        assert!(
            text.contains("— IPIs 0.40x") && text.ends_with("and 2 more kinds"),
            "{text}"
        );
    }

    #[test]
    fn whose_figures_they_are_is_said_where_there_are_several() {
        let mut entries = vec![
            known(Mode::Evmcs, "cpuid", 500.0, 0.0),
            known(Mode::Classic, "cpuid", 1000.0, 0.0),
        ];
        let other = entries.iter().cloned().map(|mut entry| {
            entry.touch = Some("minimal".into());
            entry
        });
        entries.extend(other.collect::<Vec<_>>());
        let texts = texts(&entries);
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("touching kvm-like") && texts[1].contains("touching minimal"));
    }
}
