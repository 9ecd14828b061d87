//! The command line: a file per subcommand, the errors and the exit codes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use thiserror::Error;

use crate::api::ApiError;
use crate::config::{ConfigError, SETTINGS};
use crate::error::chain;
use crate::life::Request;
use crate::migration::MigrationError;

use crate::machine::{MachineError, TransferError};
use crate::sys::fatal;
use crate::text::nearest;

pub mod balloon;
mod completions;
pub mod config;
pub mod control;
pub mod disk;
pub mod doctor;
pub mod enlightenments;
mod incoming;
pub mod inspect;
pub mod list;
mod log;
pub mod migrate;
pub mod net;
mod qemu_flags;
mod restore;
mod run;
pub mod save;
pub mod status;
mod usage;
mod verbs;
mod vm;

pub use vm::VmArgs;

/// How a command ended, as the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// Success.
    pub const DONE: Self = Self(0);
    /// The command failed.
    pub const FAILED: Self = Self(1);
    /// Wrong usage, or an invalid configuration.
    pub const USAGE: Self = Self(2);
    /// The host lacks a required capability.
    pub const HOST: Self = Self(3);
}

/// Run virtual machines that run hypervisors: nested virtualization on KVM with Hyper-V enlightenments
#[derive(Debug, Parser)]
#[command(name = "hypernest", version, propagate_version = true)]
struct Cli {
    /// Log filter for stderr: off, error, warn, info, debug, trace, or TARGET=LEVEL,... [default:
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
    Disk(disk::Args),
    Net(net::Args),
    Balloon(balloon::Args),
    Migrate(Box<migrate::Args>),
    /// Stop a VM's vCPUs and keep its state
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

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The configuration of the VM is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The control socket of a running VM.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A VM accepted a request, which took no effect.
    #[error("the VM {name} has not {done} within {} seconds", control::TIMEOUT.as_secs())]
    NotDone {
        /// The VM.
        name: String,
        /// The effect that was expected, after "has not".
        done: &'static str,
    },
    /// The process of a VM that was migrated is still there.
    #[error(
        "the VM {name} was migrated and runs at its destination, but its process here has not ended within \
         {} seconds: `hypernest stop {name}` ends it",
        control::TIMEOUT.as_secs()
    )]
    NotGone {
        /// The VM.
        name: String,
    },
    /// `--log` or `HYPERNEST_LOG` is invalid.
    #[error("invalid log filter in {from}: {what}")]
    Log {
        /// The flag or the variable.
        from: &'static str,
        /// The problem.
        what: String,
    },
    /// A name that is not in the table.
    #[error("there is no enlightenment or profile \
        `{name}`{}", .suggestion.map_or_else(String::new, |s| format!("; did you mean `{s}`?")))]
    NoSuchEnlightenment {
        /// The given name.
        name: String,
        /// The nearest valid name.
        suggestion: Option<&'static str>,
    },
    /// A flag's value is invalid.
    #[error("cannot use the value of {flag}: {why}")]
    Argument {
        /// The flag.
        flag: &'static str,
        /// The problem.
        why: String,
    },
    /// The VM has no balloon.
    #[error("the VM {vm} has no balloon; it needs --device virtio-balloon from its start")]
    NoBalloon {
        /// The VM.
        vm: String,
    },
    /// A migration from another process failed.
    #[error("incoming migration failed")]
    Incoming(#[source] Box<MigrationError>),
    /// The VM could not be built, or failed while it ran.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host cannot run the VM, and the kernel could not be started on any host.
    #[error("{}\n  - {}", chain(&**.host), chain(&**.kernel))]
    HostAndKernel {
        /// The host's problem.
        host: Box<MachineError>,
        /// The kernel's problem.
        kernel: Box<crate::boot::BootError>,
    },
    /// An output file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A path that cannot be made absolute.
    #[error("cannot use the path {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A saved VM cannot be restored.
    #[error("cannot restore the VM saved in {}", dir.display())]
    Saved {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: Box<TransferError>,
    },
    /// A directory that contains no saved VM, or a damaged one.
    #[error("cannot read {} as a saved VM", dir.display())]
    Inspect {
        /// The directory.
        dir: PathBuf,
        /// The problem.
        source: Box<crate::inspect::InspectError>,
    },
    /// The guest crashed, and `on-crash` is `stop`.
    #[error("the VM was stopped because its guest crashed (on-crash = stop)")]
    GuestCrashed,
    /// A vCPU failed.
    #[error("{0}")]
    VcpuFailed(String),
    /// The thread that shows a migration's progress cannot be started.
    #[error("cannot start a thread to show the progress; nothing was migrated")]
    ProgressThread(#[source] io::Error),
    /// stdout cannot be written.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

impl CliError {
    /// The exit code for this error.
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::Argument { .. }
            | Self::Config(_)
            | Self::Log { .. }
            | Self::NoSuchEnlightenment { .. } => ExitStatus::USAGE,
            Self::Machine(e) if e.is_configuration() => ExitStatus::USAGE,
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
            | Self::NoBalloon { .. }
            | Self::NotGone { .. }
            | Self::ProgressThread(_)
            | Self::Stdout(_) => ExitStatus::FAILED,
        }
    }

    /// Advice, where the message contains none.
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

    /// The reader of stdout has closed the pipe, which is no error to report.
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
        Err(e) => return ExitCode::from(explain(e, &args).0),
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
        Command::Disk(args) => disk::run(&args),
        Command::Net(args) => net::run(&args),
        Command::Balloon(args) => balloon::run(&args),
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

/// `--help`, `--version`, or a message about wrong use: clap's, if there is none of ours.
fn explain(mut e: clap::Error, args: &[OsString]) -> ExitStatus {
    if let Some(hint) = unknown_command(&mut e, args) {
        to_stderr(&format!(
            "hypernest: {hint}\n  `hypernest --help` lists the commands"
        ));
        return ExitStatus::USAGE;
    }
    // `-hda` begins with the short form of `--help`.
    let asked = |arg: &OsString| arg == "-h" || arg == "--help" || arg == "help";
    let explained = match e.kind() {
        ErrorKind::DisplayHelp if args.iter().any(asked) => None,
        ErrorKind::UnknownArgument | ErrorKind::DisplayHelp => usage::explain(args),
        _ => None,
    };
    if let Some(flag) = saved_setting(&e, args) {
        to_stderr(&format!(
            "hypernest: `restore` takes no --{flag}: it was saved with the VM, and stays; leave it out\n  \
             `hypernest restore --help` lists the settings of this host"
        ));
        return ExitStatus::USAGE;
    }
    drop_dash_tip(&mut e);
    if let Some(text) = explained {
        to_stderr(&format!(
            "hypernest: {text}\n  `hypernest run --help` lists the flags"
        ));
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

/// The command to write instead of an unknown one. clap would name the one with the most letters in common:
/// `stop`, which pulls the power cord, for `shutdown`. Its tip stays only for a typo.
fn unknown_command(e: &mut clap::Error, args: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(verb)) = e.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let verb = verb.clone();
    let command = command();
    let ours = command.get_subcommands();
    let ours: Vec<_> = ours
        .flat_map(|c| c.get_name_and_visible_aliases())
        .collect();
    let meant = nearest(&verb, ours.iter().copied());
    match meant.map(|meant| ContextValue::Strings(vec![meant.to_owned()])) {
        Some(meant) => e.insert(ContextKind::SuggestedSubcommand, meant),
        None => e.remove(ContextKind::SuggestedSubcommand),
    };
    let words = args.iter().filter_map(|arg| arg.to_str());
    let next = words.skip_while(|word| *word != verb).nth(1);
    verbs::hint(&verb, next, ours.into_iter())
}

/// The setting of a saved VM that a command line of `restore` would change.
fn saved_setting(e: &clap::Error, args: &[OsString]) -> Option<&'static str> {
    let Some(ContextValue::String(flag)) = e.get(ContextKind::InvalidArg) else {
        return None;
    };
    let is_restore = e.kind() == ErrorKind::UnknownArgument && args.iter().any(|a| a == "restore");
    let flag = flag.strip_prefix("--").filter(|_| is_restore)?;
    let flag = flag.split('=').next()?;
    let mut settings = SETTINGS.iter().map(|setting| setting.key);
    settings.find(|key| *key == flag)
}

/// Removes clap's tip to pass a mistyped flag as a value, after `--`.
fn drop_dash_tip(e: &mut clap::Error) {
    if let Some(ContextValue::StyledStrs(tips)) = e.remove(ContextKind::Suggested) {
        let mut tips = tips;
        tips.retain(|tip| !tip.to_string().contains("as a value"));
        if !tips.is_empty() {
            e.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
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
    // If stderr is closed too, only the exit code is left.
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
