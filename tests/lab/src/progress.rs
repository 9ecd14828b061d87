//! A command's cost, its progress, and an estimate of the remaining time; on standard error, with or without
//! a terminal.

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The interval of the reports of a command without other output.
const INTERVAL: Duration = Duration::from_secs(30);

/// The estimated remaining time of a run of `total` units of which `done` took `elapsed`; before the first is
/// done, a unit is assumed to take `unit`.
fn estimate(elapsed: Duration, done: u64, total: u64, unit: Duration) -> Duration {
    let rest = u32::try_from(total.saturating_sub(done)).unwrap_or(u32::MAX);
    match u32::try_from(done) {
        Ok(0) => unit.saturating_mul(rest).saturating_sub(elapsed),
        Ok(done) => (elapsed / done).saturating_mul(rest),
        Err(_) => Duration::ZERO,
    }
}

/// A remaining time.
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            f.write_str("longer than estimated")
        } else {
            write!(f, "about {} left", Human(self.0))
        }
    }
}

/// A time in readable form: in seconds, or in minutes from two on.
struct Human(Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ ..120 => write!(f, "{seconds} s"),
            seconds => write!(f, "{} min", seconds.div_ceil(60)),
        }
    }
}

/// The steps of a command, each with the seconds that it takes on a machine of two cores.
#[derive(Debug)]
pub struct Steps {
    command: &'static str,
    steps: &'static [(&'static str, u32)],
    next: usize,
    start: Instant,
    ticker: Option<Ticker>,
}

impl Steps {
    /// The steps of `command`.
    pub fn new(command: &'static str, steps: &'static [(&'static str, u32)]) -> Self {
        Self {
            command,
            steps,
            next: 0,
            start: Instant::now(),
            ticker: None,
        }
    }

    /// Starts the next step and reports it, repeatedly until it ends.
    pub fn begin(&mut self) {
        // The reports of the previous step end first.
        self.ticker = None;
        let Some(&(step, seconds)) = self.steps.get(self.next) else {
            return;
        };
        let sum = |steps: &[(&str, u32)]| steps.iter().map(|step| u64::from(step.1)).sum();
        let done: u64 = sum(&self.steps[..self.next]);
        let total: u64 = sum(self.steps);
        let (number, of) = (self.next + 1, self.steps.len());
        let left = estimate(self.start.elapsed(), done, total, Duration::from_secs(1));
        let command = self.command;
        eprintln!("{command}: step {number} of {of}, {step} ({})", Left(left));
        self.next += 1;
        let begun = Instant::now();
        self.ticker = Some(Ticker::start(move || {
            format!(
                "{command}: step {number} of {of}, {step}: {} so far, usually {}",
                Human(begun.elapsed()),
                Human(Duration::from_secs(seconds.into()))
            )
        }));
    }
}

/// The progress of a set of tests. The unit is a second of a test's time limit: a test takes about a tenth of
/// its limit. Starting and ending an emulated host counts like a test.
#[derive(Debug)]
pub struct Tests {
    start: Instant,
    total: (usize, u64),
    done: Mutex<(usize, u64)>,
    at_once: u32,
}

impl Tests {
    /// The progress of tests with these limits, in boots that count like tests with those, with `at_once`
    /// boots at a time.
    pub fn new(
        limits: impl IntoIterator<Item = Duration>,
        boots: impl IntoIterator<Item = Duration>,
        at_once: usize,
    ) -> Self {
        let mut total = (0, boots.into_iter().map(|limit| limit.as_secs()).sum());
        for limit in limits {
            total = (total.0 + 1, total.1 + limit.as_secs());
        }
        Self {
            start: Instant::now(),
            total,
            done: Mutex::new((0, 0)),
            at_once: u32::try_from(at_once).unwrap_or(1).max(1),
        }
    }

    /// A test with this limit has ended.
    pub fn ended(&self, limit: Duration) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = (done.0 + 1, done.1 + limit.as_secs());
    }

    /// A boot that counts like a test with this limit has ended.
    pub fn boot_ended(&self, limit: Duration) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.1 += limit.as_secs();
    }

    fn left(&self) -> Duration {
        let done = *self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let unit = Duration::from_millis(100) / self.at_once;
        estimate(self.start.elapsed(), done.1, self.total.1, unit)
    }

    /// Reports now, and repeatedly until the result is dropped.
    pub fn report(self: std::sync::Arc<Self>) -> Ticker {
        let line = move || {
            let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).0;
            format!(
                "lab: {done} of {} tests on hosts have run, {}",
                self.total.0,
                Left(self.left())
            )
        };
        eprintln!("{}", line());
        Ticker::start(line)
    }
}

/// Prints a line periodically until it is dropped.
#[derive(Debug)]
pub struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(line: impl Fn() -> String + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{}", line());
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the reports is not a failure of the run.
            let _panicked = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_follows_what_was_done_and_before_that_the_unit() {
        let s = Duration::from_secs;
        for (elapsed, done, total, left) in [
            (0, 0, 100, 200),
            (50, 0, 100, 150),
            (500, 0, 100, 0),
            (60, 30, 90, 120),
            (60, 90, 90, 0),
            // More units were done than announced.
            (60, 100, 90, 0),
            (0, 0, 0, 0),
        ] {
            let got = estimate(s(elapsed), done, total, s(2));
            assert_eq!(got, s(left), "{elapsed} {done} {total}");
        }
        estimate(s(u64::MAX), 1, u64::MAX, s(1));
        estimate(s(1), 0, u64::MAX, s(u64::MAX));
    }

    #[test]
    fn tests_count_by_their_limits() {
        let s = Duration::from_secs;
        let tests = Tests::new([s(60), s(60), s(480)], [s(100), s(100)], 2);
        // A tenth of 800 s, on two emulators at once.
        let left = tests.left();
        assert!(left <= s(40) && left > s(35), "{left:?}");
        tests.ended(s(60));
        // Units that took no time: none remains for the rest.
        assert!(tests.left() < s(12));
        tests.ended(s(60));
        tests.ended(s(480));
        assert!(tests.left() > Duration::ZERO);
        tests.boot_ended(s(100));
        tests.boot_ended(s(100));
        assert_eq!(tests.left(), Duration::ZERO);
    }

    #[test]
    fn times_are_readable() {
        let shown = |seconds| Human(Duration::from_secs(seconds)).to_string();
        assert_eq!(
            [shown(0), shown(119), shown(120), shown(121)],
            ["0 s", "119 s", "2 min", "3 min"]
        );
    }
}
