use std::io;

use thiserror::Error;

/// Why state could not be written or read.
#[derive(Debug, Error)]
pub enum StateError {
    /// The bytes do not begin as a state file does.
    #[error(
        "this is not the saved state of a VM: it does not begin with the state file's signature"
    )]
    NotState,
    /// Written in another format than this program reads.
    #[error(
        "the saved state has format version {found}; this version of hypernest reads {}",
        super::FORMAT_VERSION
    )]
    Format {
        /// The version that the file claims.
        found: u32,
    },
    /// The file ends too early.
    #[error("section {section} of the saved state is cut off: {missing} more bytes should follow")]
    Truncated {
        /// The section in which it ends; `manifest` is the file's own table.
        section: String,
        /// How many bytes are missing at least.
        missing: u64,
    },
    /// The checksum does not fit.
    #[error(
        "section {section} of the saved state is damaged: its CRC32C is {found:#010x} and should be {expected:#010x}"
    )]
    Damaged {
        /// The section.
        section: String,
        /// As written down.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// More bytes follow the last section.
    #[error("the saved state goes on after its last section, {section}")]
    Trailing {
        /// The last section.
        section: String,
    },
    /// A section is larger than the reader is ready to take.
    #[error("section {section} of the saved state takes it beyond the limit of {limit} bytes")]
    TooLarge {
        /// The section.
        section: String,
        /// The limit for the whole state.
        limit: u64,
    },
    /// Two sections of one name.
    #[error("section {section} stands twice in the saved state")]
    Duplicate {
        /// The name.
        section: String,
    },
    /// A section that must be there is not.
    #[error("section {section} is missing in the saved state")]
    Missing {
        /// The name.
        section: String,
    },
    /// Sections that nobody knows.
    #[error("the saved state has sections that this version of hypernest does not know: {}", .sections.join(", "))]
    Unknown {
        /// Their names.
        sections: Vec<String>,
    },
    /// A section of a version that is not read.
    #[error(
        "section {section} of the saved state has version {found}; this version of hypernest reads {}",
        readable(*.current)
    )]
    Version {
        /// The section.
        section: String,
        /// Its version.
        found: u32,
        /// The version that is written now.
        current: u32,
    },
    /// An item of a section is not what it should be.
    #[error("section {section} of the saved state: {item}: {why}")]
    Item {
        /// The section.
        section: String,
        /// The item.
        item: String,
        /// What is wrong with it.
        why: String,
    },
    /// A section in JSON cannot be understood or written.
    #[error("section {section} of the saved state is not the JSON that it should be")]
    Json {
        /// The section.
        section: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Reading or writing failed.
    #[error("cannot {doing} section {section} of the saved state")]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The section.
        section: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn readable(current: u32) -> String {
    match current {
        0 | 1 => current.to_string(),
        _ => format!("{} and {current}", current - 1),
    }
}
