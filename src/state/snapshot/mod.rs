//! A saved VM on disk: a directory with two files.
//!
//! - `state`: the [`Sections`], among them `ram`, which says where the pieces of RAM lie and holds a checksum per 2 MiB
//! - `ram`: the pieces of RAM one after the other, as they are; pages of zeroes are holes
//!
//! [`Saving`] writes it beside its place, under a hidden name, brings it to the disk and then puts it in place in one step: a
//! crash at any moment leaves what was there before, or nothing. [`Snapshot`] reads it.

mod error;
mod image;
mod write;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

pub use error::SnapshotError;
pub use image::{CHUNK, RamImage, RamIndex};
pub use write::{Saving, Step};

use super::Sections;

/// The file with the sections.
pub const STATE_FILE: &str = "state";

/// The file with the RAM.
pub const RAM_FILE: &str = "ram";

/// The section that describes the RAM file.
pub const RAM_SECTION: &str = "ram";

/// The version of that section that is written.
pub const RAM_VERSION: u32 = 1;

/// No state file is larger: 4 TiB of RAM have 8 MiB of checksums, and 255 vCPUs a few more.
const STATE_LIMIT: u64 = 256 << 20;

/// A saved VM that is opened, its state checked, its RAM not read.
#[derive(Debug)]
pub struct Snapshot {
    sections: Sections,
    ram: RamImage,
}

impl Snapshot {
    /// Opens the one in `dir`.
    ///
    /// # Errors
    /// If it is not there, not whole, or damaged in its state; RAM is checked by its size only ([`RamImage::verify`]).
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let read = |path: PathBuf| {
            move |source| SnapshotError::File {
                doing: "read",
                path,
                source,
            }
        };
        // Both files by way of one directory: that at `dir` may be replaced between the two.
        let directory = File::open(dir).map_err(read(dir.to_owned()))?;
        let open = |name: &str| {
            // Not to wait for a writer, should it be a pipe.
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            openat(&directory, name, flags, Mode::empty())
                .map(File::from)
                .map_err(|e| read(dir.join(name))(e.into()))
        };
        let state = open(STATE_FILE)?;
        let mut sections = Sections::decode(BufReader::new(state), STATE_LIMIT)?;
        let index = RamIndex::load(&sections.take(RAM_SECTION)?)?;
        let ram = RamImage::new(open(RAM_FILE)?, dir.join(RAM_FILE), index)?;
        Ok(Self { sections, ram })
    }

    /// All sections but that of the RAM.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The RAM.
    pub fn ram(&self) -> &RamImage {
        &self.ram
    }

    /// Both.
    pub fn into_parts(self) -> (Sections, RamImage) {
        (self.sections, self.ram)
    }
}

#[cfg(test)]
mod tests;
