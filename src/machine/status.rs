//! A VM's status: the values that the control socket reports, and the shared board that the machine updates.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::plugged::{DeviceStatus, Gauges};
pub use crate::life::RunState as State;
use crate::memory::{Backing, GuestRam};
use crate::migration::{Cancel, MigrationReport, Progress};

/// A VM's status, updated by its machine and read by others. Clones share one board.
#[derive(Clone, Debug)]
pub struct StatusBoard {
    status: Arc<Mutex<Status>>,
    migration: Arc<Mutex<Option<(Progress, Cancel)>>>,
    ram: GuestRam,
    devices: Gauges,
    started: Instant,
}

impl StatusBoard {
    /// Starts with `status`; the time since `started`, the memory usage of `ram` and what `devices` show are
    /// filled in when it is read.
    pub(super) fn new(status: Status, ram: GuestRam, devices: Gauges, started: Instant) -> Self {
        Self {
            status: Arc::new(Mutex::new(status)),
            migration: Arc::default(),
            ram,
            devices,
            started,
        }
    }

    /// The current status.
    pub fn status(&self) -> Status {
        let migration = self.migration().as_ref().map(|(p, _)| p.report());
        Status {
            migration,
            ram: RamStatus::of(&self.ram),
            devices: self.devices.read(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..self.lock().clone()
        }
    }

    /// Starts a migration, which `cancel` ends. Returns `false` if another one is in progress.
    pub fn begin_migration(&self, progress: &Progress, cancel: &Cancel) -> bool {
        let mut migration = self.migration();
        let busy = migration.as_ref().is_some_and(|(p, _)| !p.is_over());
        if !busy {
            *migration = Some((progress.clone(), cancel.clone()));
        }
        !busy
    }

    /// Whether a migration is in progress.
    pub fn is_migrating(&self) -> bool {
        let migration = self.migration();
        migration.as_ref().is_some_and(|(p, _)| !p.is_over())
    }

    /// Cancels the migration in progress. Returns `false` if there is none.
    pub fn cancel_migration(&self) -> bool {
        match self.migration().as_ref() {
            Some((progress, cancel)) if !progress.is_over() => {
                cancel.set();
                true
            }
            _ => false,
        }
    }

    fn migration(&self) -> MutexGuard<'_, Option<(Progress, Cancel)>> {
        self.migration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPUs were stopped, or run again.
    pub fn set_state(&self, state: State) {
        self.lock().state = state;
    }

    /// Whether the vCPUs run.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// The guest's TSC has changed.
    pub fn set_tsc(&self, tsc: TscStatus) {
        self.lock().tsc = tsc;
    }

    /// The guest's TSC.
    pub fn tsc(&self) -> TscStatus {
        self.lock().tsc
    }

    /// The guest reported a crash. The report is kept until the next one, resets or not.
    pub fn report_crash(&self, crash: Crash) {
        self.lock().crash = Some(crash);
    }

    /// The VM was reset.
    pub fn count_reset(&self) {
        self.lock().resets += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // Every change is a single assignment, so it cannot be incomplete.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A VM's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// The version of hypernest that runs it.
    pub version: String,
    /// Whether it runs.
    pub state: State,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// The number of resets.
    pub resets: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// The enlightenments that are on.
    pub hv: Vec<String>,
    /// The guest's TSC.
    #[serde(default)]
    pub tsc: TscStatus,
    /// The guest's last crash report.
    pub crash: Option<Crash>,
    /// Device -> the pseudo-terminal that it is connected to.
    pub ptys: BTreeMap<String, String>,
    /// The last migration away from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
    /// The host memory behind guest RAM, if the kernel reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<RamStatus>,
    /// The devices that the configuration asks for, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceStatus>,
}

/// The host memory behind guest RAM. All but the first are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamStatus {
    /// `anonymous`, `hugepages` (reserved ones) or `saved` (the file of a lazily restored VM).
    pub backing: String,
    /// In memory.
    pub resident: u64,
    /// Part of that in huge pages.
    pub huge: u64,
    /// In swap.
    pub swapped: u64,
    /// Locked in memory.
    pub locked: u64,
}

impl RamStatus {
    fn of(ram: &GuestRam) -> Option<Self> {
        let usage = ram.usage().ok()?;
        let backing = match ram.backing() {
            Backing::Anonymous => "anonymous",
            Backing::Reserved => "hugepages",
            Backing::Saved => "saved",
        };
        Some(Self {
            backing: backing.to_owned(),
            resident: usage.resident,
            huge: usage.huge,
            swapped: usage.swapped,
            locked: usage.locked,
        })
    }
}

/// A guest's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscStatus {
    /// The guest's frequency; `None` if KVM reports none.
    pub khz: Option<u32>,
    /// The host's.
    pub host_khz: Option<u32>,
    /// The guest has its old frequency until it reports that it has adapted to this host.
    pub emulating: bool,
    /// The number of times that the guest has adapted here.
    pub changes: u32,
}

/// The guest's crash report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// Its channel: `hyper-v` or `pvpanic`.
    pub by: String,
    /// Hyper-V's P0..P4; Windows puts the bug check's code and parameters there.
    pub params: Option<[u64; 5]>,
    /// The guest's message.
    pub message: Option<String>,
}
