//! `hypernest list`: the running VMs.

use std::fmt::Write;

use super::status::show_time;
use super::{CliError, ExitStatus, print, to_json};
use crate::api::{FoundVm, RunDirs, list};
use crate::config::show_size;
use crate::machine::State;
use crate::machine::Status;
use crate::migration::phase::SourcePhase;

/// List your running VMs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: a list of what `status --json` prints
    #[arg(long)]
    json: bool,
}

/// Prints the list. A VM that does not reply is listed too, except in JSON, and makes the exit code 1.
///
/// # Errors
/// If the run directories cannot be read.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let found = list(&RunDirs::of_user())?;
    let all: Vec<&Status> = found
        .iter()
        .filter_map(|vm| vm.status.as_deref().ok())
        .collect();
    for vm in &found {
        if let Err(e) = &vm.status {
            tracing::warn!("{}", crate::error::chain(e));
        }
    }
    print(&if args.json {
        to_json(&all)?
    } else {
        table(&found)
    })?;
    Ok(if all.len() == found.len() {
        ExitStatus::DONE
    } else {
        ExitStatus::FAILED
    })
}

/// A migration in progress takes precedence over `running`.
fn state(status: &Status) -> &'static str {
    let phase = status.migration.as_ref().and_then(|m| m.phase);
    match phase {
        Some(phase) if !phase.is_over() => "migrating",
        Some(SourcePhase::Undecided) if status.state == State::Paused => "undecided",
        _ => status.state.name(),
    }
}

fn table(found: &[FoundVm]) -> String {
    if found.is_empty() {
        return "no VM is running\n".to_owned();
    }
    let width = found
        .iter()
        .map(|vm| vm.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!(
        "{:<width$}  {:>8}  {:<9}  {:>12}  {:>5}  {:>7}\n",
        "NAME", "PROCESS", "STATE", "UPTIME", "VCPUS", "MEMORY"
    );
    for vm in found {
        // Writing to a string cannot fail.
        let _written = match &vm.status {
            Ok(s) => writeln!(
                text,
                "{:<width$}  {:>8}  {:<9}  {:>12}  {:>5}  {:>7}",
                vm.name,
                s.pid,
                state(s),
                show_time(s.uptime_ms),
                s.vcpus,
                show_size(s.memory)
            ),
            Err(_) => writeln!(text, "{:<width$}  {:>8}  no answer", vm.name, "?"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiError;

    #[test]
    fn tables() {
        assert_eq!(table(&[]), "no VM is running\n");
        let status = Status {
            name: "windows-11".to_owned(),
            pid: 4242,
            version: String::new(),
            state: State::Running,
            uptime_ms: 65_000,
            resets: 0,
            vcpus: 8,
            memory: 8 << 30,
            hv: Vec::new(),
            crash: None,
            tsc: crate::machine::TscStatus::default(),
            ptys: std::collections::BTreeMap::new(),
            migration: None,
            ram: None,
            devices: Vec::new(),
        };
        let found = [
            FoundVm {
                name: "windows-11".to_owned(),
                status: Ok(Box::new(status)),
            },
            FoundVm {
                name: "x".to_owned(),
                status: Err(ApiError::Talk {
                    name: "x".to_owned(),
                    source: std::io::ErrorKind::TimedOut.into(),
                }),
            },
        ];
        assert_eq!(
            table(&found),
            "NAME         PROCESS  STATE            UPTIME  VCPUS   MEMORY\n\
             windows-11      4242  running       1 min 5 s      8       8G\n\
             x                  ?  no answer\n"
        );
    }
}
