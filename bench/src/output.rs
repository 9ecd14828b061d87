//! The output of a VMM, as it comes.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a wait for output has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// More of it.
    More,
    /// Its end.
    End,
    /// Nothing in time.
    Late,
}

/// Waits for output until `limit` has passed since `start`, and adds it to `to`.
///
/// # Errors
/// What the kernel reports, with what could not be done.
pub(crate) fn read_more(
    from: &mut ChildStdout,
    to: &mut Vec<u8>,
    start: Instant,
    limit: Duration,
) -> Result<Output, String> {
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(Output::Late),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(format!("cannot be waited for: {errno}")),
        }
        let mut buffer = [0; 4096];
        return match from.read(&mut buffer) {
            Ok(0) => Ok(Output::End),
            Ok(length) => {
                to.extend(&buffer[..length]);
                Ok(Output::More)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(format!("cannot be read from: {error}")),
        };
    }
}
