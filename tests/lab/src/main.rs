//! `cargo lab`: emulated hosts with real KVM.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hypernest_lab::cache::Cache;
use hypernest_lab::exec::HostOptions;
use hypernest_lab::host::Host;
use hypernest_lab::{demo, exec, isolated, owned, setup, test};

/// Hosts with real KVM, VMX and eVMCS or SVM, emulated with a stock kernel, on any machine.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Get emulators and kernels from this machine's Debian archive into the user's cache. Needs no root.
    Setup {
        #[command(flatten)]
        given: setup::Given,
        /// Rebuild everything, with the newest versions.
        #[arg(long)]
        refresh: bool,
    },
    /// Run a command on a host; its output and exit status become this program's (125 if the lab itself
    /// failed).
    Exec {
        #[command(flatten)]
        options: HostOptions,
        /// Pass standard input on to the command.
        #[arg(short, long)]
        interactive: bool,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run the tests: this machine's own, then those for hosts on each of them.
    Test {
        /// Only these hosts (and not the tests of this machine alone).
        #[arg(long)]
        host: Vec<Host>,
        /// Run loops at their full length: 20 moves instead of a few, a minute instead of seconds.
        #[arg(long)]
        long: bool,
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Measure the gain of an enlightened VMCS, on this machine if possible, else in the Intel lab.
    Demo {
        /// The directory for the results.
        #[arg(long, value_name = "DIR", default_value = "target/demo")]
        out: PathBuf,
        /// Show each answer with all its ratios and its rule.
        #[arg(long)]
        explain: bool,
    },
    /// Run a shell on a host.
    Shell {
        #[command(flatten)]
        options: HostOptions,
        /// Another program than sh.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// The lab itself failed, as opposed to the command in it.
const LAB_FAILED: u8 = 125;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == owned::TIED) {
        eprintln!("lab: {}", owned::become_tied(&arguments[2..]));
        return ExitCode::from(LAB_FAILED);
    }
    // Before a second thread starts: a process with several threads cannot enter a user namespace.
    if arguments
        .get(1)
        .is_some_and(|first| first == isolated::ISOLATED)
    {
        return match isolated::run(&arguments[2..]) {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(LAB_FAILED)
            }
        };
    }
    let arguments = Arguments::parse();
    match owned::give_back_on_signals()
        .map_err(Into::into)
        .and_then(|()| run(arguments.command))
    {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn run(command: Command) -> Result<u8, Box<dyn std::error::Error>> {
    let cache = Cache::locate()?;
    match command {
        Command::Setup { given, refresh } => {
            let manifest = setup::setup(&cache, &given, refresh)?;
            for (name, version) in &manifest.versions {
                println!("{name:12} {version}");
            }
            Ok(0)
        }
        Command::Exec {
            options,
            interactive,
            command,
        } => Ok(exec::exec(&options, &command, interactive)?),
        Command::Test { host, long, filter } => {
            let well = test::test(&host, filter.as_deref(), long)?;
            Ok(u8::from(!well))
        }
        Command::Demo { out, explain } => Ok(demo::demo(&out, explain)?),
        Command::Shell { options, command } => Ok(exec::shell(&options, &command)?),
    }
}
