//! Explores every interleaving of the two ends and their connection: each end acts at any time, messages
//! are delivered, delayed or lost with the connection, and either process may die at any moment.

use std::collections::{HashSet, VecDeque};

use super::*;

/// A message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Hello,
    Welcome,
    Promise,
    Accept,
    Everything,
    Ready,
    Commit,
    Running,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// `None`: the process died.
    source: Option<SourcePhase>,
    destination: Option<DestinationPhase>,
    /// Whether messages can still be sent.
    connected: bool,
    to_destination: VecDeque<Word>,
    to_source: VecDeque<Word>,
    /// Both processes are on one host, so that each can detect the end of the other.
    same_host: bool,
    died: bool,
}

impl World {
    fn start(same_host: bool) -> Self {
        Self {
            source: Some(SourcePhase::Connecting),
            destination: Some(DestinationPhase::Waiting),
            connected: true,
            to_destination: VecDeque::from([Word::Hello]),
            to_source: VecDeque::new(),
            same_host,
            died: false,
        }
    }

    fn running(&self) -> (bool, bool) {
        (
            self.source.is_some_and(|s| s.vm() == LocalVm::Runs),
            self.destination.is_some_and(|d| d.vm() == LocalVm::Runs),
        )
    }

    fn source_does(&self, event: SourceEvent, says: &[Word]) -> Option<Self> {
        let mut next = self.clone();
        next.source = Some(self.source?.after(event)?);
        if self.connected {
            next.to_destination.extend(says);
        }
        Some(next)
    }

    fn destination_does(&self, event: DestinationEvent, says: &[Word]) -> Option<Self> {
        let mut next = self.clone();
        next.destination = Some(self.destination?.after(event)?);
        if self.connected {
            next.to_source.extend(says);
        }
        Some(next)
    }

    /// The next worlds in which the source reads a message, or acts by itself.
    fn source_turns(&self) -> Vec<Self> {
        let mut turns = Vec::new();
        let Some(source) = self.source else {
            return turns;
        };
        let mut after = self.clone();
        match after.to_source.pop_front() {
            Some(word) => {
                let (event, says): (_, &[Word]) = match word {
                    Word::Welcome => (SourceEvent::Welcome, &[Word::Promise]),
                    Word::Accept => (SourceEvent::Accept, &[]),
                    Word::Ready => (SourceEvent::Ready, &[Word::Commit]),
                    Word::Running => (SourceEvent::Running, &[]),
                    _ => (SourceEvent::PeerGaveUp, &[]),
                };
                turns.extend(after.source_does(event, says));
            }
            // All messages in flight have been read.
            None if !self.connected => {
                turns.extend(self.source_does(SourceEvent::Trouble, &[]));
            }
            None => {}
        }
        if source == SourcePhase::Undecided && self.same_host && self.destination.is_none() {
            turns.extend(self.source_does(SourceEvent::PeerEnded, &[]));
        }
        if source == SourcePhase::Copying {
            turns.extend(self.source_does(SourceEvent::Stop, &[Word::Everything]));
        }
        // A user cancels, or a timeout expires: the source sends Failed, if it can, and closes the
        // connection.
        if source.can_be_cancelled() || source == SourcePhase::Committed {
            turns.extend(self.source_does(SourceEvent::Trouble, &[Word::Failed]));
        }
        turns
    }

    fn destination_turns(&self) -> Vec<Self> {
        let mut turns = Vec::new();
        if self.destination.is_none() {
            return turns;
        }
        let mut after = self.clone();
        match after.to_destination.pop_front() {
            Some(word) => {
                let (event, says): (_, &[Word]) = match word {
                    Word::Hello => (DestinationEvent::Hello, &[Word::Welcome]),
                    Word::Promise => (DestinationEvent::PromiseKept, &[Word::Accept]),
                    Word::Everything => (DestinationEvent::Complete, &[Word::Ready]),
                    Word::Commit => (DestinationEvent::Commit, &[Word::Running]),
                    _ => (DestinationEvent::Trouble, &[]),
                };
                turns.extend(after.destination_does(event, says));
            }
            None if !self.connected => {
                if self.same_host && self.source.is_none() {
                    turns.extend(self.destination_does(DestinationEvent::PeerEnded, &[]));
                }
                turns.extend(self.destination_does(DestinationEvent::Trouble, &[]));
            }
            None => {}
        }
        // It cannot build the VM, or a timeout expires.
        turns.extend(self.destination_does(DestinationEvent::Trouble, &[Word::Failed]));
        turns
    }

    fn fate_turns(&self) -> Vec<Self> {
        let mut turns = Vec::new();
        if self.connected {
            // Each direction may still deliver any prefix of its messages in flight.
            for to_destination in 0..=self.to_destination.len() {
                for to_source in 0..=self.to_source.len() {
                    let mut next = self.clone();
                    next.connected = false;
                    next.to_destination.truncate(to_destination);
                    next.to_source.truncate(to_source);
                    turns.push(next);
                }
            }
        }
        if !self.died {
            for source_dies in [true, false] {
                let mut next = self.clone();
                next.died = true;
                next.connected = false;
                if source_dies {
                    next.source = None;
                } else {
                    next.destination = None;
                }
                turns.push(next);
            }
        }
        turns
    }
}

/// All reachable worlds, each with the worlds that follow by the two ends' own actions.
fn explore(same_host: bool, mut each: impl FnMut(&World, &[World])) {
    let mut seen = HashSet::new();
    let mut next = vec![World::start(same_host)];
    while let Some(world) = next.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        let mut turns = world.source_turns();
        turns.extend(world.destination_turns());
        each(&world, &turns);
        next.extend(turns);
        next.extend(world.fate_turns());
    }
    assert!(seen.len() > 200, "{} worlds", seen.len());
}

#[test]
fn two_copies_never_run() {
    for same_host in [false, true] {
        explore(same_host, |world, _| {
            assert_ne!(world.running(), (true, true), "{world:?}");
        });
    }
}

/// In every final world one copy runs; or the source waits for its user, but only if the connection was
/// lost between Commit and Running.
#[test]
fn one_copy_runs_in_the_end_unless_its_process_died() {
    let mut ends = [0; 4];
    for same_host in [false, true] {
        explore(same_host, |world, turns| {
            // A further step follows. With the connection up and no message in flight, that is a timeout.
            if !turns.is_empty() {
                return;
            }
            match (world.running(), world.source, world.destination) {
                ((true, false), Some(SourcePhase::Kept), _) => ends[0] += 1,
                ((false, true), None | Some(SourcePhase::Gone | SourcePhase::Undecided), _) => {
                    ends[1] += 1;
                }
                // The destination aborted before it read Commit, or died after it: no copy runs, and the
                // source holds everything.
                ((false, false), Some(SourcePhase::Undecided), _) => ends[2] += 1,
                // The process that owned the VM was killed.
                ((false, false), None, _) | ((false, false), Some(SourcePhase::Gone), None) => {
                    ends[3] += 1;
                }
                _ => panic!("{world:?}"),
            }
        });
    }
    assert!(ends.into_iter().all(|n| n > 0), "{ends:?}");
}

/// On one host a killed destination never leaves the source undecided forever, and a killed source that had
/// handed off everything leaves the VM with the destination.
#[test]
fn on_one_host_the_death_of_a_process_decides() {
    explore(true, |world, turns| {
        if turns.is_empty() && world.destination.is_none() {
            assert_ne!(world.source, Some(SourcePhase::Undecided), "{world:?}");
        }
        if world.source.is_none()
            && world.destination == Some(DestinationPhase::Holding)
            && world.to_destination.is_empty()
        {
            assert!(
                turns
                    .iter()
                    .any(|t| t.destination == Some(DestinationPhase::Running)),
                "{world:?}"
            );
        }
    });
}

#[test]
fn final_phases_stay_final() {
    for event in [
        SourceEvent::Welcome,
        SourceEvent::Accept,
        SourceEvent::Stop,
        SourceEvent::Ready,
        SourceEvent::Running,
        SourceEvent::Trouble,
        SourceEvent::PeerGaveUp,
    ] {
        for phase in SourcePhase::ALL.into_iter().filter(|p| p.is_over()) {
            assert_eq!(phase.after(event), None);
        }
    }
    assert_eq!(SourcePhase::Gone.after(SourceEvent::PeerEnded), None);
    assert_eq!(
        DestinationPhase::GaveUp.after(DestinationEvent::Commit),
        None
    );
    assert_eq!(
        DestinationPhase::Running.after(DestinationEvent::Trouble),
        None
    );
}

/// Only Commit and the source's death make a destination run, and only Ready makes a source commit.
#[test]
fn there_is_one_point_of_commitment() {
    for phase in DestinationPhase::ALL {
        for event in [
            DestinationEvent::Hello,
            DestinationEvent::PromiseKept,
            DestinationEvent::Complete,
            DestinationEvent::Trouble,
        ] {
            assert_ne!(phase.after(event), Some(DestinationPhase::Running));
        }
    }
    for phase in SourcePhase::ALL {
        for event in [SourceEvent::Welcome, SourceEvent::Accept, SourceEvent::Stop] {
            assert_ne!(phase.after(event), Some(SourcePhase::Committed));
        }
    }
}
