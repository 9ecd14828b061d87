//! The figures of all loads and rounds, and the ratios of the two VMMs.

use serde::Serialize;

use crate::vmm::contender::Contender;
use crate::vmm::samples::median;

/// What a value is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figure {
    name: &'static str,
    unit: &'static str,
    /// How many are shown.
    decimals: usize,
}

impl Figure {
    pub(super) const fn new(name: &'static str, unit: &'static str, decimals: usize) -> Self {
        Self {
            name,
            unit,
            decimals,
        }
    }
}

/// The figures of a load in one round, in the order in which they are shown, without those that the host does
/// not tell.
pub(super) type Values = Vec<(Figure, f64)>;

/// A figure of a load in both VMMs, with a value of each round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) job: &'static str,
    pub(super) figure: &'static str,
    pub(super) unit: &'static str,
    pub(super) hypernest: Vec<f64>,
    pub(super) qemu: Vec<f64>,
    /// hypernest's value divided by QEMU's of the same round: what slows a round slows both alike.
    pub(super) ratios: Vec<f64>,
    /// The median of the ratios.
    pub(super) ratio: Option<f64>,
    #[serde(skip)]
    pub(super) decimals: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    load: &'static str,
    figure: Figure,
    who: Contender,
    value: f64,
}

/// What was measured, in the order of the rounds.
#[derive(Debug, Default)]
pub(super) struct Results(Vec<Entry>);

impl Results {
    /// Adds what a load had in a round; `load` is what a reader is shown.
    pub(super) fn add(&mut self, load: &'static str, who: Contender, values: Values) {
        let entries = values.into_iter().map(|(figure, value)| Entry {
            load,
            figure,
            who,
            value,
        });
        self.0.extend(entries);
    }

    /// All figures that have values, in the order in which they came first.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for load in first_of_each(self.0.iter().map(|entry| entry.load)) {
            let entries: Vec<Entry> = self.0.iter().copied().filter(|e| e.load == load).collect();
            for figure in first_of_each(entries.iter().map(|entry| entry.figure)) {
                let values = |who: Contender| -> Vec<f64> {
                    let ours = entries
                        .iter()
                        .filter(|e| (e.figure, e.who) == (figure, who));
                    ours.map(|entry| entry.value).collect()
                };
                let (hypernest, qemu) = (values(Contender::Hypernest), values(Contender::Q35));
                let ratios = ratios(&hypernest, &qemu);
                rows.push(Row {
                    job: load,
                    figure: figure.name,
                    unit: figure.unit,
                    ratio: median(&ratios),
                    hypernest,
                    qemu,
                    ratios,
                    decimals: figure.decimals,
                });
            }
        }
        rows
    }
}

fn first_of_each<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut firsts = Vec::new();
    for one in all {
        if !firsts.contains(&one) {
            firsts.push(one);
        }
    }
    firsts
}

/// Of each round, ours to theirs.
fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    // Without a value of each round it is not known which belong together.
    if ours.len() != theirs.len() {
        return Vec::new();
    }
    let pairs = ours.iter().zip(theirs);
    pairs
        .filter(|(_, theirs)| **theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEED: Figure = Figure::new("throughput", "requests/s", 0);
    const EXITS: Figure = Figure::new("exits", "exits", 2);

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut results = Results::default();
        for (ours, theirs) in [(1.0, 2.0), (3.0, 1.0), (8.0, 8.0)] {
            results.add("reads", Contender::Q35, vec![(SPEED, theirs)]);
            results.add("reads", Contender::Hypernest, vec![(SPEED, ours)]);
        }
        let rows = results.rows();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].hypernest, [1.0, 3.0, 8.0]);
        assert_eq!(rows[0].qemu, [2.0, 1.0, 8.0]);
        assert_eq!(rows[0].ratios, [0.5, 3.0, 1.0]);
        assert_eq!(rows[0].ratio, Some(1.0));
        assert_eq!((rows[0].job, rows[0].unit), ("reads", "requests/s"));
    }

    #[test]
    fn rows_are_in_the_order_of_the_first_round() {
        let mut results = Results::default();
        for _ in 0..2 {
            results.add("reads", Contender::Hypernest, vec![(SPEED, 1.0)]);
            results.add("writes", Contender::Hypernest, vec![(SPEED, 1.0)]);
            results.add("reads", Contender::Q35, vec![(EXITS, 2.0), (SPEED, 1.0)]);
        }
        let rows = results.rows();
        let order: Vec<_> = rows.iter().map(|row| (row.job, row.figure)).collect();
        assert_eq!(
            order,
            [
                ("reads", "throughput"),
                ("reads", "exits"),
                ("writes", "throughput")
            ]
        );
        // What one of them does not tell has no ratio.
        assert_eq!((rows[1].ratio, rows[2].ratio), (None, None));
        assert_eq!(ratios(&[1.0], &[0.0]), [0.0; 0]);
        assert_eq!(ratios(&[1.0, 2.0], &[2.0]), [0.0; 0]);
    }
}
