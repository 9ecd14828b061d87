//! `hypernest save`: saves a running VM to a directory.

use std::path::PathBuf;

use super::{CliError, ExitStatus};
use crate::api::{ControlRequest, RunDirs, Save, call};
use crate::machine::AfterSave;

/// Save a running VM into a directory, for `hypernest restore`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM's name
    name: String,

    /// The directory: a new one, or one with a saved VM, which is replaced once the new one is complete
    dir: PathBuf,

    /// State of the VM afterwards
    #[arg(long, value_enum, default_value_t = AfterSave::AsBefore)]
    then: AfterSave,
}

/// Requests the save, and waits for its end.
///
/// # Errors
/// If there is no such VM, or it cannot be saved.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    // The VM's working directory differs from this one.
    let dir = std::path::absolute(&args.dir).map_err(|source| CliError::Path {
        path: args.dir.clone(),
        source,
    })?;
    let save = Save {
        dir,
        then: args.then,
    };
    call(&RunDirs::of_user(), &args.name, &ControlRequest::Save(save))?;
    Ok(ExitStatus::DONE)
}
