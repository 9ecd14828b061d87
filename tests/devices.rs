//! Devices measured beside QEMU's: checks that both were measured, and that every figure is there. The
//! figures are in docs/benchmarks.md.

use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::setup::debian::{IMAGE, INITRAMFS, KERNEL};
use hypernest_lab::suite::{Stage, Test, TestResult};
use serde_json::Value;

use crate::differential;
use crate::linux::held;

const STAGE: Stage = Stage {
    name: "devices",
    memory_mib: 3072,
    with: &["qemu", KERNEL, INITRAMFS],
    disks: &[IMAGE],
    ..Stage::PLAIN
};

pub(crate) const TESTS: &[Test] = &[Test::new("devices::a_disk_is_measured_beside_qemu", disk)
    .only_on(&[Host::Amd])
    .needs(differential::needs_hyperv_and_qemu)
    .stage(STAGE)
    .limit_seconds(600)];

/// One load in one round.
fn disk() -> TestResult {
    let mut command = Command::new("hypernest-bench");
    command
        .args(["devices", "randread-32", "--rounds", "1", "--seconds", "1"])
        .args(["--json", "--root", "/dev/vda", "--size", "64", "--kernel"])
        .arg(held(KERNEL)?)
        .arg("--initrd")
        .arg(held(INITRAMFS)?);
    let output = command.stdin(Stdio::null()).output()?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        return Err(format!("hypernest-bench: {}", output.status).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["rows"].as_array().ok_or("rows")?;
    let figures: Vec<_> = rows
        .iter()
        .filter_map(|row| row["figure"].as_str())
        .collect();
    assert_eq!(
        figures,
        [
            "throughput",
            "mean latency",
            "median latency",
            "99th percentile of the latency",
            "CPU time of the VMM per request",
            "of that beside the vCPUs",
            "exits of the VM per request",
        ]
    );
    for row in rows {
        for who in ["hypernest", "qemu", "ratios"] {
            let values = row[who].as_array().ok_or("values")?;
            let all_count = values.iter().all(|value| value.as_f64() > Some(0.0));
            assert!(values.len() == 1 && all_count, "{who}: {row}");
        }
    }
    let warning = report["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.contains("emulated"), "{warning:?}");
    Ok(())
}
