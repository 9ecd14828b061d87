//! Building a machine: a new one, or one around a saved VM.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use kvm_ioctls::Kvm;
use tracing::{info, warn};

use super::attachments::Attachments;
use super::exit_statistics::ExitStatistics;
use super::fields::{GuestTime, Hardware, Host, Session, Transfer};
use super::firmware;
use super::pci_devices::Backplane;
use super::plan::Plan;
use super::signals::SignalThread;
use super::wiring::{self, Wired};
use super::{ExtraPorts, Machine, MachineError, State, Status, StatusBoard, TscStatus};
use crate::boot::BootFiles;
use crate::config::VmConfig;
use crate::devices::io_thread::IoThread;
use crate::hyperv::{Partition, UserHypercalls};
use crate::kvm::host::HostCaps;
use crate::kvm::kick;
use crate::kvm::memory::MemorySlots;
use crate::life;
use crate::memory::GuestRam;
use crate::memory::dirty_log::DirtyLog;
use crate::memory::slots::{AddressSpace, SlotKind};
use crate::sys::affinity;
use crate::time::Downtime;
use crate::vcpu::platform::VcpuPlatform;

/// What the VM was before, with the files that it boots from.
pub(super) enum Origin {
    /// Nothing: it boots.
    New(BootFiles),
    /// A saved VM, which continues; without its files it cannot be reset.
    Saved(Option<BootFiles>),
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
        let origin = Origin::New(BootFiles::open(&config.boot)?);
        let ram = GuestRam::new(&config.memory, &config.ram_ranges())?;
        Self::assemble(origin, config, plan, &host, kvm, ram, extra)
    }

    /// Wires everything together around `ram`, without a VM in KVM.
    ///
    /// # Errors
    /// If the host lacks a CPU, a descriptor or a thread, or a device cannot be connected.
    pub(super) fn assemble(
        origin: Origin,
        config: VmConfig,
        plan: Plan,
        host: &HostCaps,
        kvm: Kvm,
        ram: GuestRam,
        extra: &[ExtraPorts],
    ) -> Result<Self, MachineError> {
        prepare_vcpu_threads(&config)?;
        let (events, handle, inbox) = life::channel();
        // All threads must inherit the signal mask, and the terminal is set up below: so this comes before.
        let stop_timeout = config.stop_timeout.map(|s| Duration::from_secs(s.into()));
        let signals = SignalThread::start(handle.clone(), stop_timeout);
        let signals = signals.map_err(thread_failed("signal"))?;
        let slots = MemorySlots::new(host.kvm.caps.nr_memslots);
        slots.add(SlotKind::Ram, AddressSpace::Normal, &ram)?;
        let attachments = Attachments::new(config.irqchip, &host.kvm.caps, slots.clone());
        let mut io = IoThread::new(handle.clone()).map_err(thread_failed("I/O"))?;
        if matches!(origin, Origin::Saved(_)) {
            io.keep_files();
        }
        let Attachments {
            routes, doorbells, ..
        } = &attachments;
        let backplane = Backplane::new(&config, plan.cpu_facts(), &ram, &slots, routes, doorbells);
        let wired = wiring::wire(&config, extra, &backplane, &events, &mut io)?;
        let ioapic = backplane.ioapic;
        if let (Some(flash), Some(boot)) = (&wired.flash, config.boot.firmware()) {
            firmware::install(flash, boot, &origin)?;
        }
        let boot = match origin {
            Origin::New(boot) => Some(boot),
            Origin::Saved(boot) => boot,
        };
        for (device, path) in &wired.ptys {
            warn!("{device} is at {}", path.display());
        }
        let started = (SystemTime::now(), Instant::now());
        let status = first_status(&config, &plan, &wired);
        let board = StatusBoard::new(status, ram.clone(), wired.plugged.gauges(), started.1);
        let vcpus = usize::try_from(config.cpus.count).expect("at most 255");
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
        Ok(Self {
            config,
            plan,
            boot,
            host: Host::new(host, kvm),
            session: Session::new(handle, inbox, board),
            hardware: Hardware {
                platform: Arc::new(platform),
                devices: wired.devices,
                plugged: wired.plugged,
                clock: wired.clock,
                acpi: wired.acpi,
                flash: wired.flash,
                attachments,
                io: io.start().map_err(thread_failed("I/O"))?,
            },
            time: GuestTime::default(),
            exits: ExitStatistics::new(vcpus, started),
            transfer: Transfer::default(),
            _signals: signals,
        })
    }
}

/// What vCPU threads need of the process and the host: the handler of their signal, and the CPUs of `--pin`.
fn prepare_vcpu_threads(config: &VmConfig) -> Result<(), MachineError> {
    let failed = thread_failed("vCPU");
    kick::install_handler().map_err(|e| failed(e.into()))?;
    let cpus = config.pins.values().cloned().collect();
    match affinity::missing(cpus).map_err(failed)? {
        Some(cpu) => Err(MachineError::NoCpu(cpu)),
        None => Ok(()),
    }
}

fn thread_failed(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::Thread { what, source }
}

fn first_status(config: &VmConfig, plan: &Plan, wired: &Wired) -> Status {
    let enabled = plan.hyperv.enabled();
    let ptys = wired.ptys.iter();
    Status {
        name: config.name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: State::Running,
        uptime_ms: 0,
        resets: 0,
        vcpus: config.cpus.count,
        memory: config.memory.size,
        hv: enabled.iter().map(|id| id.name().to_owned()).collect(),
        tsc: TscStatus::default(),
        crash: None,
        ptys: ptys
            .map(|(device, path)| (device.clone(), path.display().to_string()))
            .collect(),
        migration: None,
        ram: None,
        devices: Vec::new(),
    }
}
