//! The thread of one vCPU: its whole loop.
//!
//! Before each KVM_RUN the thread checks two flags: whether the main thread has a request, and whether a
//! guest event is pending. For the latter it parks itself until the main thread has decided. So the vCPU
//! whose access ended, reset or paused the VM executes no further instruction, and any other vCPU none
//! after its next exit.
//!
//! A parked vCPU's last exit is not completed: KVM carries out the rest of the instruction (advances RIP,
//! stores the data that was read, continues a repeated string instruction) in the next KVM_RUN.
//! `Vcpu::complete_exit` makes it do so, without entering the guest, before anything reads or writes the
//! vCPU's state; a vCPU that leaves skips it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use tracing::warn;

use super::control::{Control, ControlStep};
use super::create;
use super::dispatch::{AfterExit, Failure, dispatch};
use super::failure;
use super::platform::{Buses, VcpuPlatform};
use super::ring::Ring;
use super::stats::{ExitReason, Recorder};
use crate::hyperv::{CrashReport, msr};
use crate::kvm::exit;
use crate::kvm::kick::Kicker;
use crate::life::GuestEvent;
use crate::sys::{Role, affinity, spawn};
use crate::units::{Msr, VpIndex};

/// HV_X64_MSR_CRASH_P0..P4.
const CRASH_PARAMS: [Msr; 5] = [
    Msr(msr::CRASH_P0.0),
    Msr(msr::CRASH_P0.0 + 1),
    Msr(msr::CRASH_P0.0 + 2),
    Msr(msr::CRASH_P0.0 + 3),
    Msr(msr::CRASH_P0.0 + 4),
];

/// One vCPU, ready to run.
#[derive(Debug)]
pub struct Vcpu {
    index: VpIndex,
    fd: VcpuFd,
    platform: Arc<VcpuPlatform>,
    buses: Buses,
    control: Arc<Control<VcpuFd>>,
    recorder: Recorder,
    ring: Option<Arc<Ring>>,
    /// The host's CPUs that its thread runs on; `None`: any.
    cpus: Option<RangeInclusive<u16>>,
    /// KVM has not carried out the instruction that the last exit came from.
    exit_pending: bool,
}

impl Vcpu {
    /// Wraps a KVM vCPU file descriptor in its initial state, with its dirty ring if it has one.
    pub fn new(
        index: VpIndex,
        fd: VcpuFd,
        platform: Arc<VcpuPlatform>,
        recorder: Recorder,
        ring: Option<Arc<Ring>>,
    ) -> Self {
        Self {
            index,
            fd,
            buses: platform.buses(),
            platform,
            control: Arc::new(Control::new()),
            recorder,
            ring,
            cpus: None,
            exit_pending: false,
        }
    }

    /// Restricts its thread to these CPUs of the host.
    pub fn pinned(self, cpus: Option<RangeInclusive<u16>>) -> Self {
        Self { cpus, ..self }
    }

    /// Starts its thread, which waits until the control lets it run.
    ///
    /// # Errors
    /// If no thread can be created.
    pub fn spawn(self) -> std::io::Result<VcpuThread> {
        let control = Arc::clone(&self.control);
        let thread = spawn(Role::Vcpu(self.index.0), move || self.run())?;
        Ok(VcpuThread {
            control,
            thread: Some(thread),
        })
    }

    fn run(mut self) {
        let _watch = self.platform.events.watch_thread();
        // However the thread ends, a panic included, no other thread may keep waiting for it.
        let _leaves = Leaves(Arc::clone(&self.control));
        if let Some(cpus) = &self.cpus
            && let Err(e) = affinity::pin(cpus)
        {
            // The CPUs were online when the VM started. The vCPU continues, but on other CPUs.
            let (first, last) = (cpus.start(), cpus.end());
            warn!(
                "vCPU {} cannot run on CPUs {first} to {last}: {e}",
                self.index
            );
        }
        match Kicker::for_this_thread(&self.fd) {
            Ok(kicker) => {
                self.control.enter(kicker);
                self.run_until_left();
            }
            Err(e) => self.platform.events.report(GuestEvent::VcpuFailed {
                vcpu: self.index.0,
                report: format!("vCPU {}: cannot map its run page: {e}", self.index),
            }),
        }
    }

    fn run_until_left(&mut self) {
        loop {
            if self.platform.events.are_pending() {
                self.control.park_self();
            }
            if !self.control.attention() {
                self.enter_guest();
            } else if !self.attend() {
                return;
            }
        }
    }

    /// Serves the main thread's requests, and waits while the vCPU is paused. `false` means leave.
    fn attend(&mut self) -> bool {
        loop {
            match self.control.next_step() {
                ControlStep::Run => return true,
                ControlStep::Leave => return false,
                ControlStep::Work(work) => {
                    self.complete_exit();
                    work(&mut self.fd);
                }
            }
        }
    }

    fn enter_guest(&mut self) {
        let exit = exit::run(&mut self.fd);
        let start = self.recorder.start();
        let reason = ExitReason::of(&exit);
        let next = dispatch(exit, &self.platform, &mut self.buses);
        self.recorder.finish(reason, start);
        self.exit_pending = true;
        match next {
            AfterExit::Run => {}
            AfterExit::Interrupted => {
                self.exit_pending = false;
                self.control.interrupted();
            }
            rare => self.rare(rare),
        }
    }

    /// Makes KVM complete the instruction of the last exit (`complete_userspace_io`), without entering the
    /// guest: until then the registers are those before the instruction. That may cause another exit. While
    /// a guest event is pending nothing is completed: the rest of a `rep outs` that reset the VM must not
    /// reach a device.
    fn complete_exit(&mut self) {
        while self.exit_pending && !self.platform.events.are_pending() {
            self.control.request_immediate_exit();
            self.enter_guest();
        }
    }

    /// Handles the rare cases, which may allocate.
    fn rare(&mut self, next: AfterExit) {
        match next {
            AfterExit::Run | AfterExit::Interrupted => {}
            AfterExit::Report(event) => self.platform.events.report(event),
            AfterExit::Forward(msr, value) => {
                if let Err(e) = create::set_msrs(self.index, &self.fd, &[(msr, value)]) {
                    self.fail(&format!("vCPU {}: {e}", self.index));
                }
            }
            AfterExit::Crash(report) => self.crash(&report),
            AfterExit::DirtyRingFull => {
                let ring = self.ring.as_ref();
                let written = self.platform.ram.written();
                if let Some(Err(e)) = ring.map(|ring| ring.make_room(written)) {
                    self.fail(&format!("vCPU {}: {e}", self.index));
                }
            }
            AfterExit::EmulationEnded => self.platform.events.report(GuestEvent::TscEmulationEnded),
            AfterExit::CrashInKvm => match create::get_msrs(self.index, &self.fd, &CRASH_PARAMS) {
                Ok(params) => self.crash(&CrashReport::from_kvm(params)),
                Err(e) => self.fail(&format!("vCPU {}: {e}", self.index)),
            },
            AfterExit::Failed(failure) => {
                self.exit_pending = false;
                let ram = &self.platform.ram;
                let report = failure::report(self.index, &failure, &self.fd, ram);
                // Unreadable RAM is not the guest's fault, and a reset does not help.
                if failure == Failure::TripleFault && ram.lost().is_none() {
                    let vcpu = self.index.0;
                    let event = GuestEvent::TripleFault { vcpu, report };
                    self.platform.events.report(event);
                } else {
                    self.fail(&report);
                }
            }
        }
    }

    /// Fetches the crash message before the guest continues and reuses its memory.
    fn crash(&self, report: &CrashReport) {
        let crash = report.read(&self.platform.ram);
        self.platform.events.report(GuestEvent::Crash {
            vcpu: self.index.0,
            crash,
        });
    }

    fn fail(&self, report: &str) {
        self.platform.events.report(GuestEvent::VcpuFailed {
            vcpu: self.index.0,
            report: report.to_owned(),
        });
    }
}

/// Marks the thread as out of its loop.
struct Leaves(Arc<Control<VcpuFd>>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.left();
    }
}

/// A vCPU's thread and its control. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuThread {
    control: Arc<Control<VcpuFd>>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Its control.
    pub fn control(&self) -> &Arc<Control<VcpuFd>> {
        &self.control
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.control.leave();
        if let Some(thread) = self.thread.take() {
            // A panic of a vCPU thread has been reported by the panic hook already.
            let _panicked = thread.join();
        }
    }
}
