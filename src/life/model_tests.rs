//! Explores every interleaving of a small machine: two vCPUs that execute and report, a user who makes
//! requests, and the main thread that parks, decides and resumes. The decisions are those of the real
//! [`LifeState`]; the steps around them are those of `vcpu::thread` (check both flags, enter, execute,
//! report) and `machine::main_loop` (guest events with all vCPUs parked, then one request).

use std::collections::{HashSet, VecDeque};

use super::*;
use crate::life::OnCrash;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Report {
    Reset,
    /// For every event that ends the VM.
    DebugExit,
    Panicked,
}

impl Report {
    const ALL: [Self; 3] = [Self::Reset, Self::DebugExit, Self::Panicked];

    fn event(self) -> GuestEvent {
        match self {
            Self::Reset => GuestEvent::Reset { by: "test" },
            Self::DebugExit => GuestEvent::DebugExit { code: 3 },
            Self::Panicked => GuestEvent::Panicked,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Life(Request),
    /// A save or a migration stops the VM, and fails later.
    Hold,
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// Before KVM_RUN.
    Check,
    Guest,
    Parked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Vcpu {
    at: At,
    wanted: bool,
    /// Executes one instruction, makes the reporting access if there is one, and executes one more.
    left: Vec<Option<Report>>,
    /// Its report was not decided on, or was decisive.
    reported: bool,
}

impl Vcpu {
    fn new(report: Option<Report>) -> Self {
        let left = match report {
            Some(report) => vec![None, Some(report), None],
            None => vec![None],
        };
        Self {
            at: At::Parked,
            wanted: true,
            left,
            reported: false,
        }
    }
}

/// Where the main thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Main {
    Waits,
    /// Waits until all vCPUs are parked, to take guest events.
    ParksForEvents,
    ParksFor(Asked),
    /// Takes one request.
    Requests,
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    on_crash: u8,
    vcpus: [Vcpu; 2],
    pending: Vec<(usize, Report)>,
    user: VecDeque<Asked>,
    requests: VecDeque<Asked>,
    life: LifeState,
    main: Main,
    /// The user's pause has been carried out, and nothing has resumed the VM since.
    stopped: bool,
    reported: u8,
    acted: u8,
    resets: u8,
}

const ON_CRASH: [OnCrash; 4] = [
    OnCrash::Continue,
    OnCrash::Pause,
    OnCrash::Reset,
    OnCrash::Stop,
];

impl World {
    fn start(on_crash: u8, reports: [Report; 2], user: [Asked; 2]) -> Self {
        Self {
            on_crash,
            vcpus: reports.map(|report| Vcpu::new(Some(report))),
            pending: Vec::new(),
            user: user.into(),
            requests: VecDeque::new(),
            life: LifeState::new(),
            main: Main::Waits,
            stopped: false,
            reported: 0,
            acted: 0,
            resets: 0,
        }
    }

    fn all_parked(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.at == At::Parked)
    }

    fn want(&mut self, run: bool) {
        for vcpu in &mut self.vcpus {
            vcpu.wanted = run;
        }
    }

    fn resume(&mut self) {
        if self.life.may_run() {
            self.want(true);
        }
    }

    fn vcpu_steps(&self, index: usize) -> Option<Self> {
        let mut next = self.clone();
        let pending = !self.pending.is_empty();
        let vcpu = &mut next.vcpus[index];
        match vcpu.at {
            At::Parked if !vcpu.wanted || vcpu.left.is_empty() => return None,
            At::Parked => vcpu.at = At::Check,
            At::Check if pending || !vcpu.wanted || vcpu.left.is_empty() => {
                vcpu.at = At::Parked;
                // park_self: the main thread resumes it. A guest with an empty program halts.
                vcpu.wanted &= !pending;
            }
            At::Check => vcpu.at = At::Guest,
            At::Guest => {
                assert!(!vcpu.reported, "an instruction after the access: {self:?}");
                assert!(!self.stopped, "an instruction while paused: {self:?}");
                assert!(!self.life.is_held() || self.main_parks(), "{self:?}");
                assert_ne!(self.main, Main::Ended);
                if let Some(report) = vcpu.left.remove(0) {
                    vcpu.reported = true;
                    next.pending.push((index, report));
                    next.reported += 1;
                }
                // Each exit and each kick returns to here.
                next.vcpus[index].at = At::Check;
            }
        }
        Some(next)
    }

    fn main_parks(&self) -> bool {
        matches!(self.main, Main::ParksForEvents | Main::ParksFor(_))
    }

    fn user_steps(&self) -> Option<Self> {
        let mut next = self.clone();
        next.requests.push_back(next.user.pop_front()?);
        (self.main != Main::Ended).then_some(next)
    }

    fn main_steps(&self) -> Option<Self> {
        let mut next = self.clone();
        match self.main {
            Main::Ended => return None,
            Main::Waits if !self.pending.is_empty() => {
                next.want(false);
                next.main = Main::ParksForEvents;
            }
            Main::Waits if !self.requests.is_empty() => next.main = Main::Requests,
            Main::Waits => return None,
            Main::ParksForEvents | Main::ParksFor(_) if !self.all_parked() => return None,
            Main::ParksForEvents => {
                for (index, report) in std::mem::take(&mut next.pending) {
                    let on_crash = ON_CRASH[usize::from(self.on_crash)];
                    next.acted += u8::from(next.life.guest(&report.event(), on_crash));
                    next.vcpus[index].reported = next.life.due().is_some();
                }
                next.resume();
                next.main = Main::Requests;
                next.carry_out();
            }
            Main::ParksFor(asked) => {
                next.stopped |= asked == Asked::Life(Request::Pause);
                next.main = Main::Waits;
                next.carry_out();
            }
            Main::Requests => {
                next.main = Main::Waits;
                match next.requests.pop_front() {
                    Some(asked) => next.act(asked),
                    None => return Some(next),
                }
                if next.main == Main::Waits {
                    next.carry_out();
                }
            }
        }
        Some(next)
    }

    fn act(&mut self, asked: Asked) {
        match asked {
            Asked::Hold => {
                self.life.hold(true);
                self.want(false);
                self.main = Main::ParksFor(asked);
            }
            Asked::Release => {
                self.life.hold(false);
                self.resume();
            }
            Asked::Life(request) => {
                if !self.life.user(request) {
                    return;
                }
                match request {
                    Request::Pause => {
                        self.want(false);
                        self.main = Main::ParksFor(asked);
                    }
                    Request::Resume | Request::Reset => {
                        self.stopped = false;
                        self.resume();
                    }
                    Request::PowerButton | Request::Kill => {}
                }
            }
        }
    }

    /// Checks a final world: no step is possible, and nothing is queued.
    fn assert_settled(&self) {
        assert!(self.pending.is_empty(), "{self:?}");
        assert!(self.requests.is_empty(), "{self:?}");
        if self.life.may_run() {
            let done = self.vcpus.iter().all(|vcpu| vcpu.left.is_empty());
            assert!(done, "a vCPU is forgotten: {self:?}");
        } else {
            let waits = self.life.run() != RunState::Running || self.life.is_held();
            assert!(waits, "{self:?}");
        }
    }

    fn carry_out(&mut self) {
        match self.life.take_due() {
            None => {}
            Some(Due::End(outcome)) => {
                assert!(!self.life.is_held() || outcome == Outcome::Killed);
                // The vCPUs leave wherever they are.
                self.main = Main::Ended;
                for vcpu in &mut self.vcpus {
                    vcpu.at = At::Parked;
                    vcpu.left.clear();
                }
            }
            Some(Due::Reset) => {
                assert!(!self.life.is_held(), "{self:?}");
                self.resets += 1;
                self.pending.clear();
                self.vcpus = [(); 2].map(|()| Vcpu::new(None));
                self.want(false);
                self.resume();
            }
        }
    }
}

/// Every pair of reports (the vCPUs are interchangeable), with every policy that matters to it and every
/// pair of requests.
fn starts() -> Vec<World> {
    let requests = [
        Request::Pause,
        Request::Resume,
        Request::Reset,
        Request::Kill,
    ]
    .map(Asked::Life);
    let mut users = vec![[Asked::Hold, Asked::Release]];
    for one in requests {
        users.extend(requests.map(|two| [one, two]));
        users.push([Asked::Hold, one]);
    }
    let mut starts = Vec::new();
    for (at, &first) in Report::ALL.iter().enumerate() {
        for &second in &Report::ALL[at..] {
            let policies = if second == Report::Panicked { 4 } else { 1 };
            for on_crash in 0..policies {
                starts.extend(
                    users
                        .iter()
                        .map(|&user| World::start(on_crash, [first, second], user)),
                );
            }
        }
    }
    starts
}

/// In every interleaving: no instruction follows an access that waits for a decision or was decisive, none
/// is executed while the VM is paused or held, a held VM is neither reset nor ended by its guest (the
/// assertions in the steps), and no event is handled twice. In every final world each event and request has
/// been handled, and a VM that may run has run to the end of its program.
#[test]
fn no_interleaving_runs_the_guest_after_the_end_or_loses_an_event() {
    let (mut ends, mut resets, mut stays) = (0, 0, 0);
    for start in starts() {
        let mut seen = HashSet::new();
        let mut next = vec![start];
        while let Some(world) = next.pop() {
            if seen.contains(&world) {
                continue;
            }
            let before = next.len();
            next.extend((0..2).filter_map(|index| world.vcpu_steps(index)));
            next.extend(world.main_steps());
            next.extend(world.user_steps());
            assert!(world.acted <= world.reported, "acted on twice: {world:?}");
            if world.main == Main::Ended {
                ends += 1;
            } else if next.len() == before {
                world.assert_settled();
                resets += u32::from(world.resets > 0);
                stays += 1;
            }
            seen.insert(world);
        }
    }
    assert!(
        ends > 100 && resets > 100 && stays > 100,
        "{ends} ends, {resets} with a reset, {stays} that stay"
    );
}

#[test]
fn a_guest_event_does_not_undo_a_pause() {
    for on_crash in ON_CRASH {
        for report in Report::ALL {
            let mut life = LifeState::new();
            assert!(life.user(Request::Pause));
            assert!(life.guest(&report.event(), on_crash));
            if let Some(Due::End(_)) = life.take_due() {
                continue;
            }
            assert_ne!(life.run(), RunState::Running, "{report:?}, {on_crash:?}");
            assert!(!life.may_run());
        }
    }
}

#[test]
fn the_first_decisive_event_wins_and_a_kill_beats_a_hold() {
    let mut life = LifeState::new();
    life.hold(true);
    assert!(life.guest(&GuestEvent::DebugExit { code: 3 }, OnCrash::Continue));
    assert!(!life.guest(&GuestEvent::PowerOff, OnCrash::Continue));
    assert!(!life.user(Request::Reset) && !life.user(Request::Resume));
    assert_eq!(life.take_due(), None);
    let mut released = life.clone();
    released.hold(false);
    assert_eq!(released.take_due(), Some(Due::End(Outcome::DebugExit(3))));
    assert!(life.user(Request::Kill));
    assert_eq!(life.take_due(), Some(Due::End(Outcome::Killed)));
}
