//! The user's terminal in raw mode, and its restoration.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once};

use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw,
    tcgetattr, tcsetattr,
};

use crate::bus::lock;
use crate::sys::fatal::OnDeath;

/// The terminal and its previous modes, while a guard lives. Global, because the panic hook and the last exit
/// path need it.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

struct Saved {
    terminal: OwnedFd,
    modes: Termios,
    _on_death: OnDeath,
}

/// A terminal in raw mode; dropping it restores the modes. At most one lives at a time.
#[derive(Debug)]
pub(super) struct RawTerminal(());

impl RawTerminal {
    /// Puts `terminal` into raw mode.
    pub(super) fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let raw = raw_modes(&before);
        // A panic must restore before its message is printed, also if the panicking thread owns no guard.
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                previous(info);
            }));
        });
        let terminal_fd = terminal.try_clone_to_owned()?;
        *lock(&SAVED) = Some(Saved {
            _on_death: OnDeath::set_terminal(terminal_fd.as_raw_fd(), before.clone().into()),
            terminal: terminal_fd,
            modes: before,
        });
        set(terminal, &raw).inspect_err(|_| restore())?;
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal's previous modes. Does nothing if it is not in raw mode. For paths that end the
/// process without unwinding; otherwise the guard does it.
pub fn restore() {
    if let Some(saved) = lock(&SAVED).take() {
        // A terminal that no longer exists cannot be restored.
        let _gone = set(saved.terminal.as_fd(), &saved.modes);
    }
}

fn set(terminal: BorrowedFd<'_>, modes: &Termios) -> io::Result<()> {
    tcsetattr(terminal, SetArg::TCSANOW, modes).map_err(io::Error::from)
}

/// Raw input, but with output processing: it does not change the guest's `\r `, and hypernest's own messages
/// need it.
fn raw_modes(before: &Termios) -> Termios {
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    raw.output_flags.set(
        OutputFlags::OPOST,
        before.output_flags.contains(OutputFlags::OPOST),
    );
    debug_assert!(!raw.input_flags.contains(InputFlags::IXON));
    debug_assert!(!raw.local_flags.contains(LocalFlags::ISIG));
    raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    #[test]
    fn raw_mode_passes_every_key_on_and_keeps_output_processing() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ISIG));
        set(pty.slave.as_fd(), &raw_modes(&before)).unwrap();
        let now = tcgetattr(&pty.slave).unwrap();
        assert!(!now.local_flags.intersects(
            LocalFlags::ISIG | LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN
        ));
        assert!(
            !now.input_flags
                .intersects(InputFlags::IXON | InputFlags::ICRNL)
        );
        assert_eq!(
            now.output_flags.contains(OutputFlags::OPOST),
            before.output_flags.contains(OutputFlags::OPOST)
        );
        set(pty.slave.as_fd(), &before).unwrap();
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    }
}
