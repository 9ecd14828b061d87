//! Configuration -> VM: the memory map and what is wired where. The only place that knows every device.
//!
//! [`Machine::new`] decides ([`plan`]), allocates and wires; [`Machine::run`] powers on and acts on
//! life-cycle events until the VM ends. What a reset throws away and what it keeps: the KVM VM with its vCPUs
//! is made anew (`cycle`); RAM keeps its place and is emptied; devices go back to power-on; consoles stay
//! connected.

mod attachments;
mod board;
mod counters;
mod cycle;
mod dry;
mod error;
mod extra_ports;
mod guest_log;
mod job;
mod main_loop;
pub mod migrate;
mod moving;
mod pci_devices;
pub mod plan;
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

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use kvm_ioctls::Kvm;
use tracing::{info, warn};

pub use counters::ExitCounters;
pub use cycle::PowerCycle;
pub use dry::{DevicesWithoutVm, check_devices};
pub use error::{Impossible, MachineError, workaround};
pub use extra_ports::ExtraPorts;
pub use migrate::Migrate;
pub use restore::{Local, Outlook, Unloaded, outlook};
pub use running::Running;
pub use save::{AfterSave, save};
pub use status::{Crash, RamStatus, State, Status, StatusBoard, TscStatus};
pub use transfer::{Identity, TransferError};
pub use world::NotStopped;

use crate::boot::{self, BootFiles};
use crate::bus::{self, SharedDevice};
use crate::config::VmConfig;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::clock::HostClock;
use crate::devices::io_thread::{IoThread, RunningIo};
use crate::hyperv::{Partition, UserHypercalls};
use crate::kvm::host::HostCaps;
use crate::kvm::kick;
use crate::kvm::memory::MemorySlots;
pub use crate::life::Outcome;
use crate::life::{self, Inbox, LifeState, MachineHandle};
use crate::memory::GuestRam;
use crate::memory::dirty_log::DirtyLog;
use crate::memory::slots::{AddressSpace, SlotKind};
use crate::sys::affinity;
use crate::time::switch::{SwitchStep, Switched};
use crate::time::{Downtime, HostTsc};
use crate::vcpu::platform::VcpuPlatform;
use crate::vcpu::stats::{CountersSnapshot, Reader, StatsReport};
use attachments::{Attachments, Stage};
use guest_log::GuestLog;
use moving::Moving;
use pci_devices::Backplane;
use plan::Plan;
use signals::SignalThread;
use stand_in::StandIns;
use triple_fault::TripleFaults;

/// A VM that is built and not yet powered on.
pub struct Machine {
    config: VmConfig,
    kvm: Kvm,
    plan: Plan,
    platform: Arc<VcpuPlatform>,
    devices: Vec<SharedDevice>,
    device_clock: Arc<HostClock>,
    acpi: Arc<Mutex<AcpiPm>>,
    /// What a reset boots; none if the VM came without it.
    boot: Option<BootFiles>,
    /// What hangs on the VM in KVM, across resets.
    attachments: Attachments,
    handle: MachineHandle,
    inbox: Inbox,
    life: LifeState,
    guest_log: GuestLog,
    triple_faults: TripleFaults,
    /// When this power cycle began to run.
    powered_on: Instant,
    /// Carries the consoles' bytes and keeps the devices' deadlines.
    io: RunningIo,
    /// By `world`: vCPUs, devices and I/O.
    stopped: bool,
    /// Exits may be timed by the host's TSC.
    tsc_is_a_clock: bool,
    /// What this host's TSC can do; its frequency is known while a VM is powered on.
    tsc: HostTsc,
    /// The guest keeps its TSC's frequency, even if it has asked for the host's on an earlier one.
    keeps_frequency: bool,
    /// Steps of a change of the TSC's frequency that are not to be taken.
    left_out: Vec<SwitchStep>,
    /// The last change of the TSC's frequency.
    switched: Option<Switched>,
    /// Exits of earlier power cycles, per vCPU.
    past: Vec<CountersSnapshot>,
    /// Exits of this one.
    readers: Vec<Reader>,
    exit_counters: Option<ExitCounters>,
    /// Restored, and not running yet.
    restored: Option<PowerCycle>,
    /// What KVM has of enlightened VMCSs since the VM was restored.
    stand_ins: StandIns,
    /// What it does while it is moved.
    moving: Moving,
    started: (SystemTime, Instant),
    board: StatusBoard,
    /// Holds the signals back from every thread that is started after it.
    _signals: SignalThread,
}

impl Machine {
    /// Builds the VM that `config` describes, with `extra` devices of the caller's.
    ///
    /// # Errors
    /// If the host cannot do what was asked for, or something cannot be had.
    pub fn new(config: VmConfig, extra: &[ExtraPorts]) -> Result<Self, MachineError> {
        let (mut host, kvm) = HostCaps::for_a_vm()?;
        if config.time.khz.is_some() || config.time.downtime == Downtime::Pause {
            host.ask_tsc(&kvm)?;
        }
        let plan = Plan::new(&config, &host).map_err(MachineError::Impossible)?;
        for note in plan.hyperv.notes() {
            if note.is_warning() {
                warn!("{note}");
            } else {
                info!("{note}");
            }
        }
        let boot = Some(BootFiles::open(&config.boot)?);
        let ram = GuestRam::new(&config.memory, &config.ram_ranges())?;
        let mut machine = Self::assemble(config, plan, &host, kvm, ram, extra, false)?;
        machine.boot = boot;
        Ok(machine)
    }

    /// Wires everything together; what runs in it is another matter. With `goes_on`, it ran before.
    fn assemble(
        config: VmConfig,
        plan: Plan,
        host: &HostCaps,
        kvm: Kvm,
        ram: GuestRam,
        extra: &[ExtraPorts],
        goes_on: bool,
    ) -> Result<Self, MachineError> {
        kick::install_handler().map_err(|e| MachineError::Thread {
            what: "vCPU",
            source: e.into(),
        })?;
        let cpus = config.pins.values().cloned().collect();
        let missing = affinity::missing(cpus).map_err(|source| MachineError::Thread {
            what: "vCPU",
            source,
        })?;
        if let Some(cpu) = missing {
            return Err(MachineError::NoCpu(cpu));
        }
        let (events, handle, inbox) = life::channel();
        // All threads must inherit the signal mask, and the terminal is set up below: so this comes before.
        let stop_timeout = config.stop_timeout.map(|s| Duration::from_secs(s.into()));
        let signals = SignalThread::start(handle.clone(), stop_timeout);
        let signals = signals.map_err(|source| MachineError::Thread {
            what: "signal",
            source,
        })?;
        let slots = MemorySlots::new(host.kvm.caps.nr_memslots);
        slots.add(SlotKind::Ram, AddressSpace::Normal, &ram)?;
        let attachments = Attachments::new(config.irqchip, &host.kvm.caps, slots.clone());
        let io_failed = |source| MachineError::Thread {
            what: "I/O",
            source,
        };
        let mut io = IoThread::new(handle.clone()).map_err(io_failed)?;
        if goes_on {
            io.keep_files();
        }
        let Attachments {
            routes, doorbells, ..
        } = &attachments;
        let backplane = Backplane::new(&config, plan.address_width(), &ram, routes, doorbells);
        let wired = wiring::wire(&config, extra, &backplane, &events, &mut io)?;
        let ioapic = backplane.ioapic;
        for (device, path) in &wired.ptys {
            warn!("{device} is at {}", path.display());
        }
        let platform = VcpuPlatform {
            ports: wired.ports,
            mmio: wired.mmio,
            dirty: DirtyLog::new(Arc::clone(ram.written()), ram.pieces()),
            slots,
            ram,
            partition: Mutex::new(Partition::new(&plan.hyperv)),
            hypercalls: UserHypercalls::new(&plan.hyperv),
            events,
            ioapic,
        };
        let vcpus = usize::try_from(config.cpus.count).expect("at most 255");
        let started = (SystemTime::now(), Instant::now());
        let status = Status {
            name: config.name.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: State::Running,
            uptime_ms: 0,
            resets: 0,
            vcpus: config.cpus.count,
            memory: config.memory.size,
            hv: plan
                .hyperv
                .enabled()
                .iter()
                .map(|id| id.name().to_owned())
                .collect(),
            tsc: TscStatus::default(),
            crash: None,
            ptys: wired
                .ptys
                .iter()
                .map(|(device, path)| (device.to_string(), path.display().to_string()))
                .collect(),
            migration: None,
            ram: None,
        };
        let ram = platform.ram.clone();
        Ok(Self {
            kvm,
            tsc_is_a_clock: host.system.tsc_is_a_clock(),
            tsc: HostTsc::from(host),
            keeps_frequency: false,
            left_out: Vec::new(),
            switched: None,
            plan,
            platform: Arc::new(platform),
            devices: wired.devices,
            device_clock: wired.clock,
            acpi: wired.acpi,
            boot: None,
            attachments,
            handle,
            inbox,
            life: LifeState::new(),
            guest_log: GuestLog::default(),
            triple_faults: TripleFaults::default(),
            powered_on: started.1,
            io: io.start().map_err(io_failed)?,
            stopped: true,
            past: vec![CountersSnapshot::default(); vcpus],
            readers: Vec::new(),
            exit_counters: None,
            restored: None,
            stand_ins: StandIns::default(),
            moving: Moving::default(),
            started,
            board: StatusBoard::new(status, ram, started.1),
            _signals: signals,
            config,
        })
    }

    /// What the guest is told.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where requests for this VM are sent, from any thread.
    pub fn handle(&self) -> MachineHandle {
        self.handle.clone()
    }

    /// Where its status can be read, from any thread.
    pub fn board(&self) -> StatusBoard {
        self.board.clone()
    }

    /// The guest's RAM, to look into from outside the guest while the VM runs and after it has ended. It
    /// keeps its place as long as this handle lives; a reset empties it.
    pub fn ram(&self) -> GuestRam {
        self.platform.ram.clone()
    }

    /// Fills `counters` at each power-on.
    pub fn count_exits(&mut self, counters: &ExitCounters) {
        self.exit_counters = Some(counters.clone());
    }

    fn power_on(&mut self) -> Result<PowerCycle, MachineError> {
        let files = self.boot.clone().ok_or(MachineError::NoBootFiles)?;
        self.reset_devices();
        bus::lock(&self.platform.partition).reset();
        let platform = board::boot_platform(&self.config, self.plan.address_width());
        let entry = boot::load_files(&self.config.boot, &files, &self.platform.ram, &platform)?;
        self.create_vm(Some(&entry))
    }

    /// The VM in KVM with its vCPUs; without an entry they wait for their state.
    fn create_vm(&mut self, entry: Option<&boot::Entry>) -> Result<PowerCycle, MachineError> {
        let vm = vm::create(
            &self.kvm,
            self.config.irqchip,
            &self.attachments,
            &self.plan.user_msrs(),
            self.plan.pit_reinjects(),
        )?;
        let (cycle, readers) = PowerCycle::new(
            vm,
            &self.config,
            &self.plan,
            &self.platform,
            self.tsc_is_a_clock,
            entry,
            self.exit_counters.as_ref(),
        )?;
        self.readers = readers;
        self.log_new_cycle(&cycle);
        self.tsc.native = cycle.host_khz();
        self.switched = None;
        self.show_time(false);
        self.attachments
            .attach_after(Stage::Vcpus, cycle.vcpus().vm())?;
        Ok(cycle)
    }

    /// Ends the vCPUs and the VM. RAM still holds what the guest left.
    fn power_off(&mut self, cycle: PowerCycle) {
        self.attachments.detach();
        self.unthrottle();
        if let Some(counters) = &self.exit_counters {
            counters.clear();
        }
        drop(cycle);
        self.stand_ins = StandIns::default();
        // What the old guest reported besides, e.g. a reset by two vCPUs at once, must not hit the new one.
        drop(self.inbox.take_guest_events());
        for (past, reader) in self.past.iter_mut().zip(self.readers.drain(..)) {
            past.add(&reader.snapshot());
        }
    }

    fn write_stats(&self) -> Result<(), MachineError> {
        let Some(path) = &self.config.stats else {
            return Ok(());
        };
        let mut vcpus = self.past.clone();
        for (all, reader) in vcpus.iter_mut().zip(&self.readers) {
            all.add(&reader.snapshot());
        }
        let report = StatsReport {
            vm: &self.config.name,
            started: self.started.0,
            uptime: self.started.1.elapsed(),
            vcpus,
        };
        Ok(report.write(path)?)
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
