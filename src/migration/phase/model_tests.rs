//! Every course that two ends and the connection between them can take, tried out: each end acts when it likes, messages are
//! delivered, delayed or lost with the connection, and either end may die at any moment.

use std::collections::{HashSet, VecDeque};

use super::*;

/// What is on its way.
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
    /// `None`: dead.
    source: Option<Source>,
    destination: Option<Destination>,
    /// Whether anything can be said any more.
    connected: bool,
    to_destination: VecDeque<Word>,
    to_source: VecDeque<Word>,
    /// Both processes are on one host, so that each can see whether the other lives.
    same_host: bool,
    died: bool,
}

impl World {
    fn start(same_host: bool) -> Self {
        Self {
            source: Some(Source::Connecting),
            destination: Some(Destination::Waiting),
            connected: true,
            to_destination: VecDeque::from([Word::Hello]),
            to_source: VecDeque::new(),
            same_host,
            died: false,
        }
    }

    fn running(&self) -> (bool, bool) {
        (
            self.source.is_some_and(|s| s.vm() == Vm::Runs),
            self.destination.is_some_and(|d| d.vm() == Vm::Runs),
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

    /// The source reads what came, or acts of itself.
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
            // What was still on its way has been read.
            None if !self.connected => {
                turns.extend(self.source_does(SourceEvent::Trouble, &[]));
            }
            None => {}
        }
        if source == Source::Undecided && self.same_host && self.destination.is_none() {
            turns.extend(self.source_does(SourceEvent::PeerEnded, &[]));
        }
        if source == Source::Copying {
            turns.extend(self.source_does(SourceEvent::Stop, &[Word::Everything]));
        }
        // A user cancels, or waiting took too long: it says so and closes the connection, or tries to.
        if source.can_be_cancelled() || source == Source::Committed {
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
        // It cannot build the VM, or waiting took too long.
        turns.extend(self.destination_does(DestinationEvent::Trouble, &[Word::Failed]));
        turns
    }

    fn fate_turns(&self) -> Vec<Self> {
        let mut turns = Vec::new();
        if self.connected {
            // Each direction may still deliver any part of what is on its way.
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

/// Everything that can be reached, and from each world the worlds that follow by the two ends' own doing.
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
fn never_do_two_run() {
    for same_host in [false, true] {
        explore(same_host, |world, _| {
            assert_ne!(world.running(), (true, true), "{world:?}");
        });
    }
}

/// When all has been said and done, one runs; or the source waits for its user's word, which it does only if the connection
/// went between Commit and Running.
#[test]
fn in_the_end_one_runs_unless_its_process_died() {
    let mut ends = [0; 4];
    for same_host in [false, true] {
        explore(same_host, |world, turns| {
            // Somebody will still do something. With the connection up and nothing said, a time limit does.
            if !turns.is_empty() {
                return;
            }
            match (world.running(), world.source, world.destination) {
                ((true, false), Some(Source::Kept), _) => ends[0] += 1,
                ((false, true), None | Some(Source::Gone | Source::Undecided), _) => ends[1] += 1,
                // The destination gave up before it read Commit, or died after: nobody runs, and the source has it all.
                ((false, false), Some(Source::Undecided), _) => ends[2] += 1,
                // Whoever had it was killed.
                ((false, false), None, _) | ((false, false), Some(Source::Gone), None) => {
                    ends[3] += 1;
                }
                _ => panic!("{world:?}"),
            }
        });
    }
    assert!(ends.into_iter().all(|n| n > 0), "{ends:?}");
}

/// On one host a killed destination never leaves the source undecided for good, and a killed source that had handed over
/// everything leaves the VM with the destination.
#[test]
fn on_one_host_a_death_decides() {
    explore(true, |world, turns| {
        if turns.is_empty() && world.destination.is_none() {
            assert_ne!(world.source, Some(Source::Undecided), "{world:?}");
        }
        if world.source.is_none()
            && world.destination == Some(Destination::Holding)
            && world.to_destination.is_empty()
        {
            assert!(
                turns
                    .iter()
                    .any(|t| t.destination == Some(Destination::Running)),
                "{world:?}"
            );
        }
    });
}

#[test]
fn what_is_over_stays_over() {
    for event in [
        SourceEvent::Welcome,
        SourceEvent::Accept,
        SourceEvent::Stop,
        SourceEvent::Ready,
        SourceEvent::Running,
        SourceEvent::Trouble,
        SourceEvent::PeerGaveUp,
    ] {
        for phase in Source::ALL.into_iter().filter(|p| p.is_over()) {
            assert_eq!(phase.after(event), None);
        }
    }
    assert_eq!(Source::Gone.after(SourceEvent::PeerEnded), None);
    assert_eq!(Destination::GaveUp.after(DestinationEvent::Commit), None);
    assert_eq!(Destination::Running.after(DestinationEvent::Trouble), None);
}

/// Nothing but Commit and the source's death makes a destination run, and nothing but Ready makes a source commit.
#[test]
fn there_is_one_point_of_commitment() {
    for phase in Destination::ALL {
        for event in [
            DestinationEvent::Hello,
            DestinationEvent::PromiseKept,
            DestinationEvent::Complete,
            DestinationEvent::Trouble,
        ] {
            assert_ne!(phase.after(event), Some(Destination::Running));
        }
    }
    for phase in Source::ALL {
        for event in [SourceEvent::Welcome, SourceEvent::Accept, SourceEvent::Stop] {
            assert_ne!(phase.after(event), Some(Source::Committed));
        }
    }
}
