//! What a disk shows of itself: written by its controller, read by others at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::DiskReport;

/// The values. Its controller alone writes them, under its own lock.
#[derive(Debug, Default)]
pub struct DiskCounters {
    size: AtomicU64,
}

impl DiskCounters {
    /// The disk has so many bytes.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Relaxed);
    }

    /// The values now.
    pub fn report(&self) -> DiskReport {
        DiskReport {
            size: self.size.load(Relaxed),
        }
    }
}
