//! Reports of the guest and requests of users, in any order.

use std::collections::VecDeque;
use std::mem;

use hypernest::hyperv::HypervCrash;
use hypernest::life::{
    Due, GuestEvent, GuestEvents, Inbox, LifeState, MachineHandle, OnCrash, Outcome, Request,
    RunState, UserRequest, channel,
};

use crate::Input;

/// Fewer than the number of requests at which a sender waits for the main thread, which here is the same
/// thread.
const MAX_WAITING: usize = 32;

/// `on-crash`, then steps of `what, argument`: actions of the guest, its users and the main thread.
pub(crate) fn life(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let on_crash = match input.u8() % 4 {
        0 => OnCrash::Continue,
        1 => OnCrash::Pause,
        2 => OnCrash::Reset,
        _ => OnCrash::Stop,
    };
    let mut world = World::new(on_crash);
    while !input.is_empty() && !world.ended {
        let (what, argument) = (input.u8(), input.u8());
        match what % 8 {
            0 => world.report(event(argument)),
            1 => world.ask(request(argument)),
            2 => world.take_events(),
            3 => world.take_request(),
            4 => world.take_due(),
            5 => world.hold(true),
            6 => world.hold(false),
            _ => world.end(match argument % 2 {
                0 => Outcome::Moved,
                _ => Outcome::Failed(argument.to_string()),
            }),
        }
        world.assert_sound();
    }
    world.carried_out
}

/// Bits 3:0 are the kind; the others distinguish two events of one kind.
fn event(argument: u8) -> GuestEvent {
    let number = argument >> 4;
    let vcpu = u32::from(number & 3);
    let report = number.to_string();
    match argument % 16 % 10 {
        0 => GuestEvent::Reset { by: "fuzz" },
        1 => GuestEvent::PowerOff,
        2 => GuestEvent::DebugExit { code: number },
        3 => GuestEvent::Panicked,
        4 => GuestEvent::CrashKernelLoaded,
        5 => GuestEvent::Crash {
            vcpu,
            crash: HypervCrash {
                params: [number.into(); 5],
                message: None,
            },
        },
        6 => GuestEvent::TscEmulationEnded,
        7 => GuestEvent::TripleFault { vcpu, report },
        8 => GuestEvent::VcpuFailed { vcpu, report },
        _ => GuestEvent::DiskFailed {
            device: report,
            why: "fuzz".to_owned(),
        },
    }
}

fn request(argument: u8) -> Request {
    match argument % 5 {
        0 => Request::Pause,
        1 => Request::Resume,
        2 => Request::Reset,
        3 => Request::PowerButton,
        _ => Request::Kill,
    }
}

/// The effect of an event. This table is an independent copy of that of `life::decision`.
#[derive(Debug, PartialEq)]
enum Effect {
    Nothing,
    /// The guest stops, as it has crashed.
    Stops,
    /// The guest stops, as if a user had paused it.
    Pauses,
    Due(Due),
}

fn effect(event: &GuestEvent, on_crash: OnCrash) -> Effect {
    match event {
        GuestEvent::CrashKernelLoaded | GuestEvent::TscEmulationEnded => Effect::Nothing,
        GuestEvent::DiskFailed { .. } => Effect::Pauses,
        GuestEvent::Reset { .. } | GuestEvent::TripleFault { .. } => Effect::Due(Due::Reset),
        GuestEvent::PowerOff => Effect::Due(Due::End(Outcome::PowerOff)),
        GuestEvent::DebugExit { code } => Effect::Due(Due::End(Outcome::DebugExit(*code))),
        GuestEvent::VcpuFailed { report, .. } => {
            Effect::Due(Due::End(Outcome::Failed(report.clone())))
        }
        GuestEvent::Panicked | GuestEvent::Crash { .. } => match on_crash {
            OnCrash::Continue => Effect::Nothing,
            OnCrash::Pause => Effect::Stops,
            OnCrash::Reset => Effect::Due(Due::Reset),
            OnCrash::Stop => Effect::Due(Due::End(Outcome::Crashed)),
        },
    }
}

/// The queue slot of an event: one for each kind, and for each vCPU if the kind belongs to one.
fn slot(event: &GuestEvent) -> (mem::Discriminant<GuestEvent>, Option<u32>) {
    let vcpu = match event {
        GuestEvent::Crash { vcpu, .. }
        | GuestEvent::TripleFault { vcpu, .. }
        | GuestEvent::VcpuFailed { vcpu, .. } => Some(*vcpu),
        _ => None,
    };
    (mem::discriminant(event), vcpu)
}

/// The VM's life and a model of it, updated with each step.
struct World {
    guest: GuestEvents,
    user: MachineHandle,
    inbox: Inbox,
    life: LifeState,
    on_crash: OnCrash,
    /// Reported and not yet taken.
    events: Vec<GuestEvent>,
    /// Requested and not yet taken.
    requests: VecDeque<Request>,
    kill: bool,
    /// A pause was the last successful request of a user.
    user_paused: bool,
    /// The guest crashed, and since then neither it nor a user has reset it or resumed it.
    crashed: bool,
    held: bool,
    /// The action to perform, and whether it is performed in spite of a hold.
    due: Option<(Due, bool)>,
    carried_out: bool,
    ended: bool,
}

impl World {
    fn new(on_crash: OnCrash) -> Self {
        let (guest, user, inbox) = channel();
        Self {
            guest,
            user,
            inbox,
            life: LifeState::new(),
            on_crash,
            events: Vec::new(),
            requests: VecDeque::new(),
            kill: false,
            user_paused: false,
            crashed: false,
            held: false,
            due: None,
            carried_out: false,
            ended: false,
        }
    }

    fn report(&mut self, event: GuestEvent) {
        if self.events.iter().all(|other| slot(other) != slot(&event)) {
            self.events.push(event.clone());
        }
        self.guest.report(event);
        assert!(self.guest.are_pending(), "a vCPU would enter the guest");
    }

    fn ask(&mut self, request: Request) {
        if request == Request::Kill {
            self.kill = true;
        } else if self.requests.len() == MAX_WAITING {
            return;
        } else if self.requests.back() != Some(&request) {
            self.requests.push_back(request);
        }
        self.user.request(request);
    }

    fn take_events(&mut self) {
        let taken = self.inbox.take_guest_events();
        assert_eq!(taken, mem::take(&mut self.events), "an event is lost");
        for event in taken {
            let before = self.life.clone();
            let counts = self.life.guest(&event, self.on_crash);
            assert_eq!(counts, self.due.is_none(), "{event:?} after {before:?}");
            assert!(
                before.may_run() || !self.life.may_run(),
                "{event:?} lets {before:?} run"
            );
            if !counts {
                assert_eq!(self.life, before, "{event:?}");
                continue;
            }
            match effect(&event, self.on_crash) {
                Effect::Nothing => assert_eq!(self.life, before, "{event:?}"),
                Effect::Stops => self.crashed = true,
                Effect::Pauses => self.user_paused |= !self.crashed,
                Effect::Due(due) => {
                    if due == Due::Reset && self.crashed {
                        // It was stopped; its own reset then has the same effect as a user's.
                        self.crashed = false;
                        self.user_paused = true;
                    }
                    self.due = Some((due, false));
                }
            }
        }
    }

    fn take_request(&mut self) {
        let kill = mem::take(&mut self.kill).then_some(Request::Kill);
        let expected = kill.or_else(|| self.requests.pop_front());
        let taken = self.inbox.next_request();
        assert_eq!(taken, expected.map(UserRequest::Life), "a request is lost");
        let Some(request) = expected else {
            return;
        };
        let before = self.life.clone();
        let refused = self.held && matches!(request, Request::Resume | Request::Reset);
        assert_eq!(self.life.user(request), !refused, "{request:?}, {before:?}");
        match request {
            _ if refused => assert_eq!(self.life, before, "{request:?}"),
            Request::Pause => self.user_paused = true,
            Request::Resume => (self.user_paused, self.crashed) = (false, false),
            Request::Reset => {
                (self.user_paused, self.crashed) = (false, false);
                self.due.get_or_insert((Due::Reset, false));
            }
            Request::PowerButton => assert_eq!(self.life, before),
            Request::Kill => self.due = Some((Due::End(Outcome::Killed), true)),
        }
    }

    fn take_due(&mut self) {
        let taken = self.life.take_due();
        let expected = self.due.take_if(|(_, forced)| *forced || !self.held);
        assert_eq!(taken, expected.map(|(due, _)| due), "{:?}", self.life);
        self.carried_out |= taken.is_some();
        self.ended = matches!(taken, Some(Due::End(_)));
    }

    fn hold(&mut self, on: bool) {
        self.life.hold(on);
        self.held = on;
    }

    fn end(&mut self, outcome: Outcome) {
        self.life.end(outcome.clone());
        self.due = Some((Due::End(outcome), true));
    }

    /// Checks that vCPUs run if and only if they should.
    fn assert_sound(&self) {
        let life = &self.life;
        assert_eq!(self.inbox.has_guest_events(), !self.events.is_empty());
        assert_eq!(life.is_held(), self.held);
        assert_eq!(life.due(), self.due.as_ref().map(|(due, _)| due));
        let stopped = self.user_paused || self.crashed;
        assert_eq!(life.run() == RunState::Running, !stopped, "{life:?}");
        let must_not = stopped || self.held || self.due.is_some();
        assert_eq!(life.may_run(), !must_not, "{life:?}");
    }
}
