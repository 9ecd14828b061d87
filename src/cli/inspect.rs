//! `hypernest inspect`: shows the contents of a saved VM.

use std::path::PathBuf;

use super::{CliError, ExitStatus, print, to_json};
use crate::inspect::{InspectError, InspectReport, render};
use crate::state::snapshot::Snapshot;

/// Show the contents of a saved VM, and check that it is complete
///
/// Requires no KVM. Reads and checks all of the VM's state, and of its RAM only the size, unless --check is
/// given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Also read and check all RAM
    #[arg(long)]
    check: bool,
}

/// Reads and prints.
///
/// # Errors
/// If the saved VM is incomplete, or the result cannot be printed.
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
