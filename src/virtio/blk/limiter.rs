//! The limits of the device. What they hold back stays in the rings: it has not begun, so nothing is to be
//! saved, withdrawn or reset for it, and it takes no memory.

use std::time::{Duration, Instant};

use super::{Blk, Command, SlotState};
use crate::block::throttle::{Limits, Throttle};

/// The longest wait without another look.
const LONGEST: Duration = Duration::from_secs(3600);

/// The limits in real time.
#[derive(Debug)]
pub(super) struct Limiter {
    throttle: Throttle,
    /// What its times are counted from.
    epoch: Instant,
    /// Until when nothing begins, if that was so when it was last asked.
    closed: Option<Duration>,
    /// What has had to wait last was told to wait until then.
    held: Option<Duration>,
    /// In this pass over the rings something was left there.
    holds: bool,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Limiter {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            throttle: Throttle::new(limits),
            epoch: Instant::now(),
            closed: None,
            held: None,
            holds: false,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.throttle.limits()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The rings are served from the first on.
    pub(super) fn begin_pass(&mut self) {
        self.holds = false;
    }

    /// Whether nothing may begin now.
    pub(super) fn closes(&mut self) -> bool {
        self.closed = match self.throttle.is_limited() {
            true => self.throttle.closed_until(self.now()),
            false => None,
        };
        self.closed.is_some()
    }

    /// Something waits. `true`: for something else than the last time.
    pub(super) fn hold(&mut self) -> bool {
        self.holds = true;
        std::mem::replace(&mut self.held, self.closed) != self.closed
    }

    /// When what waits may begin.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let until = self.closed.filter(|_| self.holds)?;
        let wait = until.saturating_sub(self.now()).min(LONGEST);
        Some(Instant::now() + wait)
    }
}

impl Blk {
    /// The request in `slot` was taken for the first time.
    pub(super) fn charge(&mut self, slot: usize) {
        let slot = &self.slots[slot];
        if slot.state != SlotState::Busy || !self.limiter.throttle.is_limited() {
            return;
        }
        let bytes = match slot.parsed.command {
            Command::Read | Command::Write | Command::WriteZeroes => slot.bytes,
            Command::Discard => 0,
            Command::Flush | Command::GetId | Command::Unknown => return,
        };
        let now = self.limiter.now();
        self.limiter.throttle.add(bytes, now);
    }
}

#[cfg(test)]
mod tests;
