//! The settings from all sources, before they are interpreted.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Problem;
use super::saved_devices::Shorthand;
use super::setting::{Entry, Setting};

/// The uses of every setting.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    entries: BTreeMap<&'static str, Vec<Entry>>,
    attempted: BTreeSet<&'static str>,
    /// The text could not be parsed as a whole: it may contain any setting.
    pub(super) unclear: bool,
    /// The problems found so far.
    pub(super) problems: Vec<Problem>,
}

impl Draft {
    /// Adds one use of `setting`.
    pub(super) fn add(&mut self, setting: &'static Setting, entry: Entry) {
        self.entries.entry(setting.key).or_default().push(entry);
    }

    /// `setting` was intended, but its use is already reported as a problem: it is not reported as missing as
    /// well.
    pub(super) fn attempt(&mut self, setting: &'static str) {
        self.attempted.insert(setting);
    }

    /// The uses of these settings are done with; `problems` are all that were found so far.
    pub(super) fn replace(&mut self, settings: &[Shorthand], problems: Vec<Problem>) {
        for short in settings {
            self.entries.remove(short.setting);
        }
        self.problems = problems;
    }

    /// Whether `setting` may have been intended.
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

    /// The same, mutable.
    pub(super) fn get_mut(&mut self, setting: &Setting) -> &mut [Entry] {
        self.entries
            .get_mut(setting.key)
            .map_or(&mut [], Vec::as_mut_slice)
    }
}
