//! A running machine as the source of a migration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::save::sync;
use super::{Running, TransferError};
use crate::boot::BootFiles;
use crate::error::chain;
use crate::life::MachineHandle;
use crate::memory::GuestRam;
use crate::memory::dirty::PageSet;
use crate::migration::source::{self, End};
use crate::migration::transport::{Address, BadAddress, Dialer, Security};
use crate::migration::{
    Cancel, MAX_CONNECTIONS, MigrationError, MigrationVmError, Progress, STALL, SourceVm, Stopped,
};
use crate::state::Sections;

/// The minimum bandwidth: below it a migration would never finish.
const MIN_BANDWIDTH: u64 = 64 << 10;

/// The options of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The destination's address.
    pub to: String,
    /// The downtime budget.
    #[serde(default = "downtime")]
    pub downtime_ms: u64,
    /// The maximum bandwidth in bytes per second.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// The number of connections.
    #[serde(default = "one")]
    pub connections: u16,
    /// Whether pages are compressed.
    #[serde(default)]
    pub zstd: bool,
    /// This end's certificate; an absolute path, like the next two.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// The CA of the other end's certificate.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// No TLS, within one host.
    #[serde(default)]
    pub plaintext: bool,
}

fn downtime() -> u64 {
    300
}

fn one() -> u16 {
    1
}

/// Migrates the VM of `handle`. Called on a separate thread; returns when the VM runs at the destination.
///
/// # Errors
/// The reason for the failure, for the user.
pub fn migrate(handle: &MachineHandle, how: &Migrate) -> Result<(), String> {
    let address: Address = how.to.parse().map_err(|e: BadAddress| e.to_string())?;
    if !(1..=MAX_CONNECTIONS).contains(&how.connections) {
        return Err(format!(
            "the number of connections must be 1 to {MAX_CONNECTIONS}"
        ));
    }
    if how.connections > 1 && !address.takes_many() {
        return Err(format!("{address} is a single connection"));
    }
    if how.bandwidth.is_some_and(|rate| rate < MIN_BANDWIDTH) {
        return Err(format!(
            "the bandwidth must be at least {MIN_BANDWIDTH} bytes per second"
        ));
    }
    handle
        .run_on_main(|vm: &mut Running<'_>| vm.check_can_move())
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    // Little is left for the stop.
    let syncers = handle
        .run_on_main(|vm: &mut Running<'_>| vm.syncers())
        .map_err(|e| e.to_string())?;
    sync(syncers).map_err(|e| chain(&e))?;
    let security = Security::from_flags(
        how.tls_cert.as_ref(),
        how.tls_key.as_ref(),
        how.tls_ca.as_ref(),
        how.plaintext,
    )?;
    let dialer =
        Dialer::new(address, &security, STALL).map_err(|e| MigrationError::from(e).chain())?;
    let cancel = Cancel::new().map_err(|e| e.to_string())?;
    let progress = Progress::new(how.to.clone());
    let (ours, our_cancel) = (progress.clone(), cancel.clone());
    let ram = handle
        .run_on_main(move |vm: &mut Running<'_>| {
            let begun = vm.machine().board().begin_migration(&ours, &our_cancel);
            begun.then(|| vm.ram())
        })
        .map_err(|e| e.to_string())?
        .ok_or("a migration is already in progress")?;
    let options = source::SourceOptions {
        downtime: Duration::from_millis(how.downtime_ms),
        bandwidth: how.bandwidth,
        connections: how.connections,
        zstd: how.zstd,
        ..source::SourceOptions::default()
    };
    let mut origin = Live {
        handle: handle.clone(),
        ram,
    };
    match source::migrate(&mut origin, &dialer, &options, &progress, &cancel) {
        End::Gone => handle
            .run_on_main(|vm| vm.has_moved())
            .map_err(|e| e.to_string()),
        End::Kept(e) => Err(format!("{}; the VM stays here", e.chain())),
        End::Undecided(e) => Err(format!(
            "{}, after the VM had been handed off: it may run at {} and stays stopped here. If it runs \
             there, `stop` it here; if it does not, `resume` it here",
            e.chain(),
            how.to
        )),
    }
}

/// Cancels the migration of the VM of `handle`.
///
/// # Errors
/// If there is none.
pub fn cancel(handle: &MachineHandle) -> Result<(), String> {
    let cancelled =
        handle.run_on_main(|vm: &mut Running<'_>| vm.machine().board().cancel_migration());
    match cancelled {
        Ok(true) => Ok(()),
        Ok(false) => Err("no migration is in progress".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

struct Live {
    handle: MachineHandle,
    ram: GuestRam,
}

impl Live {
    fn run_on_main<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Running<'_>) -> R + Send + 'static,
    ) -> Result<R, MigrationVmError> {
        Ok(self.handle.run_on_main(job)?)
    }
}

fn encode(sections: &Sections) -> Result<Vec<u8>, TransferError> {
    let mut bytes = Vec::new();
    sections.encode(&mut bytes)?;
    Ok(bytes)
}

impl SourceVm for Live {
    fn promise(&mut self) -> Result<Vec<u8>, MigrationVmError> {
        let sections = self.run_on_main(|vm| vm.identity())??;
        Ok(encode(&sections)?)
    }

    fn boot_files(&mut self) -> Result<Option<BootFiles>, MigrationVmError> {
        self.run_on_main(|vm| vm.boot_files())
    }

    fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    fn start_log(&mut self) -> Result<(), MigrationVmError> {
        Ok(self.run_on_main(|vm| vm.start_log())??)
    }

    fn collect(&mut self, dirty: &mut PageSet) -> Result<(), MigrationVmError> {
        let mut set = std::mem::take(dirty);
        let (set, taken) = self.run_on_main(move |vm| {
            let taken = vm.take_log(&mut set);
            (set, taken)
        })?;
        *dirty = set;
        Ok(taken?)
    }

    fn throttle(&mut self, percent: u8) {
        // If the VM has ended, the next step detects it.
        let _ended = self.run_on_main(move |vm| vm.throttle(percent));
    }

    fn stop(&mut self) -> Result<Stopped, MigrationVmError> {
        let (sections, running) = self.run_on_main(|vm| {
            vm.hold();
            // A crash that is detected only now may have paused it.
            let sections = vm.sections();
            // Another host sees only what is on the disk.
            let sections = sections.and_then(|sections| {
                sync(vm.syncers())?;
                // The destination takes it before it runs.
                vm.release_devices();
                Ok(sections)
            });
            (sections, vm.is_running())
        })?;
        Ok(Stopped {
            state: encode(&sections?)?,
            running,
        })
    }

    fn resume(&mut self) {
        let _ended = self.run_on_main(|vm| {
            vm.stop_log();
            vm.reacquire_devices();
            vm.release();
        });
    }

    fn keep_stopped(&mut self) {
        let _ended = self.run_on_main(|vm| {
            vm.stop_log();
            vm.pause();
            vm.release();
        });
    }
}
