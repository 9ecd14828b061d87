//! Migration and restore of a VM, measured beside QEMU: checks that both were measured, and that a ratio was
//! printed. The figures are in docs/benchmarks.md.

use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};

use crate::differential;

pub(crate) const TESTS: &[Test] = &[
    Test::new("moves::restoring_is_measured_beside_qemu", || {
        measured("restore", &["exec to the guest's first sign"])
    })
    .only_on(&[Host::Amd])
    .needs(differential::needs_hyperv_and_qemu)
    .stage(differential::STAGE)
    .limit_seconds(180),
    Test::new("moves::live_migration_is_measured_beside_qemu", || {
        measured(
            "live",
            &["in all, ms", "the guest is gone, ms", "sent, MiB"],
        )
    })
    .only_on(&[Host::Amd])
    .needs(differential::needs_hyperv_and_qemu)
    .stage(differential::STAGE)
    .limit_seconds(180),
];

/// Checks that each of `rows` has a value of hypernest, one of QEMU, and a ratio.
fn measured(what: &str, rows: &[&str]) -> TestResult {
    let mut command = Command::new("hypernest-bench");
    command.args(["migration", what, "--rounds", "2"]);
    command.args(["--memory", "64", "--fill", "32"]);
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("hypernest-bench: {}", output.status).into());
    }
    for row in rows {
        let line = text.lines().find(|line| line.contains(row));
        let line = line.ok_or_else(|| format!("no row {row}"))?;
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        assert!(cells[1..].iter().all(|cell| *cell != "-"), "{line}");
        assert!(cells[3].ends_with('x'), "{line}");
    }
    Ok(())
}
