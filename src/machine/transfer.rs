//! A machine's state as sections, and a machine from them.
//!
//! | section | content | type |
//! |---|---|---|
//! | `config` | the VM's configuration | [`VmConfig`] |
//! | `promise` | the guest-visible hardware | [`Promise`] |
//! | `time` | its clocks | [`SavedTime`] |
//! | `hyperv` | the synthetic MSRs that hypernest owns | [`Partition`](crate::hyperv::Partition) |
//! | `vm` | the synthetic MSRs that KVM has once per VM; with the irqchip in KVM, that and the timer | [`VmState`] |
//! | `vcpu/N` | a vCPU | [`VcpuState`] |
//! | `device-clock`, `device/NAME` | devices | [`state`](crate::devices::state) |
//!
//! RAM is not among them: it is too large, and is transferred separately.

use std::time::Duration;

use thiserror::Error;

use super::Machine;
use super::cycle::PowerCycle;
use super::promise::{self, Promise};
use super::stand_in::{StandIns, Wanted};
use super::world::NotStopped;
use crate::bus::{self, SharedDevice};
use crate::config::{ConfigError, Irqchip, VmConfig, show_size};
use crate::cpuid::msrs;
use crate::devices;
use crate::hyperv::{Enlightenment, Partition, SavedMsrs};
use crate::kvm::KvmError;
use crate::kvm::state::{self, Extent, NestedCpu, VcpuState, VmState, decode_msrs, encode_msrs};
use crate::life::{Due, Outcome, VmEnded};
use crate::memory::{MemoryError, NoRam};
use crate::state::snapshot::SnapshotError;
use crate::state::{Decoder, Encoder, Sections, StateError};
use crate::time::{SavedTime, TimeError, apply, capture};
use crate::units::{Gpa, TscKhz, VpIndex};
use crate::vcpu::set::VcpuGone;

/// Sections, besides those of devices.
const CONFIG: &str = "config";
const TIME: &str = "time";
pub(crate) const HYPERV: &str = "hyperv";
pub(crate) const VM: &str = "vm";
pub(crate) const VERSION: u32 = 1;

/// The vCPU through which MSRs of the whole VM are read and written.
const FIRST: VpIndex = VpIndex(0);

/// Why a VM could not be saved or restored.
#[derive(Debug, Error)]
pub enum TransferError {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU's or the VM's state in KVM.
    #[error(transparent)]
    State(#[from] state::TransferError),
    /// A vCPU's thread has ended.
    #[error(transparent)]
    Vcpu(#[from] VcpuGone),
    /// The saved state is malformed.
    #[error(transparent)]
    Sections(#[from] StateError),
    /// The directory of a saved VM.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The VM's configuration is invalid here.
    #[error("the saved VM's configuration cannot be used here")]
    Config(#[from] ConfigError),
    /// The RAM is another VM's.
    #[error(
        "the saved RAM does not belong to the saved VM: it has {}, and the VM has {}", regions(.found),
        regions(.expected)
    )]
    Ram {
        /// Of the RAM.
        found: Vec<(Gpa, u64)>,
        /// By the configuration.
        expected: Vec<(Gpa, u64)>,
    },
    /// The guest or a user did something that ends or resets the VM.
    #[error("cannot save the VM: {0}")]
    Decided(&'static str),
    /// No pages for a stand-in.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk's image could not be flushed.
    #[error("cannot flush a disk")]
    Disk(#[source] std::io::Error),
    /// Guest RAM no longer exists.
    #[error(transparent)]
    NoRam(#[from] NoRam),
    /// The clocks could not be read or set.
    #[error(transparent)]
    Time(#[from] TimeError),
    /// The guest's clocks are already wrong.
    #[error(
        "cannot save the VM: its guest's clocks are wrong since a change of its TSC's frequency failed"
    )]
    TimeIsLost,
    /// The VM has blockers.
    #[error("this VM cannot be saved or migrated: {}", stays(.0))]
    Stays(Vec<Blocker>),
    /// Something could still change the state while it is saved.
    #[error("cannot save the VM: {0}")]
    NotStopped(#[from] NotStopped),
    /// The VM ended meanwhile.
    #[error(transparent)]
    Ended(#[from] VmEnded),
    /// The devices of the saved VM cannot be created.
    #[error("the saved VM's devices cannot be created")]
    Devices(#[source] Box<super::MachineError>),
}

/// Why a VM can be neither saved nor migrated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// An enlightenment or a device.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// `640 KiB at 0x0, ...`.
fn regions(regions: &[(Gpa, u64)]) -> String {
    let each: Vec<_> = regions
        .iter()
        .map(|(gpa, len)| format!("{} at {gpa}", show_size(*len)))
        .collect();
    each.join(", ")
}

fn stays(blockers: &[Blocker]) -> String {
    let each: Vec<_> = blockers
        .iter()
        .map(|blocker| format!("{}: {}", blocker.what, blocker.why))
        .collect();
    each.join("; ")
}

fn blockers(
    enlightenments: Vec<(Enlightenment, &'static str)>,
    devices: &[SharedDevice],
) -> Vec<Blocker> {
    let of_hyperv = enlightenments.into_iter().map(|(id, why)| Blocker {
        what: id.to_string(),
        why: why.to_owned(),
    });
    let of_devices = devices.iter().filter_map(|device| {
        device.blocker().map(|why| Blocker {
            what: device.name(),
            why,
        })
    });
    of_hyperv.chain(of_devices).collect()
}

/// The identity of a saved VM: the part of its state that is checked first.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Its configuration.
    pub config: VmConfig,
    /// The guest-visible hardware.
    pub promise: Promise,
    /// Its clocks.
    pub time: SavedTime,
}

impl Identity {
    /// Takes it from `sections`.
    ///
    /// # Errors
    /// If a section is missing or invalid.
    pub fn take(sections: &mut Sections) -> Result<Self, TransferError> {
        let section = sections.take(CONFIG)?;
        let mut d = section.decoder(VERSION)?;
        let config = d.str("config")?.to_owned();
        d.finish()?;
        Ok(Self {
            config: VmConfig::from_saved(config)?,
            promise: sections.take(promise::SECTION)?.json(promise::VERSION)?,
            time: sections.take(TIME)?.json(VERSION)?,
        })
    }
}

impl Machine {
    /// Refuses a VM with blockers, before anything has begun.
    pub(super) fn check_can_move(&self) -> Result<(), TransferError> {
        let blockers = blockers(
            self.plan.hyperv.migration_blockers(),
            &self.hardware.devices,
        );
        if blockers.is_empty() {
            Ok(())
        } else {
            Err(TransferError::Stays(blockers))
        }
    }

    /// The sections that [`Identity::take`] reads. Running clocks are slightly later when they are read.
    pub(super) fn identity(&self, cycle: &PowerCycle) -> Result<Sections, TransferError> {
        let mut sections = Sections::new();
        let mut e = Encoder::new();
        e.str(&self.config.to_saved());
        sections.push(CONFIG, VERSION, e.into_body());

        let promise = Promise::of(&self.plan, &self.config);
        sections.push_json(promise::SECTION, promise::VERSION, &promise)?;

        let partition = bus::lock(&self.hardware.platform.partition).clone();
        let captured = capture(
            cycle.vcpus(),
            &self.host.tsc,
            &self.hardware.platform.ram,
            &partition,
        )?;
        sections.push_json(TIME, VERSION, &captured.time)?;
        Ok(sections)
    }

    /// Everything but RAM. All vCPUs are parked, and stay so until RAM has been handled.
    pub(super) fn save_state(&mut self, cycle: &PowerCycle) -> Result<Sections, TransferError> {
        self.check_can_move()?;
        self.park(cycle);
        // Even if it was stopped: parts that were still busy then may have finished.
        self.stop_world(cycle)?;
        // A flush may have failed meanwhile.
        self.check_can_move()?;
        // A restored VM would never act on it.
        if let Some(what) = self.decided() {
            return Err(TransferError::Decided(what));
        }
        // Otherwise the restored VM would not act on the end of the TSC emulation.
        if !self.settle_time(cycle) {
            return Err(TransferError::TimeIsLost);
        }
        let mut sections = self.identity(cycle)?;
        let mut e = Encoder::new();
        bus::lock(&self.hardware.platform.partition).save(&mut e);
        sections.push(HYPERV, Partition::VERSION, e.into_body());

        let saved = self.plan.hyperv.saved_msrs();
        let extent = self.extent(cycle, &saved)?;
        let vm_msrs = cycle.vcpus().on_vcpu(FIRST, move |fd| {
            state::save_hyperv_msrs(FIRST, fd, &saved.vm)
        })??;
        let mut e = Encoder::new();
        encode_msrs(&mut e, &vm_msrs);
        if self.config.irqchip == Irqchip::Kernel {
            VmState::save(cycle.vcpus().vm())?.encode(&mut e);
        }
        sections.push(VM, VERSION, e.into_body());

        self.transfer
            .stand_ins
            .refresh(&self.hardware.platform.ram)?;
        for vp in cycle.vcpus().vps() {
            let extent = extent.clone();
            let state = cycle
                .vcpus()
                .on_vcpu(vp, move |fd| VcpuState::save(vp, fd, &extent))??;
            let mut e = Encoder::new();
            state.encode(&mut e);
            sections.push(vcpu_section(vp), VcpuState::VERSION, e.into_body());
        }
        devices::state::save(&self.hardware.devices, &self.hardware.clock, &mut sections)?;
        Ok(sections)
    }

    /// Loads the state in `sections` into a new VM, whose vCPUs have not run: its time first; then the state
    /// that KVM has once per VM and accesses through a vCPU; the vCPUs in the order of [`state::order`]; the
    /// interrupt controllers that deliver to them; the devices that drive these; at last KVM's processing of
    /// a nested state before it lets the guest run.
    pub(super) fn load_state(
        &mut self,
        cycle: &PowerCycle,
        time: &SavedTime,
        khz: TscKhz,
        mut sections: Sections,
    ) -> Result<(), TransferError> {
        // Everything is read first, so that damaged state is refused before KVM receives any of it.
        let hyperv = sections.take(HYPERV)?;
        let vm = sections.take(VM)?;
        let mut d = vm.decoder(VERSION)?;
        let vm_msrs = decode_msrs(&mut d, "hyperv_msrs")?;
        let vm_state = match self.config.irqchip {
            Irqchip::Kernel => Some(VmState::decode(&mut d)?),
            Irqchip::Split => None,
        };
        d.finish()?;
        let cpuid = self.plan.cpuid.for_vcpu(0);
        let mut vcpus = Vec::new();
        for vp in cycle.vcpus().vps() {
            let section = sections.take(&vcpu_section(vp))?;
            let mut d = section.decoder(VcpuState::VERSION)?;
            let mut state = VcpuState::decode(&mut d)?;
            d.finish()?;
            // Earlier versions saved the host KVM's values of MSRs that the guest does not see.
            state.msrs.retain(|(msr, _)| msrs::is_visible(&cpuid, *msr));
            vcpus.push((vp, state));
        }
        let mut d = hyperv.decoder(Partition::VERSION)?;
        self.load_partition(&mut d)?;
        d.finish()?;

        let away = apply(
            cycle.vcpus(),
            &self.host.tsc,
            time,
            khz,
            self.config.time.downtime,
        )?;
        let missed = Duration::from_nanos(away);
        let extent = self.extent(cycle, &self.plan.hyperv.saved_msrs())?;
        let writes = SavedMsrs::writes(&vm_msrs);
        cycle.vcpus().on_vcpu(FIRST, move |fd| {
            state::restore_hyperv_msrs(FIRST, fd, &writes)
        })??;
        let wanted = vcpus
            .iter()
            .filter_map(|(vp, state)| Wanted::by(*vp, state));
        let wanted: Vec<_> = wanted.collect();
        for (vp, state) in vcpus {
            let (extent, cpu) = (extent.clone(), self.nested_cpu());
            cycle
                .vcpus()
                .on_vcpu(vp, move |fd| state.restore(vp, fd, &extent, cpu))??;
        }
        if let Some(state) = vm_state {
            state.restore(cycle.vcpus().vm())?;
        }
        for vp in cycle.vcpus().vps() {
            // kvmclock notifies a guest that it was stopped, so that its watchdogs do not fire because of the
            // gap. A guest without kvmclock cannot be notified, and KVM returns an error.
            let _has_kvmclock = cycle.vcpus().on_vcpu(vp, |fd| fd.kvmclock_ctrl())?;
        }
        self.load_devices(missed, &mut sections)?;
        sections.finish()?;
        self.transfer.stand_ins = StandIns::put(cycle, &self.hardware.platform, &wanted)?;
        Ok(())
    }

    fn load_partition(&self, d: &mut Decoder<'_>) -> Result<(), StateError> {
        bus::lock(&self.hardware.platform.partition).load(d)
    }

    /// Devices drive their lines as they load, so the VM must exist.
    fn load_devices(&self, missed: Duration, sections: &mut Sections) -> Result<(), StateError> {
        devices::state::load(
            &self.hardware.devices,
            &self.hardware.clock,
            missed,
            sections,
        )
    }

    fn extent(&self, cycle: &PowerCycle, saved: &SavedMsrs) -> Result<Extent, TransferError> {
        let cpuid = self.plan.cpuid.for_vcpu(0);
        let mut msrs = state::listed(&self.host.kvm)?;
        msrs.retain(|msr| msrs::is_visible(&cpuid, *msr));
        Ok(Extent::of(
            cycle.vcpus().vm(),
            msrs.into(),
            saved.vcpu.clone().into(),
        )?)
    }

    /// The nested virtualization features of the vCPUs.
    fn nested_cpu(&self) -> NestedCpu {
        let (vmx, svm) = self.plan.nesting();
        NestedCpu {
            vmx,
            svm,
            evmcs: self.plan.hyperv.has(Enlightenment::Evmcs),
            physical_address_bits: self.plan.address_width().bits.into(),
        }
    }

    /// An event that the guest raised before its vCPUs were parked, that resets or ends the VM, and has not
    /// been carried out.
    fn decided(&self) -> Option<&'static str> {
        Some(match self.session.life.due()? {
            Due::Reset => "it is about to be reset",
            Due::End(Outcome::PowerOff) => "its guest has just powered it off",
            Due::End(Outcome::DebugExit(_)) => "its guest has just written to the debug-exit port",
            Due::End(Outcome::Crashed) => "its guest has just reported a crash",
            Due::End(Outcome::Failed(_)) => "one of its vCPUs has just failed",
            Due::End(Outcome::Killed | Outcome::Moved) => "it has just been ended",
        })
    }
}

pub(crate) fn vcpu_section(vp: VpIndex) -> String {
    format!("vcpu/{vp}")
}
