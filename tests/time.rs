//! A guest's clocks while its TSC's frequency changes: exact to the tick, with every step of the switch and
//! without one.

mod guest;

use std::error::Error;

use hypernest::kvm::host::HostCaps;
use hypernest::time::HostTsc;
use hypernest::time::switch::{SwitchStep, Switched};
use hypernest::units::{TscKhz, VpIndex};
use hypernest_lab::host::{Host, IntelCpu};
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::needs;
use crate::vm::is_long_run;

pub(crate) use guest::number;
use guest::{Frame, Guest, numbers};

pub(crate) const TESTS: &[Test] = &[
    test("time::all_clocks_go_on_when_the_frequency_changes", clocks),
    test("time::every_step_of_the_switch_is_needed", steps),
    test("time::a_long_time_at_the_old_frequency_is_not_lost", long),
    test("time::timers_fire_when_due", timers),
    test("time::without_rearming_a_deadline_is_missed", late),
];

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Here, Host::Intel])
        .stage(EXACT)
        .needs(needs_scaling)
        .limit_seconds(180)
}

/// The timers of this host are exact, and its emulated seconds are short.
const EXACT: Stage = Stage {
    name: "exact-timers",
    intel: IntelCpu::IceLake,
    ..Stage::PLAIN
};

type Failure = Box<dyn Error>;

pub(crate) fn needs_scaling() -> Result<(), String> {
    needs::hyperv()?;
    let host = HostTsc::from(&needs::caps()?);
    if host.scaling.is_some() && host.native.is_some() {
        Ok(())
    } else {
        Err("TSC scaling (KVM_CAP_TSC_CONTROL)".to_owned())
    }
}

fn native() -> Result<TscKhz, Failure> {
    let host = HostTsc::from(&HostCaps::probe()?);
    Ok(host.native.ok_or("the host's frequency is not known")?)
}

/// `percent` of the host's frequency.
pub(crate) fn of_native(percent: u32) -> Result<TscKhz, Failure> {
    let khz = u64::from(native()?.0) * u64::from(percent) / 100;
    Ok(TscKhz(u32::try_from(khz)?))
}

/// A move to this host, of which the guest was notified and to which it has adapted.
struct Moved {
    before: Vec<Frame>,
    after: Vec<Frame>,
    switched: Option<Switched>,
    said: String,
}

impl Moved {
    fn new(
        khz: TscKhz,
        cpus: u32,
        arguments: &str,
        left_out: &[SwitchStep],
    ) -> Result<Self, Failure> {
        let guest = Guest::start(khz, cpus, arguments, left_out)?;
        let before = guest.frames()?;
        guest.move_it()?;
        guest.line("moved 1")?;
        let (after, switched) = (guest.frames()?, guest.last_switch()?);
        // Once more; the guest already has this host's frequency.
        guest.move_it()?;
        let said = guest.end()?;
        Ok(Self {
            before,
            after,
            switched,
            said,
        })
    }

    fn line(&self, start: &str) -> Result<&str, Failure> {
        let line = self.said.lines().find(|line| line.starts_with(start));
        Ok(line.ok_or_else(|| format!("no {start:?} in:\n{}", self.said))?)
    }

    /// The difference between the new frame and the old one at the instant of the switch, in ticks.
    fn tsc_error(&self) -> Result<i128, Failure> {
        let switched = self.switched.as_ref().ok_or("nothing was switched")?;
        let at = switched.at.host_tsc;
        let (old, new) = (self.before[0].guest_tsc(at), self.after[0].guest_tsc(at));
        Ok(i128::from(new.wrapping_sub(old).cast_signed()))
    }

    /// The excess of reference time's advance over that of the host's TSC across the switch, in ns. The
    /// guest's TSC values are converted to the host's by KVM's parameters.
    fn reference_error(&self) -> Result<i128, Failure> {
        let line = self.line("switch")?;
        let (tsc, reference) = (numbers(line, "tsc")?, numbers(line, "ref")?);
        let host = |frame: &Frame, tsc: i128| Ok::<_, Failure>(frame.host_tsc(tsc.try_into()?));
        let (from, to) = (
            host(&self.before[0], tsc[0])?,
            host(&self.after[0], tsc[1])?,
        );
        let elapsed = i128::from(to) - i128::from(from);
        let elapsed_ns = elapsed * 1_000_000 / i128::from(native()?.0);
        Ok((reference[1] - reference[0]) * 100 - elapsed_ns)
    }

    /// The number of steps back of clocks, on any vCPU: the TSC, reference time.
    fn steps_back(&self) -> Result<(i128, i128), Failure> {
        let mut back = (0, 0);
        for line in self.said.lines().filter(|line| line.starts_with("cpu ")) {
            back.0 += numbers(line, "tsc-back")?[0];
            back.1 += numbers(line, "ref-back")?[0];
        }
        Ok(back)
    }

    fn show(&self, what: &str) {
        println!(
            "{what}: TSC {:?} ticks, reference {:?} ns, back {:?}",
            self.tsc_error().ok(),
            self.reference_error().ok(),
            self.steps_back().ok()
        );
    }
}

/// Changes as in moves up and down of TSC-scaled guests, with one vCPU and two.
fn clocks() -> TestResult {
    let native = native()?;
    for (percent, cpus) in [(70, 1), (120, 1), (70, 2), (120, 2)] {
        let khz = of_native(percent)?;
        let moved = Moved::new(khz, cpus, "hold=2000000", &[])?;
        let what = format!("{percent} % on {cpus} vCPUs");
        moved.show(&what);
        let ticks = moved.tsc_error()?;
        assert!(
            ticks.abs() <= 2,
            "{what}: the TSC is off by {ticks} ticks\n{}",
            moved.said
        );
        if cpus == 1 {
            // With two, the other one may have run between the readings.
            let ns = moved.reference_error()?;
            assert!(
                ns.abs() <= 300,
                "{what}: reference time is off by {ns} ns\n{}",
                moved.said
            );
        }
        assert_eq!(moved.steps_back()?, (0, 0), "{what}\n{}", moved.said);
        for (frames, khz) in [(&moved.before, khz), (&moved.after, native)] {
            assert_eq!(frames.len(), usize::try_from(cpus)?);
            assert!(
                frames
                    .iter()
                    .all(|frame| *frame == frames[0] && frame.khz == khz)
            );
        }
        let told = moved.line("told")?;
        assert_eq!(number(told, "status")?, 1, "{told}");
        assert_eq!(number(told, "freq")?, i128::from(khz.0) * 1000, "{told}");
        let line = moved.line("switch")?;
        assert_eq!(number(line, "status")?, 0, "{line}");
        assert_eq!(number(line, "freq")?, i128::from(native.0) * 1000, "{line}");
        let sequence = numbers(line, "seq")?;
        assert!(
            sequence[1] != 0 && sequence[1] != sequence[0],
            "{what}: the page's sequence: {line}"
        );
        // The page runs at the host's frequency: 2^64 * 10,000 / kHz, to KVM's 32 bits.
        let scale = numbers(line, "scale")?[1];
        let exact = (10_000i128 << 64) / i128::from(native.0);
        assert!((scale - exact).abs() <= exact >> 30, "{what}: {line}");
        // The counter, which exits, agrees with the page.
        let (counter, reference) = (number(line, "counter")?, numbers(line, "ref")?[1]);
        assert!((0..=2000).contains(&(counter - reference)), "{line}");
        let switched = moved.switched.as_ref().ok_or("nothing was switched")?;
        assert!(switched.page_written);
    }
    Ok(())
}

/// Without any one of them, a guarantee to the guest is violated, and these tests detect it.
fn steps() -> TestResult {
    let khz = of_native(70)?;
    let (first, second) = (VpIndex(0), VpIndex(1));
    let run = |what: &str, cpus, arguments: &str, left_out: &[SwitchStep]| {
        let moved = Moved::new(khz, cpus, arguments, left_out)?;
        moved.show(what);
        Ok::<_, Failure>(moved)
    };
    let moved = run("the page is not opened", 1, "", &[SwitchStep::OpenPage])?;
    let sequence = numbers(moved.line("switch")?, "seq")?;
    assert_eq!(sequence[0], sequence[1], "{}", moved.said);
    assert!(moved.reference_error()?.abs() > 1000, "{}", moved.said);

    let moved = run("no frequency", 1, "", &[SwitchStep::SetKhz(first)])?;
    assert_eq!(
        number(moved.line("switch")?, "freq")?,
        i128::from(khz.0) * 1000
    );

    let moved = run("no offset", 1, "", &[SwitchStep::SetOffset(first)])?;
    assert!(moved.tsc_error()?.abs() > 1_000_000, "{}", moved.said);

    let moved = run(
        "an offset on one vCPU of two",
        2,
        "",
        &[SwitchStep::SetOffset(second)],
    )?;
    assert!(moved.steps_back()?.0 > 0, "{}", moved.said);

    // 3 s: the page of a scaled TSC gains 0.4 ppm on KVM's clock.
    let moved = run(
        "the clock is not set from the page",
        1,
        "hold=30000000",
        &[SwitchStep::SetClock],
    )?;
    assert!(moved.reference_error()? < -600, "{}", moved.said);
    Ok(())
}

/// A minute at the old frequency in long runs: the page's gain until then is kept.
fn long() -> TestResult {
    let seconds = if is_long_run() { 60 } else { 3 };
    for percent in [70, 120] {
        let hold = format!("hold={}", seconds * 10_000_000);
        let moved = Moved::new(of_native(percent)?, 1, &hold, &[])?;
        moved.show(&format!("{percent} % for {seconds} s"));
        assert!(moved.tsc_error()?.abs() <= 2, "{}", moved.said);
        assert!(moved.reference_error()?.abs() <= 300, "{}", moved.said);
        assert_eq!(moved.steps_back()?, (0, 0), "{}", moved.said);
    }
    Ok(())
}

/// The delay of a timer of the first move.
fn late_by(moved: &Moved, timer: &str) -> Result<i128, Failure> {
    number(moved.line(&format!("timer {timer} "))?, "late")
}

/// Timers armed 8 ms before the switch.
const AHEAD: &str = "ahead=80000";

/// 50 µs, in units of 100 ns.
const PUNCTUAL: i128 = 500;

fn timers() -> TestResult {
    for (percent, lapic) in [(70, "deadline"), (120, "deadline"), (70, "oneshot")] {
        let arguments = format!("{AHEAD} lapic={lapic}");
        let moved = Moved::new(of_native(percent)?, 1, &arguments, &[])?;
        for timer in ["direct", "periodic", "message", lapic] {
            let late = late_by(&moved, timer)?;
            println!("{percent} %: {timer} late by {late}");
            // A deadline is in ticks of the TSC, the others in units of 100 ns.
            let punctual = match timer {
                "deadline" => PUNCTUAL * i128::from(native()?.0) / 10_000,
                _ => PUNCTUAL,
            };
            // KVM fires a deadline slightly early (lapic_timer_advance), also without any change.
            assert!(
                late.abs() <= punctual,
                "{timer} late by {late}\n{}",
                moved.said
            );
        }
    }
    Ok(())
}

fn late() -> TestResult {
    let left_out = [SwitchStep::Rearm(VpIndex(0))];
    let moved = Moved::new(of_native(70)?, 1, AHEAD, &left_out)?;
    let late = late_by(&moved, "deadline")?;
    println!("without re-arming, the deadline is missed by {late} ticks");
    // 8 ms at 70 % of the frequency are 5.6 ms at the full frequency: 2.4 ms late.
    assert!(late > i128::from(native()?.0), "{}", moved.said);
    Ok(())
}
