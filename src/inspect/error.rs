use hypernest_nested::nested_state::{Malformed, Refused};
use thiserror::Error;

use crate::boot::BootError;
use crate::machine::TransferError;
use crate::state::StateError;
use crate::state::snapshot::SnapshotError;
use crate::units::Gpa;

/// An invalid saved VM.
#[derive(Debug, Error)]
pub enum InspectError {
    /// Its files cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The boot files differ from those of the configuration.
    #[error("section boot of the saved state does not fit section config")]
    Boot(#[source] BootError),
    /// A section is invalid.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration, the promise or a device is invalid.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The configuration has no form in a configuration file.
    #[error("section config of the saved state cannot be shown")]
    Config(#[source] Box<toml::de::Error>),
    /// The regions of RAM differ from the configuration.
    #[error(
        "section ram of the saved state does not fit section config: the regions of RAM are {found:?}, \
         and should be {expected:?}"
    )]
    Ram {
        /// In section `ram`.
        found: Vec<(Gpa, u64)>,
        /// From the configuration.
        expected: Vec<(Gpa, u64)>,
    },
    /// The nested state cannot be decoded.
    #[error("section {section} of the saved state: the nested state cannot be")]
    Nested {
        /// The section.
        section: String,
        /// The reason.
        #[source]
        source: Malformed,
    },
    /// The nested state does not fit the vCPU.
    #[error("section {section} of the saved state: the nested state does not fit the vCPU")]
    Refused {
        /// The section.
        section: String,
        /// The reason.
        #[source]
        source: Refused,
    },
}
