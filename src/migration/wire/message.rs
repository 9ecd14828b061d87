//! The bodies of frames that are no memory: JSON, so that a later version can say more and be understood.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Frame, Kind, WireError};
use crate::migration::peer::Process;

/// The most bytes of a promise.
pub const MAX_PROMISE: usize = 4 << 20;
/// The most bytes of a state without RAM: 255 vCPUs with the largest XSAVE area and nested state there is leave room.
pub const MAX_STATE: usize = 256 << 20;
/// The most reasons that are read from a refusal.
const MAX_REASONS: usize = 256;

/// Versions of the protocol, lowest to highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest that is spoken.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// What this program speaks.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

impl Versions {
    /// The newest version that both speak.
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
    /// What the source speaks.
    pub versions: Versions,
    /// What the destination must know, by name.
    pub needs: Vec<String>,
    /// Drawn by the source: which connections belong together.
    pub session: String,
    /// Which connection this is, from 0, the one on which everything but pages goes.
    pub connection: u16,
    /// How many there will be.
    pub connections: u16,
    /// The source's process.
    pub process: Option<Process>,
}

impl Hello {
    /// The protocol's name.
    pub const PROTOCOL: &str = "hypernest-migration";
}

/// The destination's answer to each [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that is spoken from now on.
    pub version: u16,
    /// The destination's process.
    pub process: Option<Process>,
    /// What the destination takes beyond the basics, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takes: Vec<String>,
}

/// The name in [`Welcome::takes`] of a destination that takes [`BootFile`]s.
pub const BOOT_FILES: &str = "boot-files";
/// The most bytes of all boot files, beside the size of the guest's RAM, which they have to fit into.
pub const MAX_BOOT: usize = 4 << 30;

/// Ends the pieces of a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Bytes in all pieces.
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
    /// Each reason, for people.
    pub reasons: Vec<String>,
}

/// Ends the pieces of a file that a reset boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Bytes in all pieces.
    pub len: u64,
}

/// Ends the pieces of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Bytes in all pieces.
    pub len: u64,
    /// Whether the vCPUs ran at the source.
    pub running: bool,
}

/// One end gives up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why, for people.
    pub why: String,
}

/// A message with a JSON body.
pub trait Message: Serialize + DeserializeOwned {
    /// Its kind of frame.
    const KIND: Kind;

    /// Its body. Reasons that are too long are cut.
    fn body(&self) -> Vec<u8> {
        // Strings and numbers always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;
}

impl Message for Welcome {
    const KIND: Kind = Kind::Welcome;
}

impl Message for Promise {
    const KIND: Kind = Kind::Promise;
}

impl Message for Accept {
    const KIND: Kind = Kind::Accept;
}

impl Message for Refuse {
    const KIND: Kind = Kind::Refuse;

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

impl Message for BootFile {
    const KIND: Kind = Kind::BootFile;
}

impl Message for State {
    const KIND: Kind = Kind::State;
}

impl Message for Failed {
    const KIND: Kind = Kind::Failed;

    fn body(&self) -> Vec<u8> {
        let short = Self {
            why: cut(&self.why, 4096),
        };
        serde_json::to_vec(&short).unwrap_or_default()
    }
}

/// Control characters become visible here, so that no JSON escape makes the text much longer, and no terminal obeys it.
fn cut(text: &str, chars: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(chars)
        .collect()
}

impl Frame<'_> {
    /// The body as a message.
    ///
    /// # Errors
    /// If it is another kind of frame, or its body makes no sense. A [`Failed`] that comes instead is the caller's to see.
    pub fn message<M: Message>(&self, wanted: &'static str) -> Result<M, WireError> {
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
