//! What was asked for, from all sources, before anything is understood.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Problem;
use super::setting::{Entry, Setting};

/// The uses of every setting.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    entries: BTreeMap<&'static str, Vec<Entry>>,
    attempted: BTreeSet<&'static str>,
    /// The text was not understood as a whole: anything may stand in it.
    pub(super) unclear: bool,
    /// What was already found wrong.
    pub(super) problems: Vec<Problem>,
}

impl Draft {
    /// One more use of `setting`.
    pub(super) fn add(&mut self, setting: &'static Setting, entry: Entry) {
        self.entries.entry(setting.key).or_default().push(entry);
    }

    /// `setting` was meant, but the way it was said is already reported: nobody need be told that it is
    /// missing.
    pub(super) fn attempt(&mut self, setting: &'static str) {
        self.attempted.insert(setting);
    }

    /// Whether `setting` may have been meant.
    pub(super) fn attempted(&self, setting: &str) -> bool {
        self.unclear || self.attempted.contains(setting)
    }

    /// `over`'s settings replace those of `self`, each as a whole; the problems of both are kept.
    pub(super) fn overlay(mut self, over: Self) -> Self {
        self.entries.extend(over.entries);
        self.attempted.extend(over.attempted);
        self.unclear |= over.unclear;
        self.problems.extend(over.problems);
        self
    }

    /// All uses of `setting`.
    pub(super) fn get(&self, setting: &Setting) -> &[Entry] {
        self.entries.get(setting.key).map_or(&[], Vec::as_slice)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, setting: &Setting) -> &mut [Entry] {
        self.entries
            .get_mut(setting.key)
            .map_or(&mut [], Vec::as_mut_slice)
    }
}
