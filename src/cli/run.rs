//! `hypernest run`: starts a VM and stays until it ends.

use super::migrate::SecurityArgs;
use super::{CliError, Exit, VmArgs, incoming};
use crate::api::{RunDirs, Server};
use crate::machine::{Machine, Outcome};

/// Starts a VM and stays until it ends.
///
/// The exit code is 0 if the guest powered off or a user ended it, the byte that the guest wrote to the debug-exit port if it
/// wrote one, 1 if something failed, 2 if the configuration is wrong and 3 if this host cannot run it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Wait for a VM that `hypernest migrate` moves here; what it is comes with it: unix:PATH, tcp:HOST:PORT, exec:COMMAND,
    /// fd:N or fd:IN,OUT
    #[arg(long, value_name = "ADDRESS")]
    incoming: Option<String>,

    /// With --incoming: do not let the VM run until `hypernest resume`
    #[arg(long, requires = "incoming")]
    paused: bool,

    #[command(flatten)]
    security: SecurityArgs,

    #[command(flatten)]
    vm: VmArgs,
}

/// Carries it out.
pub(super) fn run(args: &Args) -> Result<Exit, CliError> {
    if let Some(address) = &args.incoming {
        return incoming::run(address, &args.security, args.vm.local()?, args.paused);
    }
    let config = args.vm.check()?;
    let dir = RunDirs::of_user().claim(&config.name)?;
    let machine = Machine::new(config, &[])?;
    let board = machine.board();
    let _server = Server::start(dir, machine.life(), move || board.status())?;
    to_its_end(machine)
}

/// Has `machine` run, and says how it ended.
pub(super) fn to_its_end(machine: Machine) -> Result<Exit, CliError> {
    match machine.run()? {
        Outcome::PowerOff | Outcome::Killed | Outcome::Moved => Ok(Exit::DONE),
        Outcome::DebugExit(code) => Ok(Exit(code)),
        Outcome::Crashed => Err(CliError::GuestCrashed),
        Outcome::Failed(report) => Err(CliError::VcpuFailed(report)),
    }
}
