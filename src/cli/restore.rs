//! `hypernest restore`: restores a saved VM and stays until it ends.

use std::path::{Path, PathBuf};

use super::run::to_its_end;
use super::{CliError, ExitStatus, print};
use crate::api::{RunDirs, Server};
use crate::boot::BootFiles;
use crate::config::{HostLimits, LocalFlags, adapt};
use crate::machine::{Identity, Local, Machine, MachineError, TransferError};
use crate::state::Sections;
use crate::state::snapshot::{RamImage, SavedFiles, Snapshot};

/// Restore a saved VM and stay until it ends
///
/// The VM's hardware was saved with it; flags set its resources on this host. No file, socket or
/// pseudo-terminal of this host is opened unless a flag names it; a reset boots the kernel that was saved
/// with the VM. The saved VM is not modified, and must not be modified while the VM runs, which reads its RAM
/// on demand. The exit code is that of `hypernest run`, and signals have the same meaning.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The directory
    dir: PathBuf,

    /// Keep it paused until `hypernest resume`
    #[arg(long)]
    paused: bool,

    /// Read and check all RAM before it runs
    #[arg(long)]
    eager: bool,

    /// Only check whether it is complete
    #[arg(long, conflicts_with_all = ["paused", "eager"])]
    check: bool,

    #[command(flatten)]
    flags: LocalFlags,
}

/// Carries out the command.
pub(super) fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let saved = SavedVm::open(&args.dir).map_err(|source| broken(&args.dir, source))?;
    if args.check || args.eager {
        let boot = saved.boot.as_ref().map_or(Ok(()), SavedFiles::verify);
        boot.map_err(|source| broken(&args.dir, source.into()))?;
    }
    if args.check {
        let checked = saved.ram.verify().map_err(TransferError::from);
        checked.map_err(|source| broken(&args.dir, source))?;
        print(&format!("{} is whole\n", args.dir.display()))?;
        return Ok(ExitStatus::DONE);
    }
    let adapted = adapt(&saved.identity.config, &args.flags, HostLimits::read())?;
    for warning in &adapted.checked.warnings {
        tracing::warn!("{warning}");
    }
    let boot = match (&saved.boot, adapted.boot_is_local) {
        (_, true) => Some(BootFiles::open(&adapted.checked.config.boot)),
        (Some(files), false) => Some(BootFiles::saved(&adapted.checked.config.boot, files)),
        (None, false) => None,
    };
    let boot = boot.transpose().map_err(MachineError::from)?;
    let local = Local {
        config: adapted.checked.config,
        host_khz: adapted.host_khz,
        paused: args.paused,
        boot,
    };
    let dir = RunDirs::of_user().claim(&local.config.name)?;
    let ram = if args.eager {
        saved.ram.read(&local.config.memory)
    } else {
        saved.ram.map(local.config.memory.host)
    };
    let ram = ram.map_err(|source| broken(&args.dir, source.into()))?;
    let machine = Machine::restore(&saved.identity, saved.sections, ram, local, &[])?;
    let board = machine.board();
    let _server = Server::start(dir, machine.handle(), move || board.status())?;
    to_its_end(machine)
}

struct SavedVm {
    identity: Identity,
    sections: Sections,
    ram: RamImage,
    boot: Option<SavedFiles>,
}

impl SavedVm {
    fn open(dir: &Path) -> Result<Self, TransferError> {
        let snapshot = Snapshot::open(dir)?;
        let boot = snapshot.boot().cloned();
        let (mut sections, ram) = snapshot.into_parts();
        Ok(Self {
            identity: Identity::take(&mut sections)?,
            sections,
            ram,
            boot,
        })
    }
}

fn broken(dir: &Path, source: TransferError) -> CliError {
    CliError::Saved {
        dir: dir.to_owned(),
        source: Box::new(source),
    }
}
