//! The format of a VM's saved state: named sections, each with a version and a checksum.
//!
//! ```text
//!  state file = magic, format version ─► manifest: who wrote it, and every section's name, version, length, CRC32C
//!               section bodies, one after the other, in the manifest's order
//! ```
//!
//! All numbers are little-endian. The input is hostile: every error names the section in which it was
//! found, and nothing is allocated for data that the file does not contain. A reader of a section accepts
//! its current and its previous version ([`Section::decoder`]); a section that was not read makes
//! [`Sections::finish`] fail, unless its writer marked it as optional.

mod body;
mod error;
mod sections;
pub mod snapshot;

pub use body::{Decoder, Encoder};
pub use error::StateError;
pub use sections::{FORMAT_VERSION, Section, Sections};
