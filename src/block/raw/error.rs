//! What goes wrong with a raw image.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

use crate::block::lock::Conflict;

/// What was to be done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A read of the guest.
    Read,
    /// A write.
    Write,
    /// A discard.
    Discard,
    /// A write of zeroes.
    Zero,
    /// A change of its size.
    Resize,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write to",
            Self::Discard => "discard blocks of",
            Self::Zero => "write zeroes to",
            Self::Resize => "change the size of",
        })
    }
}

/// What helps if blocks of so many bytes are too small.
fn larger_blocks(block: u32) -> &'static str {
    match block {
        ..4096 => ", or for a new guest logical_block_size=4096",
        _ => "",
    }
}

/// Why a disk's image cannot be used, or a request failed.
#[derive(Debug, Error)]
pub enum RawError {
    /// There is no file.
    #[error("there is no disk image {0}: make one, e.g. by `truncate -s 20G {0}`", .path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// The file must not be written to.
    #[error("cannot open the disk image {} for writing: let this user write to it, or make the disk \
        read-only", .path.display())]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be opened, or its first sector cannot be read.
    #[error("cannot open the disk image {}", .path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe, a character device.
    #[error("the disk image {} is {is}: give a regular file or a block device", .path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
        /// What it is.
        is: &'static str,
    },
    /// There are no blocks.
    #[error("the disk image {0} is empty: give it a size, e.g. by `truncate -s 20G {0}`", .path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// The image is not raw.
    #[error("the disk image {0} is a {format} image and not a raw one: convert it by `qemu-img convert -O \
        raw {0} disk.raw`, or say that it is a raw disk with this content by format=raw", .path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What it begins as.
        format: &'static str,
    },
    /// The last block is not whole.
    #[error("the disk image {0} has {size} bytes, which is no multiple of {block}: if it is a raw image, \
        extend it by `truncate -s %{block} {0}`", .path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes of a logical block.
        block: u32,
    },
    /// The file system has no `O_DIRECT`.
    #[error("the file system of the disk image {} has no direct I/O (O_DIRECT): use cache=writeback",
        .path.display())]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// Direct I/O has a larger unit than the guest.
    #[error("direct I/O to the disk image {} needs larger units than the guest's {block} bytes: use \
        cache=writeback{}", .path.display(), larger_blocks(*.block))]
    Alignment {
        /// The image.
        path: PathBuf,
        /// Bytes of a logical block.
        block: u32,
    },
    /// There are no more threads or descriptors.
    #[error("cannot start the threads of the disk image {}", .path.display())]
    Threads {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process uses the image.
    #[error("another process (QEMU, hypernest, ...) has {} {conflict}: end that process, or use a copy of \
        the image", .path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// For what.
        conflict: Conflict,
    },
    /// The file system has no locks.
    #[error("cannot lock the disk image {} against use by other processes: keep it on a file system with \
        locks (F_OFD_SETLK)", .path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The controller asks for blocks that the disk does not have.
    #[error("a request for {len} bytes at {offset} is not of whole sectors within the disk {}",
        .path.display())]
    Outside {
        /// The image.
        path: PathBuf,
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The disk is read-only.
    #[error("cannot {doing} {}: the disk is read-only", .path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        doing: Doing,
    },
    /// The kernel refuses, or the host's disk fails.
    #[error("cannot {doing} {}", .path.display())]
    Request {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        doing: Doing,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room for what the guest writes.
    #[error("cannot {doing} {}: there is no space left for it; free some on its file system, or raise the \
        quota", .path.display())]
    Full {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        doing: Doing,
    },
    /// The file has been truncated.
    #[error("cannot read {}: it is now shorter than the disk of {size} bytes; no process may change its size \
        while a VM uses it", .path.display())]
    Truncated {
        /// The image.
        path: PathBuf,
        /// Bytes when it was opened.
        size: u64,
    },
    /// The size of a block device is not ours.
    #[error("{} is a block device of {size} bytes: change its size by its own means (e.g. lvextend), and \
        then let the disk take it over, by a resize without a size", .path.display())]
    Device {
        /// The image.
        path: PathBuf,
        /// Bytes that it has.
        size: u64,
    },
    /// Completed writes may be lost.
    #[error("cannot flush {}: earlier writes may be lost, and no more are accepted; check the host's disk \
        (see dmesg) and the image before it is opened again", .path.display())]
    Flush {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A flush failed before. The kernel reports lost writes only once (fsync(2)).
    #[error("{} accepts no writes since a flush failed: check the host's disk (see dmesg) and the image \
        before it is opened again", .path.display())]
    Failed {
        /// The image.
        path: PathBuf,
    },
}

impl RawError {
    /// `source` happened during a request.
    pub(super) fn request(path: PathBuf, doing: Doing, source: io::Error) -> Self {
        let full = matches!(
            source.kind(),
            // Quotas, and a transfer that the kernel ends early without an error.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero
        );
        match full {
            true => Self::Full { path, doing },
            false => Self::Request {
                path,
                doing,
                source,
            },
        }
    }

    /// The image at `path` cannot be opened.
    pub(super) fn opening(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Open { path, source },
        }
    }

    /// The kind of error that a controller sees.
    fn kind(&self) -> io::ErrorKind {
        use io::ErrorKind::*;
        match self {
            Self::Missing { .. } => NotFound,
            Self::NotADisk { .. }
            | Self::Empty { .. }
            | Self::Size { .. }
            | Self::Format { .. } => InvalidData,
            Self::NoDirect { .. } | Self::Alignment { .. } | Self::Device { .. } => Unsupported,
            Self::InUse { .. } => ResourceBusy,
            Self::Outside { .. } => InvalidInput,
            Self::ReadOnly { .. } => ReadOnlyFilesystem,
            Self::Full { .. } => StorageFull,
            Self::Truncated { .. } => UnexpectedEof,
            // Whatever the reason was, trying again does not help.
            Self::Flush { .. } | Self::Failed { .. } => Other,
            Self::NotWritable { source, .. }
            | Self::Open { source, .. }
            | Self::Threads { source, .. }
            | Self::Lock { source, .. }
            | Self::Request { source, .. } => source.kind(),
        }
    }
}

impl From<RawError> for io::Error {
    fn from(error: RawError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Whether the kernel refuses by `errno`.
pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
