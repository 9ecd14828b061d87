//! Signals whose default action ends the process without a message, and what a VM would leave behind then.
//!
//! - SIGXFSZ: ignored, so that a write beyond RLIMIT_FSIZE fails with EFBIG and is reported like a full disk.
//! - SIGBUS: a page of a mapped file cannot be read, or the host's memory is damaged. Nothing can go on from
//!   there: the handler cleans up, writes a message and exits with code 1. The same for SIGXCPU (RLIMIT_CPU).
//! - SIGTERM, SIGINT, SIGHUP and SIGQUIT, where they are not requests to a running VM: the handler cleans up,
//!   and the signal then has its default action.
//!
//! What is to be cleaned up is registered by [`OnDeath`]; a handler may only call async-signal-safe
//! functions, so everything that it needs is prepared then.

use std::ffi::{CString, c_int, c_void};
use std::fmt::{self, Write as _};
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What a handler needs at most at a time: a VM has a run directory with two files, a terminal, three sockets
/// and two pieces of saved RAM.
const SLOTS: usize = 32;
/// `Exit::FAILED`.
const FAILED: c_int = 1;

/// Signals that end the process at once.
const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// What is done when a signal ends the process.
#[derive(Debug)]
enum Entry {
    /// A file or socket is removed.
    File(CString),
    /// An empty directory is removed, after the files.
    Directory(CString),
    /// A terminal gets its modes back.
    Terminal(RawFd, libc::termios),
    /// A SIGBUS at one of these addresses has this message.
    Mapping(Range<usize>, String),
}

static ENTRIES: [AtomicPtr<Entry>; SLOTS] = [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS];

/// One registered entry. Dropped, it is not carried out any more.
#[derive(Debug)]
pub(crate) struct OnDeath {
    slot: Option<usize>,
}

impl OnDeath {
    fn register(entry: Entry) -> Self {
        let entry = Box::into_raw(Box::new(entry));
        let slot = ENTRIES.iter().position(|slot| {
            slot.compare_exchange(ptr::null_mut(), entry, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        Self { slot }
    }

    /// Removes the file or socket at `path`.
    pub(crate) fn remove_file(path: &Path) -> Option<Self> {
        Some(Self::register(Entry::File(c_path(path)?)))
    }

    /// Removes the directory at `path`, which is empty once the files have been removed.
    pub(crate) fn remove_directory(path: &Path) -> Option<Self> {
        Some(Self::register(Entry::Directory(c_path(path)?)))
    }

    /// Sets the modes of the terminal `fd`, which stays open as long as this lives.
    pub(crate) fn set_terminal(fd: RawFd, modes: libc::termios) -> Self {
        Self::register(Entry::Terminal(fd, modes))
    }

    /// A SIGBUS within `addresses` of this process is reported as `message`.
    pub(crate) fn explain(addresses: Range<usize>, message: &str) -> Self {
        let line = format!("hypernest: {message}\n");
        Self::register(Entry::Mapping(addresses, line))
    }
}

impl Drop for OnDeath {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // The entry itself stays: a handler on another thread may be reading it. There are few in a
            // process's life.
            ENTRIES[slot].store(ptr::null_mut(), Ordering::Release);
        }
    }
}

/// The absolute path: the working directory may be another one then.
fn c_path(path: &Path) -> Option<CString> {
    let path = std::path::absolute(path).ok()?;
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// Installs the handlers. A signal that the process was started with as ignored stays so, but for SIGXFSZ.
///
/// # Errors
/// What sigaction reports.
pub(crate) fn install() -> io::Result<()> {
    extern "C" fn ignore(_signal: c_int) {}
    // A handler and not SIG_IGN, which a program that is started by this one would inherit.
    set(
        Signal::SIGXFSZ,
        SigHandler::Handler(ignore),
        SaFlags::SA_RESTART,
    )?;
    let fatal = SigHandler::SigAction(exit_with_message);
    for signal in [Signal::SIGBUS, Signal::SIGXCPU] {
        set(signal, fatal, SaFlags::SA_ONSTACK)?;
    }
    for signal in ENDING {
        if !is_ignored(signal) {
            set(
                signal,
                SigHandler::Handler(clean_up_and_die),
                SaFlags::empty(),
            )?;
        }
    }
    Ok(())
}

fn set(signal: Signal, handler: SigHandler, flags: SaFlags) -> io::Result<()> {
    let action = SigAction::new(handler, flags, SigSet::all());
    // SAFETY: the handlers in this module call only async-signal-safe functions.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Whether the process ignores `signal`, as after `nohup`.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only fills the old one.
    let done = unsafe { libc::sigaction(signal as c_int, ptr::null(), action.as_mut_ptr()) };
    if done != 0 {
        return false;
    }
    // SAFETY: the call has succeeded, so it has filled the structure.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

extern "C" fn exit_with_message(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    if !clean_up() {
        wait_for_exit();
    }
    if signal == libc::SIGXCPU {
        print(b"hypernest: the VM was ended: its process has used up its CPU time (RLIMIT_CPU)\n");
    } else {
        // SAFETY: with SA_SIGINFO the kernel passes a valid structure.
        let info = unsafe { &*info };
        // SAFETY: SIGBUS fills this member of the union.
        explain_bus_error(unsafe { info.si_addr() }.addr(), info.si_code);
    }
    exit();
}

extern "C" fn clean_up_and_die(signal: c_int) {
    if !clean_up() {
        wait_for_exit();
    }
    // SAFETY: both are async-signal-safe and take numbers. The signal is blocked here, so it takes effect on
    // return.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as above.
    unsafe { libc::raise(signal) };
}

/// Carries out all entries, once in a process; `false` if another thread does it.
fn clean_up() -> bool {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::AcqRel) {
        return false;
    }
    for entry in entries() {
        match entry {
            Entry::Terminal(fd, modes) => {
                // SAFETY: the structure is valid; tcsetattr is async-signal-safe.
                unsafe { libc::tcsetattr(*fd, libc::TCSANOW, modes) };
            }
            Entry::File(path) => {
                // SAFETY: the path ends with a NUL; unlink is async-signal-safe.
                unsafe { libc::unlink(path.as_ptr()) };
            }
            Entry::Directory(_) | Entry::Mapping(..) => {}
        }
    }
    for entry in entries() {
        if let Entry::Directory(path) = entry {
            // SAFETY: the path ends with a NUL; rmdir is async-signal-safe.
            unsafe { libc::rmdir(path.as_ptr()) };
        }
    }
    true
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter_map(|slot| {
        // SAFETY: it is null or comes from a box that is never freed and never changed.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    })
}

fn explain_bus_error(address: usize, code: c_int) {
    let explained = entries().find_map(|entry| match entry {
        Entry::Mapping(addresses, message) => addresses.contains(&address).then_some(message),
        _ => None,
    });
    if let Some(message) = explained {
        print(message.as_bytes());
        return;
    }
    let mut line = Line::default();
    let _fits = writeln!(
        line,
        "hypernest: the VM was ended: memory at {address:#x} of this process cannot be read (SIGBUS, code \
         {code}): it is damaged, or the host has none left for it; see the host's kernel log"
    );
    print(&line.bytes[..line.len]);
}

/// Text in a fixed buffer.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn print(line: &[u8]) {
    // SAFETY: the pointer and the length are of one slice; write is async-signal-safe. What cannot be written
    // is lost.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

fn exit() -> ! {
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(FAILED) }
}

/// Another thread ends the process.
fn wait_for_exit() -> ! {
    loop {
        // SAFETY: pause is async-signal-safe.
        unsafe { libc::pause() };
    }
}
