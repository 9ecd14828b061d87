//! The source of time for devices: the host's clocks, or a manual one in tests.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The two clocks of devices.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;

    /// UTC since 1970-01-01; may step.
    fn wall(&self) -> Duration;
}

/// The host's clocks. The monotonic one can continue from the value of a saved VM's.
#[derive(Debug)]
pub struct HostClock {
    created: Instant,
    /// In nanoseconds; its value when it was created.
    begin: AtomicU64,
}

impl HostClock {
    /// The monotonic clock starts at zero now.
    pub fn new() -> Self {
        Self {
            created: Instant::now(),
            begin: AtomicU64::new(0),
        }
    }

    /// Sets the monotonic clock to `now`.
    pub fn go_on_from(&self, now: Duration) {
        let begin = now.saturating_sub(self.created.elapsed());
        let begin = u64::try_from(begin.as_nanos()).unwrap_or(u64::MAX);
        self.begin.store(begin, Ordering::Relaxed);
    }

    /// The monotonic clock in nanoseconds.
    pub fn nanos(&self) -> u64 {
        u64::try_from(self.monotonic().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.begin.load(Ordering::Relaxed))
            .saturating_add(self.created.elapsed())
    }

    fn wall(&self) -> Duration {
        // A host clock before 1970 is not set: the epoch is a reasonable substitute.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// A device with work at a certain time, not only at the guest's accesses.
///
/// A guest access that makes the time earlier must be followed by
/// [`Waker::wake`](super::io_thread::Waker::wake).
pub trait Timed: Send {
    /// The time until [`Timed::tick`] has work; `None` while nothing is planned.
    fn until_due(&self) -> Option<Duration>;

    /// Does the work that is due. Called at any time, also too early.
    fn tick(&mut self);
}
