//! Configuration -> VM: the memory map and what is wired where. The only place that knows every device.
//!
//! [`Machine::new`] decides ([`plan`]), allocates and wires; [`Machine::run`] powers on and acts on
//! life-cycle events until the VM ends. What a reset throws away and what it keeps: the KVM VM with its vCPUs
//! is made anew (`cycle`); RAM keeps its place and is emptied; devices go back to power-on; consoles stay
//! connected.

mod attachments;
mod board;
mod build;
mod counters;
mod cycle;
mod dry;
mod error;
mod exit_statistics;
mod extra_ports;
mod fields;
mod firmware;
mod guest_log;
mod job;
mod main_loop;
pub mod migrate;
mod moving;
mod pci_devices;
pub mod plan;
mod plugged;
pub mod promise;
mod restore;
mod running;
mod save;
mod signals;
mod stand_in;
mod status;
mod throttle;
mod time;
pub(crate) mod transfer;
mod triple_fault;
mod vm;
mod wiring;
mod world;

pub use counters::ExitCounters;
pub use cycle::PowerCycle;
pub use dry::{DevicesWithoutVm, check_devices};
pub use error::{Impossible, MachineError, workaround};
pub use extra_ports::ExtraPorts;
pub use migrate::Migrate;
pub use plugged::{DeviceRequestError, DeviceStatus, request_device};
pub use restore::{Local, Outlook, Unloaded, outlook};
pub use running::Running;
pub use save::{AfterSave, save};
pub use status::{Crash, RamStatus, State, Status, StatusBoard, TscStatus};
pub use transfer::{Identity, TransferError};
pub use world::NotStopped;

use crate::boot::{self, Boot, BootError, BootFiles};
use crate::bus;
use crate::config::VmConfig;
use crate::life::MachineHandle;
pub use crate::life::Outcome;
use crate::memory::GuestRam;
use attachments::Stage;
use cycle::Start;
use exit_statistics::ExitStatistics;
use fields::{GuestTime, Hardware, Host, Session, Transfer};
use plan::Plan;
use signals::SignalThread;
use stand_in::StandIns;

/// A VM that is built and not yet powered on.
///
/// Fields are dropped in this order: the inbox before the I/O thread, which may be waiting for room in it;
/// the signals last.
pub struct Machine {
    config: VmConfig,
    plan: Plan,
    /// What a reset boots; none if the VM came without it.
    boot: Option<BootFiles>,
    host: Host,
    session: Session,
    hardware: Hardware,
    time: GuestTime,
    exits: ExitStatistics,
    transfer: Transfer,
    /// Blocks the signals in every thread that is started after it.
    _signals: SignalThread,
}

impl Machine {
    /// What the guest is told.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where requests for this VM are sent, from any thread.
    pub fn handle(&self) -> MachineHandle {
        self.session.handle.clone()
    }

    /// Where its status can be read, from any thread.
    pub fn board(&self) -> StatusBoard {
        self.session.board.clone()
    }

    /// The guest's RAM, to look into from outside the guest while the VM runs and after it has ended. It
    /// keeps its place as long as this handle lives; a reset empties it.
    pub fn ram(&self) -> GuestRam {
        self.hardware.platform.ram.clone()
    }

    /// Fills `counters` at each power-on.
    pub fn count_exits(&mut self, counters: &ExitCounters) {
        self.exits.count_in(counters.clone());
    }

    fn power_on(&mut self) -> Result<PowerCycle, MachineError> {
        let files = self.boot.clone().ok_or(MachineError::NoBootFiles)?;
        self.reset_devices();
        bus::lock(&self.hardware.platform.partition).reset();
        let platform = board::boot_platform(&self.config, self.plan.address_width());
        let ram = &self.hardware.platform.ram;
        let start = match &self.config.boot {
            Boot::Kernel(kernel) => {
                Start::Kernel(boot::load_files(kernel, &files, ram, &platform)?)
            }
            Boot::Firmware(_) => {
                if let Some(flash) = &self.hardware.flash {
                    firmware::shadow(flash, ram).map_err(BootError::from)?;
                }
                Start::ResetVector
            }
        };
        self.create_vm(&start)
    }

    /// The VM in KVM with its vCPUs.
    fn create_vm(&mut self, start: &Start) -> Result<PowerCycle, MachineError> {
        let vm = vm::create(
            &self.host.kvm,
            self.config.irqchip,
            &self.hardware.attachments,
            &self.plan.user_msrs(),
            self.plan.pit_reinjects(),
        )?;
        let (cycle, readers) = PowerCycle::new(
            vm,
            &self.config,
            &self.plan,
            &self.hardware.platform,
            self.host.tsc_is_a_clock,
            start,
            self.exits.counters(),
        )?;
        self.exits.begin_cycle(readers);
        self.log_new_cycle(&cycle);
        self.host.tsc.native = cycle.host_khz();
        self.time.switched = None;
        self.show_time(false);
        self.hardware
            .attachments
            .attach_after(Stage::Vcpus, cycle.vcpus().vm())?;
        Ok(cycle)
    }

    /// Ends the vCPUs and the VM. RAM still holds what the guest left.
    fn power_off(&mut self, cycle: PowerCycle) {
        self.hardware.attachments.detach();
        self.unthrottle();
        self.exits.close_counters();
        drop(cycle);
        self.transfer.stand_ins = StandIns::default();
        // What the old guest reported besides, e.g. a reset by two vCPUs at once, must not hit the new one.
        drop(self.session.inbox.take_guest_events());
        self.exits.end_cycle();
    }

    fn write_stats(&self) -> Result<(), MachineError> {
        if let Some(path) = &self.config.stats {
            self.exits.write(&self.config.name, path)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
