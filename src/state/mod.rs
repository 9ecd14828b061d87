//! The form in which a VM's state is written down: named sections, each with a version and a checksum.
//!
//! ```text
//!  state file = magic, format version ─► manifest: who wrote it, and every section's name, version, length, CRC32C
//!               section bodies, one after the other, in the manifest's order
//! ```
//!
//! All numbers are little-endian. What is read is hostile: every error names the section it was found in, and nothing is
//! allocated for bytes that are not there. A reader of a section takes its current and its previous version
//! ([`Section::decoder`]); a section that nobody took makes [`Sections::finish`] fail, unless its writer marked it as one that
//! a reader may ignore.

mod body;
mod error;
mod sections;
pub mod snapshot;

pub use body::{Decoder, Encoder};
pub use error::StateError;
pub use sections::{FORMAT_VERSION, Section, Sections};
