//! The arguments that describe a VM, shared by the commands that need one.

use std::path::PathBuf;

use super::CliError;
use crate::config::{
    Checked, ConfigError, ConfigFile, Flags, HostLimits, LocalFlags, VmConfig, build,
};

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
    /// The flags of a VM from another process or a file: they may set only its resources on this host.
    ///
    /// # Errors
    /// If other flags were given.
    pub(super) fn local(&self) -> Result<LocalFlags, CliError> {
        let others = match (&self.config, LocalFlags::of(self.flags.clone())) {
            (None, Ok(flags)) => return Ok(flags),
            (Some(_), Ok(_)) => vec!["config"],
            (_, Err(others)) => others,
        };
        let others: Vec<_> = others.iter().map(|key| format!("--{key}")).collect();
        Err(CliError::Argument {
            flag: "--incoming",
            why: format!(
                "the VM brings its own configuration, so it takes no {}",
                others.join(", ")
            ),
        })
    }

    /// The configuration from these arguments on this host. Warnings are logged.
    ///
    /// # Errors
    /// All problems of the configuration.
    pub fn check(&self) -> Result<VmConfig, CliError> {
        let checked = self.build()?;
        for warning in &checked.warnings {
            tracing::warn!("{warning}");
        }
        Ok(checked.config)
    }

    /// The configuration and its warnings.
    pub(super) fn build(&self) -> Result<Checked, ConfigError> {
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?;
        build(file.as_ref(), &self.flags, HostLimits::read())
    }
}
