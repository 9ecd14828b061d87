//! What users ask of a disk while its VM runs, and what it shows.

use std::io;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::Info;
use super::throttle::{Limits, MAX_IOPS};

/// What a user asks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRequest {
    /// Give it another size.
    Resize(Resize),
    /// Limit how much the guest may ask of it.
    Throttle(ThrottleChange),
}

impl DiskRequest {
    /// Whether a VM that was saved before it could not continue after it.
    pub fn changes_saved_state(self) -> bool {
        match self {
            Self::Resize(_) => true,
            Self::Throttle(_) => false,
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
    /// The size that a disk of `info` becomes, whose image has `of_image` bytes by now.
    ///
    /// # Errors
    /// If that is none that a disk can have, or less without leave.
    pub fn target(self, info: &Info, of_image: u64) -> io::Result<u64> {
        let (now, block) = (info.size, info.logical_block);
        let size = self.size.unwrap_or(of_image);
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if size == 0 || !size.is_multiple_of(block.into()) {
            return invalid(format!(
                "{size} bytes are no size of a disk: it must be a multiple of {block}"
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

/// Other limits for a disk. None: as before; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleChange {
    /// Operations per second.
    pub iops: Option<u64>,
    /// Bytes per second.
    pub bps: Option<u64>,
}

impl ThrottleChange {
    /// The limits that there are after it, if there were `before`.
    ///
    /// # Errors
    /// If one is too high.
    pub fn target(self, before: Limits) -> io::Result<Limits> {
        if self.iops.is_some_and(|iops| iops > MAX_IOPS.into()) {
            let why = format!("the limit of operations can be at most {MAX_IOPS} per second");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Limits {
            iops: self.iops.map_or(before.iops, NonZeroU64::new),
            bps: self.bps.map_or(before.bps, NonZeroU64::new),
        })
    }
}

/// What a disk shows of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottleReport {
    /// Operations per second; 0: no limit.
    pub iops: u64,
    /// Bytes per second; 0: no limit.
    pub bps: u64,
    /// How often requests have had to wait.
    pub held: u64,
}

/// What a disk shows of itself since its process has started: QEMU's names and meanings (query-blockstats),
/// where QEMU has them. An operation is counted when it ends; one that waits after an error, for the VM to be
/// resumed, has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskReport {
    /// Bytes.
    pub size: u64,
    /// Bytes that were read.
    pub rd_bytes: u64,
    /// Reads.
    pub rd_operations: u64,
    /// The time that all reads were on the host, each from when it was given to the host until its end.
    pub rd_total_time_ns: u64,
    /// Bytes that were written.
    pub wr_bytes: u64,
    /// Writes.
    pub wr_operations: u64,
    /// As of reads.
    pub wr_total_time_ns: u64,
    /// Flushes.
    pub flush_operations: u64,
    /// As of reads.
    pub flush_total_time_ns: u64,
    /// Bytes that were discarded.
    pub unmap_bytes: u64,
    /// Discards.
    pub unmap_operations: u64,
    /// Bytes that were zeroed.
    pub zero_bytes: u64,
    /// Write zeroes.
    pub zero_operations: u64,
    /// Reads that the host refused, and that the guest got an error for.
    pub failed_rd_operations: u64,
    /// Writes, likewise.
    pub failed_wr_operations: u64,
    /// Flushes, likewise.
    pub failed_flush_operations: u64,
    /// Discards, likewise.
    pub failed_unmap_operations: u64,
    /// Write zeroes, likewise.
    pub failed_zero_operations: u64,
    /// Requests that no disk could carry out, e.g. beyond its end.
    pub invalid_operations: u64,
    /// Requests that are on the host now.
    pub in_flight: u64,
    /// An error has paused the VM.
    pub paused: bool,
    /// Its limits.
    pub throttle: ThrottleReport,
}

impl DiskReport {
    /// Requests that the host refused, of all kinds.
    pub fn failed_operations(&self) -> u64 {
        [
            self.failed_rd_operations,
            self.failed_wr_operations,
            self.failed_flush_operations,
            self.failed_unmap_operations,
            self.failed_zero_operations,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}
