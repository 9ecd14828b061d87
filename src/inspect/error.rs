use hypernest_nested::nested_state::{Malformed, Refused};
use thiserror::Error;

use crate::boot::BootError;
use crate::machine::TransferError;
use crate::state::StateError;
use crate::state::snapshot::SnapshotError;
use crate::units::Gpa;

/// What is wrong with a saved VM.
#[derive(Debug, Error)]
pub enum InspectError {
    /// Its files.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The boot files are not those of the configuration.
    #[error("section boot of the saved state does not fit section config")]
    Boot(#[source] BootError),
    /// A section.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration, the promise, a device.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The configuration has no form in a configuration file.
    #[error("section config of the saved state cannot be shown")]
    Config(#[source] Box<toml::de::Error>),
    /// The RAM is not what the configuration says.
    #[error(
        "section ram of the saved state does not fit section config: the pieces of RAM are {found:?}, and \
         should be {expected:?}"
    )]
    Ram {
        /// Of the RAM.
        found: Vec<(Gpa, u64)>,
        /// By the configuration.
        expected: Vec<(Gpa, u64)>,
    },
    /// Nested state that is none.
    #[error("section {section} of the saved state: the nested state cannot be")]
    Nested {
        /// The section.
        section: String,
        /// Why not.
        #[source]
        source: Malformed,
    },
    /// Nested state that the vCPU cannot have.
    #[error("section {section} of the saved state: the nested state does not fit the vCPU")]
    Refused {
        /// The section.
        section: String,
        /// Why not.
        #[source]
        source: Refused,
    },
}
