//! The same micro-hypervisor in hypernest and in QEMU: the cost of its L2's exits depends on KVM, not on the
//! VMM.

use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};
use serde_json::Value;

use crate::differential;

/// Only where time is counted in instructions.
pub(crate) const TESTS: &[Test] =
    &[
        Test::new("beside_qemu::an_exit_of_l2_costs_the_same", round_trips)
            .only_on(&[Host::Intel])
            .needs(differential::needs_evmcs_and_qemu)
            .stage(differential::STAGE)
            .limit_seconds(120),
    ];

/// The maximum relative difference between the round trips.
const APART: f64 = 0.02;

fn round_trips() -> TestResult {
    let mut command = Command::new("hypernest-bench");
    command.args(["l2-exit", "--json", "--vmm", "hypernest,qemu"]);
    command.args(["--modes", "evmcs", "--kinds", "cpuid"]);
    command.args(["--samples", "100", "--max-cycles", "1"]);
    command.args(["--stuck-after", "240"]);
    let output = command.stdin(Stdio::null()).output()?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        return Err(format!("hypernest-bench: {}", output.status).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["unit"]["name"], "emulated instructions");
    // The emulated TSC advances in steps, which lengthens some samples; the shortest are not affected.
    let least = |vmm: &str| {
        let results = report["results"].as_array().expect("a list");
        let entry = results.iter().find(|entry| entry["vmm"] == vmm);
        let entry = entry.unwrap_or_else(|| panic!("no result of {vmm}"));
        let least = &entry["parts"]["round_trip"]["summary"]["min"];
        least.as_f64().unwrap_or_else(|| panic!("{entry}"))
    };
    let ratio = least("hypernest") / least("qemu");
    println!("hypernest to QEMU: {ratio:.4}");
    assert!((ratio - 1.0).abs() <= APART, "{ratio}");
    Ok(())
}
