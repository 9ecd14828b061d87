//! Interrupts that have a GSI of their own: message-signalled ones and SINTs.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::routes::Routes;
use crate::bus::lock;
use crate::kvm::route::{self, Msi, Target};
use crate::kvm::{KvmError, eventfd};
use crate::units::Gsi;

/// What there is of an interrupt beside its GSI.
#[derive(Debug)]
pub(super) struct Source {
    /// Where it leads.
    pub(super) to: Option<Target>,
    pub(super) vm: Option<Arc<VmFd>>,
    pub(super) event: Option<Arc<EventFd>>,
    /// KVM signals it upon `event`.
    connected: bool,
}

impl Source {
    pub(super) fn new(to: Option<Target>, vm: Option<Arc<VmFd>>) -> Self {
        Self {
            to,
            vm,
            event: None,
            connected: false,
        }
    }

    /// The route that its eventfd needs: none without an eventfd, and none for a message that is no
    /// interrupt.
    pub(super) fn routed(&self) -> Option<Target> {
        let to = self.to.filter(|_| self.event.is_some())?;
        match to {
            Target::Msi(msi) if !msi.is_interrupt() => None,
            to => Some(to),
        }
    }

    pub(super) fn connect(&mut self, gsi: Gsi) -> Result<(), KvmError> {
        if let (Some(vm), Some(event), false) = (&self.vm, &self.event, self.connected) {
            eventfd::assign_irq(vm, event, gsi)?;
            self.connected = true;
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self, gsi: Gsi) {
        if let (Some(vm), Some(event), true) = (&self.vm, &self.event, self.connected) {
            // KVM fails this only for what was not assigned.
            let _gone = eventfd::deassign_irq(vm, event, gsi);
        }
        self.connected = false;
    }

    /// Takes signals away that KVM has not taken from the eventfd.
    pub(super) fn discard_pending(&self) {
        if let Some(event) = self.event.as_ref().filter(|_| !self.connected) {
            // EAGAIN: there is none.
            let _count = event.read();
        }
    }

    fn is_pending(&self) -> bool {
        let Some(event) = self.event.as_ref().filter(|_| !self.connected) else {
            return false;
        };
        let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// A message-signalled interrupt. Dropping it frees its GSI and its irqfd.
#[derive(Debug)]
pub struct Vector {
    routes: Routes,
    gsi: Gsi,
    source: Arc<Mutex<Source>>,
}

impl Vector {
    pub(super) fn new(routes: Routes, gsi: Gsi, source: Arc<Mutex<Source>>) -> Self {
        Self {
            routes,
            gsi,
            source,
        }
    }

    /// From now on a signal writes `msi`; nothing for `None`, as for a masked vector. When this returns no
    /// earlier message is delivered any more, and signals of the eventfd stay pending in it until there is a
    /// message again.
    pub fn set(&self, msi: Option<Msi>) {
        self.routes
            .set_target(self.gsi, &self.source, msi.map(Target::Msi));
    }

    /// Delivers the interrupt. `false`: it has no message, or one that is no interrupt, so that the caller
    /// keeps it pending. While the machine is held in reset a message is lost.
    pub fn signal(&self) -> bool {
        let source = lock(&self.source);
        let Some(Target::Msi(msi)) = source.to else {
            return false;
        };
        if !msi.is_interrupt() {
            return false;
        }
        if let Some(vm) = &source.vm {
            // It fails only for a VM without local APICs in KVM, which there is none of.
            let _delivered = route::signal_msi(vm, msi);
        }
        true
    }

    /// An eventfd whose signals KVM delivers by itself (`KVM_IRQFD`), for a sender that is no device of ours,
    /// or another thread. Reading it is not the caller's.
    ///
    /// # Errors
    /// If the process has no descriptors left, or KVM refuses.
    pub fn eventfd(&self) -> Result<Arc<EventFd>, KvmError> {
        self.routes.eventfd(self.gsi, &self.source)
    }

    /// Whether the eventfd was signalled while there was no message: the vector's bit in the pending bit
    /// array.
    pub fn is_pending(&self) -> bool {
        lock(&self.source).is_pending()
    }

    /// Forgets such signals: the function was reset.
    pub fn discard_pending(&self) {
        lock(&self.source).discard_pending();
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.routes.free(self.gsi, &self.source);
    }
}

/// A synthetic interrupt source of a virtual processor, as an interrupt. Dropping it frees its GSI and its
/// irqfd.
#[derive(Debug)]
pub struct Sint {
    routes: Routes,
    gsi: Gsi,
    source: Arc<Mutex<Source>>,
}

impl Sint {
    pub(super) fn new(routes: Routes, gsi: Gsi, source: Arc<Mutex<Source>>) -> Self {
        Self {
            routes,
            gsi,
            source,
        }
    }

    /// Raises it. `false`: the guest does not listen (SynIC or SINT off, or masked), or the machine is held
    /// in reset.
    pub fn signal(&self) -> bool {
        let source = lock(&self.source);
        let vm = source.vm.as_ref();
        vm.is_some_and(|vm| vm.set_irq_line(self.gsi.0, true).is_ok())
    }

    /// As [`Vector::eventfd`].
    ///
    /// # Errors
    /// If the process has no descriptors left, or KVM refuses.
    pub fn eventfd(&self) -> Result<Arc<EventFd>, KvmError> {
        self.routes.eventfd(self.gsi, &self.source)
    }
}

impl Drop for Sint {
    fn drop(&mut self) {
        self.routes.free(self.gsi, &self.source);
    }
}
