//! A machine from a saved one.

use kvm_ioctls::Kvm;

use super::build::Origin;
use super::cycle::{PowerCycle, Start};
use super::error::WITHOUT_BOOT_FILES;
use super::firmware;
use super::plan::Plan;
use super::transfer::{Identity, TransferError};
use super::{ExtraPorts, Impossible, Machine, MachineError};
use crate::boot::BootFiles;
use crate::config::VmConfig;
use crate::kvm::clock;
use crate::kvm::host::HostCaps;
use crate::memory::GuestRam;
use crate::state::Sections;
use crate::time::{HostTsc, TimePlan, plan};
use crate::units::TscKhz;

/// The options of a restore.
#[derive(Clone, Debug)]
pub struct Local {
    /// The saved configuration, with its host resources replaced.
    pub config: VmConfig,
    /// The frequency to assume for this host's TSC, if it is not the real one.
    pub host_khz: Option<TscKhz>,
    /// Stays paused until a user resumes it.
    pub paused: bool,
    /// The files that a reset boots: from the saved VM, or named by this host's user.
    pub boot: Option<BootFiles>,
}

/// The plan for continuing a saved VM here.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The plan for its vCPUs.
    pub plan: Plan,
    /// The plan for its time.
    pub time: TimePlan,
    tsc: HostTsc,
}

/// Whether and how `saved` can continue on `host`, whose TSC frequency has been queried.
///
/// # Errors
/// All reasons against it.
pub fn outlook(
    saved: &Identity,
    local: &Local,
    host: &HostCaps,
) -> Result<Outlook, Vec<Impossible>> {
    let tsc = HostTsc {
        instead: local.host_khz,
        ..HostTsc::from(host)
    };
    let time = plan(&saved.time, &tsc, local.config.time.on_change);
    let continues = tsc.continues(&saved.time, local.config.time.downtime, clock::host_now());
    let refused = match time {
        TimePlan::Refuse(why) => Some(Impossible::Time(why)),
        _ => continues.err().map(Impossible::Time),
    };
    let khz = time.khz(&saved.time, &tsc);
    match (saved.promise.check(&local.config, host), refused) {
        (Ok(plan), None) => Ok(Outlook {
            plan: Plan {
                tsc_khz: (tsc.native != Some(khz)).then_some(khz),
                ..plan
            },
            time,
            tsc,
        }),
        (promise, refused) => Err(promise
            .err()
            .into_iter()
            .flatten()
            .map(Impossible::Promise)
            .chain(refused)
            .collect()),
    }
}

/// A VM with everything but its state: the parts that take time and do not depend on the state.
#[derive(Debug)]
pub struct Unloaded {
    machine: Machine,
    cycle: PowerCycle,
    saved: Identity,
    local: Local,
    host: HostCaps,
}

impl Unloaded {
    /// Builds the VM `saved` around its `ram`, with the same `extra` devices.
    ///
    /// # Errors
    /// If this host cannot run it.
    pub fn new(
        saved: &Identity,
        ram: GuestRam,
        local: Local,
        extra: &[ExtraPorts],
    ) -> Result<Self, MachineError> {
        let (mut host, kvm) = HostCaps::for_a_vm()?;
        host.ask_tsc(&kvm)?;
        Self::on(host, kvm, saved, ram, local, extra)
    }

    /// The same on a `host` that has been probed, including its TSC's frequency, through `kvm`.
    ///
    /// # Errors
    /// If this host cannot run it.
    pub fn on(
        host: HostCaps,
        kvm: Kvm,
        saved: &Identity,
        ram: GuestRam,
        local: Local,
        extra: &[ExtraPorts],
    ) -> Result<Self, MachineError> {
        let found: Vec<_> = ram.pieces().map(|piece| (piece.gpa, piece.len)).collect();
        let expected = local.config.ram_ranges();
        if found != expected {
            return Err(Box::new(TransferError::Ram { found, expected }).into());
        }
        let outlook = outlook(saved, &local, &host).map_err(MachineError::Impossible)?;
        let config = local.config.clone();
        let origin = Origin::Saved(local.boot.clone());
        let mut machine = Machine::assemble(origin, config, outlook.plan, &host, kvm, ram, extra)?;
        let cycle = machine.create_vm(&Start::Saved)?;
        Ok(Self {
            machine,
            cycle,
            saved: saved.clone(),
            local,
            host,
        })
    }

    /// Whether this is the VM `saved`. The guest's actions during a migration may change it: its TSC's
    /// frequency changes when it has adapted to one.
    pub fn matches(&self, saved: &Identity) -> bool {
        let (before, now) = (&self.saved, saved);
        before.config == now.config
            && before.promise == now.promise
            && before.time.khz == now.time.khz
            && before.time.guest == now.time.guest
    }

    /// Sets the files that a reset boots from now on. A VM that started in firmware gets its code by them.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn boot_from(&mut self, files: BootFiles) -> Result<(), MachineError> {
        if let Some(flash) = &self.machine.hardware.flash {
            firmware::install_code(flash, &files)?;
        }
        self.machine.boot = Some(files);
        Ok(())
    }

    /// Loads the state in `sections`. The VM [matches](Self::matches) `saved`, which contains its clocks.
    ///
    /// # Errors
    /// If the state is damaged, or another VM's.
    pub fn load(self, saved: &Identity, sections: Sections) -> Result<Machine, MachineError> {
        let Self {
            mut machine,
            cycle,
            local,
            host,
            ..
        } = self;
        let flash = machine.hardware.flash.as_ref();
        if flash.is_some_and(|flash| !flash.has_code()) {
            return Err(MachineError::NoFirmware);
        }
        let outlook = outlook(saved, &local, &host).map_err(MachineError::Impossible)?;
        let khz = outlook.time.khz(&saved.time, &outlook.tsc);
        machine.host.tsc = HostTsc {
            native: machine.host.tsc.native,
            ..outlook.tsc
        };
        machine.time.keeps_frequency = outlook.time == TimePlan::Scale;
        machine
            .load_state(&cycle, &saved.time, khz, sections)
            .map_err(Box::new)?;
        match outlook.time {
            TimePlan::Reenlighten => machine.reenlighten(&cycle, true)?,
            TimePlan::ReenlightenAtOnce => machine.reenlighten(&cycle, false)?,
            TimePlan::Same | TimePlan::Scale | TimePlan::Refuse(_) => {}
        }
        // A guest that resets is a new one, without a promised frequency.
        let asked = machine.config.time.khz.or(outlook.tsc.instead);
        machine.plan.tsc_khz = asked.filter(|khz| outlook.tsc.runs_at(*khz).is_ok());
        machine.show_time(false);
        machine.transfer.restored = Some(cycle);
        if machine.boot.is_none() {
            tracing::warn!("this VM runs, but cannot be reset: {WITHOUT_BOOT_FILES}");
        }
        if local.paused {
            machine.stay_paused();
        }
        Ok(machine)
    }
}

impl Machine {
    /// Builds the VM `saved`, whose state is in `sections`, with its `ram`, and the same `extra` devices.
    /// [`Machine::run`] continues it; until then it can be dropped without an effect.
    ///
    /// # Errors
    /// If this host cannot run it, or the saved VM is damaged.
    pub fn restore(
        saved: &Identity,
        sections: Sections,
        ram: GuestRam,
        local: Local,
        extra: &[ExtraPorts],
    ) -> Result<Self, MachineError> {
        Unloaded::new(saved, ram, local, extra)?.load(saved, sections)
    }
}
