//! Resources of this process outside of its memory: children, directories, the terminal's mode. All are
//! released when the owner is dropped, and also when a signal ends the process; children do not outlive it
//! even if it is killed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::termios::{self, SetArg, Termios};
use nix::unistd::{Pid, getppid};

#[derive(Default)]
struct Owned {
    children: BTreeSet<u32>,
    directories: BTreeSet<PathBuf>,
    terminal: Option<Termios>,
}

static OWNED: Mutex<Option<Owned>> = Mutex::new(None);

fn owned<T>(change: impl FnOnce(&mut Owned) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Owned>> =
        OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    change(guard.get_or_insert_default())
}

/// From now on SIGINT, SIGTERM and SIGHUP release all resources and end the process. Call this first in
/// `main`: the signals would still end the process at once in threads that were started earlier.
pub fn give_back_on_signals() -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = signals.wait() {
                give_back();
                std::process::exit(128 + signal as i32);
            }
        })?;
    Ok(())
}

/// Ends children, removes directories, restores the terminal.
pub fn give_back() {
    let (children, directories) = owned(|owned| {
        restore(owned.terminal.take().as_ref());
        (owned.children.clone(), owned.directories.clone())
    });
    for pid in children {
        if let Ok(pid) = i32::try_from(pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for directory in directories {
        let _ = std::fs::remove_dir_all(directory);
    }
}

fn restore(terminal: Option<&Termios>) {
    if let Some(settings) = terminal {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, settings);
    }
}

/// The hidden first argument by which this program runs another one that ends with it.
pub const TIED: &str = "__tied";

/// A command whose process is ended by the kernel when the thread that starts it ends.
pub fn tied(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(TIED)
        .arg(std::process::id().to_string())
        .arg(program);
    Ok(command)
}

/// The other side of [`tied`]: becomes the program named by `arguments` (parent, program, its arguments).
pub fn become_tied(arguments: &[OsString]) -> io::Error {
    let [parent, program, arguments @ ..] = arguments else {
        return io::Error::other("nothing to run");
    };
    if let Err(errno) = set_pdeathsig(Signal::SIGKILL) {
        return errno.into();
    }
    // The parent may have ended before the line above.
    if parent.to_str() != Some(&getppid().to_string()) {
        return io::Error::other("the lab has ended");
    }
    let error = Command::new(program).args(arguments).exec();
    io::Error::new(error.kind(), format!("{}: {error}", program.display()))
}

/// A child process that ends with its owner.
#[derive(Debug)]
pub struct OwnedChild {
    child: Child,
}

impl OwnedChild {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        // Under the lock, so that a signal handler finds every child in the list.
        owned(|owned| {
            let child = command.spawn()?;
            owned.children.insert(child.id());
            Ok(Self { child })
        })
    }

    /// Runs `command` until it exits and collects its output.
    pub fn output(command: &mut Command) -> io::Result<Output> {
        use std::process::Stdio;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut own = Self::spawn(command)?;
        let mut stderr = own.child.stderr.take();
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(from) = &mut stderr {
                let _ = io::Read::read_to_end(from, &mut text);
            }
            text
        });
        let mut stdout = Vec::new();
        if let Some(from) = &mut own.child.stdout {
            io::Read::read_to_end(from, &mut stdout)?;
        }
        let status = own.wait()?;
        Ok(Output {
            status,
            stdout,
            stderr: errors.join().unwrap_or_default(),
        })
    }

    /// Waits until it exits.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        owned(|owned| owned.children.remove(&self.child.id()));
        Ok(status)
    }

    /// Its status, if it has exited.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            owned(|owned| owned.children.remove(&self.child.id()));
        }
        Ok(status)
    }

    /// The child process, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Kills it.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.wait();
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        self.end();
    }
}

/// A directory that is removed with its owner.
#[derive(Debug)]
pub struct OwnedDirectory {
    path: PathBuf,
}

impl OwnedDirectory {
    /// Creates a directory that only this user can enter; its name contains the id of this process.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::create_dir_all(parent)?;
        remove_orphans(parent)?;
        let mut number = 0;
        loop {
            let path = parent.join(format!("{}-{number}-{name}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    owned(|owned| owned.directories.insert(path.clone()));
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        owned(|owned| owned.directories.remove(&self.path));
    }
}

/// Removes directories in `parent` of processes that were killed.
fn remove_orphans(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new("/proc").join(owner.to_string()).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// The terminal in raw mode, until dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input's terminal into raw mode.
    pub fn new() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        owned(|owned| owned.terminal = Some(before));
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        owned(|owned| restore(owned.terminal.take().as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_child_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut child = OwnedChild::spawn(&mut command).unwrap();
        let pid = child.child().id();
        drop(child);
        assert!(!Path::new("/proc").join(pid.to_string()).exists());
    }

    #[test]
    fn directories_of_dead_processes_are_removed_and_others_kept() {
        let parent = tempfile::tempdir().unwrap();
        // Above the maximum process id.
        let orphan = parent.path().join("99999999-0-amd");
        let foreign = parent.path().join("keep");
        std::fs::create_dir(&orphan).unwrap();
        std::fs::create_dir(&foreign).unwrap();
        let own = OwnedDirectory::new(parent.path(), "x").unwrap();
        let other = OwnedDirectory::new(parent.path(), "x").unwrap();
        assert!(!orphan.exists() && foreign.exists());
        assert!(own.path().exists() && other.path().exists() && own.path() != other.path());
        let path = own.path().to_owned();
        drop(own);
        assert!(!path.exists());
    }
}
