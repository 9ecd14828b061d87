//! The configured connection of a character device.

use std::fmt;
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

impl CharBackend {
    /// The one that is shown as `text`.
    pub fn of(text: &str) -> Option<Self> {
        Some(match text.split_once(':') {
            None if text == "none" => Self::None,
            None if text == "stdio" => Self::Stdio,
            None if text == "pty" => Self::Pty,
            Some(("file", path)) => Self::File(path.into()),
            Some(("socket", path)) => Self::Socket(path.into()),
            _ => return None,
        })
    }
}

impl fmt::Display for CharBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_as_it_is_shown() {
        for backend in [
            CharBackend::None,
            CharBackend::Stdio,
            CharBackend::Pty,
            CharBackend::File("/a:b".into()),
            CharBackend::Socket("c d".into()),
        ] {
            assert_eq!(CharBackend::of(&backend.to_string()), Some(backend));
        }
        for text in ["", "stdio:", "pty:x", "file", "tcp:x"] {
            assert_eq!(CharBackend::of(text), None);
        }
    }
}
