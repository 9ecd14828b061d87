//! Waiting for descriptors.

use std::io;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::time::TimeSpec;

/// Waits until one of `fds` is ready; `false` when `deadline` has passed before. It has the resolution of
/// the kernel's timers, and is not ended by signals.
///
/// # Errors
/// If the kernel has no memory (ENOMEM), or there are more descriptors than RLIMIT_NOFILE (EINVAL).
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match ppoll(fds, left.map(TimeSpec::from_duration), None) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::poll::PollFlags;

    use super::*;

    #[test]
    fn a_wait_ends_when_a_descriptor_is_ready_or_at_its_deadline_and_not_before() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let past = Instant::now();
        assert!(!wait(&mut fds, Some(past)).unwrap());
        let deadline = Instant::now() + Duration::from_micros(1500);
        assert!(!wait(&mut fds, Some(deadline)).unwrap());
        assert!(Instant::now() >= deadline);
        writer.write_all(&[0]).unwrap();
        assert!(wait(&mut fds, Some(past)).unwrap());
        assert!(wait(&mut fds, None).unwrap());
        assert_eq!(fds[0].revents(), Some(PollFlags::POLLIN));
    }
}
