//! The entries of a report, grouped into tables and ordered, with the baseline of each table.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use hypernest_nested::l2exit::{Kind, Mode};

use super::model::{
    ALL_KINDS, Entry, Environment, L1, Measured, Outcome, Part, Parts, Report, Vmm,
};

/// Entries that differ only in mode and kind.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    /// The kind of L1.
    pub(crate) l1: L1,
    /// The VMM of L1.
    pub(crate) vmm: Vmm,
    /// The touch profile.
    pub(crate) touch: Option<&'a str>,
    /// The environment of the measurement.
    pub(crate) environment: &'a Environment,
    entries: Vec<&'a Entry>,
    /// Its modes and kinds: a second entry for the same pair, with another number of vCPUs, goes to another
    /// group.
    taken: HashSet<(Mode, &'a str)>,
}

/// The baselines: modes are compared with the first of these that was measured.
const BASELINES: [Mode; 3] = [Mode::Classic, Mode::ClassicShadow, Mode::Svm];

/// The groups of a report, in the order of their first entries.
pub(crate) fn groups(report: &Report) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for entry in &report.results {
        let fitting = groups.iter_mut().find(|group| group.takes(entry));
        match fitting {
            Some(group) => {
                group.entries.push(entry);
                group.taken.insert((entry.mode, &entry.kind));
            }
            None => groups.push(Group {
                l1: entry.l1,
                vmm: entry.vmm,
                touch: entry.touch.as_deref(),
                environment: &report.environment,
                entries: vec![entry],
                taken: HashSet::from([(entry.mode, entry.kind.as_str())]),
            }),
        }
    }
    groups
}

impl<'a> Group<'a> {
    fn takes(&self, entry: &Entry) -> bool {
        self.l1 == entry.l1
            && self.vmm == entry.vmm
            && self.touch == entry.touch.as_deref()
            && !self.taken.contains(&(entry.mode, entry.kind.as_str()))
    }

    /// Whether another report's group corresponds to this one.
    pub(crate) fn is_like(&self, other: &Group<'_>) -> bool {
        self.l1 == other.l1 && self.vmm == other.vmm && self.touch == other.touch
    }

    /// The name in files and tags: `micro`, or `micro@qemu`.
    pub(crate) fn name(&self) -> String {
        match self.vmm {
            Vmm::Hypernest => self.l1.name().to_owned(),
            Vmm::Qemu => format!("{}@qemu", self.l1.name()),
        }
    }

    /// The title as text.
    pub(crate) fn title(&self) -> String {
        let l1 = match self.l1 {
            L1::Micro => "the micro-hypervisor",
            L1::Linux => "Linux",
            L1::Image => "a kernel of the user's",
            L1::Manual => "run by hand",
        };
        let vmm = match self.vmm {
            Vmm::Hypernest => "",
            Vmm::Qemu => " in QEMU",
        };
        let touch = self
            .touch
            .map_or_else(String::new, |touch| format!(", touching {}", plain(touch)));
        let numbers: BTreeSet<u32> = self.entries.iter().map(|entry| entry.cpus).collect();
        let cpus = match numbers.iter().collect::<Vec<_>>().as_slice() {
            [1] => ", 1 vCPU".to_owned(),
            [one] => format!(", {one} vCPUs"),
            [first, .., last] => format!(", {first} to {last} vCPUs"),
            [] => String::new(),
        };
        format!("L1: {l1}{vmm}{touch}{cpus}")
    }

    /// The entries in the report's order.
    pub(crate) fn entries(&self) -> &[&'a Entry] {
        &self.entries
    }

    /// The modes with figures, in the order of [`Mode::ALL`].
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let has = |mode| {
            let mut of_mode = self.entries.iter().filter(|entry| entry.mode == mode);
            of_mode.any(|entry| figures(entry).is_some())
        };
        Mode::ALL
            .iter()
            .copied()
            .filter(|mode| has(*mode))
            .collect()
    }

    /// The kinds with figures: those of [`Kind::ALL`] in their order, then others.
    pub(crate) fn kinds(&self) -> Vec<&'a str> {
        let with_figures = self.entries.iter().filter(|entry| figures(entry).is_some());
        let mut seen = HashSet::new();
        let mut kinds: Vec<&str> = with_figures
            .map(|entry| entry.kind.as_str())
            .filter(|kind| seen.insert(*kind))
            .collect();
        let place = |kind: &str| Kind::ALL.iter().position(|known| known.name() == kind);
        kinds.sort_by_key(|kind| place(kind).unwrap_or(usize::MAX));
        kinds
    }

    /// The figures of a kind in a mode, also those of a measurement that failed later.
    pub(crate) fn measured(&self, mode: Mode, kind: &str) -> Option<&'a Measured> {
        figures(self.entry(mode, kind)?)
    }

    /// The figures of a kind in a mode, if the measurement is complete.
    pub(crate) fn complete(&self, mode: Mode, kind: &str) -> Option<&'a Measured> {
        self.entry(mode, kind)?.measured()
    }

    /// The entry of a kind in a mode.
    pub(crate) fn entry(&self, mode: Mode, kind: &str) -> Option<&'a Entry> {
        let mut entries = self.entries.iter();
        let found = entries.find(|entry| entry.mode == mode && entry.kind == kind)?;
        Some(*found)
    }

    /// Whether the measurement of a kind in a mode failed.
    pub(crate) fn failed(&self, mode: Mode, kind: &str) -> bool {
        self.entries.iter().any(|entry| {
            let failed = matches!(entry.outcome, Outcome::Failed { .. });
            failed && entry.mode == mode && (entry.kind == kind || entry.kind == ALL_KINDS)
        })
    }

    /// The mode with which the others are compared.
    pub(crate) fn baseline(&self) -> Option<Mode> {
        let has = |mode: &Mode| {
            let mut of_mode = self.entries.iter().filter(|entry| entry.mode == *mode);
            of_mode.any(|entry| entry.measured().is_some())
        };
        BASELINES.into_iter().find(has)
    }

    /// The median round trip relative to the baseline's; `None` if one of them is missing or the baseline's
    /// is 0.
    pub(crate) fn ratio(&self, mode: Mode, kind: &str) -> Option<f64> {
        let p50 = |mode| Some(self.measured(mode, kind)?.parts.round_trip.summary.p50);
        ratio(p50(mode)?, p50(self.baseline()?)?)
    }
}

/// The figures of an entry, also of one that failed later.
fn figures(entry: &Entry) -> Option<&Measured> {
    match &entry.outcome {
        Outcome::Measured(measured) => Some(measured),
        Outcome::Failed { partial, .. } => partial.as_deref(),
        Outcome::LeftOut { .. } => None,
    }
}

/// `of` relative to `against`, if that is a number.
pub(crate) fn ratio(of: f64, against: f64) -> Option<f64> {
    let ratio = of / against;
    (against > 0.0 && ratio.is_finite()).then_some(ratio)
}

/// The parts of a sample, by their names in tags and expressions.
pub(crate) const PARTS: [(&str, &str, PartOf); 4] = [
    ("round-trip", "round trip", |parts| Some(&parts.round_trip)),
    ("l2-to-l1", "L2 to L1", |parts| parts.l2_to_l1.as_ref()),
    ("l1", "L1", |parts| parts.l1.as_ref()),
    ("l1-to-l2", "L1 to L2", |parts| parts.l1_to_l2.as_ref()),
];

/// Selects a part.
pub(crate) type PartOf = fn(&Parts) -> Option<&Part>;

/// A kind of exits as words in a sentence.
pub(crate) fn in_words(kind: &str) -> Cow<'_, str> {
    let words = match kind {
        "cpuid" => "CPUID exits",
        "hypercall" => "hypercalls",
        "rdmsr" => "MSR reads",
        "wrmsr" => "MSR writes",
        "rdmsr-direct" => "MSR reads that L1 lets through",
        "wrmsr-direct" => "MSR writes that L1 lets through",
        "bitmap-same" => "exits with the MSR bitmap left alone",
        "bitmap-changed" => "exits with a changed MSR bitmap",
        "pio-out" => "port writes",
        "pio-in" => "port reads",
        "hlt" => "halts with a timer's wake-up",
        "interrupt" => "interrupts",
        "ipi" => "IPIs",
        "second-level-fault" => "second-level faults",
        "mmio" => "MMIO",
        "cr-write" => "CR3 writes",
        "page-fault" => "page faults",
        "xsetbv" => "XSETBV",
        "pause" => "PAUSE exits",
        "timer" => "timer interrupts",
        "preemption-timer" => "the preemption timer",
        "flush-hypercall" => "TLB flushes by hypercall",
        other => return plain(other),
    };
    Cow::Borrowed(words)
}

/// Text of guests and files without characters that control a terminal: control characters, and marks that
/// change the direction of writing.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(obeyed) {
        Cow::Owned(text.replace(obeyed, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A number with groups of three digits; a small one has one decimal.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    if value != 0.0 && value.abs() < 10.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", digits.as_str()),
    };
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{failed, left_out, measured, report_of};

    #[test]
    fn digits_in_groups() {
        for (value, wanted) in [
            (0.0, "0"),
            (0.44, "0.4"),
            (9.96, "10.0"),
            (123.0, "123"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(number(value), wanted);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(plain("L1 \u{e9}"), "L1 \u{e9}");
        assert_eq!(
            plain("\u{1b}[2J\n\u{202e}x"),
            "\u{fffd}[2J\u{fffd}\u{fffd}x"
        );
    }

    #[test]
    fn kinds_and_modes_have_an_order_of_their_own() {
        let report = report_of(vec![
            measured(Mode::Evmcs, "of-tomorrow", 50.0),
            measured(Mode::Evmcs, "hypercall", 50.0),
            measured(Mode::Evmcs, "cpuid", 50.0),
            left_out(Mode::Svm, "cpuid"),
            failed(Mode::Offered, "cpuid"),
            measured(Mode::Classic, "cpuid", 100.0),
        ]);
        let groups = groups(&report);
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert_eq!(group.modes(), [Mode::Classic, Mode::Evmcs]);
        assert_eq!(group.kinds(), ["cpuid", "hypercall", "of-tomorrow"]);
        assert_eq!(group.baseline(), Some(Mode::Classic));
        assert_eq!(group.ratio(Mode::Evmcs, "cpuid"), Some(0.5));
        assert_eq!(group.ratio(Mode::Evmcs, "hypercall"), None);
        assert!(group.failed(Mode::Offered, "cpuid") && !group.failed(Mode::Evmcs, "cpuid"));
    }

    #[test]
    fn the_baseline_is_the_first_that_there_is() {
        for (modes, wanted) in [
            (&[Mode::Evmcs][..], None),
            (
                &[Mode::Evmcs, Mode::ClassicShadow],
                Some(Mode::ClassicShadow),
            ),
            (&[Mode::SvmEmsr, Mode::Svm], Some(Mode::Svm)),
        ] {
            let entries = modes.iter().map(|mode| measured(*mode, "cpuid", 7.0));
            let report = report_of(entries.collect());
            assert_eq!(groups(&report)[0].baseline(), wanted);
        }
    }

    #[test]
    fn what_differs_in_more_stands_apart() {
        let mut qemu = measured(Mode::Classic, "cpuid", 7.0);
        qemu.vmm = Vmm::Qemu;
        let mut touch = measured(Mode::Classic, "cpuid", 7.0);
        touch.touch = Some("minimal".to_owned());
        let one = measured(Mode::Classic, "cpuid", 7.0);
        let mut four = one.clone();
        four.cpus = 4;
        let report = report_of(vec![one, qemu, touch, four]);
        let names: Vec<_> = groups(&report).iter().map(Group::name).collect();
        assert_eq!(names, ["micro", "micro@qemu", "micro", "micro"]);
    }

    #[test]
    fn kinds_that_need_more_vcpus_stand_with_the_others() {
        let mut ipi = measured(Mode::Classic, "ipi", 7.0);
        ipi.cpus = 2;
        let report = report_of(vec![measured(Mode::Classic, "cpuid", 7.0), ipi]);
        let groups = groups(&report);
        assert_eq!(groups.len(), 1);
        assert!(groups[0].title().ends_with(", 1 to 2 vCPUs"));
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(1.0, f64::NAN), None);
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
    }
}
