//! The cost of recording.

use std::hint::black_box;
use std::time::Instant;

use super::{ExitClock, ExitReason, ExitStatsError, Recorder};

/// The cost of one exit's statistics, on average.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Counting alone, in nanoseconds.
    pub record_ns: f64,
    /// Counting and two clock readings, in nanoseconds.
    pub timed_record_ns: f64,
}

/// Measures the cost over `exits` exits, of changing reasons and lengths.
///
/// # Errors
/// If there is no memory for counters.
pub fn cost(exits: u32, clock: ExitClock) -> Result<Cost, ExitStatsError> {
    let mut recorder = Recorder::new(clock)?;
    let nothing = per_exit(exits, |reason, ns| {
        black_box((reason, ns));
    });
    let record = per_exit(exits, |reason, ns| recorder.record(reason, ns));
    let timed = per_exit(exits, |reason, ns| {
        let start = recorder.start();
        black_box(ns);
        recorder.finish(reason, start);
    });
    Ok(Cost {
        record_ns: (record - nothing).max(0.0),
        timed_record_ns: (timed - nothing).max(0.0),
    })
}

/// The duration of `one`, in nanoseconds.
fn per_exit(exits: u32, mut one: impl FnMut(ExitReason, u64)) -> f64 {
    const REASONS: [ExitReason; 4] = [
        ExitReason::PortOut,
        ExitReason::MmioRead,
        ExitReason::MmioWrite,
        ExitReason::Wrmsr,
    ];
    // Durations from a linear congruential generator (Knuth's MMIX constants): 0 to 16 µs, in random order.
    let mut state = 1u64;
    let start = Instant::now();
    for i in 0..exits {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let reason = black_box(REASONS[i as usize % REASONS.len()]);
        one(reason, black_box(state >> 50));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(exits.max(1))
}
