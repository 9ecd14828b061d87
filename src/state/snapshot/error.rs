use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::memory::MemoryError;
use crate::state::StateError;
use crate::units::Gpa;

/// Why a saved VM could not be written or read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A file or directory.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// There is no name to give to the directory.
    #[error("cannot save into {}: it does not name a directory in another one", .path.display())]
    NoName {
        /// What was given.
        path: PathBuf,
    },
    /// What is there is not ours to replace.
    #[error("cannot save into {}: it holds {other}, which is not part of a saved VM; give a directory that does not exist, or holds a saved VM", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// The first thing found in it.
        other: String,
    },
    /// Somebody else is saving there.
    #[error("cannot save into {}: another save into it is under way", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The file system cannot replace a directory in one step.
    #[error("cannot replace the saved VM in {} in one step: its file system cannot exchange two names; give another directory, or remove this one", .path.display())]
    CannotExchange {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The sections.
    #[error(transparent)]
    State(#[from] StateError),
    /// The RAM file has another size than the state says.
    #[error("the saved RAM in {} is cut off or does not belong to its state: it has {found} bytes and should have {expected}", .path.display())]
    RamSize {
        /// The file.
        path: PathBuf,
        /// What the state says.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// The RAM file's content is not what was saved.
    #[error("the saved RAM in {} is damaged within the 2 MiB at guest address {gpa}: their CRC32C is {found:#010x} and should be {expected:#010x}", .path.display())]
    RamDamaged {
        /// The file.
        path: PathBuf,
        /// The first guest address of the damaged chunk.
        gpa: Gpa,
        /// As written down.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// The file of boot files has another size than the state says.
    #[error("the saved boot files in {} are cut off or do not belong to their state: {found} bytes instead of {expected}", .path.display())]
    BootSize {
        /// The file.
        path: PathBuf,
        /// By the state.
        expected: u64,
        /// Of the file.
        found: u64,
    },
    /// A boot file's content is not what was saved.
    #[error("the saved boot files in {} are damaged: the CRC32C of one is {found:#010x} and should be {expected:#010x}", .path.display())]
    BootDamaged {
        /// The file.
        path: PathBuf,
        /// By the state.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// Guest RAM.
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
