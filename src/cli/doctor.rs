//! `hypernest doctor`: checks whether nested Hyper-V works on this host.

use std::env;
use std::io::{self, IsTerminal};
use std::path::Path;

use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::{CliError, ExitStatus, print};
use crate::doctor::text::{Style, render};
use crate::doctor::{Diagnosis, diagnose};
use crate::hyperv::Profile;
use crate::kvm::host::{KvmFacts, System};

/// Check whether nested Hyper-V works on this host, and show remedies if not
///
/// Examines KVM, the CPU and the clock, and every enlightenment, and shows for each profile whether a VM with
/// it can start here. Exits with 0 if the requested profile works, and with 3 if not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile that must work
    #[arg(
        long,
        value_name = "NAME",
        default_value = Profile::Nested.name(),
        value_parser = PossibleValuesParser::new(Profile::ALL.map(Profile::name)),
    )]
    profile: String,

    /// Print JSON, with all facts about the host
    #[arg(long)]
    json: bool,
}

/// The JSON form: the diagnosis, and the facts behind it.
#[derive(Serialize)]
struct DoctorReport<'a> {
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
    system: &'a System,
    kvm: Option<&'a KvmFacts>,
}

/// Examines this host.
///
/// # Errors
/// If the result cannot be printed.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let system = System::read(Path::new("/"));
    let kvm = KvmFacts::probe(&system);
    let profile = Profile::ALL
        .into_iter()
        .find(|profile| profile.name() == args.profile)
        .unwrap_or(Profile::Nested);
    let diagnosis = diagnose(&system, kvm.as_ref(), profile);
    if args.json {
        let report = DoctorReport {
            diagnosis: &diagnosis,
            system: &system,
            kvm: kvm.as_ref().ok(),
        };
        let json = serde_json::to_string_pretty(&report)
            .map_err(|e| CliError::Stdout(io::Error::from(e)))?;
        print(&format!("{json}\n"))?;
    } else {
        let style = Style::choose(
            io::stdout().is_terminal(),
            env::var("NO_COLOR").ok().as_deref(),
            env::var("TERM").ok().as_deref(),
        );
        print(&render(&diagnosis, style))?;
    }
    Ok(if diagnosis.works {
        ExitStatus::DONE
    } else {
        ExitStatus::HOST
    })
}
