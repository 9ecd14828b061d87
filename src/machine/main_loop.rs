//! The machine's main thread: acts on guest events and users' requests until the VM ends.
//!
//! Guest events come first, with all vCPUs parked, and then one request, so neither starves the other.
//! [`LifeState`](crate::life::LifeState) decides the consequences of both.

use std::time::Instant;

use tracing::{error, info, warn};

use super::guest_log::Kind;
use super::triple_fault::Consequence;
use super::{Crash, Machine, MachineError, Outcome, PowerCycle, State, job};
use crate::bus;
use crate::error::chain;
use crate::hyperv::HypervCrash;
use crate::life::{Due, GuestEvent, Request, UserRequest};

impl Machine {
    /// Powers on and processes events until the VM ends. Signals are handled meanwhile, as `signals.rs`
    /// documents.
    ///
    /// # Errors
    /// If another process uses a disk's image; if the VM cannot be created or, at a reset, its devices do
    /// not stop, its RAM cannot be discarded or it cannot be created again; or if the statistics cannot be
    /// written at the end.
    pub fn run(mut self) -> Result<Outcome, MachineError> {
        self.acquire()?;
        let mut cycle = match self.transfer.restored.take() {
            Some(restored) => restored,
            None => self.power_on()?,
        };
        self.session.powered_on = Instant::now();
        if self.session.life.may_run() {
            self.start_world(&cycle);
        }
        let outcome = loop {
            match self.turn(&cycle) {
                None => {}
                Some(Due::Reset) => {
                    // A device with requests in flight would write to the new guest's RAM.
                    self.stop_for_reset(&cycle)?;
                    self.power_off(cycle);
                    self.hardware
                        .platform
                        .ram
                        .discard()
                        .map_err(MachineError::Discard)?;
                    cycle = self.power_on()?;
                    self.session.board.count_reset();
                    self.show_state();
                    self.session.powered_on = Instant::now();
                    self.resume(&cycle);
                }
                Some(Due::End(outcome)) => break outcome,
            }
        };
        self.stop_world_or_warn(&cycle);
        self.power_off(cycle);
        self.write_stats()?;
        Ok(outcome)
    }

    /// Waits for an event or request, and processes it; returns the action that is left to the caller.
    fn turn(&mut self, cycle: &PowerCycle) -> Option<Due> {
        self.session.inbox.wait();
        if self.session.inbox.has_guest_events() {
            cycle.vcpus().pause();
            self.take_guest_events();
            self.resume(cycle);
        }
        if let Some(thread) = self.session.inbox.panicked_thread() {
            self.session.life.end(Outcome::Failed(format!(
                "the thread {thread} panicked, which is an error in hypernest: please report it with the \
                 message above"
            )));
        }
        if let Some(due) = self.session.life.take_due() {
            return Some(due);
        }
        if let Some(request) = self.session.inbox.next_request() {
            self.act(request, cycle);
        }
        self.session.life.take_due()
    }

    fn act(&mut self, request: UserRequest, cycle: &PowerCycle) {
        let request = match request {
            UserRequest::Life(request) => request,
            UserRequest::Job(job) => return job::run(&job, self, cycle),
            UserRequest::WriteStats => {
                if let Err(e) = self.write_stats() {
                    error!("{}", chain(&e));
                }
                return;
            }
        };
        if request == Request::Reset && self.boot.is_none() {
            error!("{}", MachineError::NoBootFiles);
            return;
        }
        if !self.session.life.user(request) {
            warn!(
                "the VM is being saved or migrated: it neither runs nor resets until that has succeeded or \
                 failed"
            );
            return;
        }
        match request {
            Request::Pause => {
                self.stop_world_or_warn(cycle);
                self.show_state();
            }
            Request::Resume => self.resume(cycle),
            Request::PowerButton => {
                bus::lock(&self.hardware.acpi).power_button();
                if !self.session.life.may_run() {
                    warn!(
                        "the power button was pressed; the guest notices it when the VM is resumed"
                    );
                }
            }
            Request::Reset => self.session.triple_faults.other_reset(),
            Request::Kill => {}
        }
    }

    /// Processes the guest's events. All vCPUs are parked.
    fn take_guest_events(&mut self) {
        for event in self.session.inbox.take_guest_events() {
            let event = self.limit_triple_faults(event);
            if self.session.life.guest(&event, self.config.on_crash) {
                self.note(event);
            }
        }
        self.show_state();
    }

    /// A triple fault that ends the VM is a failure of the vCPU.
    fn limit_triple_faults(&mut self, event: GuestEvent) -> GuestEvent {
        let GuestEvent::TripleFault { vcpu, mut report } = event else {
            return event;
        };
        if self.session.life.due().is_none() {
            let ran = self.session.powered_on.elapsed();
            match self
                .session
                .triple_faults
                .next(self.config.on_triple_fault, ran)
            {
                Consequence::Reset => {}
                Consequence::Stop => return GuestEvent::VcpuFailed { vcpu, report },
                Consequence::GiveUp(resets) => {
                    report.push_str(&format!(
                        "\n  the machine was reset {resets} times in a row after such a fault, and the guest \
                         got nowhere"
                    ));
                    return GuestEvent::VcpuFailed { vcpu, report };
                }
            }
        }
        GuestEvent::TripleFault { vcpu, report }
    }

    /// Parks all vCPUs with their last exits completed, and processes all guest events up to then.
    pub(super) fn park(&mut self, cycle: &PowerCycle) {
        loop {
            cycle.vcpus().pause();
            self.take_guest_events();
            if self.session.life.due().is_some() {
                return;
            }
            cycle.vcpus().complete_exits();
            // Completing repeated string instructions may have raised further events: at most one per
            // remaining element.
            if !self.session.inbox.has_guest_events() {
                return;
            }
        }
    }

    /// Lets the VM run if it may, once pending clock changes are done; stops it otherwise.
    pub(super) fn resume(&mut self, cycle: &PowerCycle) {
        if self.session.life.may_run() && !(self.settle_time(cycle) && self.acquired()) {
            self.session.life.user(Request::Pause);
        }
        if self.session.life.may_run() {
            self.start_world(cycle);
        } else {
            self.stop_world_or_warn(cycle);
        }
        self.show_state();
    }

    /// Updates the status: whether the vCPUs run.
    pub(super) fn show_state(&self) {
        self.session.board.set_state(match self.session.life.run() {
            State::Running if self.session.life.is_held() => State::Paused,
            state => state,
        });
    }

    /// Logs the guest's event, within its limits, and shows it in the status.
    fn note(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Reset { by } => {
                self.session.triple_faults.other_reset();
                if let Some(suppressed) = self.session.guest_log.admit(Kind::Reset) {
                    info!("the guest requested a reset ({by}){suppressed}");
                }
            }
            GuestEvent::TripleFault { report, .. } => {
                if let Some(suppressed) = self.session.guest_log.admit(Kind::TripleFault) {
                    warn!("{report}\n  the machine is reset (--on-triple-fault reset){suppressed}");
                }
            }
            GuestEvent::Panicked => {
                if let Some(suppressed) = self.session.guest_log.admit(Kind::Panic) {
                    warn!("the guest panicked (pvpanic){suppressed}");
                }
                self.session.board.report_crash(Crash {
                    by: "pvpanic".to_owned(),
                    params: None,
                    message: None,
                });
            }
            GuestEvent::CrashKernelLoaded => {
                if let Some(suppressed) = self.session.guest_log.admit(Kind::Panic) {
                    warn!("the guest panicked and runs its crash kernel{suppressed}");
                }
            }
            GuestEvent::Crash { crash, .. } => self.note_crash(crash),
            GuestEvent::DiskFailed { device, why } => error!(
                "the VM is paused, as a request of the disk {device} failed: {why}; after that is mended, \
                 `hypernest resume {}` makes the request again",
                self.config.name
            ),
            GuestEvent::PowerOff
            | GuestEvent::DebugExit { .. }
            | GuestEvent::TscEmulationEnded
            | GuestEvent::VcpuFailed { .. } => {}
        }
    }

    fn note_crash(&mut self, crash: HypervCrash) {
        if let Some(suppressed) = self.session.guest_log.admit(Kind::Crash) {
            let [p0, p1, p2, p3, p4] = crash.params;
            let message = crash.message.as_ref();
            error!(
                "the guest crashed: P0 {p0:#x} P1 {p1:#x} P2 {p2:#x} P3 {p3:#x} P4 {p4:#x}{}{suppressed}",
                message.map(|m| format!(": {m:?}")).unwrap_or_default()
            );
        }
        self.session.board.report_crash(Crash {
            by: "hyper-v".to_owned(),
            params: Some(crash.params),
            message: crash.message,
        });
    }
}
