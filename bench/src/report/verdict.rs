//! The short answers: a line for each question over all L1s, and a line with the reason if they disagree.

use hypernest_nested::l2exit::Kind;

use super::comparison::{Comparison, Finding, NOTABLE, Reason};
use super::groups::{Group, groups, in_words};
use super::model::{Answer, Report};
use super::recommend::{Answered, QUESTIONS, Question};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The question.
    pub(crate) subject: String,
    /// The answer, and the figures of each L1.
    pub(crate) text: String,
    /// The reason why L1s disagree.
    pub(crate) why: Option<String>,
}

/// The answers that the figures of `report` support.
pub(crate) fn verdicts(report: &Report) -> Vec<Verdict> {
    let groups = groups(report);
    let answers = QUESTIONS.iter().map(|question| {
        let answered = groups.iter().filter_map(|group| question.answer(group));
        (question, answered.collect::<Vec<_>>())
    });
    answers
        .filter_map(|(question, answered)| verdict(question, &answered, &groups))
        .collect()
}

fn verdict(
    question: &Question,
    answered: &[Answered<'_>],
    groups: &[Group<'_>],
) -> Option<Verdict> {
    let first = answered.first()?;
    let mut answers: Vec<Answer> = answered.iter().map(|a| a.answer).collect();
    // An L1 with an undecided answer disagrees with no other.
    if answers.iter().any(|answer| *answer != Answer::Undecided) {
        answers.retain(|answer| *answer != Answer::Undecided);
    }
    answers.dedup();
    let agreed = match answers.as_slice() {
        [answer] => Some(*answer),
        _ => None,
    };
    let name = |a: &Answered<'_>| match groups.len() {
        1 => String::new(),
        _ => format!("{} ", short_name(a.group, groups)),
    };
    let figures = |a: &Answered<'_>| {
        let own = match agreed {
            Some(agreed) if agreed == a.answer => String::new(),
            _ => format!("{}, ", question.words.of(a.answer)),
        };
        format!("{}{own}{}", name(a), summary(a))
    };
    let figures: Vec<_> = answered.iter().map(figures).collect();
    let word = match agreed {
        Some(answer) => question.words.of(answer),
        None if is_borderline(answered) => "little or no difference",
        None => "L1s disagree",
    };
    Some(Verdict {
        subject: first.subject.clone(),
        text: format!("{word} ({})", figures.join("; ")),
        why: agreed.is_none().then(|| why(answered, groups)),
    })
}

/// The L1's name as `micro`, with its touch profile if several have that name.
fn short_name(group: &Group<'_>, groups: &[Group<'_>]) -> String {
    let name = group.name();
    let same = groups.iter().filter(|other| other.name() == name).count();
    match group.touch {
        Some(touch) if same > 1 => format!("{name} {}", super::groups::plain(touch)),
        _ => name,
    }
}

/// A summary as `0.53x to 0.82x in 17 of 19 kinds`, over the kinds that decided the answer.
fn summary(answered: &Answered<'_>) -> String {
    let all = answered.comparisons.len();
    let of = |finding: Finding| range(&answered.those(|f| f == finding), all);
    match answered.answer {
        Answer::Gain => of(Finding::Gain),
        Answer::Cost => of(Finding::Cost),
        Answer::NoDifference => of(Finding::Same),
        Answer::Depends => format!("gains {}, costs {}", of(Finding::Gain), of(Finding::Cost)),
        Answer::Undecided => {
            let those = answered.those(|_| true);
            let Some(first) = those.first() else {
                return String::new();
            };
            let reason = match first.finding {
                Finding::Undecided(reason) => reason,
                _ => Reason::Wide,
            };
            let more = match those.len() {
                1 => String::new(),
                more => format!(" and {} more", more - 1),
            };
            format!(
                "{} {}{more}; {}",
                in_words(first.kind),
                first.ratio,
                reason.text()
            )
        }
    }
}

fn range(those: &[Comparison<'_>], all: usize) -> String {
    let values = those.iter().map(|c| c.ratio.value);
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = (format!("{low:.2}x"), format!("{high:.2}x"));
    let extent = if low == high {
        low
    } else {
        format!("{low} to {high}")
    };
    match those {
        [only] if all == 1 => format!("{extent} for {}", in_words(only.kind)),
        _ => format!("{extent} in {} of {all} kinds", those.len()),
    }
}

/// The kinds that all of them compared, with the ratio of each.
fn in_common<'a>(answered: &'a [Answered<'_>]) -> Vec<(&'a str, Vec<f64>)> {
    let Some((first, others)) = answered.split_first() else {
        return Vec::new();
    };
    let ratio_of = |a: &Answered<'_>, kind: &str| {
        let found = a.comparisons.iter().find(|c| c.kind == kind)?;
        Some(found.ratio.value)
    };
    let common = first.comparisons.iter().filter_map(|c| {
        let rest = others.iter().map(|other| ratio_of(other, c.kind));
        let all = std::iter::once(Some(c.ratio.value)).chain(rest);
        Some((c.kind, all.collect::<Option<Vec<_>>>()?))
    });
    common.collect()
}

fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, 0.0), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}

/// Whether the L1s differ by less than a notable difference, on the two sides of the limit.
fn is_borderline(answered: &[Answered<'_>]) -> bool {
    let mild = |answer: Answer| !matches!(answer, Answer::Depends);
    let common = in_common(answered);
    let near = common.iter().all(|(_, values)| {
        let (low, high) = spread(values);
        high - low <= NOTABLE && low > 1.0 - 2.0 * NOTABLE && high < 1.0 + 2.0 * NOTABLE
    });
    !common.is_empty() && near && answered.iter().all(|a| mild(a.answer))
}

fn why(answered: &[Answered<'_>], groups: &[Group<'_>]) -> String {
    let common = in_common(answered);
    if is_borderline(answered) {
        let (kind, values) = &common[0];
        let values: Vec<_> = answered
            .iter()
            .zip(values)
            .map(|(a, value)| format!("{value:.2}x with {}", short_name(a.group, groups)))
            .collect();
        return format!(
            "{} take {}: nearly the same, on two sides of what counts as a difference ({:.2}x, {:.2}x)",
            in_words(kind),
            values.join(", "),
            1.0 - NOTABLE,
            1.0 + NOTABLE
        );
    }
    // The kinds that only one L1 was measured with.
    let only: Vec<String> = answered
        .iter()
        .filter_map(|a| {
            let alone = a.those(|f| matches!(f, Finding::Gain | Finding::Cost));
            let alone: Vec<_> = alone
                .iter()
                .filter(|c| !common.iter().any(|(kind, _)| *kind == c.kind))
                .collect();
            let strongest = alone.first()?;
            Some(format!(
                "only {} was measured with {} and {} other kinds",
                short_name(a.group, groups),
                in_words(strongest.kind),
                alone.len() - 1
            ))
        })
        .collect();
    if common.iter().all(|(_, values)| {
        let (low, high) = spread(values);
        high - low <= NOTABLE
    }) && !only.is_empty()
    {
        return format!("they agree on what both measured; {}", only.join("; "));
    }
    "each L1 does other work at an exit (accesses to its VMCS): take the one that is most like yours"
        .to_owned()
}

/// The kinds of exits whose times are dominated by timer ticks, so that no answer rests on them.
pub(crate) fn decided_by_ticks(report: &Report) -> Vec<String> {
    let groups = groups(report);
    let mut kinds: Vec<String> = Vec::new();
    let answered = groups.iter().flat_map(|group| {
        QUESTIONS
            .iter()
            .filter_map(|question| question.answer(group))
    });
    for comparison in answered.flat_map(|a| a.comparisons) {
        if comparison.finding == Finding::Undecided(Reason::Ticks)
            && !kinds.iter().any(|kind| kind == comparison.kind)
        {
            kinds.push(comparison.kind.to_owned());
        }
    }
    kinds.sort_by_key(|kind| Kind::ALL.iter().position(|known| known.name() == kind));
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::{Entry, L1, Outcome};
    use crate::report::sample::{measured, report_of};
    use hypernest_nested::l2exit::Mode;

    /// An entry with a precise median.
    fn known(l1: L1, mode: Mode, kind: &str, p50: f64) -> Entry {
        let mut entry = measured(mode, kind, p50);
        entry.l1 = l1;
        entry.touch = (l1 == L1::Micro).then(|| "kvm-like".to_owned());
        if let Outcome::Measured(figures) = &mut entry.outcome {
            let trip = &mut figures.parts.round_trip;
            trip.summary.p50 = p50;
            trip.p50_ci = Some([p50 * 0.999, p50 * 1.001]);
        }
        entry
    }

    fn pair(l1: L1, kind: &str, with: f64) -> [Entry; 2] {
        [
            known(l1, Mode::Evmcs, kind, with),
            known(l1, Mode::ClassicShadow, kind, 1000.0),
        ]
    }

    fn only(entries: Vec<Entry>) -> Verdict {
        let mut all = verdicts(&report_of(entries));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn l1s_that_agree_have_one_answer() {
        let mut entries = pair(L1::Micro, "cpuid", 600.0).to_vec();
        entries.extend(pair(L1::Micro, "rdmsr", 800.0));
        entries.extend(pair(L1::Linux, "cpuid", 640.0));
        let verdict = only(entries);
        assert_eq!(verdict.subject, "hv-evmcs, against shadow VMCS");
        assert_eq!(
            verdict.text,
            "use it (micro 0.60x to 0.80x in 2 of 2 kinds; linux 0.64x for CPUID exits)"
        );
        assert_eq!(verdict.why, None);
    }

    #[test]
    fn l1s_on_two_sides_of_the_limit_do_not_contradict_each_other() {
        let mut entries = pair(L1::Micro, "cpuid", 982.0).to_vec();
        entries.extend(pair(L1::Linux, "cpuid", 960.0));
        let verdict = only(entries);
        assert_eq!(
            verdict.text,
            "little or no difference (micro makes no difference here, 0.98x for CPUID exits; linux use it, \
             0.96x for CPUID exits)"
        );
        let why = verdict.why.unwrap();
        assert!(
            why.starts_with("CPUID exits take 0.98x with micro, 0.96x with linux: nearly the same"),
            "{why}"
        );
    }

    #[test]
    fn l1s_that_disagree_say_why() {
        let mut entries = pair(L1::Micro, "cpuid", 1300.0).to_vec();
        entries.extend(pair(L1::Linux, "cpuid", 700.0));
        let verdict = only(entries);
        assert!(
            verdict
                .text
                .starts_with("L1s disagree (micro leave it out, 1.30x"),
            "{verdict:?}"
        );
        assert!(
            verdict
                .why
                .unwrap()
                .contains("each L1 does other work at an exit")
        );

        let mut entries = pair(L1::Micro, "cpuid", 700.0).to_vec();
        entries.extend(pair(L1::Micro, "interrupt", 1300.0));
        entries.extend(pair(L1::Linux, "cpuid", 700.0));
        let verdict = only(entries);
        let why = verdict.why.unwrap();
        assert!(
            why.contains(
                "they agree on what both measured; only micro was measured with interrupts"
            ),
            "{why}"
        );
    }

    #[test]
    fn undecided_figures_come_with_their_interval_and_what_to_do() {
        let mut entries = pair(L1::Manual, "cpuid", 1050.0).to_vec();
        for entry in &mut entries {
            entry.runs = Some(1);
        }
        let verdict = only(entries);
        assert_eq!(
            verdict.text,
            "undecided (CPUID exits 1.050 [1.048, 1.052]; one run of each does not show what differs \
             between starts: run more)"
        );
        let mut same = pair(L1::Manual, "cpuid", 1000.0).to_vec();
        same.iter_mut().for_each(|entry| entry.runs = Some(1));
        assert!(only(same).text.starts_with("makes no difference here"));
    }

    #[test]
    fn what_was_not_measured_has_no_verdict() {
        assert_eq!(verdicts(&report_of(Vec::new())), []);
        let alone = known(L1::Micro, Mode::Evmcs, "cpuid", 1.0);
        assert_eq!(verdicts(&report_of(vec![alone])), []);
    }
}
