//! The enlightened VMCS on our KVM: the guarantees to a guest hypervisor, and the effects of breaking the
//! rules.

use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

pub(crate) const TESTS: &[Test] = &[
    Test::new("evmcs::the_rules_hold", rules)
        .needs(needs::evmcs)
        .limit_seconds(120),
    Test::new("evmcs::what_is_not_offered_is_refused", refused).needs(needs::evmcs),
];

fn run(line: &str, arguments: &[&str]) -> Result<Ended, Box<dyn std::error::Error>> {
    let site = Site::new()?;
    let mut command = site.enlightened_guest(line);
    command.arg("--nested").args(arguments);
    Vm::start(&mut command)?.end()
}

/// One line for each check of the guest program `evmcs-rules`, so that a missing one is detected.
const RULES: &[&str] = &[
    "entry",
    "resume-first",
    "clean-after-exit",
    "wrong-version",
    "switched-off",
    "vmread",
    "vmread-unknown",
    "vmwrite",
    "no-preemption-timer",
    "no-posted-interrupts",
    "no-shadow-vmcs",
    "no-pml",
    "no-saved-preemption-timer",
    "stale-io-bitmap",
    "stale-msr-bitmap",
    "stale-msr-bitmap-content",
    "stale-control-grp2",
    "stale-control-grp1",
    "stale-control-proc",
    "stale-control-event",
    "stale-control-entry",
    "stale-control-excpn",
    "stale-crdr",
    "stale-control-xlat",
    "stale-guest-basic",
    "stale-guest-grp1",
    "stale-guest-grp2",
    "stale-host-pointer",
    "stale-host-grp1",
    "stale-enlightenments-control",
    "moved",
    "moved-uncleared",
    "page-on-two",
];

fn rules() -> TestResult {
    let ended = run(
        "evmcs-rules cpus=2 require=all",
        &["--cpus", "2", "--hv", "nested"],
    )?;
    ended.expect_code(0)?;
    let lines: Vec<_> = RULES.iter().map(|name| format!("ok {name}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    ended.expect_lines(&lines)?;
    Ok(())
}

/// An L1 never measures a mode other than the requested one.
fn refused() -> TestResult {
    for (mode, hv, why) in [
        (
            "evmcs",
            "nested,-evmcs,-emsr-bitmap,-tlbflush-direct",
            "the enlightened VMCS (hv-evmcs) is not offered",
        ),
        (
            "offered",
            "nested,-evmcs,-emsr-bitmap,-tlbflush-direct",
            "the enlightened VMCS (hv-evmcs) is not offered",
        ),
        (
            "evmcs+emsr",
            "nested,-emsr-bitmap",
            "the enlightened MSR bitmap (hv-emsr-bitmap) is not offered",
        ),
        (
            "evmcs+direct-flush",
            "nested,-tlbflush-direct",
            "the direct flush (hv-tlbflush-direct) is not offered",
        ),
        (
            "classic",
            "nested",
            "the enlightened VMCS is offered: that is mode=offered",
        ),
    ] {
        let line = format!("l1 mode={mode} kinds=cpuid n=1");
        let ended = run(&line, &["--hv", hv])?;
        ended.expect_code(1)?;
        ended.expect_lines(&[&format!("refused: {why}")])?;
    }
    Ok(())
}
