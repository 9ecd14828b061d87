//! The control socket and the run directory: how a running VM is found and told what to do.
//!
//! Each VM has a directory with a socket, `control.sock`. A request is a line of JSON,
//! `{"command":"status"}`, and so is its answer, `{"ok":...}` or `{"error":"..."}`. docs/control-socket.md
//! describes both.

mod client;
mod job;
mod protocol;
mod rundir;
mod server;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use client::{FoundVm, call, list, status};
pub use protocol::{
    Balloon, ControlReply, ControlRequest, DiskResize, DiskThrottle, NetLink, Save,
};
pub use rundir::{RunDir, RunDirs};
pub use server::Server;

/// Why a VM cannot be found, told, or made findable.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The directory of all run directories, or one of them.
    #[error("cannot use the run directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could meddle with it.
    #[error("will not use the run directory {}: {why}", path.display())]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The path of the socket.
    #[error("the control socket's path {} is {} bytes long, and a socket's can have \
        {max}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes.
        max: usize,
    },
    /// Names are unique.
    #[error("a VM named {name} is already \
        running{}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    NameTaken {
        /// The name.
        name: String,
        /// Its process, if it has said so yet.
        pid: Option<u32>,
    },
    /// The socket or the thread that serves it.
    #[error("cannot serve the control socket {}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No VM has this name.
    #[error("there is no running VM named {name:?}{}", others(meant.as_deref(), running))]
    NoSuchVm {
        /// The name.
        name: String,
        /// A running one with nearly this name.
        meant: Option<String>,
        /// The running ones.
        running: Vec<String>,
    },
    /// The VM is there, but the conversation failed.
    #[error("cannot talk to the VM {name}")]
    Talk {
        /// The VM.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The VM refused.
    #[error("the VM {name} refused: {why}")]
    Refused {
        /// The VM.
        name: String,
        /// Its words.
        why: String,
    },
}

/// The VMs that could be meant instead, for a message.
fn others(meant: Option<&str>, running: &[String]) -> String {
    const SHOWN: usize = 8;
    match (meant, running) {
        (Some(meant), _) => format!("; did you mean {meant}?"),
        (None, []) => String::new(),
        (None, [one]) => format!("; {one} is running"),
        (None, all) if all.len() <= SHOWN => format!("; {} are running", all.join(", ")),
        (None, all) => {
            let more = all.len() - SHOWN;
            format!("; {} and {more} more are running", all[..SHOWN].join(", "))
        }
    }
}

#[cfg(test)]
mod protocol_tests;
#[cfg(test)]
mod tests;
