//! The owner of the table of GSIs (`KVM_SET_GSI_ROUTING` replaces all of it, so there can be only one).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kvm_ioctls::VmFd;
use thiserror::Error;
use tracing::warn;

use super::IrqSink;
use super::ioapic::{MsiSink, PINS};
use super::table::{Controllers, Table};
use super::vector::{Sint, Source, Vector};
use crate::bus::lock;
use crate::error::chain;
use crate::kvm::attachment::VmAttachment;
use crate::kvm::route::{self, Msi, Route, Target};
use crate::kvm::{KvmError, eventfd};
use crate::units::{Gsi, VpIndex};

/// An interrupt cannot be routed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoVector {
    /// All GSIs are in use.
    #[error(
        "no interrupt vector is free: KVM routes {limit} interrupts of a VM at most (KVM_CAP_IRQ_ROUTING)"
    )]
    Exhausted {
        /// How many there can be, pins included.
        limit: u32,
    },
    /// A virtual processor has 16 synthetic interrupt sources.
    #[error("there is no synthetic interrupt source {sint}: the last one is 15")]
    NoSuchSint {
        /// The number asked for.
        sint: u32,
    },
}

/// Where the machine's interrupts go: the controllers' pins, the vectors of message-signalled interrupts, and
/// SINTs. It outlives the VMs in KVM. While there is no VM, messages are lost, as on a machine held in
/// reset; the levels of lines are kept.
///
/// It is the [`IrqSink`] for controllers in KVM, and the [`MsiSink`] of the I/O APIC in user space.
#[derive(Clone, Debug)]
pub struct Routes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u32,
    controllers: Controllers,
    /// Locked before the mutex of a source.
    core: Mutex<Core>,
    lines: Lines,
    /// KVM has refused a table, which was logged.
    refused: AtomicBool,
}

#[derive(Debug)]
struct Core {
    table: Table,
    vm: Option<Arc<VmFd>>,
    /// The routes that `vm` has; `None` for KVM's default.
    installed: Option<Vec<Route>>,
    sources: BTreeMap<Gsi, Arc<Mutex<Source>>>,
}

/// What the lines and messages of devices go through, without the table's lock.
#[derive(Default)]
struct Lines {
    vm: RwLock<Option<Arc<VmFd>>>,
    /// The level of each pin, a bit per GSI.
    levels: AtomicU32,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("levels", &self.levels)
            .finish_non_exhaustive()
    }
}

impl Lines {
    fn with<T>(&self, f: impl FnOnce(&VmFd) -> T) -> Option<T> {
        let vm = self.vm.read().unwrap_or_else(PoisonError::into_inner);
        vm.as_deref().map(f)
    }
}

impl Core {
    fn install(&mut self) -> Result<(), KvmError> {
        let Some(vm) = &self.vm else {
            return Ok(());
        };
        let routes = self.table.routes();
        if self.installed.as_ref() != Some(&routes) {
            route::set_routes(vm, &routes)?;
            self.installed = Some(routes);
        }
        Ok(())
    }
}

impl Routes {
    /// The pins of `controllers`, for VMs that take `limit` routes (`KVM_CAP_IRQ_ROUTING`).
    pub fn new(controllers: Controllers, limit: u32) -> Self {
        Self(Arc::new(Inner {
            limit,
            controllers,
            core: Mutex::new(Core {
                table: Table::new(controllers, limit),
                vm: None,
                installed: None,
                sources: BTreeMap::new(),
            }),
            lines: Lines::default(),
            refused: AtomicBool::new(false),
        }))
    }

    /// A vector for a message-signalled interrupt, which has no message yet.
    ///
    /// # Errors
    /// If all GSIs are in use.
    pub fn vector(&self) -> Result<Vector, NoVector> {
        let (gsi, source) = self.allocate(None)?;
        Ok(Vector::new(self.clone(), gsi, source))
    }

    /// Synthetic interrupt source `sint` of a virtual processor.
    ///
    /// # Errors
    /// If there is no such source, or all GSIs are in use.
    pub fn sint(&self, vp: VpIndex, sint: u32) -> Result<Sint, NoVector> {
        // Numbers may come from the guest, and KVM would refuse the whole table for one route that it does
        // not take.
        if sint > 15 {
            return Err(NoVector::NoSuchSint { sint });
        }
        let to = Target::HvSint { vp, sint };
        let (gsi, source) = self.allocate(Some(to))?;
        Ok(Sint::new(self.clone(), gsi, source))
    }

    fn allocate(&self, to: Option<Target>) -> Result<(Gsi, Arc<Mutex<Source>>), NoVector> {
        let mut core = lock(&self.0.core);
        let limit = self.0.limit;
        let gsi = core.table.allocate();
        let gsi = gsi.ok_or(NoVector::Exhausted { limit })?;
        let source = Arc::new(Mutex::new(Source::new(to, core.vm.clone())));
        core.sources.insert(gsi, Arc::clone(&source));
        if let Some(to) = to {
            core.table.set(gsi, to);
            let _logged = self.install(&mut core);
        }
        Ok((gsi, source))
    }

    /// Changes where a source leads.
    pub(super) fn set_target(&self, gsi: Gsi, source: &Mutex<Source>, to: Option<Target>) {
        let mut core = lock(&self.0.core);
        let mut source = lock(source);
        source.to = to;
        if source.event.is_some() {
            // A refusal is logged. `Vector::signal` works without the eventfd.
            let _connected = self.connect(&mut core, gsi, &mut source);
        }
    }

    /// Has KVM signal a source by an eventfd.
    pub(super) fn eventfd(
        &self,
        gsi: Gsi,
        source: &Mutex<Source>,
    ) -> Result<Arc<nix::sys::eventfd::EventFd>, KvmError> {
        let mut core = lock(&self.0.core);
        let mut source = lock(source);
        if let Some(event) = &source.event {
            return Ok(Arc::clone(event));
        }
        let event = Arc::new(eventfd::new()?);
        source.event = Some(Arc::clone(&event));
        match self.connect(&mut core, gsi, &mut source) {
            Ok(()) => Ok(event),
            Err(e) => {
                source.event = None;
                Err(e)
            }
        }
    }

    /// Connects or disconnects a source's eventfd, as its target asks for. A source that leads nowhere keeps
    /// its last route in the table: nothing raises that GSI, and a driver that masks and unmasks a vector
    /// costs no change of the table.
    fn connect(&self, core: &mut Core, gsi: Gsi, source: &mut Source) -> Result<(), KvmError> {
        let Some(to) = source.routed() else {
            source.disconnect(gsi);
            return Ok(());
        };
        core.table.set(gsi, to);
        if let Err(e) = self.install(core) {
            // The eventfd must not raise what the GSI led to before.
            source.disconnect(gsi);
            return Err(e);
        }
        source.connect(gsi)
    }

    /// Gives the VM the routes, if it has others; logs the first failure.
    fn install(&self, core: &mut Core) -> Result<(), KvmError> {
        core.install().inspect_err(|e| {
            if !self.0.refused.swap(true, Ordering::Relaxed) {
                warn!("cannot change the interrupt routes: {}", chain(e));
            }
        })
    }

    /// Ends a source.
    pub(super) fn free(&self, gsi: Gsi, source: &Mutex<Source>) {
        let mut core = lock(&self.0.core);
        lock(source).disconnect(gsi);
        core.table.free(gsi);
        core.sources.remove(&gsi);
        let _logged = self.install(&mut core);
    }
}

impl VmAttachment for Routes {
    fn attach(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        let mut core = lock(&self.0.core);
        core.vm = Some(Arc::clone(vm));
        core.installed = match self.0.controllers {
            Controllers::Kernel => None,
            // A VM with a split irqchip begins without routes (`kvm_setup_empty_irq_routing`).
            Controllers::Split => Some(Vec::new()),
        };
        core.install()?;
        for (gsi, source) in &core.sources {
            let mut source = lock(source);
            source.vm = Some(Arc::clone(vm));
            source.discard_pending();
            if source.routed().is_some() {
                source.connect(*gsi)?;
            }
        }
        let lines = &self.0.lines;
        let mut current = lines.vm.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::clone(vm));
        if self.0.controllers == Controllers::Kernel {
            let levels = lines.levels.load(Ordering::Relaxed);
            for gsi in (0..u32::BITS).filter(|gsi| levels & 1 << gsi != 0) {
                let _level = vm.set_irq_line(gsi, true);
            }
        }
        Ok(())
    }

    fn detach(&self) {
        let mut core = lock(&self.0.core);
        let lines = &self.0.lines;
        *lines.vm.write().unwrap_or_else(PoisonError::into_inner) = None;
        for (gsi, source) in &core.sources {
            let mut source = lock(source);
            source.disconnect(*gsi);
            source.vm = None;
        }
        core.vm = None;
        core.installed = None;
    }
}

/// Lines into the interrupt controllers in KVM. The level of each is kept for the next VM.
impl IrqSink for Routes {
    fn set_level(&self, gsi: Gsi, high: bool) {
        let lines = &self.0.lines;
        let bit = 1_u32.checked_shl(gsi.0).unwrap_or(0);
        // KVM_IRQ_LINE fails only for a VM without an irqchip, and every VM has one.
        let vm = lines.vm.read().unwrap_or_else(PoisonError::into_inner);
        if high {
            lines.levels.fetch_or(bit, Ordering::Relaxed);
        } else {
            lines.levels.fetch_and(!bit, Ordering::Relaxed);
        }
        if let Some(vm) = &*vm {
            let _delivered = vm.set_irq_line(gsi.0, high);
        }
    }
}

/// Messages from the I/O APIC in user space.
impl MsiSink for Routes {
    fn send(&self, msi: Msi) {
        // KVM_SIGNAL_MSI fails only for a VM without local APICs in the kernel, and every VM has them there.
        // That none of them takes the message is the guest's business.
        let _delivered = self.0.lines.with(|vm| route::signal_msi(vm, msi));
    }

    fn routes_changed(&self, routes: &[Option<Msi>; PINS]) {
        let mut core = lock(&self.0.core);
        core.table.set_ioapic(routes);
        let _logged = self.install(&mut core);
    }
}

#[cfg(test)]
mod tests;
