//! Decides what follows from guest events and user requests. Pure: the machine's main thread carries it
//! out.
//!
//! | | Running | Paused, Crashed |
//! |---|---|---|
//! | guest resets, triple fault | reset, runs | reset, stays paused |
//! | guest powers off, debug exit, vCPU fails | end | end |
//! | guest crashes | as `on-crash` says | the same, but never runs: continue changes nothing |
//! | pause | Paused | stays |
//! | resume | runs on | runs on |
//! | user's reset | reset, runs | reset, runs |
//! | kill | end | end |
//!
//! A VM that is held (its state is being handed off to another process) neither runs nor is reset, whatever
//! the request; only a kill and the hand-off itself end it.

use serde::{Deserialize, Serialize};

use super::{GuestEvent, Request};

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// A user has stopped them.
    Paused,
    /// They were stopped because the guest crashed.
    Crashed,
}

impl RunState {
    /// The name in status and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Crashed => "crashed",
        }
    }
}

/// The policy for a crash that the guest reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// Record it and let the guest continue, so that it can write its dump.
    Continue,
    /// Stop the vCPUs and keep everything for inspection.
    Pause,
    /// Reset the machine.
    Reset,
    /// End the VM.
    Stop,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u8),
    /// A user ended the VM.
    Killed,
    /// The VM was moved: it runs in another process.
    Moved,
    /// The guest crashed, and `on_crash` is stop.
    Crashed,
    /// A vCPU could not go on, or a thread of hypernest panicked; the report is for the user.
    Failed(String),
}

/// What the main thread must do before any vCPU runs again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Due {
    /// Make a new power cycle.
    Reset,
    /// End the VM.
    End(Outcome),
}

/// Where a VM is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LifeState {
    run: RunState,
    held: bool,
    /// The consequence of the first decisive event; guest events after it are dropped.
    due: Option<Due>,
    /// `due` comes from a user or the hand-off, and is carried out even while the VM is held.
    forced: bool,
}

impl LifeState {
    /// The state of a VM that has not started, and will run.
    pub fn new() -> Self {
        Self {
            run: RunState::Running,
            held: false,
            due: None,
            forced: false,
        }
    }

    /// Whether the VM runs, as decided by its user and its guest's crashes.
    pub fn run(&self) -> RunState {
        self.run
    }

    /// Whether the vCPUs may enter the guest.
    pub fn may_run(&self) -> bool {
        self.run == RunState::Running && !self.held && self.due.is_none()
    }

    /// Whether something decisive has happened that is still to be carried out.
    pub fn due(&self) -> Option<&Due> {
        self.due.as_ref()
    }

    /// Takes the action that is to be carried out now.
    pub fn take_due(&mut self) -> Option<Due> {
        if self.held && !self.forced {
            return None;
        }
        self.forced = false;
        self.due.take()
    }

    /// The guest reported `event`. `false` if that was after something decisive, and is to be ignored.
    pub fn guest(&mut self, event: &GuestEvent, on_crash: OnCrash) -> bool {
        if self.due.is_some() {
            return false;
        }
        match event {
            GuestEvent::Reset { .. } | GuestEvent::TripleFault { .. } => self.guest_reset(),
            GuestEvent::PowerOff => self.due = Some(Due::End(Outcome::PowerOff)),
            GuestEvent::DebugExit { code } => {
                self.due = Some(Due::End(Outcome::DebugExit(*code)));
            }
            GuestEvent::VcpuFailed { report, .. } => {
                self.due = Some(Due::End(Outcome::Failed(report.clone())));
            }
            GuestEvent::Panicked | GuestEvent::Crash { .. } => match on_crash {
                OnCrash::Continue => {}
                OnCrash::Pause => self.run = RunState::Crashed,
                OnCrash::Reset => self.guest_reset(),
                OnCrash::Stop => self.due = Some(Due::End(Outcome::Crashed)),
            },
            GuestEvent::DiskFailed { .. } => {
                if self.run == RunState::Running {
                    self.run = RunState::Paused;
                }
            }
            GuestEvent::CrashKernelLoaded | GuestEvent::TscEmulationEnded => {}
        }
        true
    }

    fn guest_reset(&mut self) {
        self.due = Some(Due::Reset);
        if self.run == RunState::Crashed {
            self.run = RunState::Paused;
        }
    }

    /// Handles a user's request. Returns `false` if it is refused because the VM is held.
    pub fn user(&mut self, request: Request) -> bool {
        match request {
            Request::Pause => {
                if self.run == RunState::Running {
                    self.run = RunState::Paused;
                }
            }
            Request::Resume | Request::Reset if self.held => return false,
            Request::Resume => self.run = RunState::Running,
            Request::Reset => {
                self.run = RunState::Running;
                self.due.get_or_insert(Due::Reset);
            }
            Request::PowerButton => {}
            Request::Kill => self.end(Outcome::Killed),
        }
        true
    }

    /// Ends the VM, held or not.
    pub fn end(&mut self, outcome: Outcome) {
        self.due = Some(Due::End(outcome));
        self.forced = true;
    }

    /// Whether the VM is held.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Holds the VM: neither guest nor user can run or reset it until it is released.
    pub fn hold(&mut self, on: bool) {
        self.held = on;
    }
}

impl Default for LifeState {
    fn default() -> Self {
        Self::new()
    }
}
