//! A VM's status: the values that the control socket reports, and the board that the machine keeps current.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use crate::life::RunState as State;
use crate::memory::{Backing, GuestRam};
use crate::migration::{Cancel, MigrationReport, Progress};

/// A VM's status, kept current by its machine and read by others. Clones are of the same board.
#[derive(Clone, Debug)]
pub struct StatusBoard {
    status: Arc<Mutex<Status>>,
    migration: Arc<Mutex<Option<(Progress, Cancel)>>>,
    ram: GuestRam,
    started: Instant,
}

impl StatusBoard {
    /// Begins with `status`; the time, counted from `started`, and what `ram` takes are filled in when it is
    /// read.
    pub fn new(status: Status, ram: GuestRam, started: Instant) -> Self {
        Self {
            status: Arc::new(Mutex::new(status)),
            migration: Arc::default(),
            ram,
            started,
        }
    }

    /// Now.
    pub fn status(&self) -> Status {
        let migration = self.migration().as_ref().map(|(p, _)| p.report());
        Status {
            migration,
            ram: RamStatus::of(&self.ram),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..self.lock().clone()
        }
    }

    /// A migration begins, which `cancel` ends. `false` if another one is not over.
    pub fn begin_migration(&self, progress: &Progress, cancel: &Cancel) -> bool {
        let mut migration = self.migration();
        let busy = migration.as_ref().is_some_and(|(p, _)| !p.is_over());
        if !busy {
            *migration = Some((progress.clone(), cancel.clone()));
        }
        !busy
    }

    /// The migration that is not over, if there is one, is to end. `false` if there is none.
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
        // Every change is a single assignment: there is no half of one.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// The version of hypernest that runs it.
    pub version: String,
    /// Whether it runs.
    pub state: State,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// How often it was reset.
    pub resets: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// The enlightenments in force.
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
    /// What the host holds of guest RAM, where its kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<RamStatus>,
}

/// What the host holds of guest RAM. All but the first are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamStatus {
    /// `anonymous`, `hugepages` (reserved ones) or `saved` (the file of a lazily restored VM).
    pub backing: String,
    /// In memory.
    pub resident: u64,
    /// Of that: in huge pages.
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
    /// The frequency that the guest has; `None` where KVM knows none.
    pub khz: Option<u32>,
    /// The host's.
    pub host_khz: Option<u32>,
    /// The guest has its old frequency until it says that it has adapted to this host.
    pub emulating: bool,
    /// How often the guest has adapted here.
    pub changes: u32,
}

/// What the guest said when it crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// By what means: `hyper-v` or `pvpanic`.
    pub by: String,
    /// Hyper-V's P0..P4; Windows puts the bug check's code and parameters there.
    pub params: Option<[u64; 5]>,
    /// The guest's words.
    pub message: Option<String>,
}
