use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::memory::MemoryError;
use crate::state::StateError;
use crate::units::Gpa;

/// Why a saved VM could not be written or read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// An operation on a file or directory failed.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The path has no name for the directory.
    #[error("cannot save into {}: it does not name a directory in another one", .path.display())]
    NoName {
        /// The given path.
        path: PathBuf,
    },
    /// The directory contains foreign files, which must not be replaced.
    #[error("cannot save into {}: it contains {other}, which is not part of a saved VM; give a directory \
        that does not exist, or contains a saved VM", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// The first foreign file that was found.
        other: String,
    },
    /// A file has the name of the directory.
    #[error("cannot save into {}: it is a file; give a directory that does not exist, or contains a saved \
        VM", .path.display())]
    SaveToFile {
        /// The file.
        path: PathBuf,
    },
    /// A file has the name of the directory.
    #[error("{} is a file, and a saved VM is a directory: give the one that `hypernest save` \
        wrote", .path.display())]
    IsFile {
        /// The file.
        path: PathBuf,
    },
    /// The directory contains no saved VM.
    #[error("{} contains no saved VM (no file `{missing}`): give the directory that `hypernest save` \
        wrote", .path.display())]
    NotSaved {
        /// The directory.
        path: PathBuf,
        /// The name of the missing file.
        missing: &'static str,
    },
    /// Another process is saving into it.
    #[error("cannot save into {}: another save into it is under way", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The file system cannot replace a directory atomically.
    #[error("cannot replace the saved VM in {} in one step: its file system cannot exchange two names; give \
        another directory, or remove this one", .path.display())]
    CannotExchange {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The sections are invalid.
    #[error(transparent)]
    State(#[from] StateError),
    /// The size of the RAM file differs from the state.
    #[error("the saved RAM in {} is cut off or does not belong to its state: it has {found} bytes instead \
        of {expected}", .path.display())]
    RamSize {
        /// The file.
        path: PathBuf,
        /// The size in the state.
        expected: u64,
        /// The size of the file.
        found: u64,
    },
    /// The content of the RAM file differs from its checksum.
    #[error("the saved RAM in {} is damaged within the 2 MiB at guest address {gpa}: their CRC32C is \
        {found:#010x} instead of {expected:#010x}", .path.display())]
    RamDamaged {
        /// The file.
        path: PathBuf,
        /// The first guest address of the damaged chunk.
        gpa: Gpa,
        /// From the state.
        expected: u32,
        /// Computed.
        found: u32,
    },
    /// The size of the file of boot files differs from the state.
    #[error("the saved boot files in {} are cut off or do not belong to their state: {found} bytes instead \
        of {expected}", .path.display())]
    BootSize {
        /// The file.
        path: PathBuf,
        /// From the state.
        expected: u64,
        /// The size of the file.
        found: u64,
    },
    /// The content of a boot file differs from its checksum.
    #[error("the saved boot files in {} are damaged: the CRC32C of one is {found:#010x} instead of \
        {expected:#010x}", .path.display())]
    BootDamaged {
        /// The file.
        path: PathBuf,
        /// From the state.
        expected: u32,
        /// Computed.
        found: u32,
    },
    /// Guest RAM could not be created.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The error of a file that cannot be read.
pub(super) fn read_failed(path: &Path) -> impl Fn(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |source| SnapshotError::File {
        doing: "read",
        path: path.clone(),
        source,
    }
}
