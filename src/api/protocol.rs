//! What is said over the control socket.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::life::Request;
use crate::machine::{AfterSave, Migrate, Status};
use crate::text::nearest;

/// The longest line of a request.
pub(super) const MAX_REQUEST: usize = 4096;

/// What a VM can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// Tell how it is.
    Status,
    /// Change its life cycle.
    Life(Request),
    /// Do what takes a while. The answer comes when it is done.
    Job(JobRequest),
}

/// What takes a VM a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRequest {
    /// Save it.
    Save(Save),
    /// Move it.
    Migrate(Box<Migrate>),
    /// Let a migration be.
    CancelMigration,
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
const PLAIN: [(&str, ControlCommand); 6] = [
    ("status", ControlCommand::Status),
    ("pause", ControlCommand::Life(Request::Pause)),
    ("resume", ControlCommand::Life(Request::Resume)),
    ("reset", ControlCommand::Life(Request::Reset)),
    ("power-button", ControlCommand::Life(Request::PowerButton)),
    ("kill", ControlCommand::Life(Request::Kill)),
];
const SAVE: &str = "save";
const MIGRATE: &str = "migrate";
const CANCEL: &str = "cancel-migration";

/// A relative path would mean another file to the client than to the VM's process.
fn absolute(name: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(format!(
            "`{name}` is the relative path {:?}: give an absolute one, as the VM's working directory is not \
             yours",
            path.display().to_string()
        ))
    }
}

impl ControlCommand {
    /// Reads a request's line.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn read(line: &[u8]) -> Result<Self, String> {
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
            (None, SAVE) => {
                let save: Save = serde_json::from_value(arguments).map_err(no_request)?;
                absolute("dir", &save.dir)?;
                Ok(Self::Job(JobRequest::Save(save)))
            }
            (None, MIGRATE) => {
                let migrate: Migrate = serde_json::from_value(arguments).map_err(no_request)?;
                let files = [
                    ("tls_cert", &migrate.tls_cert),
                    ("tls_key", &migrate.tls_key),
                    ("tls_ca", &migrate.tls_ca),
                ];
                for (name, path) in files {
                    path.as_deref()
                        .map_or(Ok(()), |path| absolute(name, path))?;
                }
                if let Some(path) = migrate.to.strip_prefix("unix:") {
                    absolute("to", Path::new(path))?;
                }
                Ok(Self::Job(JobRequest::Migrate(Box::new(migrate))))
            }
            (None, CANCEL) => serde_json::from_value(arguments)
                .map(|Nothing {}| Self::Job(JobRequest::CancelMigration))
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
    pub fn write(&self) -> String {
        let (name, arguments) = match self {
            Self::Job(JobRequest::Save(save)) => (SAVE, serde_json::to_value(save)),
            Self::Job(JobRequest::Migrate(migrate)) => (MIGRATE, serde_json::to_value(migrate)),
            Self::Job(JobRequest::CancelMigration) => (CANCEL, Ok(Value::Null)),
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
