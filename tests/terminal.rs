//! The console on a terminal: raw mode while the VM runs, and the original mode when the VM has ended.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use hypernest_lab::suite::{Test, TestResult};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

pub(crate) const TESTS: &[Test] = &[
    test("terminal::restored_after_ctrl_a_x", || {
        ends("fault spin", |terminal, _| terminal.types(b"\x01x"))?.expect_code(0)?;
        Ok(())
    }),
    test("terminal::restored_after_a_signal", || {
        let interrupt = |_: &Terminal, vm: &Vm| Ok(vm.signal(Signal::SIGINT)?);
        ends("fault spin", interrupt)?.expect_code(0)?;
        Ok(())
    }),
    test("terminal::restored_after_the_guests_end", || {
        // Ends by itself, later than the check of the terminal.
        ends("exits n=20000 kinds=pio-in", |_, _| Ok(()))?.expect_code(0)?;
        Ok(())
    }),
    test("terminal::restored_after_a_failure", failure),
    test("terminal::restored_if_the_vm_cannot_start", cannot_start),
];

/// The user's side of a terminal, and its other side, which shows its modes.
struct Terminal {
    user: File,
    device: OwnedFd,
}

impl Terminal {
    fn open() -> io::Result<Self> {
        let pair = openpty(None, None)?;
        Ok(Self {
            user: pair.master.into(),
            device: pair.slave,
        })
    }

    fn modes(&self) -> nix::Result<Termios> {
        tcgetattr(self.device.as_fd())
    }

    fn types(&self, keys: &[u8]) -> io::Result<()> {
        (&self.user).write_all(keys)
    }
}

/// Starts a guest on a terminal, and calls `end` to end it once the terminal is raw. Afterwards the terminal
/// must have its original mode.
fn ends(
    command_line: &str,
    end: impl Fn(&Terminal, &Vm) -> io::Result<()>,
) -> Result<Ended, Box<dyn std::error::Error>> {
    let site = Site::new()?;
    let terminal = Terminal::open()?;
    let before = terminal.modes()?;
    let mut command = site.guest(command_line);
    command.stdin(terminal.device.try_clone()?);
    let mut vm = Vm::start(&mut command)?;
    vm.wait_until("a raw terminal", |_| {
        terminal.modes().is_ok_and(|modes| {
            let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
            !modes.local_flags.intersects(cooked)
        })
    })?;
    end(&terminal, &vm)?;
    let ended = vm.end()?;
    assert_eq!(terminal.modes()?, before);
    assert!(site.run_directories()?.is_empty());
    Ok(ended)
}

fn failure() -> TestResult {
    let site = Site::new()?;
    let terminal = Terminal::open()?;
    let before = terminal.modes()?;
    let mut command = site.guest("fault triple");
    command.stdin(terminal.device.try_clone()?);
    let ended = Vm::start(&mut command)?.end()?;
    ended.expect_error(1, &["triple fault"])?;
    assert_eq!(terminal.modes()?, before);
    Ok(())
}

/// The console is set up before the error that the initrd does not fit.
fn cannot_start() -> TestResult {
    let site = Site::new()?;
    let terminal = Terminal::open()?;
    let before = terminal.modes()?;
    site.file("big", vec![0; 80 << 20])?;
    let mut command = site.guest("hello");
    command
        .args(["--hv", "none", "--initrd", "big"])
        .stdin(terminal.device.try_clone()?);
    Vm::start(&mut command)?.end()?.expect_error(1, &["big"])?;
    assert_eq!(terminal.modes()?, before);
    Ok(())
}
