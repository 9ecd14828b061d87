//! The results of all runs for one kind in one mode.

use std::collections::BTreeMap;

use super::record::{Ending, Taken};
use super::vm;
use crate::bootstrap::Rounds;
use crate::histogram::{self, HistogramError};
use crate::kvm_module::Vendor;
use crate::report::{Measured, Outcome, Part, Parts};
use crate::unit::Unit;
use hypernest_nested::taxonomy::Exit;

/// The rounds, and the reason why there are no more.
#[derive(Debug, Default)]
pub(super) struct Tally {
    rounds: Vec<Taken>,
    /// Host exits by KVM's number for the reason, and the number of L2 exits that they belong to.
    reasons: Option<(BTreeMap<u32, u64>, u64)>,
    /// The reason why there are no more rounds.
    over: Option<Over>,
}

#[derive(Debug)]
enum Over {
    Skipped(String),
    Failed { why: String, console: String },
}

impl Tally {
    /// Adds the result of one run.
    pub(super) fn add(&mut self, ending: Ending, console: &str) {
        match ending {
            Ending::Complete(taken) => self.rounds.push(taken),
            Ending::Skipped(why) => self.over = Some(Over::Skipped(why)),
            Ending::Failed {
                why,
                last_exit,
                partial,
            } => {
                self.rounds.extend(partial);
                self.over = Some(Over::Failed {
                    why,
                    console: vm::shown(console, last_exit),
                });
            }
        }
    }

    /// A user ended the run. Complete rounds take precedence over the part of a round.
    pub(super) fn interrupt(&mut self, ending: Ending) {
        match ending {
            Ending::Failed { partial, .. } if self.rounds.is_empty() => self.rounds.extend(partial),
            Ending::Complete(taken) => self.rounds.push(taken),
            Ending::Failed { .. } | Ending::Skipped(_) => {}
        }
    }

    /// Whether there are no results.
    pub(super) fn is_empty(&self) -> bool {
        self.rounds.is_empty() && self.over.is_none()
    }

    /// Adds the result of the run that counted reasons; its times do not count.
    pub(super) fn count(&mut self, ending: &Ending) {
        if let Ending::Complete(taken) = ending
            && let Some(reasons) = &taken.reasons
        {
            self.reasons = Some((reasons.clone(), taken.round_trip.len() as u64));
        }
    }

    /// Records a failure; no more rounds follow.
    pub(super) fn fail(&mut self, why: &str, console: &str) {
        if self.over.is_none() {
            self.over = Some(Over::Failed {
                why: why.to_owned(),
                console: vm::shown(console, None),
            });
        }
    }

    /// Whether another run would add nothing.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// The relative width of the round trip's interval; `None` if another run cannot narrow it.
    pub(super) fn width(&self) -> Option<f64> {
        if self.is_over() {
            return None;
        }
        let rounds: Vec<_> = self
            .rounds
            .iter()
            .map(|round| histogram::of(round.round_trip.iter().copied()).0)
            .collect();
        Rounds::of_histograms(&rounds).relative_width()
    }

    /// The outcome of all runs.
    pub(super) fn outcome(self, vendor: Vendor, unit: &Unit) -> Result<Outcome, HistogramError> {
        let measured = self.measured(vendor, unit)?.map(Box::new);
        Ok(match (self.over, measured) {
            (None, Some(measured)) => Outcome::Measured(measured),
            (None, None) => Outcome::Failed {
                why: "L1 gave no samples".to_owned(),
                console: String::new(),
                partial: None,
            },
            // A skip in a later run would be unexpected, but then there are figures.
            (Some(Over::Skipped(why)), None) => Outcome::LeftOut { why },
            (Some(Over::Skipped(why)), partial) => Outcome::Failed {
                why,
                console: String::new(),
                partial,
            },
            (Some(Over::Failed { why, console }), partial) => Outcome::Failed {
                why,
                console,
                partial,
            },
        })
    }

    fn measured(&self, vendor: Vendor, unit: &Unit) -> Result<Option<Measured>, HistogramError> {
        let part = |of: fn(&Taken) -> &Vec<u64>| {
            let rounds: Vec<_> = self.rounds.iter().map(|round| of(round).clone()).collect();
            Part::of_samples(&rounds, unit)
        };
        let Some(round_trip) = part(|taken| &taken.round_trip)? else {
            return Ok(None);
        };
        // A round that was cut short has no end of its exit count.
        let whole = self.rounds.iter().filter(|round| round.stopwatch.is_some());
        let counted: Option<(u64, u64)> = whole
            .map(|round| Some((round.host_exits?, round.round_trip.len() as u64)))
            .try_fold((0, 0), |(exits, samples), round| {
                let (e, s) = round?;
                Some((exits + e, samples + s))
            });
        let stopwatch: Option<u64> = self.rounds.iter().map(|round| round.stopwatch).sum();
        Ok(Some(Measured {
            parts: Parts {
                l2_to_l1: part(|taken| &taken.l2_to_l1)?,
                l1: part(|taken| &taken.l1)?,
                l1_to_l2: part(|taken| &taken.l1_to_l2)?,
                round_trip,
            },
            out_of_order: self.rounds.iter().map(|round| round.out_of_order).sum(),
            host_exits_per_l2_exit: counted
                .filter(|&(_, samples)| samples > 0)
                .map(|(exits, samples)| exits as f64 / samples as f64),
            host_exits_by_reason: self.by_reason(vendor),
            stopwatch: stopwatch.map(|ticks| ticks as f64 / unit.ticks),
            empty: None,
            facts: None,
        }))
    }

    fn by_reason(&self, vendor: Vendor) -> Option<BTreeMap<String, f64>> {
        let (reasons, samples) = self.reasons.as_ref()?;
        let each = reasons.iter().map(|(&reason, &count)| {
            let per_exit = count as f64 / (*samples).max(1) as f64;
            (name(vendor, reason), per_exit)
        });
        Some(each.collect())
    }
}

/// The name of KVM's number for an exit.
fn name(vendor: Vendor, reason: u32) -> String {
    let exit = match vendor {
        Vendor::Intel => Exit::vmx(reason),
        Vendor::Amd => Exit::svm(reason.into()),
    };
    exit.name()
        .map_or_else(|| format!("{reason:#x}"), str::to_owned)
}
