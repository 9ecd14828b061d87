//! `hypernest config`: check a VM's configuration without starting it.

use super::{CliError, ExitStatus, VmArgs, print};

/// Check a VM's configuration and show it as a file, with everything that was left out filled in
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    vm: VmArgs,
}

/// Shows the configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    print(&args.vm.check()?.to_toml())?;
    Ok(ExitStatus::DONE)
}
