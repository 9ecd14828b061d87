//! Measurements of nested virtualization.

mod baseline;
mod bootstrap;
mod compare;
mod cpu;
mod devices;
mod environment;
mod exit_port;
mod histogram;
mod initramfs;
mod kvm_module;
mod l1_agent;
mod l2;
mod l2_exit;
mod migration;
#[cfg(test)]
mod named_flags;
mod output;
mod probe_console;
mod probe_l1;
mod program;
mod progress;
mod qemu;
#[cfg(test)]
mod readme;
mod report;
mod sync;
mod tsc;
mod unit;
pub mod untrusted;
mod usage;
mod vmm;
mod wire;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Details;

/// Measure nested virtualization on this host
#[derive(Debug, Parser)]
#[command(name = "hypernest-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    L2Exit(Box<l2_exit::Args>),
    Tsc(Box<tsc::Args>),
    Vmm(vmm::Args),
    Migration(migration::Args),
    Devices(Box<devices::Args>),
    /// Show a result again
    Report {
        /// The l2-exit.json or tsc.json of an earlier run
        file: PathBuf,
        /// Also show the parts of this kind of exit
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// Show each answer with all ratios and its rule
        #[arg(long)]
        explain: bool,
        /// Also write the result's files into this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    Compare(compare::CompareArgs),
    Baseline(baseline::Args),
    Initramfs(initramfs::Args),
    #[command(hide = true)]
    L1Agent(l1_agent::Args),
    #[command(hide = true)]
    ProbeL1(probe_l1::Args),
}

const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;
const HOST: u8 = 3;

/// The program.
pub fn main() -> ExitCode {
    let arguments = if std::process::id() == 1 {
        l1_agent::command_line().map(Arguments::parse_from)
    } else {
        Ok(Arguments::parse())
    };
    let result = match arguments {
        Ok(arguments) => run(&arguments.command),
        Err(error) => Err((FAILED, error)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err((code, error)) => {
            eprintln!("hypernest-bench: {}", chain(&*error));
            ExitCode::from(code)
        }
    }
}

fn run(command: &Command) -> Result<u8, (u8, Box<dyn Error>)> {
    match command {
        Command::L2Exit(args) => match l2_exit::run(args) {
            Ok(well) => Ok(if well { 0 } else { FAILED }),
            Err(error) => Err((error.code(), error.into())),
        },
        Command::Tsc(args) => match tsc::run(args) {
            Ok(well) => Ok(if well { 0 } else { FAILED }),
            Err(error) => Err((error.code(), error.into())),
        },
        Command::Vmm(args) => {
            let text = vmm::run(args).map_err(|e| (e.code(), e.into()))?;
            print(&text).map_err(|e| (FAILED, e.into()))?;
            Ok(0)
        }
        Command::Migration(args) => {
            let text = migration::run(args).map_err(|e| (e.code(), e.into()))?;
            print(&text).map_err(|e| (FAILED, e.into()))?;
            Ok(0)
        }
        Command::Devices(args) => {
            let text = devices::run(args).map_err(|e| (e.code(), e.into()))?;
            print(&text).map_err(|e| (FAILED, e.into()))?;
            Ok(0)
        }
        Command::Report {
            file, kind, out, ..
        } if tsc::is_ours(file) => {
            let failed = |error: Box<dyn Error>| (FAILED, error);
            if kind.is_some() {
                let why = "--kind names a kind of exit, and a result of `tsc` has none";
                return Err((WRONG_USE, why.into()));
            }
            let report = tsc::read(file).map_err(|e| failed(e.into()))?;
            print(&tsc::table(&report)).map_err(|e| failed(e.into()))?;
            let Some(out) = out else { return Ok(0) };
            for path in tsc::write(&report, out).map_err(|e| failed(e.into()))? {
                print(&format!("written: {}\n", path.display())).map_err(|e| failed(e.into()))?;
            }
            Ok(0)
        }
        Command::Report {
            file,
            kind,
            explain,
            out,
        } => {
            let failed = |error: Box<dyn Error>| (FAILED, error);
            let report = report::read(file).map_err(|e| failed(e.into()))?;
            if let Some(kind) = kind {
                report::check_kind(&report, kind).map_err(|why| (WRONG_USE, why.into()))?;
            }
            let details = Details {
                kind: kind.as_deref(),
                explain: *explain,
            };
            print(&report::table(&report, details)).map_err(|e| failed(e.into()))?;
            let Some(out) = out else { return Ok(0) };
            for path in report::write(&report, out).map_err(|e| failed(e.into()))? {
                print(&format!("written: {}\n", path.display())).map_err(|e| failed(e.into()))?;
            }
            Ok(0)
        }
        Command::Compare(args) => {
            let (text, failed) = compare::run(args).map_err(|e| (WRONG_USE, e.into()))?;
            print(&text).map_err(|e| (WRONG_USE, e.into()))?;
            Ok(if failed { FAILED } else { 0 })
        }
        Command::Baseline(args) => {
            let (text, well) = baseline::run(args).map_err(|e| (WRONG_USE, e.into()))?;
            print(&text).map_err(|e| (WRONG_USE, e.into()))?;
            Ok(if well { 0 } else { FAILED })
        }
        Command::Initramfs(args) => {
            let text = initramfs::run(args).map_err(|e| (e.code(), e.into()))?;
            print(&text).map_err(|e| (FAILED, e.into()))?;
            Ok(0)
        }
        Command::L1Agent(args) => Err((FAILED, l1_agent::run(args).into())),
        Command::ProbeL1(args) => Err((FAILED, probe_l1::run(args).into())),
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors repeat what they wrap.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Prints to stdout, without a panic when it is closed.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
