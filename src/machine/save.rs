//! Saving a running VM into a directory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Outcome, Running, TransferError};
use crate::life::LifeHandle;
use crate::state::snapshot::Saving;

/// What becomes of a VM that was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AfterSave {
    /// What it was doing before.
    #[default]
    AsBefore,
    /// It runs.
    Run,
    /// It stays paused.
    Pause,
    /// It ends, once what was saved is on the disk.
    Stop,
}

/// Saves the VM that `life` leads to into `dir`. Called on a thread of its own: the machine's goes on as soon as it can.
///
/// # Errors
/// If it cannot be saved; then the VM does what it did before, and a VM that was saved in `dir` is still there.
pub fn save(life: &LifeHandle, dir: &Path, after: AfterSave) -> Result<(), TransferError> {
    let mut saving = Saving::begin(dir)?;
    // Before the guest is stopped: an initrd may be large, and does not change.
    if let Some(files) = life.have_done(|machine: &mut Running<'_>| machine.boot_files())? {
        saving.write_boot_files(files.all().map(|image| Box::new(image.reader()) as _))?;
    }
    let written = life.have_done(move |machine: &mut Running<'_>| {
        let ran = machine.is_running();
        machine.pause();
        let written = machine
            .sections()
            .and_then(|sections| Ok(saving.write(sections, &machine.ram())?));
        match (&written, after) {
            (Ok(()), AfterSave::Run) => machine.resume(),
            (Ok(()), AfterSave::Pause | AfterSave::Stop) => {}
            (Ok(()), AfterSave::AsBefore) | (Err(_), _) if ran => machine.resume(),
            _ => {}
        }
        written.map(|()| (saving, ran))
    })?;
    let (saving, ran) = written?;
    // Bringing it to the disk takes long, and the guest need not wait for it.
    let committed = saving.commit();
    match (&committed, after) {
        (Ok(()), AfterSave::Stop) => life.have_done(|machine| machine.end(Outcome::Killed))?,
        (Err(_), AfterSave::Pause | AfterSave::Stop) if ran => {
            life.have_done(|machine| machine.resume())?;
        }
        _ => {}
    }
    Ok(committed?)
}
