//! What is said over the control socket.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::nearest;
use crate::life::Request;
use crate::machine::AfterSave;
use crate::migration::Report;

/// The longest line of a request.
pub(super) const MAX_REQUEST: usize = 4096;

/// What a VM can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tell how it is.
    Status,
    /// Change its life cycle.
    Life(Request),
    /// Do what takes a while. The answer comes when it is done.
    Job(Job),
}

/// What takes a VM a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Save it.
    Save(Save),
    /// Move it.
    Migrate(Box<Migrate>),
    /// Let a migration be.
    CancelMigration,
}

/// How to move a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Where to.
    pub to: String,
    /// How long the guest may be stopped.
    #[serde(default = "downtime")]
    pub downtime_ms: u64,
    /// Bytes per second at most.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// How many connections.
    #[serde(default = "one")]
    pub connections: u16,
    /// Whether pages are compressed.
    #[serde(default)]
    pub zstd: bool,
    /// This end's certificate; absolute, as the next two.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// The CA of the other end's certificate.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// Without TLS, within this host.
    #[serde(default)]
    pub plaintext: bool,
}

fn downtime() -> u64 {
    300
}

fn one() -> u16 {
    1
}

/// How to save a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Save {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// What becomes of the VM.
    #[serde(default)]
    pub then: AfterSave,
}

/// Commands without arguments.
const PLAIN: [(&str, Command); 6] = [
    ("status", Command::Status),
    ("pause", Command::Life(Request::Pause)),
    ("resume", Command::Life(Request::Resume)),
    ("reset", Command::Life(Request::Reset)),
    ("power-button", Command::Life(Request::PowerButton)),
    ("kill", Command::Life(Request::Kill)),
];
const SAVE: &str = "save";
const MIGRATE: &str = "migrate";
const CANCEL: &str = "cancel-migration";

impl Command {
    /// Reads a request's line; else what is wrong with it.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let no_request = |e: serde_json::Error| {
            format!("not a request: {e}; a request is a line like {{\"command\":\"status\"}}")
        };
        let message: Message = serde_json::from_slice(line).map_err(no_request)?;
        let plain = PLAIN.into_iter().find(|(name, _)| *name == message.command);
        let arguments = Value::Object(message.arguments);
        match (plain, message.command.as_str()) {
            (Some((_, command)), _) => serde_json::from_value(arguments)
                .map(|Nothing {}| command)
                .map_err(no_request),
            (None, SAVE) => serde_json::from_value(arguments)
                .map(|save| Self::Job(Job::Save(save)))
                .map_err(no_request),
            (None, MIGRATE) => serde_json::from_value(arguments)
                .map(|migrate| Self::Job(Job::Migrate(Box::new(migrate))))
                .map_err(no_request),
            (None, CANCEL) => serde_json::from_value(arguments)
                .map(|Nothing {}| Self::Job(Job::CancelMigration))
                .map_err(no_request),
            (None, unknown) => {
                let jobs = [SAVE, MIGRATE, CANCEL];
                let names = || PLAIN.iter().map(|(name, _)| *name).chain(jobs);
                Err(match nearest(unknown, names()) {
                    Some(meant) => format!("unknown command; did you mean {meant:?}?"),
                    None => {
                        let names: Vec<_> = names().collect();
                        format!("unknown command; the commands are {}", names.join(", "))
                    }
                })
            }
        }
    }

    /// The request's line.
    pub(super) fn write(&self) -> String {
        let (name, arguments) = match self {
            Self::Job(Job::Save(save)) => (SAVE, serde_json::to_value(save)),
            Self::Job(Job::Migrate(migrate)) => (MIGRATE, serde_json::to_value(migrate)),
            Self::Job(Job::CancelMigration) => (CANCEL, Ok(Value::Null)),
            plain => {
                let name = PLAIN.iter().find(|(_, command)| command == plain);
                (name.map_or("status", |(name, _)| name), Ok(Value::Null))
            }
        };
        let mut message = match arguments {
            Ok(Value::Object(arguments)) => arguments,
            // Only a path that is no text has no form in JSON; the VM says then that the argument is missing.
            _ => Map::new(),
        };
        message.insert("command".to_owned(), Value::String(name.to_owned()));
        format!("{}\n", Value::Object(message))
    }
}

#[derive(Deserialize)]
struct Message {
    command: String,
    #[serde(flatten)]
    arguments: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

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
    /// The guest's TSC.
    #[serde(default)]
    pub tsc: TscStatus,
    /// The guest's last crash report.
    pub crash: Option<Crash>,
    /// Device -> the pseudo-terminal that it is connected to.
    pub ptys: BTreeMap<String, String>,
    /// The last migration away from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Report>,
}

/// A guest's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscStatus {
    /// The frequency that the guest has; `None` where KVM knows none.
    pub khz: Option<u32>,
    /// The host's.
    pub host_khz: Option<u32>,
    /// The guest has its old frequency until it says that it has adapted to this host.
    pub emulating: bool,
    /// How often the guest has adapted here.
    pub changes: u32,
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
