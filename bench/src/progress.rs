//! The progress of a long run: a line on stderr if stderr is a terminal; otherwise nothing.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// The time between two updates, long enough that drawing does not disturb a measurement.
const PAUSE: Duration = Duration::from_millis(500);
/// The width of the bar in characters.
const BAR: usize = 20;
/// No remaining time is shown before this part of the whole is done.
const TOO_EARLY: f64 = 0.01;

/// The state of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    /// The mode that is being measured.
    mode: String,
    /// The kind of exits that is being measured.
    kind: String,
    /// The cycle, from 1.
    cycle: u32,
    /// The estimated number of cycles.
    cycles: f64,
    /// Finished steps of this cycle, and its total number of steps.
    steps: (usize, usize),
    /// The time limit of the run.
    limit: Option<Duration>,
}

/// The estimated number of cycles until the widest interval, which is `width` after `cycle` cycles, is at
/// most `precision`: intervals shrink with the root of the number of samples.
pub(crate) fn cycles_needed(cycle: u32, width: f64, precision: f64, most: u32) -> f64 {
    let needed = f64::from(cycle) * (width / precision).powi(2);
    let (fewest, most) = (f64::from(cycle), f64::from(most));
    // NaN is not a number of cycles.
    if needed >= fewest {
        needed.ceil().min(most.max(fewest))
    } else {
        fewest
    }
}

impl State {
    /// The fraction of the whole that is done.
    fn done(&self) -> f64 {
        let (through, all) = self.steps;
        let of_cycle = through as f64 / all.max(1) as f64;
        let cycles = f64::from(self.cycle.saturating_sub(1)) + of_cycle.min(1.0);
        (cycles / self.cycles.max(f64::from(self.cycle)).max(1.0)).clamp(0.0, 1.0)
    }

    /// The estimated remaining time.
    fn left(&self, elapsed: Duration) -> Option<Duration> {
        let done = self.done();
        if done < TOO_EARLY {
            return None;
        }
        let rest = elapsed.as_secs_f64() * (1.0 - done) / done;
        let left = Duration::try_from_secs_f64(rest).ok()?;
        // The limit ends no run within its first cycle.
        match self.limit {
            Some(limit) if self.cycle > 1 => Some(left.min(limit.saturating_sub(elapsed))),
            _ => Some(left),
        }
    }

    /// The line as text.
    pub(crate) fn line(&self, elapsed: Duration) -> String {
        let done = self.done();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the bar's length"
        )]
        let filled = (done * BAR as f64) as usize;
        let mut line = format!(
            "[{}{}] {:3.0} %",
            "#".repeat(filled),
            "-".repeat(BAR - filled),
            (done * 100.0).floor()
        );
        let cycles = self.cycles.max(f64::from(self.cycle));
        if cycles > 1.0 {
            // Writing to a string does not fail.
            let _written = write!(line, "  cycle {} of about {cycles:.0}", self.cycle);
        }
        for word in [&self.mode, &self.kind] {
            if !word.is_empty() {
                line.push_str("  ");
                line.push_str(word);
            }
        }
        line.push_str("  ");
        line.push_str(&clock(elapsed));
        if let Some(left) = self.left(elapsed) {
            line.push_str(", about ");
            line.push_str(&clock(left));
            line.push_str(" left");
        }
        line
    }
}

/// A time as `4:05` or `1:04:05`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// Clears the line.
const CLEAR: &str = "\r\x1b[K";

/// Replaces the previous line by `line`. The terminal cuts off a long line and does not wrap it.
fn picture(line: &str) -> String {
    format!("{CLEAR}\x1b[?7l{line}\x1b[?7h")
}

/// The line on the terminal. Dropping it clears the line.
#[derive(Debug)]
pub(crate) struct Progress {
    steps: Steps,
    drawing: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// The handle by which a part of the run reports its progress. Without a terminal the reports are dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps {
    state: Option<Arc<Mutex<State>>>,
    uncounted: bool,
}

impl Progress {
    /// A line if stderr is a terminal. The caller should block signals first, since this starts a thread.
    pub(crate) fn on_stderr(limit: Option<Duration>) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if dumb || !io::stderr().is_terminal() {
            return Self {
                steps: Steps::default(),
                drawing: None,
            };
        }
        let state = Arc::new(Mutex::new(State {
            limit,
            ..State::default()
        }));
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::clone(&state);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Locked while drawing, so that no other output is printed in between.
                let state = lock(&seen);
                draw(&picture(&state.line(start.elapsed())));
            }
        });
        Self {
            steps: Steps {
                state: Some(state),
                uncounted: false,
            },
            drawing: Some((stop, thread)),
        }
    }

    /// The handle for the parts of the run.
    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Starts a cycle of `steps`; the estimated number of cycles is `cycles`.
    pub(crate) fn cycle(&self, cycle: u32, cycles: f64, steps: usize) {
        self.steps.change(|state| {
            state.cycle = cycle;
            state.cycles = cycles;
            state.steps = (0, steps);
        });
    }

    /// Prints a permanent message above the line.
    pub(crate) fn say(&self, text: &str) {
        let _held = self.steps.state.as_deref().map(|state| {
            let held = lock(state);
            draw(CLEAR);
            held
        });
        eprintln!("{text}");
    }

    /// Prints the content of the line if there is no line.
    pub(crate) fn say_without_line(&self, text: &str) {
        if self.steps.state.is_none() {
            eprintln!("{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.drawing.take() {
            drop(stop);
            // The thread cannot fail.
            let _ended = thread.join();
            draw(CLEAR);
        }
    }
}

impl Steps {
    /// A handle for work that does not count as steps of a cycle.
    pub(crate) fn uncounted(&self) -> Self {
        Self {
            uncounted: true,
            ..self.clone()
        }
    }

    /// Starts a mode.
    pub(crate) fn mode(&self, mode: &str) {
        self.change(|state| {
            state.mode = mode.to_owned();
            state.kind.clear();
        });
    }

    /// Starts a kind.
    pub(crate) fn kind(&self, kind: &str) {
        self.change(|state| state.kind = kind.to_owned());
    }

    /// Ends a step.
    pub(crate) fn ended(&self) {
        if !self.uncounted {
            self.change(|state| state.steps.0 += 1);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = &self.state {
            change(&mut lock(state));
        }
    }
}

/// Draws on the terminal. Errors are ignored: the terminal may be closed.
fn draw(text: &str) {
    let mut out = io::stderr().lock();
    let _written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn state(cycle: u32, cycles: f64, steps: (usize, usize)) -> State {
        State {
            mode: "evmcs".into(),
            kind: "cpuid".into(),
            cycle,
            cycles,
            steps,
            limit: Some(seconds(600)),
        }
    }

    #[test]
    fn lines() {
        for (state, elapsed, wanted) in [
            (State::default(), 0, "[--------------------]   0 %  0:00"),
            (
                state(1, 2.0, (0, 40)),
                3,
                "[--------------------]   0 %  cycle 1 of about 2  evmcs  cpuid  0:03",
            ),
            (
                state(1, 2.0, (20, 40)),
                30,
                "[#####---------------]  25 %  cycle 1 of about 2  evmcs  cpuid  0:30, about 1:30 left",
            ),
            (
                state(3, 4.0, (40, 40)),
                3900,
                "[###############-----]  75 %  cycle 3 of about 4  evmcs  cpuid  1:05:00, about 0:00 left",
            ),
            (
                state(1, 1.0, (1, 2)),
                65,
                "[##########----------]  50 %  evmcs  cpuid  1:05, about 1:05 left",
            ),
        ] {
            assert_eq!(state.line(seconds(elapsed)), wanted);
        }
    }

    #[test]
    fn the_time_limit_is_the_most_that_is_left_but_for_the_first_cycle() {
        let left = |cycle| state(cycle, 100.0, (1, 2)).left(seconds(500));
        assert_eq!(left(2), Some(seconds(100)));
        assert!(left(1) > Some(seconds(600)) || left(1).is_none());
    }

    #[test]
    fn twice_as_precise_takes_four_times_as_long() {
        for (cycle, width, most, wanted) in [
            (2, 0.02, 100, 8.0),
            (2, 0.01, 100, 2.0),
            (5, 0.001, 100, 5.0),
            (2, 0.02, 6, 6.0),
            (2, f64::INFINITY, 30, 30.0),
            (2, f64::NAN, 30, 2.0),
        ] {
            assert_eq!(cycles_needed(cycle, width, 0.01, most), wanted, "{width}");
        }
    }

    #[test]
    fn steps_reach_the_line() {
        let shared = Arc::new(Mutex::new(state(1, 1.0, (0, 4))));
        let steps = Steps {
            state: Some(Arc::clone(&shared)),
            uncounted: false,
        };
        steps.mode("classic");
        steps.kind("hlt");
        steps.ended();
        steps.uncounted().ended();
        steps.uncounted().kind("ipi");
        let line = lock(&shared).line(seconds(1));
        assert!(line.contains("25 %  classic  ipi"), "{line}");
        // The report is dropped.
        Steps::default().ended();
    }

    #[test]
    fn without_a_terminal_there_is_no_line() {
        // Tests have no terminal, or the line is drawn on it.
        if !io::stderr().is_terminal() {
            let progress = Progress::on_stderr(None);
            assert!(progress.drawing.is_none() && progress.steps.state.is_none());
        }
    }

    proptest! {
        #[test]
        fn every_state_has_a_line(
            cycle in any::<u32>(), cycles in any::<f64>(), steps in any::<(usize, usize)>(),
                elapsed in any::<u32>()
        ) {
            let state = state(cycle, cycles, steps);
            let line = state.line(seconds(elapsed.into()));
            prop_assert!((0.0..=1.0).contains(&state.done()));
            prop_assert!(line.starts_with('[') && line.as_bytes()[BAR + 1] == b']');
        }
    }
}
