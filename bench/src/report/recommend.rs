//! The conclusions that the figures support, one for each question, as text with the rule.

use hypernest_nested::l2exit::Mode;

use super::comparison::{BETWEEN_STARTS, Comparison, Finding, MIN_SAMPLES, NOTABLE, Reason};
use super::groups::{Group, groups, in_words};
use super::model::{Answer, L1, Recommendation, Report};
use crate::unit::Unit;

/// The maximum number of kinds in a sentence; the rule has all of them.
const NAMED: usize = 4;

/// A question, and the two modes that answer it.
pub(super) struct Question {
    /// The subject.
    about: About,
    /// The first measured mode of this list is compared.
    with: &'static [Mode],
    without: Mode,
    /// The wording of the answers.
    pub(super) words: Words,
}

enum About {
    /// The feature and the circumstances, as text.
    Fixed(&'static str),
    /// All that the mode offers with an enlightened VMCS, in these circumstances.
    Evmcs(&'static str),
}

/// The wording of the answers.
pub(super) struct Words {
    pub(super) gains: &'static str,
    pub(super) costs: &'static str,
    pub(super) same: &'static str,
}

const USE: Words = Words {
    gains: "use it",
    costs: "leave it out",
    same: "makes no difference here",
};
const SHADOW: Words = Words {
    gains: "leave it on (kvm_intel.enable_shadow_vmcs=1)",
    costs: "switch it off (kvm_intel.enable_shadow_vmcs=0)",
    same: "makes no difference here",
};
const OFFER: Words = Words {
    gains: "gains even so",
    costs: "costs you",
    same: "costs nothing here",
};

/// Plain eVMCS if that was measured, since the others then have their own questions.
const EVMCS: &[Mode] = &[Mode::Evmcs, Mode::EvmcsEmsr, Mode::EvmcsDirectFlush];

const fn question(about: About, with: &'static [Mode], without: Mode, words: Words) -> Question {
    Question {
        about,
        with,
        without,
        words,
    }
}

/// The main question comes first.
pub(super) const QUESTIONS: [Question; 9] = [
    question(
        About::Evmcs("without shadow VMCS"),
        EVMCS,
        Mode::Classic,
        USE,
    ),
    question(
        About::Evmcs("against shadow VMCS"),
        EVMCS,
        Mode::ClassicShadow,
        USE,
    ),
    question(
        About::Fixed("hv-emsr-bitmap, with hv-evmcs"),
        &[Mode::EvmcsEmsr],
        Mode::Evmcs,
        USE,
    ),
    question(
        About::Fixed("hv-emsr-bitmap"),
        &[Mode::SvmEmsr],
        Mode::Svm,
        USE,
    ),
    question(
        About::Fixed("hv-tlbflush-direct, with hv-evmcs"),
        &[Mode::EvmcsDirectFlush],
        Mode::Evmcs,
        USE,
    ),
    question(
        About::Fixed("hv-tlbflush-direct"),
        &[Mode::SvmDirectFlush],
        Mode::Svm,
        USE,
    ),
    question(
        About::Fixed("shadow VMCS, without hv-evmcs"),
        &[Mode::ClassicShadow],
        Mode::Classic,
        SHADOW,
    ),
    question(
        About::Fixed("hv-evmcs offered but not used, without shadow VMCS"),
        &[Mode::Offered],
        Mode::Classic,
        OFFER,
    ),
    question(
        About::Fixed("hv-evmcs offered but not used, with shadow VMCS"),
        &[Mode::OfferedShadow],
        Mode::ClassicShadow,
        OFFER,
    ),
];

/// The answer of one group to a question.
pub(super) struct Answered<'a> {
    pub(super) group: &'a Group<'a>,
    /// The question as text.
    pub(super) subject: String,
    pub(super) answer: Answer,
    /// All kinds that were measured in both modes.
    pub(super) comparisons: Vec<Comparison<'a>>,
    with: Mode,
    without: Mode,
}

impl<'a> Answered<'a> {
    /// The comparisons with a finding, the strongest first.
    pub(super) fn those(&self, is: impl Fn(Finding) -> bool) -> Vec<Comparison<'a>> {
        let with = self.comparisons.iter().copied();
        let mut those: Vec<_> = with.filter(|c| is(c.finding)).collect();
        let strength = |c: &Comparison<'_>| c.ratio.value.ln().abs();
        those.sort_by(|a, b| strength(b).total_cmp(&strength(a)));
        those
    }
}

impl Question {
    /// The answer that the figures of `group` support; `None` if the two modes have no kind in common.
    pub(super) fn answer<'a>(&self, group: &'a Group<'a>) -> Option<Answered<'a>> {
        let kinds = group.kinds();
        let of = |with: Mode| -> Vec<Comparison<'a>> {
            let compared = kinds
                .iter()
                .map(|kind| Comparison::of(group, with, self.without, kind));
            compared.flatten().collect()
        };
        let mut tried = self.with.iter().map(|&with| (with, of(with)));
        let (with, comparisons) = tried.find(|(_, comparisons)| !comparisons.is_empty())?;
        let has = |finding: Finding| comparisons.iter().any(|c| c.finding == finding);
        let answer = match (has(Finding::Gain), has(Finding::Cost), has(Finding::Same)) {
            (true, false, _) => Answer::Gain,
            (false, true, _) => Answer::Cost,
            (true, true, _) => Answer::Depends,
            (false, false, true) => Answer::NoDifference,
            (false, false, false) => Answer::Undecided,
        };
        let subject = match self.about {
            About::Fixed(words) => words.to_owned(),
            About::Evmcs(circumstances) => {
                let more = match with {
                    Mode::EvmcsEmsr => " with hv-emsr-bitmap",
                    Mode::EvmcsDirectFlush => " with hv-tlbflush-direct",
                    _ => "",
                };
                format!("hv-evmcs{more}, {circumstances}")
            }
        };
        Some(Answered {
            group,
            subject,
            answer,
            comparisons,
            with,
            without: self.without,
        })
    }
}

impl Words {
    /// The wording of an answer.
    pub(super) fn of(&self, answer: Answer) -> &'static str {
        match answer {
            Answer::Gain => self.gains,
            Answer::Cost => self.costs,
            Answer::NoDifference => self.same,
            Answer::Depends => "it depends on what your L1 does most",
            Answer::Undecided => "undecided",
        }
    }
}

/// The conclusions that the results support. A question whose modes were not both measured gets no answer;
/// one whose figures allow more than one answer is undecided.
pub(crate) fn recommend(report: &Report) -> Vec<Recommendation> {
    let groups = groups(report);
    let with_figures = groups.iter().filter(|group| group.modes().len() > 1);
    let several = with_figures.count() > 1;
    let mut all = Vec::new();
    for group in &groups {
        for question in &QUESTIONS {
            if let Some(answered) = question.answer(group) {
                all.push(recommendation(question, &answered, several, &report.unit));
            }
        }
    }
    all
}

fn recommendation(
    question: &Question,
    answered: &Answered<'_>,
    several: bool,
    unit: &Unit,
) -> Recommendation {
    let (gains, costs) = (
        answered.those(|f| f == Finding::Gain),
        answered.those(|f| f == Finding::Cost),
    );
    let word = question.words.of(answered.answer);
    let verdict = match answered.answer {
        Answer::Gain => format!("{word} — {}", list(&gains)),
        Answer::Cost => format!("{word} — {}", list(&costs)),
        Answer::Depends => format!("{word}: gains {}; costs you {}", list(&gains), list(&costs)),
        Answer::NoDifference => {
            format!("{word} — {}", list(&answered.those(|f| f == Finding::Same)))
        }
        Answer::Undecided => format!("{word} — {}", undecided(answered)),
    };
    let whose = if several {
        format!(" [{}]", answered.group.title())
    } else {
        String::new()
    };
    let subject = &answered.subject;
    Recommendation {
        text: format!("{subject}{whose}: {verdict}"),
        rule: rule(answered, unit),
        question: Some(subject.clone()),
        l1: Some(answered.group.name()),
        answer: Some(answered.answer),
    }
}

fn rule(answered: &Answered<'_>, unit: &Unit) -> String {
    let all: Vec<_> = answered
        .comparisons
        .iter()
        .map(|c| match c.finding {
            Finding::Undecided(reason) => {
                format!("{} {} (undecided: {})", c.kind, c.ratio, reason.text())
            }
            _ => format!("{} {}", c.kind, c.ratio),
        })
        .collect();
    let runs = match answered.group.l1 {
        L1::Manual | L1::Image => format!(
            "; with one run of each, a gain or cost of less than {:.0} % is undecided",
            BETWEEN_STARTS * 100.0
        ),
        L1::Micro | L1::Linux => String::new(),
    };
    format!(
        "{} against {}, medians of round trips with the ratio's interval from both 95 % intervals: {}. A \
         gain: at most {:.2}, interval \
         below 1; a cost: at least {:.2}, interval above 1; the same: interval within {:.2} and {:.2}; \
         else, or with fewer \
         than {MIN_SAMPLES} samples, undecided{runs}. {}; in {}",
        answered.with.name(),
        answered.without.name(),
        all.join(", "),
        1.0 - NOTABLE,
        1.0 + NOTABLE,
        1.0 - 2.0 * NOTABLE,
        1.0 + 2.0 * NOTABLE,
        answered.group.title(),
        unit.name
    )
}

/// `CPUID exits 1.051 [0.930, 1.180]: the interval is too wide: run more`.
pub(super) fn undecided(answered: &Answered<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for reason in [
        Reason::OneRun,
        Reason::Wide,
        Reason::FewSamples,
        Reason::NoInterval,
        Reason::Ticks,
    ] {
        let those = answered.those(|finding| finding == Finding::Undecided(reason));
        if those.is_empty() {
            continue;
        }
        let mut named: Vec<_> = those
            .iter()
            .take(NAMED)
            .map(|c| format!("{} {}", in_words(c.kind), c.ratio))
            .collect();
        if those.len() > NAMED {
            named.push(format!("and {} more kinds", those.len() - NAMED));
        }
        parts.push(format!("{}: {}", named.join(", "), reason.text()));
    }
    parts.join("; ")
}

/// `CPUID exits 0.56x (host exits 2.0 instead of 9.0), interrupts 0.90x and 3 more kinds`.
fn list(changes: &[Comparison<'_>]) -> String {
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
            format!(
                "{} {:.2}x{exits}",
                in_words(change.kind),
                change.ratio.value
            )
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

    /// An entry with this median and this half-width of its interval, relative to the median.
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
            (560.0, 0.001, "use it — CPUID exits 0.56x"),
            (1400.0, 0.001, "leave it out — CPUID exits 1.40x"),
            (1000.0, 0.001, "makes no difference here"),
            (980.0, 0.001, "makes no difference here"),
            (969.0, 0.001, "use it"),
            // The interval is too wide for any other answer.
            (
                900.0,
                0.10,
                "undecided — CPUID exits 0.900 [0.736, 1.100]: the interval is too wide: run more",
            ),
            (1100.0, 0.10, "undecided"),
            (1000.0, 0.05, "undecided — CPUID exits 1.000 [0.905, 1.105]"),
            (
                1000.0,
                f64::NAN,
                "undecided — CPUID exits 1.000: a median has no interval",
            ),
        ] {
            let entries = [
                known(Mode::Evmcs, "cpuid", with, within),
                known(Mode::Classic, "cpuid", 1000.0, within),
            ];
            match texts(&entries).as_slice() {
                [text] => assert!(text.contains(wanted), "{text}"),
                texts => panic!("{with} within {within}: {texts:?}, wanted {wanted:?}"),
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
                "hv-evmcs, without shadow VMCS: it depends on what your L1 does most: gains CPUID exits \
                 0.56x (host exits 5.6 instead of 10.0); costs you interrupts 1.40x (host exits 14.0 \
                 instead of 10.0)"
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
                "hv-evmcs, against shadow VMCS: use it",
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
                "not used, without shadow VMCS: costs you — CPUID exits 2.00x",
            ),
            (
                Mode::OfferedShadow,
                Mode::ClassicShadow,
                false,
                "not used, with shadow VMCS: costs you",
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
    fn without_figures_of_both_there_is_no_answer() {
        assert!(texts(&[]).is_empty());
        assert!(texts(&[known(Mode::Evmcs, "cpuid", 1.0, 0.0)]).is_empty());
        let with = known(Mode::Evmcs, "cpuid", 500.0, 0.0);
        assert!(texts(&[with.clone(), failed(Mode::Classic, "cpuid")]).is_empty());
        // Another kind is not compared, and neither are missing results.
        assert!(texts(&[with.clone(), known(Mode::Classic, "hlt", 1000.0, 0.0)]).is_empty());
        assert!(texts(&[with.clone(), known(Mode::Classic, "cpuid", 0.0, 0.0)]).is_empty());
        let mut few = known(Mode::Classic, "cpuid", 1000.0, 0.0);
        let mut unsure = few.clone();
        if let Outcome::Measured(figures) = &mut few.outcome {
            figures.parts.round_trip.summary.samples = MIN_SAMPLES - 1;
        }
        if let Outcome::Measured(figures) = &mut unsure.outcome {
            figures.parts.round_trip.p50_ci = None;
        }
        assert!(
            texts(&[with.clone(), few])[0]
                .contains("undecided — CPUID exits 0.500 [0.500, 0.500]: too few samples")
        );
        assert!(
            texts(&[with, unsure])[0]
                .contains("undecided — CPUID exits 0.500: a median has no interval")
        );
    }

    #[test]
    fn everything_offered_together_answers_where_nothing_else_was_measured() {
        let classic = known(Mode::ClassicShadow, "cpuid", 1000.0, 0.0);
        let all = known(Mode::EvmcsEmsr, "cpuid", 500.0, 0.0);
        let wanted = "hv-evmcs with hv-emsr-bitmap, against shadow VMCS: use it";
        let told = texts(&[classic.clone(), all.clone()]);
        assert!(told.len() == 1 && told[0].starts_with(wanted), "{told:?}");
        let told = texts(&[classic, all, known(Mode::Evmcs, "cpuid", 600.0, 0.0)]);
        assert!(told[0].starts_with("hv-evmcs, against"), "{told:?}");
        assert!(
            told[1].starts_with("hv-emsr-bitmap, with hv-evmcs"),
            "{told:?}"
        );
    }

    #[test]
    fn long_lists_are_cut_short_and_the_strongest_come_first() {
        let kinds = ["cpuid", "hypercall", "rdmsr", "wrmsr", "pause", "ipi"];
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
