//! The requests and replies of the control socket, as types. Client and server share them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::life::Request;
use crate::machine::{AfterSave, Migrate, Status};
use crate::text::nearest;

/// The longest request, in bytes without the newline.
pub(super) const MAX_REQUEST: usize = 4096;

/// A client's request to a VM. The JSON form is an object with the request's name as `command`, and its
/// arguments beside that.
///
/// Requests without arguments are variants with braces: serde refuses unknown fields of those, and ignores
/// them for unit variants of an internally tagged enum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControlRequest {
    /// Report the status.
    Status {},
    /// Stop the vCPUs.
    Pause {},
    /// Run the vCPUs.
    Resume {},
    /// Reset the VM.
    Reset {},
    /// Press the power button.
    PowerButton {},
    /// End the VM. The reply comes when it has ended.
    Kill {},
    /// Save the VM. The reply comes when it is saved.
    Save(Save),
    /// Migrate the VM. The reply comes when it has ended here.
    Migrate(Box<Migrate>),
    /// Cancel the migration that is under way.
    CancelMigration {},
    /// Give a disk another size. The reply comes when it has it.
    DiskResize(DiskResize),
    /// Limit a disk. The reply comes when the limits hold.
    DiskThrottle(DiskThrottle),
    /// Set the link of a network card up or down.
    NetLink(NetLink),
    /// Have a balloon leave the guest so much memory. The guest takes its time for it.
    Balloon(Balloon),
}

/// The link of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLink {
    /// The card's id.
    pub id: String,
    /// Whether there is to be a link.
    pub up: bool,
}

/// How much memory a balloon is to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// The balloon's id.
    pub id: String,
    /// Bytes.
    pub size: u64,
}

/// Another size for a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// Its id.
    pub id: String,
    /// Bytes; none: those that its image has by now.
    #[serde(default)]
    pub size: Option<u64>,
    /// It may be less than it has.
    #[serde(default)]
    pub shrink: bool,
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

/// Limits for a disk: none are as before, and 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskThrottle {
    /// Its id.
    pub id: String,
    /// Operations per second.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes per second.
    #[serde(default)]
    pub bps: Option<u64>,
}

/// The names of all requests with their arguments, for error messages. A test compares it with the types.
pub(super) const REQUESTS: [(&str, &[&str]); 13] = [
    ("status", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("reset", &[]),
    ("power-button", &[]),
    ("kill", &[]),
    ("save", &["dir", "then"]),
    (
        "migrate",
        &[
            "to",
            "downtime_ms",
            "bandwidth",
            "connections",
            "zstd",
            "tls_cert",
            "tls_key",
            "tls_ca",
            "plaintext",
        ],
    ),
    ("cancel-migration", &[]),
    ("disk-resize", &["id", "size", "shrink"]),
    ("disk-throttle", &["id", "iops", "bps"]),
    ("net-link", &["id", "up"]),
    ("balloon", &["id", "size"]),
];

impl ControlRequest {
    /// Whether a job carries it out, whose end is the reply.
    pub(super) fn is_job(&self) -> bool {
        matches!(
            self,
            Self::Save(_)
                | Self::Migrate(_)
                | Self::DiskResize(_)
                | Self::DiskThrottle(_)
                | Self::NetLink(_)
                | Self::Balloon(_)
        )
    }
}

impl From<Request> for ControlRequest {
    fn from(request: Request) -> Self {
        match request {
            Request::Pause => Self::Pause {},
            Request::Resume => Self::Resume {},
            Request::Reset => Self::Reset {},
            Request::PowerButton => Self::PowerButton {},
            Request::Kill => Self::Kill {},
        }
    }
}

impl ControlRequest {
    /// Reads a request's line.
    ///
    /// # Errors
    /// The reason why it is refused, for the user.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        let Message { command, arguments } = serde_json::from_slice(line).map_err(|e| {
            not_a_request(
                &e,
                "a request is a line like {\"command\":\"status\"}".to_owned(),
            )
        })?;
        let (_, known) = REQUESTS
            .iter()
            .find(|(name, _)| *name == command)
            .ok_or_else(|| unknown_command(&command))?;
        let hint = hint(&command, &arguments, known);
        let mut fields = arguments;
        fields.insert("command".to_owned(), Value::String(command));
        let request: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|e| not_a_request(&e, hint))?;
        request.check_paths()?;
        Ok(request)
    }

    /// Returns the request's line.
    ///
    /// # Errors
    /// If a path is not UTF-8: it has no JSON form.
    pub fn write(&self) -> serde_json::Result<String> {
        Ok(format!("{}\n", serde_json::to_value(self)?))
    }

    /// Refuses relative paths: to the client they name other files than to the VM's process.
    fn check_paths(&self) -> Result<(), String> {
        match self {
            Self::Save(save) => check_absolute("dir", &save.dir),
            Self::Migrate(migrate) => {
                let files = [
                    ("tls_cert", &migrate.tls_cert),
                    ("tls_key", &migrate.tls_key),
                    ("tls_ca", &migrate.tls_ca),
                ];
                for (name, path) in files {
                    path.as_deref()
                        .map_or(Ok(()), |path| check_absolute(name, path))?;
                }
                match migrate.to.strip_prefix("unix:") {
                    Some(path) => check_absolute("to", Path::new(path)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

fn check_absolute(name: &str, path: &Path) -> Result<(), String> {
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

fn not_a_request(error: &serde_json::Error, hint: String) -> String {
    format!("not a request: {error}; {hint}")
}

fn unknown_command(command: &str) -> String {
    let names = || REQUESTS.iter().map(|(name, _)| *name);
    match nearest(command, names()) {
        Some(meant) => format!("unknown command; did you mean {meant:?}?"),
        None => {
            let names: Vec<_> = names().collect();
            format!("unknown command; the commands are {}", names.join(", "))
        }
    }
}

/// What helps if `arguments` are not those of `command`, which are `known`.
fn hint(command: &str, arguments: &Map<String, Value>, known: &[&str]) -> String {
    let mut unknown = arguments
        .keys()
        .filter(|key| !known.contains(&key.as_str()));
    match unknown.find_map(|key| nearest(key, known.iter().copied())) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None if known.is_empty() => format!("{command} has no arguments"),
        None => format!("the arguments of {command} are {}", known.join(", ")),
    }
}

#[derive(Deserialize)]
struct Message {
    command: String,
    #[serde(flatten)]
    arguments: Map<String, Value>,
}

/// A VM's reply to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlReply {
    /// Carried out, or begun: the status, for `status` and for a `migrate` that succeeded.
    Ok(Option<Box<Status>>),
    /// Refused or failed, with the reason for the user.
    Error(String),
}

impl ControlReply {
    /// Reads a reply's line.
    ///
    /// # Errors
    /// If it is not a reply.
    pub fn read(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }

    /// Returns the reply's line.
    pub fn write(&self) -> Vec<u8> {
        // Strings and numbers always have a JSON form.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}
