//! The kinds of measurements and their methods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use l2probe::counts::Counts;
use l2probe::document::Unit;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId as TimerClock, TimerFd, TimerFlags};
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::Pid;

use crate::instructions::{self, tsc};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Empty,
    Cpuid,
    Rdtsc,
    ClockRead,
    ClockSyscall,
    TimerSpin,
    TimerSleep,
    HltWake,
    IpiWake,
}

/// The parameters of a round.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Samples per round of short kinds.
    pub(crate) samples: u32,
    /// Samples per round of kinds that wait for a timer or another CPU.
    pub(crate) waits: u32,
    /// Turns before the first sample.
    pub(crate) warmup: u32,
    /// The timeout.
    pub(crate) limit: Duration,
    /// CPUs that may be used; never empty.
    pub(crate) cpus: Vec<usize>,
    /// The TSC's rate, if it is available.
    pub(crate) khz: Option<f64>,
    /// Instructions that may be used.
    pub(crate) allowed: instructions::Allowed,
}

/// The reason why a measurement is not supported.
pub(crate) type Skip = String;

/// The duration of the sleep of `timer-sleep`: shorter than the time that a host polls before it lets a CPU
/// halt (kvm.halt_poll_ns, 200 us).
const SHORT_SLEEP: Duration = Duration::from_micros(100);
/// The duration of the sleep of `hlt-wake`: longer than any such polling.
const LONG_SLEEP: Duration = Duration::from_millis(2);
/// The delay of the timer of `timer-spin`.
const SPIN: Duration = Duration::from_micros(200);
/// The timeout of the loop: a timer that has not fired by then will not interrupt it.
const SPIN_AT_MOST: Duration = Duration::from_millis(50);
/// Time for the other CPU to halt.
const SETTLE: Duration = Duration::from_micros(200);

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Empty,
        Self::Cpuid,
        Self::Rdtsc,
        Self::ClockRead,
        Self::ClockSyscall,
        Self::TimerSpin,
        Self::TimerSleep,
        Self::HltWake,
        Self::IpiWake,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Cpuid => "cpuid",
            Self::Rdtsc => "rdtsc",
            Self::ClockRead => "clock-read",
            Self::ClockSyscall => "clock-syscall",
            Self::TimerSpin => "timer-spin",
            Self::TimerSleep => "timer-sleep",
            Self::HltWake => "hlt-wake",
            Self::IpiWake => "ipi-wake",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.name() == name)
            .ok_or_else(|| format!("it is one of {}", known()))
    }

    /// A description of its values.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Empty => "two fenced TSC reads with nothing between",
            Self::Cpuid => "CPUID, an exit under every hypervisor",
            Self::Rdtsc => "from one RDTSC to the next",
            Self::ClockRead => "CLOCK_MONOTONIC by the vDSO",
            Self::ClockSyscall => "CLOCK_MONOTONIC by a system call",
            Self::TimerSpin => "the time that a timer interrupt takes from a spinning loop",
            Self::TimerSleep => "how late a sleep of 100 us ends",
            Self::HltWake => "how late a sleep of 2 ms ends, the CPU halted",
            Self::IpiWake => "waking a thread on another, halted CPU, and being woken by it",
        }
    }

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::TimerSleep | Self::HltWake | Self::IpiWake => Unit::Ns,
            _ => Unit::Ticks,
        }
    }

    /// Takes a round.
    pub(crate) fn measure(self, plan: &Plan) -> Result<Counts, Skip> {
        if self.unit() == Unit::Ticks && !plan.allowed.tsc {
            return Err("the kernel forbids RDTSC to this process (PR_SET_TSC)".into());
        }
        on_one_cpu(plan.cpus[0])?;
        match self {
            Self::Empty => short(plan, || true),
            Self::Cpuid if !plan.allowed.cpuid => {
                Err("the kernel forbids CPUID to this process (ARCH_SET_CPUID)".into())
            }
            Self::Cpuid => short(plan, || {
                std::hint::black_box(instructions::cpuid(0, 0));
                true
            }),
            Self::Rdtsc => Ok(repeat(plan, plan.samples, || {
                let (first, second) = instructions::tsc_twice();
                Ok(Some(second.wrapping_sub(first)))
            })?),
            Self::ClockRead => short(plan, || clock_gettime(ClockId::CLOCK_MONOTONIC).is_ok()),
            Self::ClockSyscall => short(plan, instructions::clock_by_system_call),
            Self::TimerSpin => timer_spin(plan),
            Self::TimerSleep => sleep(plan, SHORT_SLEEP),
            Self::HltWake => sleep(plan, LONG_SLEEP),
            Self::IpiWake => ipi_wake(plan),
        }
    }
}

fn on_one_cpu(cpu: usize) -> Result<(), Skip> {
    let pin = |()| {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)
    };
    pin(()).map_err(|e| format!("cannot bind a thread to CPU {cpu}: {e}"))
}

/// Up to `count` samples after the warm-up, within the time limit. `None` is a turn without a sample.
fn repeat(
    plan: &Plan,
    count: u32,
    mut sample: impl FnMut() -> Result<Option<u64>, Skip>,
) -> Result<Counts, Skip> {
    let end = Instant::now() + plan.limit;
    let half = Instant::now() + plan.limit / 2;
    for _ in 0..plan.warmup.min(count) {
        sample()?;
        if Instant::now() > half {
            break;
        }
    }
    let mut values = Vec::with_capacity(count as usize);
    for _ in 0..count {
        values.extend(sample()?);
        if Instant::now() > end {
            break;
        }
    }
    if values.is_empty() {
        return Err(format!("no sample within {:?}", plan.limit));
    }
    Ok(values.into_iter().collect())
}

/// The time that `work` takes; `work` returns whether it succeeded.
fn short(plan: &Plan, work: impl Fn() -> bool) -> Result<Counts, Skip> {
    repeat(plan, plan.samples, || {
        let before = tsc();
        let well = work();
        let after = tsc();
        well.then(|| Some(after.wrapping_sub(before)))
            .ok_or_else(|| format!("the kernel refuses: {}", Errno::last()))
    })
}

fn now() -> Result<Duration, Skip> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC);
    Ok(time.map_err(|e| format!("no CLOCK_MONOTONIC: {e}"))?.into())
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The delay of the end of a sleep until a point in time.
fn sleep(plan: &Plan, length: Duration) -> Result<Counts, Skip> {
    repeat(plan, plan.waits, || {
        let deadline = now()? + length;
        let until = TimeSpec::from_duration(deadline);
        match clock_nanosleep(
            ClockId::CLOCK_MONOTONIC,
            ClockNanosleepFlags::TIMER_ABSTIME,
            &until,
        ) {
            Ok(_) => Ok(Some(ns(now()?.saturating_sub(deadline)))),
            // A signal ended it: no sample.
            Err(Errno::EINTR) => Ok(None),
            Err(error) => Err(format!("cannot sleep: {error}")),
        }
    })
}

/// The longest interruption of a loop around the time when a timer fires.
fn timer_spin(plan: &Plan) -> Result<Counts, Skip> {
    let khz = plan.khz.ok_or("the TSC's rate is not known")?;
    // Some milliseconds: far below 2^53 ticks, and never negative.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "see above"
    )]
    let ticks = |duration: Duration| (duration.as_secs_f64() * khz * 1e3) as u64;
    let timer = TimerFd::new(TimerClock::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)
        .map_err(|e| format!("no timerfd: {e}"))?;
    repeat(plan, plan.waits, || {
        let expiration = Expiration::OneShot(TimeSpec::from_duration(SPIN));
        timer
            .set(expiration, TimerSetTimeFlags::empty())
            .map_err(|e| format!("cannot set a timer: {e}"))?;
        let start = tsc();
        let (mut last, mut longest) = (start, 0);
        let mut until = 2 * ticks(SPIN);
        loop {
            let time = tsc();
            let since_start = time.wrapping_sub(start);
            // Interruptions before the timer can fire have other causes.
            if since_start >= ticks(SPIN) {
                longest = longest.max(time.wrapping_sub(last));
            }
            last = time;
            if since_start < until {
                continue;
            }
            match timer.wait() {
                Ok(()) => return Ok(Some(longest)),
                Err(Errno::EAGAIN) if since_start < ticks(SPIN_AT_MOST) => {
                    until = since_start + ticks(SPIN);
                    last = tsc();
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    return Err(format!("a timer did not fire while the CPU spun: {error}"));
                }
            }
        }
    })
}

/// A ping to a thread on another CPU and its reply: both sides halt their CPU while they wait.
fn ipi_wake(plan: &Plan) -> Result<Counts, Skip> {
    let [here, .., other] = plan.cpus[..] else {
        return Err("this process may use one CPU only".into());
    };
    /// The values of `turn`: the message that was sent last.
    const PING: u32 = 1;
    const PONG: u32 = 0;
    let turn = Arc::new(AtomicU32::new(PONG));
    let done = Arc::new(AtomicBool::new(false));
    let main = thread::current();
    on_one_cpu(here)?;
    let partner = {
        let (turn, done) = (Arc::clone(&turn), Arc::clone(&done));
        let body = move || {
            on_one_cpu(other)?;
            while !done.load(Ordering::Acquire) {
                if turn.load(Ordering::Acquire) == PING {
                    turn.store(PONG, Ordering::Release);
                    main.unpark();
                } else {
                    thread::park();
                }
            }
            Ok(())
        };
        let builder = thread::Builder::new();
        builder
            .spawn(body)
            .map_err(|e| format!("no second thread: {e}"))?
    };
    let counts = repeat(plan, plan.waits, || {
        let settled = now()? + SETTLE;
        while now()? < settled {
            std::hint::spin_loop();
        }
        let before = now()?;
        turn.store(PING, Ordering::Release);
        partner.thread().unpark();
        while turn.load(Ordering::Acquire) == PING {
            if partner.is_finished() {
                return Err("the second thread has ended".into());
            }
            thread::park_timeout(plan.limit);
        }
        Ok(Some(ns(now()?.saturating_sub(before))))
    });
    done.store(true, Ordering::Release);
    partner.thread().unpark();
    match partner.join() {
        Ok(Ok(())) => counts,
        Ok(Err(why)) => Err(why),
        Err(_) => Err("the second thread panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place;

    #[test]
    fn names_are_unique_and_parsed() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Ok(kind));
        }
        assert!(Kind::parse("dance").unwrap_err().contains("hlt-wake"));
    }

    #[test]
    fn every_kind_gives_samples_or_a_reason() {
        let plan = Plan {
            samples: 20,
            waits: 5,
            warmup: 2,
            limit: Duration::from_secs(2),
            cpus: place::cpus(),
            khz: Some(1e6),
            allowed: instructions::allowed(),
        };
        for kind in Kind::ALL {
            match kind.measure(&plan) {
                Ok(counts) => assert!((1..=20).contains(&counts.len()), "{kind:?}"),
                Err(why) => assert!(!why.is_empty(), "{kind:?}"),
            }
        }
        let forbidden = Plan {
            allowed: instructions::Allowed {
                tsc: true,
                cpuid: false,
            },
            ..plan.clone()
        };
        let why = Kind::Cpuid.measure(&forbidden).unwrap_err();
        assert!(why.contains("forbids CPUID"));
        let alone = Plan {
            cpus: vec![plan.cpus[0]],
            ..plan
        };
        assert!(
            Kind::IpiWake
                .measure(&alone)
                .unwrap_err()
                .contains("one CPU")
        );
    }
}
