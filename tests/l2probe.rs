//! The probe that users run in nested guests: in a Linux, in hypernest, in a Linux, in hypernest.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};
use serde_json::Value;

use crate::linux::held;
use crate::{needs, stock_linux};

pub(crate) const TESTS: &[Test] =
    &[
        Test::new("l2probe::a_real_l2_is_probed_and_its_result_merges", chain)
            .only_on(&[Host::Amd])
            .stage(stock_linux::AMD)
            .needs(needs::nested_svm)
            .limit_seconds(480),
    ];

/// Kernel parameters that shorten a boot, for L1 and L2.
const PARAMETERS: &str = "mitigations=off no_timer_check tsc=reliable cryptomgr.notests audit=0";

/// Small numbers: an emulated L2 is slow.
const PROBE: &str = "--rounds 2 --samples 50 --waits 5 --limit 1000";

fn chain() -> TestResult {
    let directory = tempfile::tempdir()?;
    let site = directory.path();
    let vmlinux = held("linux-6.12/vmlinux")?;
    let initrd = site.join("l1.cpio");
    let output = Command::new("hypernest-bench")
        .args([
            "initramfs",
            "--append",
            PARAMETERS,
            "--probe",
            PROBE,
            "--kernel",
        ])
        .arg(held("linux-6.12")?)
        .arg("--out")
        .arg(&initrd)
        .output()?;
    let told = String::from_utf8(output.stdout)?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The printed command is the one to run, with additional parameters that shorten the emulated boot.
    let named = format!(
        "--l1 image={} --initrd {}",
        vmlinux.display(),
        initrd.display()
    );
    assert!(told.contains(&named), "{told}");
    let append = told
        .split('\'')
        .nth(1)
        .ok_or("no --append in what it says")?;
    let append = append.replace(" -- ", &format!(" {PARAMETERS} -- "));
    let out = site.join("out");
    let image = format!("image={}", vmlinux.display());
    let report = bench(&[
        &["--l1", &image, "--modes", "svm", "--memory", "768M"],
        &["--append", &append, "--initrd"],
        &[&initrd.display().to_string(), "--out"],
        &[&out.display().to_string(), "--timeout", "420"],
    ])?;
    expect_figures(&report, "image");

    let probe = format!("svm={}", out.join("l2probe-svm.json").display());
    let twice = format!("svm+emsr={}", out.join("l2probe-svm.json").display());
    let merged = bench(&[&["--l1", "manual", "--probe", &probe, "--probe", &twice]])?;
    expect_figures(&merged, "manual");
    Ok(())
}

/// The path of one of our programs.
pub(crate) fn program(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|directory| directory.join(name));
    all.find(|program| program.is_file())
        .ok_or_else(|| format!("{name} is not on the PATH").into())
}

fn bench(arguments: &[&[&str]]) -> Result<Value, Box<dyn Error>> {
    let mut command = Command::new("hypernest-bench");
    command.args(["l2-exit", "--json"]).args(arguments.concat());
    let output = command.stdin(Stdio::null()).output()?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Each kind that works on one CPU, in every available mode.
fn expect_figures(report: &Value, l1: &str) {
    let results = report["results"].as_array().expect("a list");
    for kind in ["cpuid", "rdtsc", "clock-read", "clock-syscall", "hlt-wake"] {
        let mut of_kind = results.iter().filter(|entry| entry["kind"] == kind);
        let all = of_kind.clone().count();
        let well = of_kind.all(|entry| {
            entry["l1"] == l1
                && entry["outcome"] == "measured"
                && entry["parts"]["round_trip"]["summary"]["samples"].as_u64() > Some(0)
        });
        assert!(all > 0 && well, "{kind}");
    }
    let other = results.iter().find(|entry| entry["kind"] == "ipi-wake");
    assert_eq!(other.expect("an entry")["outcome"], "left-out");
    // It was a guest of hypernest, and its CPUID exited to the hypervisor.
    let said = report["warnings"].to_string();
    assert!(said.contains("Microsoft Hv"), "{said}");
    assert!(said.contains("CPUID virtualized"), "{said}");
}
