//! Opens a configured backend as a [`Wire`].

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp, ttyname};
use tracing::warn;

use super::CharError;
use super::escape::EscapeKeys;
use super::terminal::RawTerminal;
use super::wire::Wire;
use crate::life::MachineHandle;
use crate::sys::listener::{ListenError, Listener};
use crate::sys::private::{self, Existing};
use crate::sys::set_nonblocking;

impl Wire {
    /// hypernest's own standard input and output. A terminal is in raw mode until the wire is dropped.
    pub(in crate::devices) fn stdio(
        device: &str,
        handle: MachineHandle,
    ) -> Result<Self, CharError> {
        Self::streams(device, io::stdin().as_fd(), io::stdout().as_fd(), handle)
    }

    /// Input from `stdin` if that is a terminal, a pipe or a socket; output to `stdout`.
    pub(in crate::devices) fn streams(
        device: &str,
        stdin: BorrowedFd<'_>,
        stdout: BorrowedFd<'_>,
        handle: MachineHandle,
    ) -> Result<Self, CharError> {
        let failed = |action| {
            move |source| CharError::Terminal {
                device: device.to_owned(),
                action,
                source,
            }
        };
        let mut wire = Self::new(device);
        let output =
            own_description(stdout, Direction::Output).map_err(failed("taking standard output"))?;
        wire.output = Some(Arc::new(output));

        if stdin.is_terminal() {
            // Reading from the background would stop the whole process (SIGTTIN).
            if tcgetpgrp(stdin).is_ok_and(|group| group != getpgrp()) {
                warn!(
                    device,
                    "hypernest runs in the background: no input from the terminal"
                );
                return Ok(wire);
            }
            let raw = RawTerminal::enter(stdin);
            wire.terminal = Some(raw.map_err(failed("putting the terminal into raw mode"))?);
        } else if !is_stream(stdin).map_err(failed("looking at standard input"))? {
            return Ok(wire);
        }
        let input =
            own_description(stdin, Direction::Input).map_err(failed("taking standard input"))?;
        wire.input = Some(Arc::new(input));
        wire.keys = Some((EscapeKeys::default(), handle));
        wire.look_at_size();
        Ok(wire)
    }

    /// A file, truncated unless its content is to be kept; output only.
    pub(in crate::devices) fn file(
        device: &str,
        path: &Path,
        keep: bool,
    ) -> Result<Self, CharError> {
        let mut wire = Self::new(device);
        let existing = if keep {
            Existing::Append
        } else {
            Existing::Truncate
        };
        let file = private::create(path, existing).map_err(|source| CharError::Path {
            device: device.to_owned(),
            action: "creating the file",
            path: path.to_owned(),
            source,
        })?;
        wire.output = Some(Arc::new(file));
        Ok(wire)
    }

    /// A new pseudo-terminal and the path by which a user opens it.
    pub(in crate::devices) fn pty(device: &str) -> Result<(Self, PathBuf), CharError> {
        let failed = |action| {
            move |errno: nix::Error| CharError::Terminal {
                device: device.to_owned(),
                action,
                source: errno.into(),
            }
        };
        let pair = openpty(None, None).map_err(failed("opening a pseudo-terminal"))?;
        let path = ttyname(&pair.slave).map_err(failed("naming the pseudo-terminal"))?;
        let mut modes = tcgetattr(&pair.slave).map_err(failed("reading terminal modes"))?;
        cfmakeraw(&mut modes);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes).map_err(failed("setting raw mode"))?;
        let mut wire = Self::new(device);
        set_nonblocking(pair.master.as_fd()).map_err(failed("setting up the pseudo-terminal"))?;
        // From the moment when the slave side is closed, the master reports whether a user has it open.
        drop(pair.slave);
        wire.pty = Some(Arc::new(File::from(pair.master)));
        Ok((wire, path))
    }

    /// A Unix socket to listen on. One client at a time; the next waits until it has left.
    pub(in crate::devices) fn socket(device: &str, path: &Path) -> Result<Self, CharError> {
        let mut wire = Self::new(device);
        let listener = Listener::bind(path).map_err(|error| match error {
            ListenError::Path {
                action,
                path,
                source,
            } => CharError::Path {
                device: device.to_owned(),
                action,
                path,
                source,
            },
            ListenError::InUse { path, obstacle } => CharError::SocketInUse {
                device: device.to_owned(),
                path,
                obstacle,
            },
        });
        wire.listener = Some(listener?);
        Ok(wire)
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Input,
    Output,
}

/// A descriptor for the same terminal or pipe that never blocks. O_NONBLOCK belongs to the open file
/// description, which is shared with the parent process, so a terminal or named pipe is opened again; a file
/// keeps its shared offset, and a descriptor that cannot be opened again is used directly, polled before each
/// use.
fn own_description(fd: BorrowedFd<'_>, direction: Direction) -> io::Result<File> {
    let shared = File::from(fd.try_clone_to_owned()?);
    let kind = shared.metadata()?.file_type();
    if !(kind.is_fifo() || kind.is_char_device()) {
        return Ok(shared);
    }
    let own = OpenOptions::new()
        .read(matches!(direction, Direction::Input))
        .write(matches!(direction, Direction::Output))
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok(own.unwrap_or(shared))
}

fn is_stream(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = File::from(fd.try_clone_to_owned()?).metadata()?.file_type();
    Ok(kind.is_fifo() || kind.is_socket())
}
