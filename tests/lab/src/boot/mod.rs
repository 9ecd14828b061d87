//! Booting an emulated host: its initramfs and its emulator.

mod bochs;
pub mod flat;
pub(crate) mod initramfs;
mod qemu;

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::binaries::Binaries;
use crate::host::{Host, Machine};
use crate::owned::{OwnedChild, OwnedDirectory};
use crate::plan::Plan;

/// A host could not be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file operation failed.
    #[error("{}: {error}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The cache does not contain a part.
    #[error("the lab has no {name} ({}): see `cargo lab setup --help`", path.display())]
    NotHeld {
        /// What is missing.
        name: String,
        /// Its expected path.
        path: PathBuf,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// The program.
        program: String,
        /// Its output.
        output: String,
    },
    /// A kernel that cannot be unpacked for the Intel lab.
    #[error("{}: {error}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        error: flat::FlatError,
    },
    /// The machine exceeds the emulator's limits.
    #[error("{0}")]
    TooMuch(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |error| BootError::File { path, error }
}

/// The listening end of the control line, before the emulator has connected.
#[derive(Debug)]
pub enum Listener {
    /// QEMU's.
    Unix(UnixListener),
    /// The listener of a Bochs that is not isolated: it connects by TCP only.
    Tcp(TcpListener),
}

/// A host that is starting.
#[derive(Debug)]
pub struct Booting {
    /// The listener for its control line.
    pub listener: Listener,
    /// The emulator. It is ended before the directory below is removed.
    pub emulator: OwnedChild,
    /// The kernel's log.
    pub kernel_log: PathBuf,
    /// The emulator's output.
    pub emulator_log: PathBuf,
    /// Its files.
    pub directory: OwnedDirectory,
}

/// Kernel parameters for both emulators. The last ones disable work that costs seconds in an emulator: the
/// self-tests of the crypto code, randomization, audit. `tsc=reliable no_timer_check` disables checks that
/// can hang there.
const KERNEL_PARAMETERS: &str = "console=ttyS0,115200 quiet loglevel=5 panic=-1 tsc=reliable no_timer_check \
    mitigations=off nokaslr audit=0 cryptomgr.notests";

/// Boots `host`, which is not [`Host::Here`].
pub fn boot(
    host: Host,
    machine: &Machine,
    plan: &Plan,
    held: &Path,
    binaries: &Binaries,
    runs: &Path,
) -> Result<Booting, BootError> {
    let directory = OwnedDirectory::new(runs, host.name()).map_err(at(runs))?;
    let run = directory.path().to_owned();
    let initramfs = run.join("initramfs");
    initramfs::write(&initramfs, host, machine, plan, held, binaries)?;
    let kernel_log = run.join("kernel.log");
    let emulator_log = run.join("emulator.log");
    let files = Files {
        held,
        run: &run,
        initramfs: &initramfs,
        kernel_log: &kernel_log,
    };
    let (listener, mut command) = if host == Host::Intel {
        bochs::command(machine, &files)?
    } else {
        qemu::command(machine, &files)?
    };
    let log = std::fs::File::create(&emulator_log).map_err(at(&emulator_log))?;
    let log_too = log.try_clone().map_err(at(&emulator_log))?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .current_dir(&run);
    let emulator = OwnedChild::spawn(&mut command).map_err(at(&run))?;
    Ok(Booting {
        listener,
        emulator,
        kernel_log,
        emulator_log,
        directory,
    })
}

/// The files of a run.
struct Files<'a> {
    held: &'a Path,
    run: &'a Path,
    initramfs: &'a Path,
    kernel_log: &'a Path,
}

impl Files<'_> {
    fn held(&self, name: &str, path: &str) -> Result<PathBuf, BootError> {
        held(self.held, name, path)
    }
}

fn held(root: &Path, name: &str, path: &str) -> Result<PathBuf, BootError> {
    let path = root.join(path);
    if path.exists() {
        Ok(path)
    } else {
        Err(BootError::NotHeld {
            name: name.to_owned(),
            path,
        })
    }
}

/// Runs a program until it exits.
fn run_program(command: &mut Command, name: &str) -> Result<(), BootError> {
    let failed = |output: String| BootError::Program {
        program: name.to_owned(),
        output,
    };
    let output = OwnedChild::output(command).map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
