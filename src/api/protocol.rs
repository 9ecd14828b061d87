//! What is said over the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::nearest;
use crate::life::Request;

/// The longest line of a request.
pub(super) const MAX_REQUEST: usize = 4096;

/// What a VM can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tell how it is.
    Status,
    /// Change its life cycle.
    Life(Request),
}

impl Command {
    const ALL: [(&'static str, Self); 6] = [
        ("status", Self::Status),
        ("pause", Self::Life(Request::Pause)),
        ("resume", Self::Life(Request::Resume)),
        ("reset", Self::Life(Request::Reset)),
        ("power-button", Self::Life(Request::PowerButton)),
        ("kill", Self::Life(Request::Kill)),
    ];

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, command)| *command == self)
            .map_or("status", |(name, _)| name)
    }

    /// Reads a request's line; else what is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let message: Message = serde_json::from_slice(line).map_err(|e| {
            format!("not a request: {e}; a request is a line like {{\"command\":\"status\"}}")
        })?;
        Self::ALL
            .into_iter()
            .find(|(name, _)| *name == message.command)
            .map(|(_, command)| command)
            .ok_or_else(|| {
                let names = Self::ALL.map(|(name, _)| name);
                match nearest(&message.command, names) {
                    Some(meant) => format!("unknown command; did you mean {meant:?}?"),
                    None => format!("unknown command; the commands are {}", names.join(", ")),
                }
            })
    }

    /// The request's line.
    pub(super) fn write(self) -> String {
        format!("{{\"command\":\"{}\"}}\n", self.name())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    command: String,
}

/// The answer's line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply {
    /// Carried out, or begun; the status comes with the command that asks for it.
    Ok(Option<Box<Status>>),
    /// Refused.
    Error(String),
}

/// How a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// The version of hypernest that runs it.
    pub version: String,
    /// Whether it runs.
    pub state: State,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// How often it was reset.
    pub resets: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// The enlightenments in force.
    pub hv: Vec<String>,
    /// The guest's last crash report.
    pub crash: Option<Crash>,
    /// Device -> the pseudo-terminal that it is connected to.
    pub ptys: BTreeMap<String, String>,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its vCPUs run.
    Running,
    /// A user has stopped them.
    Paused,
    /// They were stopped because the guest crashed.
    Crashed,
}

impl State {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Crashed => "crashed",
        }
    }
}

/// What the guest said when it crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// By what means: `hyper-v` or `pvpanic`.
    pub by: String,
    /// Hyper-V's P0..P4; Windows puts the bug check's code and parameters there.
    pub params: Option<[u64; 5]>,
    /// The guest's words.
    pub message: Option<String>,
}
