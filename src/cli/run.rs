//! `hypernest run`: starts a VM and stays until it ends.

use super::migrate::SecurityArgs;
use super::{CliError, ExitStatus, VmArgs, incoming};
use crate::api::{RunDirs, Server};
use crate::boot;
use crate::config::{ConfigError, VmConfig};
use crate::machine::{Machine, Outcome};

/// The heading of the flags for a migration from another process.
const MIGRATION: &str = "Incoming migration";

/// Start a VM and stay until it ends
///
/// The exit code is 0 if the guest powered off or a user ended it, the byte that the guest wrote to the
/// debug-exit port if it wrote one, 1 if something failed, 2 if the configuration is wrong and 3 if this host
/// cannot run it.
///
/// SIGTERM presses the guest's power button, which a guest can ignore; a second SIGTERM ends the VM, and so
/// does --stop-timeout SECONDS after the first one. SIGINT and SIGHUP end the VM at once. SIGUSR1 writes the
/// exit statistics.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    vm: VmArgs,

    /// Wait for a VM from `hypernest migrate`, which brings its configuration: unix:PATH, tcp:HOST:PORT,
    /// exec:COMMAND, fd:N or fd:IN,OUT
    #[arg(long, value_name = "ADDRESS", help_heading = MIGRATION)]
    incoming: Option<String>,

    /// With --incoming: keep the VM paused until `hypernest resume`
    #[arg(long, requires = "incoming", help_heading = MIGRATION)]
    paused: bool,

    #[command(flatten, next_help_heading = MIGRATION)]
    security: SecurityArgs,
}

impl Args {
    /// The configuration, unless it comes from another process.
    pub(super) fn configuration(&self) -> Option<Result<VmConfig, ConfigError>> {
        self.incoming
            .is_none()
            .then(|| self.vm.build().map(|checked| checked.config))
    }
}

/// Carries out the command.
pub(super) fn run(args: &Args) -> Result<ExitStatus, CliError> {
    if let Some(address) = &args.incoming {
        return incoming::run(address, &args.security, args.vm.local()?, args.paused);
    }
    if let Some(flag) = args.security.first_given() {
        return Err(CliError::Argument {
            flag,
            why: "it protects an incoming migration, and there is no --incoming".to_owned(),
        });
    }
    let config = args.vm.check()?;
    let dir = RunDirs::of_user().claim(&config.name)?;
    let (boot, memory) = (config.boot.clone(), config.memory.size);
    let machine = Machine::new(config, &[]).map_err(|e| {
        let checked = boot.kernel().map(|kernel| boot::check(kernel, memory));
        match checked {
            Some(Err(kernel)) if e.is_host() => CliError::HostAndKernel {
                host: Box::new(e),
                kernel: Box::new(kernel),
            },
            _ => e.into(),
        }
    })?;
    let board = machine.board();
    let _server = Server::start(dir, machine.handle(), move || board.status())?;
    to_its_end(machine)
}

/// Runs `machine`, and returns the exit code.
pub(super) fn to_its_end(machine: Machine) -> Result<ExitStatus, CliError> {
    match machine.run()? {
        Outcome::PowerOff | Outcome::Killed | Outcome::Moved => Ok(ExitStatus::DONE),
        Outcome::DebugExit(code) => Ok(ExitStatus(code)),
        Outcome::Crashed => Err(CliError::GuestCrashed),
        Outcome::Failed(report) => Err(CliError::VcpuFailed(report)),
    }
}
