//! What users ask of a disk while its VM runs, and what it shows.

use std::io;

use serde::{Deserialize, Serialize};

use super::SECTOR;

/// What a user asks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRequest {
    /// Give it another size.
    Resize(Resize),
}

impl DiskRequest {
    /// Whether a VM that was saved before it could not continue after it.
    pub fn changes_saved_state(self) -> bool {
        match self {
            Self::Resize(_) => true,
        }
    }
}

/// Another size for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// Bytes; none: those that the image has by now.
    pub size: Option<u64>,
    /// It may be less, and what is beyond is lost.
    pub shrink: bool,
}

impl Resize {
    /// The size that a disk of `now` bytes becomes, whose image has `of_image` by now.
    ///
    /// # Errors
    /// If that is none that a disk can have, or less without leave.
    pub fn target(self, now: u64, of_image: u64) -> io::Result<u64> {
        let size = self.size.unwrap_or(of_image);
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return invalid(format!(
                "{size} bytes are no size of a disk: it must be a multiple of {SECTOR}"
            ));
        }
        // What the kernel takes for a file (MAX_LFS_FILESIZE).
        if size > i64::MAX.unsigned_abs() {
            return invalid(format!("{size} bytes are too many"));
        }
        if size < now && !self.shrink {
            return invalid(format!(
                "{size} bytes are less than the {now} that it has, and what is beyond them would be lost: \
                 shrink its file systems and partitions in the guest first, and then say so by --shrink \
                 (`\"shrink\":true`)"
            ));
        }
        Ok(size)
    }
}

/// What a disk shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Bytes.
    pub size: u64,
}
