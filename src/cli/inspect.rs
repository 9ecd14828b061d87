//! `hypernest inspect`: what is in a saved VM.

use std::path::PathBuf;

use super::{CliError, ExitStatus, print, to_json};
use crate::inspect::{InspectError, InspectReport, render};
use crate::state::snapshot::Snapshot;

/// Show what a saved VM holds, and check that it is complete
///
/// Needs no KVM. All of the VM's state is read and checked; its RAM by its size only, unless --check is
/// given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Read all of the RAM and check it too
    #[arg(long)]
    check: bool,
}

/// Reads and prints.
///
/// # Errors
/// If the saved VM is not whole, or the result cannot be printed.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let report = Snapshot::open(&args.dir)
        .map_err(InspectError::from)
        .and_then(|snapshot| InspectReport::read(snapshot, args.check))
        .map_err(|source| CliError::Inspect {
            dir: args.dir.clone(),
            source: Box::new(source),
        })?;
    let text = if args.json {
        to_json(&report)?
    } else {
        render(&report)
    };
    print(&text)?;
    Ok(ExitStatus::DONE)
}
