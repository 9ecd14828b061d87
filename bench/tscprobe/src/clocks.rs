//! A thread on each CPU that reads clocks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hypernest_nested::tsc::{Clock, Clocks, Hello, MAX_WORDS, Report, Sampler, Shared};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::instructions;
use crate::output::Output;
use crate::{ProbeError, io_error};

static SHARED: Shared = Shared::new();

const CLOCKS: Clocks = Clocks::NONE
    .with(Clock::Tsc)
    .with(Clock::Monotonic)
    .with(Clock::Raw);

/// The time in ns; read by the vDSO if the kernel's clock source allows that.
fn nanoseconds(clock: ClockId) -> u64 {
    // Both exist since Linux 2.6.28.
    let time = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Samples on each of `cpus` until `limit` has passed; the result is the last report of each.
pub(crate) fn sample(
    cpus: &[usize],
    beat: Duration,
    limit: Option<Duration>,
    output: &Output,
) -> Result<Vec<Report>, ProbeError> {
    let hello = Hello {
        vcpus: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        clocks: CLOCKS,
        ..Hello::default()
    };
    let words = &mut [0; MAX_WORDS];
    output.frame(Hello::NAME, || hello.encode(words))?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(cpus)
            .map(|(number, &cpu)| {
                let over = &over;
                scope.spawn(move || on_cpu(number, cpu, beat, over, output))
            })
            .collect();
        if let Some(limit) = limit {
            thread::sleep(limit);
            over.store(true, Ordering::Relaxed);
        }
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(ended) => ended,
            Err(_panicked) => Err(ProbeError::Thread),
        });
        ended.collect()
    })
}

/// The loop of one thread.
fn on_cpu(
    number: u32,
    cpu: usize,
    beat: Duration,
    over: &AtomicBool,
    output: &Output,
) -> Result<Report, ProbeError> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| io_error(format!("cannot bind a thread to CPU {cpu}"))(e.into()))?;
    let beat = u64::try_from(beat.as_nanos()).unwrap_or(u64::MAX);
    let mut sampler = Sampler::new(&SHARED, number, CLOCKS);
    let mut words = [0; MAX_WORDS];
    let mut turns = 0;
    let mut reported = nanoseconds(ClockId::CLOCK_MONOTONIC);
    loop {
        turns += 1;
        let [_, monotonic, _] = read(&mut sampler);
        // A clock that stepped back is far ahead of its report in this arithmetic, and so is reported at
        // once.
        let ended = over.load(Ordering::Relaxed);
        if monotonic.wrapping_sub(reported) >= beat || ended {
            reported = monotonic;
            let mut last = None;
            output.frame(Report::NAME, || {
                let now = read(&mut sampler);
                let mut report = sampler.report();
                report.turns = turns;
                for (clock, now) in [Clock::Tsc, Clock::Monotonic, Clock::Raw]
                    .into_iter()
                    .zip(now)
                {
                    report.now[clock.index()] = now;
                }
                last = Some(report);
                report.encode(&mut words)
            })?;
            if let (Some(last), true) = (last, ended) {
                return Ok(last);
            }
        }
    }
}

/// Reads all three clocks in immediate succession.
#[inline]
fn read(sampler: &mut Sampler<'_>) -> [u64; 3] {
    [
        sampler.read(Clock::Tsc, instructions::tsc),
        sampler.read(Clock::Monotonic, || nanoseconds(ClockId::CLOCK_MONOTONIC)),
        sampler.read(Clock::Raw, || nanoseconds(ClockId::CLOCK_MONOTONIC_RAW)),
    ]
}

/// The number of reads and of steps back of each clock, and the largest step back, over all CPUs.
pub(crate) fn totals(last: &[Report]) -> Vec<(Clock, u64, u64, u64)> {
    let of = |clock: Clock| {
        let tallies = last.iter().filter_map(|report| report.tally(clock));
        tallies.fold(
            (clock, 0, 0, 0),
            |(clock, reads, backward, largest), tally| {
                (
                    clock,
                    reads + tally.reads,
                    backward + tally.backward,
                    largest.max(tally.largest_backward),
                )
            },
        )
    };
    CLOCKS.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_samples_every_clock() {
        let cpus = crate::cpus();
        let last = sample(
            &cpus,
            Duration::from_millis(1),
            Some(Duration::from_millis(50)),
            &Output::nowhere(),
        )
        .unwrap();
        assert_eq!(last.len(), cpus.len());
        for report in &last {
            assert!(report.number > 0 && report.turns > 0);
            assert!(report.now(Clock::Monotonic) > Some(0) && report.now(Clock::Page).is_none());
        }
        let totals = totals(&last);
        assert_eq!(totals.len(), 3);
        assert!(totals.iter().all(|(_, reads, ..)| *reads > 0));
    }
}
