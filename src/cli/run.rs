//! `hypernest run`: starts a VM and stays until it ends.

use super::{CliError, Exit, VmArgs};
use crate::api::{RunDirs, Server};
use crate::machine::{Machine, Outcome};

/// Starts a VM and stays until it ends.
///
/// The exit code is 0 if the guest powered off or a user ended it, the byte that the guest wrote to the debug-exit port if it
/// wrote one, 1 if something failed, 2 if the configuration is wrong and 3 if this host cannot run it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    vm: VmArgs,
}

/// Carries it out.
pub(super) fn run(args: &Args) -> Result<Exit, CliError> {
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
        Outcome::PowerOff | Outcome::Killed => Ok(Exit::DONE),
        Outcome::DebugExit(code) => Ok(Exit(code)),
        Outcome::Crashed => Err(CliError::GuestCrashed),
        Outcome::Failed(report) => Err(CliError::VcpuFailed(report)),
    }
}
