//! A running VMM: its process, and its guest's output with the time of its arrival.

use std::fs;
use std::io::ErrorKind;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::VmmError;
use super::contender::{Contender, Guest, Terms};
use super::smaps::{self, Resident};
use crate::output::{Output, read_more};

/// Killed when dropped.
pub(super) struct Running {
    contender: Contender,
    child: Child,
    stdout: ChildStdout,
    output: Vec<u8>,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// Starts `guest` in `contender`; `limit` is the timeout for all waits.
    pub(super) fn start(
        contender: Contender,
        guest: &Guest<'_>,
        terms: &Terms,
        limit: Duration,
    ) -> Result<Self, VmmError> {
        let mut command = contender.command(guest, terms);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = Instant::now();
        let (child, stdout) = spawn(&mut command).map_err(|source| VmmError::Start {
            contender: contender.name(),
            source,
        })?;
        Ok(Self {
            contender,
            child,
            stdout,
            output: Vec::new(),
            started,
            limit,
        })
    }

    /// Waits until the guest has written `byte`, and returns the time since the start.
    pub(super) fn until(&mut self, byte: u8) -> Result<Duration, VmmError> {
        loop {
            let seen = self.output.len();
            if !self.read_more()? {
                return Err(self.failed("ended before the guest wrote its byte"));
            }
            if self.output[seen..].contains(&byte) {
                return Ok(self.started.elapsed());
            }
        }
    }

    /// Waits until the process ends and returns the guest's output.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, VmmError> {
        while self.read_more()? {}
        let status = self.child.wait().map_err(|source| VmmError::Start {
            contender: self.contender.name(),
            source,
        })?;
        if status.code() == Some(self.contender.success()) {
            Ok(std::mem::take(&mut self.output))
        } else {
            Err(self.failed(&format!("ended with {status}")))
        }
    }

    /// The process's resident memory, with the guest's RAM apart.
    pub(super) fn resident(&self, guest: &Guest<'_>) -> Result<Resident, VmmError> {
        let path = format!("/proc/{}/smaps", self.child.id());
        let text = fs::read_to_string(&path).map_err(|source| VmmError::Smaps {
            path: path.clone(),
            source,
        })?;
        let mappings = smaps::parse(&text).ok_or(VmmError::SmapsUnknown { path })?;
        Ok(Resident::new(
            &mappings,
            u64::from(guest.memory_mib) << 10,
            guest.kernel,
        ))
    }

    /// The number of threads of the process.
    pub(super) fn threads(&self) -> Result<usize, VmmError> {
        let path = format!("/proc/{}/task", self.child.id());
        let entries = fs::read_dir(&path).map_err(|source| VmmError::Smaps { path, source })?;
        Ok(entries.count())
    }

    /// Waits for output and reads it; `false` at its end.
    fn read_more(&mut self) -> Result<bool, VmmError> {
        match read_more(&mut self.stdout, &mut self.output, self.started, self.limit) {
            Ok(Output::More) => Ok(true),
            Ok(Output::End) => Ok(false),
            Ok(Output::Late) => {
                let seconds = self.limit.as_secs();
                Err(self.failed(&format!("did not end within {seconds} s")))
            }
            Err(how) => Err(self.failed(&how)),
        }
    }

    fn failed(&self, how: &str) -> VmmError {
        VmmError::Guest {
            contender: self.contender.name(),
            how: how.to_owned(),
            said: String::from_utf8_lossy(&self.output).into_owned(),
        }
    }
}

fn spawn(command: &mut Command) -> std::io::Result<(Child, ChildStdout)> {
    hypernest::end_with_parent(command);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or(ErrorKind::BrokenPipe)?;
    Ok((child, stdout))
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the process has already been reaped.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
