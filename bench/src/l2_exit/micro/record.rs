//! The result of one run of the guest program, recorded by its devices on its vCPUs' threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hypernest::memory::GuestRam;
use hypernest::units::Gpa;
use hypernest_nested::board::{self, BOARD_LEN, LastExit, Reading, Split, Status};
use hypernest_nested::l2exit::Kind;
use hypernest_nested::probe::Malformed;

use super::said::{self, Said};
use crate::progress::Steps;

/// Samples of one kind from one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// TSC ticks from L2 to L1; empty if L1 takes no part in this kind.
    pub(super) l2_to_l1: Vec<u64>,
    /// TSC ticks in L1.
    pub(super) l1: Vec<u64>,
    /// TSC ticks from L1 to L2.
    pub(super) l1_to_l2: Vec<u64>,
    /// TSC ticks of the whole round trip.
    pub(super) round_trip: Vec<u64>,
    /// Samples whose stamps were not in order; they are in none of the above.
    pub(super) out_of_order: u64,
    /// TSC ticks around all samples.
    pub(super) stopwatch: Option<u64>,
    /// Exits to the host during all samples.
    pub(super) host_exits: Option<u64>,
    /// The same exits by KVM's number for the reason.
    pub(super) reasons: Option<BTreeMap<u32, u64>>,
}

/// The ending of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All samples.
    Complete(Taken),
    /// The kind is not available.
    Skipped(String),
    /// The kind failed.
    Failed {
        why: String,
        /// The last exit that L1 saw, if any.
        last_exit: Option<LastExit>,
        /// The samples until the failure.
        partial: Option<Taken>,
    },
}

/// Counts of the host at the two ends of a measured interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) begin: Option<u64>,
    pub(super) end: Option<u64>,
    pub(super) reasons: Option<BTreeMap<u32, u64>>,
}

impl Interval {
    /// Exits between the two rings of the doorbell, the second of which is an exit itself.
    fn exits(&self) -> Option<u64> {
        self.end?.checked_sub(self.begin?)?.checked_sub(1)
    }
}

/// The record of a run.
#[derive(Debug)]
pub(super) struct Record {
    ram: Option<GuestRam>,
    /// The address of the board.
    board: Option<u64>,
    /// The kind that is being measured.
    running: Option<Kind>,
    /// The doorbell's counts since the last kind.
    pub(super) interval: Interval,
    /// The endings of all finished kinds, in order.
    pub(super) endings: Vec<(Kind, Ending)>,
    /// The reason why the guest refuses the mode.
    pub(super) refused: Option<String>,
    /// The guest has reported that it is done.
    pub(super) done: bool,
    /// The console's text.
    pub(super) lines: Vec<String>,
    /// The error in the console's stream.
    pub(super) malformed: Option<Malformed>,
    /// The time of the last progress.
    pub(super) progress: Instant,
    /// Failures that affect the figures.
    pub(super) warnings: Vec<String>,
    /// The receiver of its progress.
    steps: Steps,
}

/// Maximum number of kept lines.
const MOST_LINES: usize = 200;

/// A record that devices share.
pub(super) type Shared = Arc<Mutex<Record>>;

impl Record {
    /// An empty record.
    pub(super) fn new(steps: Steps) -> Self {
        Self {
            ram: None,
            board: None,
            running: None,
            interval: Interval::default(),
            endings: Vec::new(),
            refused: None,
            done: false,
            lines: Vec::new(),
            malformed: None,
            progress: Instant::now(),
            warnings: Vec::new(),
            steps,
        }
    }

    /// Sets the RAM from which boards are read.
    pub(super) fn use_ram(&mut self, ram: GuestRam) {
        self.ram = Some(ram);
    }

    /// The guest reports its board's address.
    pub(super) fn announce(&mut self, gpa: u64) {
        self.board = Some(gpa);
    }

    /// The guest reports that its board is complete.
    pub(super) fn complete(&mut self) {
        self.progress = Instant::now();
        let (kind, ending) = match self.read() {
            Ok((reading, taken)) if reading.status == Status::Complete => {
                (reading.kind, Ending::Complete(taken))
            }
            Ok((reading, taken)) => {
                let why = format!(
                    "the guest reported a complete board when its state was {:?}",
                    reading.status
                );
                (reading.kind, self.failed(why, Some((reading, taken))))
            }
            Err(why) => match self.running {
                Some(kind) => (kind, self.failed(why, None)),
                None => {
                    self.warnings.push(why);
                    return;
                }
            },
        };
        self.end(kind, ending);
    }

    /// Without a doorbell: the guest has streamed a kind's result.
    pub(super) fn streamed(&mut self, kind: Kind, taken: Result<Taken, String>) {
        let ending = match taken {
            Ok(taken) => Ending::Complete(taken),
            Err(why) => self.failed(why, None),
        };
        self.end(kind, ending);
    }

    /// Records progress.
    pub(super) fn come_forward(&mut self) {
        self.progress = Instant::now();
    }

    /// Processes a line of the console.
    pub(super) fn line(&mut self, line: String) {
        self.progress = Instant::now();
        match said::parse(&line) {
            Said::Running(kind) => {
                self.interval = Interval::default();
                self.running = Some(kind);
                self.steps.kind(kind.name());
            }
            Said::Skip(kind, why) => self.end(kind, Ending::Skipped(why)),
            Said::Fail(kind, why) => {
                let board = self.board_of(kind);
                let ending = self.failed(why, board);
                self.end(kind, ending);
            }
            Said::Refused(why) => self.refused = Some(why),
            Said::Done => self.done = true,
            Said::Text => {}
        }
        if self.lines.len() < MOST_LINES {
            self.lines.push(line);
        }
    }

    /// The VM has ended: a kind that was being measured fails with the reason `why`.
    pub(super) fn cut_short(&mut self, why: &str) {
        if let Some(kind) = self.running {
            let board = self.board_of(kind);
            let ending = self.failed(why.to_owned(), board);
            self.end(kind, ending);
        }
    }

    /// Whether `kind` has ended.
    pub(super) fn has_ended(&self, kind: Kind) -> bool {
        self.endings.iter().any(|(ended, _)| *ended == kind)
    }

    fn end(&mut self, kind: Kind, ending: Ending) {
        self.running = None;
        self.interval = Interval::default();
        // A guest may report an ending repeatedly; only the first one counts.
        if !self.has_ended(kind) {
            self.endings.push((kind, ending));
            self.steps.ended();
        }
    }

    fn failed(&self, why: String, board: Option<(Reading, Taken)>) -> Ending {
        let last_exit = board.as_ref().map(|(reading, _)| reading.last_exit);
        let partial = board.map(|(_, taken)| taken);
        Ending::Failed {
            why,
            last_exit: last_exit.filter(|exit| (exit.reason, exit.rip) != (0, 0)),
            partial: partial.filter(|taken| !taken.round_trip.is_empty()),
        }
    }

    fn board_of(&self, kind: Kind) -> Option<(Reading, Taken)> {
        self.read().ok().filter(|(reading, _)| reading.kind == kind)
    }

    /// The board as it is now.
    fn read(&self) -> Result<(Reading, Taken), String> {
        let (Some(ram), Some(gpa)) = (&self.ram, self.board) else {
            return Err("the guest did not report its board's address".to_owned());
        };
        let get = |gpa: u64, len: usize| {
            let mut bytes = vec![0; len];
            let read = ram.read(Gpa(gpa), &mut bytes);
            read.map(|()| bytes)
                .map_err(|e| format!("the guest's board: {e}"))
        };
        let reading = board::read(&get(gpa, BOARD_LEN)?).map_err(|e| e.to_string())?;
        let bytes = get(reading.samples_gpa, reading.samples_len())?;
        let mut taken = taken(&bytes);
        taken.stopwatch = reading.stopwatch;
        taken.host_exits = self.interval.exits();
        taken.reasons = self.interval.reasons.clone();
        Ok((reading, taken))
    }
}

/// The samples of an array that the guest wrote.
fn taken(bytes: &[u8]) -> Taken {
    let mut taken = Taken::default();
    for sample in board::samples(bytes) {
        match sample.split() {
            Split::NotTaken => {}
            Split::Whole { round_trip } => taken.round_trip.push(round_trip),
            Split::Parts {
                l2_to_l1,
                l1,
                l1_to_l2,
            } => {
                taken.l2_to_l1.push(l2_to_l1);
                taken.l1.push(l1);
                taken.l1_to_l2.push(l1_to_l2);
                // They are differences of ordered stamps, whose sum is the outermost one.
                taken.round_trip.push(l2_to_l1 + l1 + l1_to_l2);
            }
            Split::OutOfOrder => taken.out_of_order += 1,
        }
    }
    taken
}
