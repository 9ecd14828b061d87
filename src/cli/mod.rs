//! The command line: a file per subcommand, the errors and the exit codes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use thiserror::Error;

use crate::api::ApiError;
use crate::config::ConfigError;
use crate::error::chain;
use crate::life::Request;
use crate::migration::MigrationError;

use crate::machine::{MachineError, TransferError};
use crate::sys::fatal;

mod completions;
pub mod config;
pub mod control;
pub mod doctor;
pub mod enlightenments;
mod incoming;
pub mod inspect;
pub mod list;
mod log;
pub mod migrate;
mod qemu_flags;
mod restore;
mod run;
pub mod save;
pub mod status;
mod vm;

pub use vm::VmArgs;

/// How a command ended, as the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// Done.
    pub const DONE: Self = Self(0);
    /// It failed.
    pub const FAILED: Self = Self(1);
    /// The command was used in a wrong way, or the configuration is wrong.
    pub const USAGE: Self = Self(2);
    /// The host cannot do what was asked for.
    pub const HOST: Self = Self(3);
}

/// Run virtual machines that run hypervisors: nested virtualization on KVM with Hyper-V enlightenments
#[derive(Debug, Parser)]
#[command(name = "hypernest", version, propagate_version = true)]
struct Cli {
    /// What is logged on stderr: off, error, warn, info, debug, trace, or TARGET=LEVEL,... [default:
    /// HYPERNEST_LOG, or warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Config(config::Args),
    Doctor(doctor::Args),
    Enlightenments(enlightenments::Args),
    Save(save::Args),
    Restore(Box<restore::Args>),
    Inspect(inspect::Args),
    List(list::Args),
    Status(status::Args),
    Migrate(Box<migrate::Args>),
    /// Stop a VM's vCPUs and keep everything else
    Pause(control::Args),
    /// Resume a paused VM
    Resume(control::Args),
    /// Reset a VM as its reset button would
    Reset(control::Args),
    /// Press a VM's power button: a guest that handles it shuts down
    #[command(visible_alias = "powerdown")]
    PowerButton(control::Args),
    /// End a VM at once, as if its power cord were pulled
    #[command(visible_alias = "kill")]
    Stop(control::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Why a command did not do its job.
#[derive(Debug, Error)]
pub enum CliError {
    /// The configuration of the VM.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A running VM.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A VM took a request and did nothing about it.
    #[error("the VM {name} has not {done} within {} seconds", control::PATIENCE.as_secs())]
    NotDone {
        /// The VM.
        name: String,
        /// What it should have done.
        done: &'static str,
    },
    /// `--log` or `HYPERNEST_LOG`.
    #[error("invalid log filter in {from}: {what}")]
    Log {
        /// The flag or the variable.
        from: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A name that is none of the table's.
    #[error("there is no enlightenment or profile \
        `{name}`{}", .suggestion.map_or_else(String::new, |s| format!("; did you mean `{s}`?")))]
    NoSuchEnlightenment {
        /// What was written.
        name: String,
        /// The nearest name.
        suggestion: Option<&'static str>,
    },
    /// A flag's value.
    #[error("cannot use the value of {flag}: {why}")]
    Argument {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A migration from another process.
    #[error("incoming migration failed")]
    Incoming(#[source] Box<MigrationError>),
    /// The VM could not be built or could not go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host cannot run the VM, and the kernel could not be started on any other.
    #[error("{}\n  - {}", chain(&**.host), chain(&**.kernel))]
    HostAndKernel {
        /// What the host lacks.
        host: Box<MachineError>,
        /// What is wrong with the kernel.
        kernel: Box<crate::boot::BootError>,
    },
    /// A file that was to be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that means nothing.
    #[error("cannot use the path {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was saved cannot be used.
    #[error("cannot restore the VM saved in {}", dir.display())]
    Saved {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: Box<TransferError>,
    },
    /// It is no saved VM, or is damaged.
    #[error("cannot read {} as a saved VM", dir.display())]
    Inspect {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        source: Box<crate::inspect::InspectError>,
    },
    /// The guest crashed, and that ends it.
    #[error("the VM was stopped because its guest crashed (on-crash = stop)")]
    GuestCrashed,
    /// A vCPU could not go on.
    #[error("{0}")]
    VcpuFailed(String),
    /// stdout.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

impl CliError {
    /// The exit code that tells this error.
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::Argument { .. }
            | Self::Config(_)
            | Self::Log { .. }
            | Self::NoSuchEnlightenment { .. } => ExitStatus::USAGE,
            Self::Machine(e) if e.is_host() => ExitStatus::HOST,
            Self::HostAndKernel { .. } => ExitStatus::HOST,
            Self::Incoming(e) if matches!(**e, MigrationError::Refused(_)) => ExitStatus::HOST,
            Self::Incoming(_)
            | Self::Machine(_)
            | Self::GuestCrashed
            | Self::Path { .. }
            | Self::Write { .. }
            | Self::Saved { .. }
            | Self::Inspect { .. }
            | Self::VcpuFailed(_)
            | Self::Api(_)
            | Self::NotDone { .. }
            | Self::Stdout(_) => ExitStatus::FAILED,
        }
    }

    /// What to do about it, where the message does not already say so.
    fn help(&self) -> Option<&'static str> {
        match self {
            Self::Config(ConfigError::Invalid(_)) => {
                Some("`hypernest config --help` lists the settings")
            }
            Self::NoSuchEnlightenment { .. } => Some("`hypernest enlightenments` lists them"),
            Self::Log { .. } => {
                Some("use off, error, warn, info, debug or trace, or TARGET=LEVEL,...")
            }
            Self::Api(ApiError::NoSuchVm { .. }) => Some("`hypernest list` shows the running VMs"),
            Self::Api(ApiError::NameTaken { .. }) => {
                Some("give this one another --name, or end that one with `hypernest stop NAME`")
            }
            Self::Api(ApiError::Directory { .. } | ApiError::TooLong { .. }) => {
                Some("the environment variable XDG_RUNTIME_DIR says where run directories are")
            }
            _ => None,
        }
    }

    /// Whoever reads stdout has had enough, which is no news to anybody.
    fn is_quiet(&self) -> bool {
        matches!(self, Self::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The whole program: arguments in, exit code out, and at most one error on stderr.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::sys::record_inherited();
    if let Err(e) = fatal::install() {
        to_stderr(&format!("hypernest: cannot install signal handlers: {e}"));
        return ExitCode::from(ExitStatus::FAILED.0);
    }
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return ExitCode::from(explain(&e, &args).0),
    };
    let command = || log::start(cli.log.as_deref()).and_then(|()| run(cli.command));
    // The panic hook has printed the message, and unwinding has removed the run directory.
    let exit = std::panic::catch_unwind(std::panic::AssertUnwindSafe(command))
        .unwrap_or(Ok(ExitStatus::FAILED))
        .unwrap_or_else(|e| {
            if !e.is_quiet() {
                to_stderr(&report(&e));
            }
            e.exit()
        });
    ExitCode::from(exit.0)
}

fn run(command: Command) -> Result<ExitStatus, CliError> {
    match command {
        Command::Config(args) => config::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Save(args) => save::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::List(args) => list::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Pause(args) => control::run(&args, Request::Pause),
        Command::Resume(args) => control::run(&args, Request::Resume),
        Command::Reset(args) => control::run(&args, Request::Reset),
        Command::PowerButton(args) => control::run(&args, Request::PowerButton),
        Command::Stop(args) => control::run(&args, Request::Kill),
        Command::Enlightenments(args) => enlightenments::run(&args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    }
}

/// The command tree: every subcommand and flag.
pub fn command() -> clap::Command {
    Cli::command()
}

/// `--help`, `--version`, or clap's message about wrong use; with hints for flags of QEMU.
fn explain(e: &clap::Error, args: &[OsString]) -> ExitStatus {
    // `-hda` begins with the short form of `--help`.
    let asked = |arg: &OsString| arg == "-h" || arg == "--help" || arg == "help";
    let hints = match e.kind() {
        ErrorKind::DisplayHelp if args.iter().any(asked) => Vec::new(),
        ErrorKind::UnknownArgument | ErrorKind::DisplayHelp | ErrorKind::InvalidSubcommand => {
            qemu_flags::hints(args)
        }
        _ => Vec::new(),
    };
    if !hints.is_empty() {
        let text = "hypernest: these are flags of QEMU; for `hypernest run`:";
        to_stderr(&format!("{text}\n  {}", hints.join("\n  ")));
        return ExitStatus::USAGE;
    }
    match (e.print(), e.use_stderr()) {
        (_, true) => ExitStatus::USAGE,
        (Ok(()), false) => ExitStatus::DONE,
        (Err(e), false) => {
            let e = CliError::Stdout(e);
            if !e.is_quiet() {
                to_stderr(&report(&e));
            }
            e.exit()
        }
    }
}

/// The error and its causes in one line, and the help below.
fn report(e: &CliError) -> String {
    let mut text = format!("hypernest: {}", chain(e));
    if let Some(help) = e.help() {
        text.push_str(&format!("\n  {help}"));
    }
    text
}

fn to_stderr(text: &str) {
    // If stderr is gone too, the exit code has to say it all.
    let _gone = writeln!(io::stderr(), "{text}");
}

/// Writes a command's result to stdout.
///
/// # Errors
/// If it cannot be written as a whole.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CliError::Stdout)
}

/// A result as JSON, for [`print`].
fn to_json(value: &impl serde::Serialize) -> Result<String, CliError> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|e| CliError::Stdout(e.into()))
}

#[cfg(test)]
mod tests;
