use std::io;

use thiserror::Error;

/// Why state could not be written or read.
#[derive(Debug, Error)]
pub enum StateError {
    /// The data does not start with the magic of a state file.
    #[error(
        "this is not the saved state of a VM: it does not begin with the state file's signature"
    )]
    NotState,
    /// The format is not the one that this program reads.
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
        /// The section that is cut off; `manifest` is the file's own table.
        section: String,
        /// The minimum number of missing bytes.
        missing: u64,
    },
    /// The checksum differs.
    #[error(
        "section {section} of the saved state is damaged: its CRC32C is {found:#010x} instead of \
         {expected:#010x}"
    )]
    Damaged {
        /// The section.
        section: String,
        /// From the manifest.
        expected: u32,
        /// Computed.
        found: u32,
    },
    /// More bytes follow the last section.
    #[error("the saved state has data after its last section, {section}")]
    Trailing {
        /// The last section.
        section: String,
    },
    /// A section exceeds the reader's limit.
    #[error("section {section} of the saved state takes it beyond the limit of {limit} bytes")]
    TooLarge {
        /// The section.
        section: String,
        /// The limit for the whole state.
        limit: u64,
    },
    /// Two sections have the same name.
    #[error("section {section} occurs twice in the saved state")]
    Duplicate {
        /// The name.
        section: String,
    },
    /// A required section is missing.
    #[error("section {section} is missing in the saved state")]
    Missing {
        /// The name.
        section: String,
    },
    /// Sections that this version does not support.
    #[error("the saved state has sections that this version of hypernest does not support: \
        {}", .sections.join(", "))]
    Unknown {
        /// Their names.
        sections: Vec<String>,
    },
    /// A section has a version that this program does not read.
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
    /// An item of a section has an invalid value.
    #[error("section {section} of the saved state: {item}: {why}")]
    Item {
        /// The section.
        section: String,
        /// The item.
        item: String,
        /// The reason.
        why: String,
    },
    /// A section is not valid JSON, or has no JSON form.
    #[error("section {section} of the saved state is not the expected JSON")]
    Json {
        /// The section.
        section: String,
        /// The item and the reason.
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
        /// The system's error.
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
