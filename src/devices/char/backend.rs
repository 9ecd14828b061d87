//! Where a character device is connected, as asked for.

use std::path::PathBuf;

/// Where a character device's bytes come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharBackend {
    /// Nothing is connected; output is dropped.
    None,
    /// hypernest's own terminal or pipe; Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A. One device at
    /// most.
    Stdio,
    /// Output is written to a file, truncated at the start; no input.
    File(PathBuf),
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// A Unix stream socket to listen on; one client at a time.
    Socket(PathBuf),
}
