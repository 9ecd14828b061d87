//! A program in its own network namespace. Its listening sockets cannot be reached from outside; one TCP
//! connection that it makes to its own loopback interface is forwarded to a Unix socket.
//!
//! The packaged Bochs needs this: its only display that works without a terminal is a VNC server on all
//! interfaces, without a password.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use crate::owned::{OwnedChild, tied};

/// The hidden first argument by which this program enters a namespace:
/// `BUSYBOX [SOCKET PORT PROGRAM ARGUMENTS...]`.
pub const ISOLATED: &str = "__isolated";

/// Whether programs can be isolated here; the error has the reason. Checked once per process.
pub fn available(busybox: &Path) -> Result<(), &'static str> {
    static AVAILABLE: OnceLock<Result<(), String>> = OnceLock::new();
    let available = AVAILABLE.get_or_init(|| {
        let output = this_program(busybox).and_then(|mut command| OwnedChild::output(&mut command));
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    });
    available.as_ref().copied().map_err(String::as_str)
}

/// A command for `program`, isolated, whose connection to `port` of its loopback interface reaches the
/// listener at `socket`. The program's arguments are the command's.
pub fn command(busybox: &Path, socket: &Path, port: u16, program: &Path) -> io::Result<Command> {
    let mut command = this_program(busybox)?;
    command.arg(socket).arg(port.to_string()).arg(program);
    Ok(command)
}

fn this_program(busybox: &Path) -> io::Result<Command> {
    let mut command = tied(std::env::current_exe()?)?;
    command.arg(ISOLATED).arg(busybox);
    Ok(command)
}

/// The other side of [`command`]; returns the program's exit status.
///
/// # Errors
/// If there is no namespace, or the program cannot be started.
pub fn run(arguments: &[OsString]) -> io::Result<u8> {
    let (busybox, rest) = arguments
        .split_first()
        .ok_or_else(|| io::Error::other("no busybox given"))?;
    enter(Path::new(busybox))?;
    let [socket, port, program, arguments @ ..] = rest else {
        return Ok(0);
    };
    let port = port.to_str().and_then(|port| port.parse().ok());
    let port = port.ok_or_else(|| io::Error::other("no port given"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let connected = Arc::new(AtomicBool::new(false));
    let relay = {
        let (socket, connected) = (PathBuf::from(socket), Arc::clone(&connected));
        thread::spawn(move || relay(&listener, &socket, &connected))
    };
    let mut child = OwnedChild::spawn(tied(program)?.args(arguments))?;
    let status = child.wait()?;
    // The program's last output may still be in transit; if the program never connected, the relay would wait
    // forever.
    if connected.load(Ordering::SeqCst) {
        relay
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the relay panicked")))?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(u8::MAX))
}

/// Puts this process, which has one thread, into a network namespace of its own, in which no interface is up.
///
/// # Errors
/// If it has no privileges, and no user namespace can be had.
pub fn leave_network() -> io::Result<()> {
    let why =
        |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            // Without privileges a user namespace is needed first; in it, this user is root.
            let (user, group) = (getuid(), getgid());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
                .map_err(|errno| why("unprivileged user namespaces", errno.into()))?;
            for (file, text) in [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {user} 1")),
                ("gid_map", format!("0 {group} 1")),
            ] {
                let path = Path::new("/proc/self").join(file);
                std::fs::write(&path, text)
                    .map_err(|error| why(&path.display().to_string(), error))?;
            }
        }
        Err(errno) => return Err(why("a network namespace", errno.into())),
    }
    Ok(())
}

/// Puts this process, which has one thread, into a network namespace whose loopback interface is up.
fn enter(busybox: &Path) -> io::Result<()> {
    leave_network()?;
    let up = OwnedChild::output(tied(busybox)?.args(["ip", "link", "set", "lo", "up"]))?;
    if !up.status.success() {
        let said = String::from_utf8_lossy(&up.stderr);
        return Err(io::Error::other(format!(
            "cannot bring the loopback interface up: {}",
            said.trim()
        )));
    }
    Ok(())
}

fn relay(listener: &TcpListener, socket: &Path, connected: &AtomicBool) -> io::Result<()> {
    let (mut from, _) = listener.accept()?;
    connected.store(true, Ordering::SeqCst);
    from.set_nodelay(true)?;
    let mut to = UnixStream::connect(socket)?;
    let (mut input, mut back) = (to.try_clone()?, from.try_clone()?);
    thread::spawn(move || {
        // Ends when either side closes; the process ends with the other direction.
        let _ended = io::copy(&mut input, &mut back);
    });
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Both)
}
