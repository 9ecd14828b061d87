//! Limits for log lines that a guest can cause at will. They apply to the VM's whole life: a reset does not
//! renew them.

use std::time::{Duration, Instant};

/// The number of lines of one kind that are logged without delay.
const BURST: u32 = 8;
/// The interval of single lines after those.
const INTERVAL: Duration = Duration::from_secs(60);

/// The subject of a line. Each kind has its own limit, so that none can hide another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A reset.
    Reset,
    /// A report through pvpanic.
    Panic,
    /// A report through Hyper-V's crash registers.
    Crash,
    /// A triple fault, and its registers.
    TripleFault,
}

/// The limits of all kinds.
#[derive(Debug, Default)]
pub(super) struct GuestLog {
    limits: [Limit; 4],
}

impl GuestLog {
    /// Whether a line of `kind` is logged now; if so, returns the suffix for it.
    pub(super) fn admit(&mut self, kind: Kind) -> Option<Suppressed> {
        self.limits[kind as usize].admit(Instant::now())
    }
}

/// The number of lines suppressed before one; displayed as nothing if it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suppressed(u64);

impl std::fmt::Display for Suppressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 similar line suppressed)"),
            n => write!(f, " ({n} similar lines suppressed)"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Limit {
    logged: u32,
    last: Option<Instant>,
    suppressed: u64,
}

impl Limit {
    fn admit(&mut self, now: Instant) -> Option<Suppressed> {
        let rested = self.last.is_some_and(|last| now >= last + INTERVAL);
        if self.logged >= BURST && !rested {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.logged = self.logged.saturating_add(1);
        self.last = Some(now);
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_and_then_one_line_per_interval() {
        let start = Instant::now();
        let mut limit = Limit::default();
        let admitted = (0..1000).filter_map(|_| limit.admit(start)).count();
        assert_eq!(admitted, BURST as usize);
        // A guest at full speed for an hour.
        let lines =
            (1..=3600_u32).filter_map(|s| limit.admit(start + Duration::from_secs(s.into())));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 60);
        assert_eq!(lines[0], Suppressed(1000 - u64::from(BURST) + 59));
        assert_eq!(lines[1], Suppressed(59));
    }

    #[test]
    fn a_kind_does_not_use_up_anothers_lines() {
        let mut log = GuestLog::default();
        while log.admit(Kind::Reset).is_some() {}
        assert_eq!(log.admit(Kind::Crash), Some(Suppressed(0)));
    }
}
