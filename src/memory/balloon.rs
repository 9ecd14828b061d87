//! What users see and ask of a balloon while the VM runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// What a user asks of a balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonRequest {
    /// The guest is to have so many bytes of its RAM.
    Target(u64),
}

/// The names of the guest's statistics: QEMU's, by their tags (virtio 1.2, 5.5.6.4; those from 10 on are in
/// Linux' include/uapi/linux/virtio_balloon.h).
pub const STATISTICS: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];

/// What a balloon shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BalloonReport {
    /// Bytes of RAM that the guest says it has, without what is in the balloon.
    pub actual: u64,
    /// Bytes that it is to have.
    pub target: u64,
    /// Bytes that were given back to the host by inflating the balloon or by reports, since it was made. The
    /// guest may have taken them again.
    #[serde(default)]
    pub released: u64,
    /// The guest's statistics, those that it has sent.
    #[serde(default)]
    pub stats: BTreeMap<String, u64>,
    /// When it sent them, in seconds since 1970; 0: never.
    #[serde(default)]
    pub last_update: u64,
}

/// No value: QEMU's, too.
const NONE: u64 = u64::MAX;

/// The values. The balloon alone writes them, under its own lock; others read them at any time.
#[derive(Debug)]
pub struct BalloonCounters {
    actual: AtomicU64,
    target: AtomicU64,
    released: AtomicU64,
    stats: [AtomicU64; STATISTICS.len()],
    updated: AtomicU64,
}

impl BalloonCounters {
    /// Of a guest that has all of its `ram`.
    pub fn new(ram: u64) -> Self {
        Self {
            actual: AtomicU64::new(ram),
            target: AtomicU64::new(ram),
            released: AtomicU64::new(0),
            stats: std::array::from_fn(|_| AtomicU64::new(NONE)),
            updated: AtomicU64::new(0),
        }
    }

    /// The guest has so many bytes.
    pub fn set_actual(&self, bytes: u64) {
        self.actual.store(bytes, Relaxed);
    }

    /// It is to have so many.
    pub fn set_target(&self, bytes: u64) {
        self.target.store(bytes, Relaxed);
    }

    /// So many were given back.
    pub fn add_released(&self, bytes: u64) {
        self.released.fetch_add(bytes, Relaxed);
    }

    /// The guest has sent statistics `now`, in seconds since 1970. Those of unknown tags are left out.
    pub fn update(&self, stats: impl Iterator<Item = (u16, u64)>, now: u64) {
        self.clear();
        for (tag, value) in stats {
            if let Some(stat) = self.stats.get(usize::from(tag)) {
                stat.store(value, Relaxed);
            }
        }
        self.updated.store(now, Relaxed);
    }

    /// There are no statistics any more: the guest is another.
    pub fn clear(&self) {
        self.stats.iter().for_each(|stat| stat.store(NONE, Relaxed));
        self.updated.store(0, Relaxed);
    }

    /// The values now. They need not be of one instant.
    pub fn report(&self) -> BalloonReport {
        let stats = STATISTICS.iter().zip(&self.stats);
        let stats = stats.map(|(name, value)| ((*name).to_owned(), value.load(Relaxed)));
        BalloonReport {
            actual: self.actual.load(Relaxed),
            target: self.target.load(Relaxed),
            released: self.released.load(Relaxed),
            stats: stats.filter(|(_, value)| *value != NONE).collect(),
            last_update: self.updated.load(Relaxed),
        }
    }
}
