//! The micro-hypervisor on SVM: every kind of exit in every mode, and the refusal of modes that are not
//! offered.

use hypernest_lab::suite::{Test, TestResult};
use hypernest_nested::l2exit::{Kind, Mode};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

pub(crate) const TESTS: &[Test] = &[
    Test::new("svm::l2_exits_in_every_way", kinds)
        .needs(needs::nested_svm)
        .limit_seconds(120),
    Test::new("svm::l1_may_touch_little_or_much", touches).needs(needs::nested_svm),
    Test::new("svm::what_is_not_offered_is_refused", refused).needs(needs::nested_svm),
];

const WITHOUT_EVMCS: &str = "nested,-evmcs";

fn run(line: &str, hv: &str) -> Result<Ended, Box<dyn std::error::Error>> {
    let site = Site::new()?;
    let mut command = site.enlightened_guest(line);
    command.args(["--nested", "--cpus", "2", "--hv", hv]);
    Vm::start(&mut command)?.patient().end()
}

/// The program fails if an exit is not that of the kind, is missing, or occurs where there should be none: a
/// flush that L0 handles, a register that L1 passes through.
fn kinds() -> TestResult {
    for &mode in Mode::ALL.iter().filter(|mode| mode.is_svm()) {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let line = format!(
            "l1 mode={mode} kinds={} n=30 warmup=5 cpus=2",
            names.join(",")
        );
        let ended = run(&line, WITHOUT_EVMCS)?;
        ended.expect_code(0)?;
        for kind in Kind::ALL {
            match kind {
                Kind::PreemptionTimer => {
                    ended.expect_lines(&["skip preemption-timer: SVM has no such timer"])?
                }
                _ => ended.expect_lines(&[&format!("l1: running {kind}")])?,
            };
        }
        ended.expect_lines(&["l1: done"])?;
    }
    Ok(())
}

fn touches() -> TestResult {
    for touch in ["minimal", "kvm-like", "hyperv-like", "reads=9,writes=9"] {
        // The kinds in which L1 itself handles interrupts, and one in which it does not.
        let line = format!("l1 mode=svm kinds=cpuid,interrupt,hlt,timer n=30 touch={touch}");
        run(&line, WITHOUT_EVMCS)?
            .expect_code(0)?
            .expect_lines(&["l1: done"])?;
    }
    Ok(())
}

/// An L1 never measures a mode other than the requested one.
fn refused() -> TestResult {
    for (mode, hv, why) in [
        (
            "svm+emsr",
            "nested,-evmcs,-emsr-bitmap",
            "the enlightened MSR bitmap (hv-emsr-bitmap) is not offered",
        ),
        (
            "svm+direct-flush",
            "nested,-evmcs,-tlbflush-direct",
            "the direct flush (hv-tlbflush-direct) is not offered",
        ),
        (
            "classic",
            WITHOUT_EVMCS,
            "VMX is not offered: CPUID 1 ECX bit 5 is 0",
        ),
    ] {
        let line = format!("l1 mode={mode} kinds=cpuid n=1");
        run(&line, hv)?
            .expect_code(1)?
            .expect_lines(&[&format!("refused: {why}")])?;
    }
    Ok(())
}
