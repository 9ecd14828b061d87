//! Saves a running VM to a directory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Outcome, Running, TransferError};
use crate::block::Syncer;
use crate::life::MachineHandle;
use crate::state::snapshot::Saving;

/// The state of a VM after it was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AfterSave {
    /// As before.
    #[default]
    AsBefore,
    /// It runs.
    Run,
    /// It stays paused.
    Pause,
    /// It ends, once the saved VM is on the disk.
    Stop,
}

/// Saves the VM of `handle` to `dir`. Called on a separate thread: the machine's continues as soon as it can.
///
/// # Errors
/// If it cannot be saved; then the VM continues as before, and a previous saved VM in `dir` still exists.
pub fn save(handle: &MachineHandle, dir: &Path, after: AfterSave) -> Result<(), TransferError> {
    let mut saving = Saving::begin(dir)?;
    // Before the guest is stopped: checks whether a save is possible, and writes files that may be large and
    // do not change (an initrd).
    let files = handle.run_on_main(|machine: &mut Running<'_>| {
        machine.check_can_move()?;
        Ok::<_, TransferError>(machine.boot_files())
    })??;
    if let Some(files) = files {
        saving.write_boot_files(files.all().map(|image| Box::new(image.reader()) as _))?;
    }
    let written = handle.run_on_main(move |machine: &mut Running<'_>| {
        machine.hold();
        let ran = machine.is_running();
        let written = machine
            .sections()
            .and_then(|sections| Ok(saving.write(sections, &machine.ram())?));
        match (&written, after) {
            // Held until it ends: later changes would be lost.
            (Ok(()), AfterSave::Stop) => {}
            (Ok(()), AfterSave::Run) => {
                machine.release();
                machine.resume();
            }
            (Ok(()), AfterSave::Pause) => {
                machine.pause();
                machine.release();
            }
            (Ok(()), AfterSave::AsBefore) | (Err(_), _) => machine.release(),
        }
        written.map(|()| (saving, ran))
    })?;
    let (saving, ran) = written?;
    // Syncing it to the disk takes long, and the guest need not wait for it. The saved VM's guest may flush
    // what it wrote before it was saved.
    let syncers = handle.run_on_main(|machine: &mut Running<'_>| machine.syncers())?;
    let committed = sync(syncers).and_then(|()| Ok(saving.commit()?));
    match (&committed, after) {
        (Ok(()), AfterSave::Stop) => handle.run_on_main(|machine| machine.end(Outcome::Killed))?,
        (Err(_), AfterSave::Stop) => handle.run_on_main(|machine| machine.release())?,
        (Err(_), AfterSave::Pause) if ran => handle.run_on_main(|machine| machine.resume())?,
        _ => {}
    }
    committed
}

/// Puts what guests have written to disks onto stable storage.
pub(super) fn sync(disks: Vec<Syncer>) -> Result<(), TransferError> {
    disks
        .into_iter()
        .try_for_each(|sync| sync())
        .map_err(TransferError::Disk)
}
