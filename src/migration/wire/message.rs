//! The bodies of frames other than memory: JSON, so that a later version can add fields.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Frame, FrameKind, WireError};
use crate::migration::peer::Process;

/// The maximum size of a promise, in bytes.
pub const MAX_PROMISE: usize = 4 << 20;
/// The maximum size of a state without RAM, in bytes: enough for 255 vCPUs with the largest XSAVE area and
/// nested state.
pub const MAX_STATE: usize = 256 << 20;
/// The maximum number of reasons read from a refusal.
const MAX_REASONS: usize = 256;

/// Versions of the protocol, lowest to highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest supported version.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// The protocol versions that this program supports.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

impl Versions {
    /// Returns the newest version that both support.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min && newest >= other.min).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.max),
            false => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

/// The first frame of each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`Hello::PROTOCOL`].
    pub protocol: String,
    /// The versions that the source supports.
    pub versions: Versions,
    /// The features that the destination must support, by name.
    pub needs: Vec<String>,
    /// A random name chosen by the source; equal on all connections of a migration.
    pub session: String,
    /// The number of this connection, from 0; connection 0 carries everything but pages.
    pub connection: u16,
    /// The number of connections of this migration.
    pub connections: u16,
    /// The source's process.
    pub process: Option<Process>,
}

impl Hello {
    /// The protocol's name.
    pub const PROTOCOL: &str = "hypernest-migration";
}

/// The destination's reply to each [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version used from now on.
    pub version: u16,
    /// The destination's process.
    pub process: Option<Process>,
    /// Optional features that the destination accepts, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takes: Vec<String>,
}

/// The name in [`Welcome::takes`] of a destination that takes [`BootFile`]s.
pub const BOOT_FILES: &str = "boot-files";
/// The maximum size of all boot files, in bytes; they must also fit the size of the guest's RAM.
pub const MAX_BOOT: usize = 4 << 30;

/// Ends the parts of a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseMessage {
    /// The total size of the parts, in bytes.
    pub len: u64,
    /// The guest's RAM: (first address, bytes).
    pub ram: Vec<(u64, u64)>,
}

/// The destination can keep the promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {}

/// The destination cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// The reasons, for users.
    pub reasons: Vec<String>,
}

/// Ends the parts of a file that a reset boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// The total size of the parts, in bytes.
    pub len: u64,
}

/// Ends the parts of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMessage {
    /// The total size of the parts, in bytes.
    pub len: u64,
    /// Whether the vCPUs ran at the source.
    pub running: bool,
}

/// One end aborts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The reason, for users.
    pub why: String,
}

/// A message with a JSON body.
pub trait WireMessage: Serialize + DeserializeOwned {
    /// Its kind of frame.
    const KIND: FrameKind;

    /// Its body. Reasons that are too long are cut.
    fn body(&self) -> Vec<u8> {
        // Strings and numbers always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl WireMessage for Hello {
    const KIND: FrameKind = FrameKind::Hello;
}

impl WireMessage for Welcome {
    const KIND: FrameKind = FrameKind::Welcome;
}

impl WireMessage for PromiseMessage {
    const KIND: FrameKind = FrameKind::Promise;
}

impl WireMessage for Accept {
    const KIND: FrameKind = FrameKind::Accept;
}

impl WireMessage for Refuse {
    const KIND: FrameKind = FrameKind::Refuse;

    fn body(&self) -> Vec<u8> {
        let short = Self {
            reasons: self
                .reasons
                .iter()
                .take(MAX_REASONS)
                .map(|reason| cut(reason, 200))
                .collect(),
        };
        serde_json::to_vec(&short).unwrap_or_default()
    }
}

impl WireMessage for BootFile {
    const KIND: FrameKind = FrameKind::BootFile;
}

impl WireMessage for StateMessage {
    const KIND: FrameKind = FrameKind::State;
}

impl WireMessage for Failed {
    const KIND: FrameKind = FrameKind::Failed;

    fn body(&self) -> Vec<u8> {
        let short = Self {
            why: cut(&self.why, 4096),
        };
        serde_json::to_vec(&short).unwrap_or_default()
    }
}

/// Escapes control characters, so that JSON escapes do not make the text much longer, and terminals do not
/// interpret it.
fn cut(text: &str, chars: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(chars)
        .collect()
}

impl Frame<'_> {
    /// Parses the body as a message.
    ///
    /// # Errors
    /// If the frame is of another kind, or its body is invalid. The caller checks for [`Failed`] first.
    pub fn message<M: WireMessage>(&self, wanted: &'static str) -> Result<M, WireError> {
        if self.kind != M::KIND {
            return Err(WireError::OutOfTurn {
                got: self.kind,
                wanted,
            });
        }
        serde_json::from_slice(self.body).map_err(|e| WireError::Nonsense {
            kind: self.kind,
            why: e.to_string(),
        })
    }
}
