//! The arguments that describe a VM, shared by the commands that need one.

use std::path::PathBuf;

use super::CliError;
use crate::config::{ConfigFile, Flags, HostLimits, VmConfig, build};

/// A VM, as flags and a file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct VmArgs {
    /// A TOML file with settings; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    flags: Flags,
}

impl VmArgs {
    /// The configuration that these arguments give on this host. Warnings are logged.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(&self) -> Result<VmConfig, CliError> {
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?;
        let checked = build(file.as_ref(), &self.flags, HostLimits::read())?;
        for warning in &checked.warnings {
            tracing::warn!("{warning}");
        }
        Ok(checked.config)
    }
}
