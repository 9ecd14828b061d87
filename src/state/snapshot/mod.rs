//! A saved VM on disk: a directory with two or three files.
//!
//! - `state`: the [`Sections`]; among them `ram` with the RAM regions and a checksum per 2 MiB
//! - `ram`: the contents of the RAM regions in sequence, uncompressed; pages of zeroes are holes
//! - `boot`: the kernel, initrd and modules that a reset of the restored VM boots; the section `boot` has
//!   their lengths and checksums. A VM that was restored without them is saved without them
//!
//! None of them may be a symbolic link: a saved VM must not select files of the host.
//!
//! [`Saving`] writes it to a hidden directory next to its destination, syncs it to the disk and then renames
//! it in one step: a crash at any moment leaves the previous content or nothing. [`Snapshot`] reads it.

mod error;
mod files;
mod image;
mod write;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

pub use error::SnapshotError;
pub use files::{SavedFile, SavedFiles};
pub use image::{CHUNK, RamImage, RamIndex};
pub use write::{SaveStep, Saving};

use super::Sections;

/// The file with the sections.
pub const STATE_FILE: &str = "state";

/// The file with the RAM.
pub const RAM_FILE: &str = "ram";

/// The file with the kernel, the initrd and the modules.
pub const BOOT_FILE: &str = "boot";

/// The section that describes the file of boot files.
pub const BOOT_SECTION: &str = "boot";

/// The version of that section that is written.
pub const BOOT_VERSION: u32 = 1;

/// The section that describes the RAM file.
pub const RAM_SECTION: &str = "ram";

/// The version of that section that is written.
pub const RAM_VERSION: u32 = 1;

/// No state file is larger: 4 TiB of RAM have 8 MiB of checksums, and 255 vCPUs a few more.
const STATE_LIMIT: u64 = 256 << 20;

/// A saved VM that is open: its state is checked, its RAM not read.
#[derive(Debug)]
pub struct Snapshot {
    sections: Sections,
    ram: RamImage,
    boot: Option<SavedFiles>,
}

impl Snapshot {
    /// Opens the saved VM in `dir`.
    ///
    /// # Errors
    /// If it is missing or incomplete, or its state is damaged; RAM is checked by its size only
    /// ([`RamImage::verify`]).
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        // Open all files through one directory: the one at `dir` may be replaced meanwhile.
        let directory = File::open(dir).map_err(error::read_failed(dir))?;
        let open = |name: &str| {
            // O_NONBLOCK, so that a pipe in place of a file does not block until a writer opens it.
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
            let failed = error::read_failed(&dir.join(name));
            match openat(&directory, name, flags, Mode::empty()) {
                Ok(file) => Ok(File::from(file)),
                Err(Errno::ELOOP) => Err(failed(io::Error::other(
                    "it is a symbolic link, and a saved VM consists of regular files",
                ))),
                Err(errno) => Err(failed(errno.into())),
            }
        };
        if !directory
            .metadata()
            .map_err(error::read_failed(dir))?
            .is_dir()
        {
            return Err(SnapshotError::IsFile {
                path: dir.to_owned(),
            });
        }
        let state = open(STATE_FILE).map_err(|e| match e {
            SnapshotError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                SnapshotError::NotSaved {
                    path: dir.to_owned(),
                    missing: STATE_FILE,
                }
            }
            other => other,
        })?;
        let mut sections = Sections::decode(BufReader::new(state), STATE_LIMIT)?;
        let index = RamIndex::load(&sections.take(RAM_SECTION)?)?;
        let ram = RamImage::new(open(RAM_FILE)?, dir.join(RAM_FILE), index)?;
        let boot = match sections.take_optional(BOOT_SECTION) {
            Some(section) => {
                let entries = files::load(&section)?;
                let file = open(BOOT_FILE)?;
                Some(SavedFiles::new(file, dir.join(BOOT_FILE), entries)?)
            }
            None => None,
        };
        Ok(Self {
            sections,
            ram,
            boot,
        })
    }

    /// All sections but those of the RAM and of the boot files.
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// The RAM.
    pub fn ram(&self) -> &RamImage {
        &self.ram
    }

    /// The guest's boot files, if they were saved.
    pub fn boot(&self) -> Option<&SavedFiles> {
        self.boot.as_ref()
    }

    /// The sections and the RAM.
    pub fn into_parts(self) -> (Sections, RamImage) {
        (self.sections, self.ram)
    }
}

#[cfg(test)]
mod tests;
