//! The thread of one vCPU: the whole loop.

use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

use super::control::Control;
use super::dispatch::{Next, dispatch};
use super::failure;
use super::platform::Platform;
use crate::kvm::exit;
use crate::kvm::kick::Kicker;
use crate::life::LifeEvent;
use crate::units::VpIndex;

/// One vCPU, ready to run.
#[derive(Debug)]
pub struct Vcpu {
    index: VpIndex,
    fd: VcpuFd,
    platform: Arc<Platform>,
    control: Arc<Control>,
}

impl Vcpu {
    /// A vCPU around its KVM file descriptor, in its initial state.
    pub fn new(index: VpIndex, fd: VcpuFd, platform: Arc<Platform>) -> Self {
        Self {
            index,
            fd,
            platform,
            control: Arc::new(Control::new()),
        }
    }

    /// Starts its thread, which waits until the control says run.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn spawn(self) -> std::io::Result<VcpuThread> {
        let control = Arc::clone(&self.control);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .spawn(move || self.run())?;
        Ok(VcpuThread {
            control,
            thread: Some(thread),
        })
    }

    fn run(mut self) {
        match Kicker::for_this_thread(&self.fd) {
            Ok(kicker) => {
                self.control.enter(kicker);
                self.enter_guest_until_told_to_leave();
            }
            Err(e) => self.platform.life.send(LifeEvent::VcpuFailed {
                vcpu: self.index.0,
                report: format!("vCPU {}: cannot map its run page: {e}", self.index),
            }),
        }
        self.control.left();
    }

    fn enter_guest_until_told_to_leave(&mut self) {
        loop {
            if self.control.attention() && !self.control.wait_until_wanted() {
                return;
            }
            let next = dispatch(exit::run(&mut self.fd), &self.platform);
            match next {
                Next::Run => {}
                Next::Interrupted => self.control.interrupted(),
                Next::Report(event) => self.report(event),
                Next::Failed(failure) => {
                    let report =
                        failure::report(self.index, &failure, &self.fd, &self.platform.ram);
                    self.report(LifeEvent::VcpuFailed {
                        vcpu: self.index.0,
                        report,
                    });
                }
            }
        }
    }

    /// Reports what only the main thread can decide, and waits for its decision.
    fn report(&self, event: LifeEvent) {
        self.control.park_self();
        self.platform.life.send(event);
    }
}

/// A vCPU's thread, and how to steer it. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuThread {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Its steering.
    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.control.leave();
        if let Some(thread) = self.thread.take() {
            // A vCPU thread that panicked has reported itself through the panic hook; there is nothing left to wait for.
            let _panicked = thread.join();
        }
    }
}
