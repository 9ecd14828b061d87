//! The configured connection of a character device.

use std::path::PathBuf;

/// The source and the destination of a character device's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharBackend {
    /// Nothing is connected; output is dropped.
    None,
    /// hypernest's own terminal or pipe; Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A. At most one
    /// device.
    Stdio,
    /// Output is written to a file, truncated at the start; no input.
    File(PathBuf),
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// A Unix stream socket to listen on; one client at a time.
    Socket(PathBuf),
}
