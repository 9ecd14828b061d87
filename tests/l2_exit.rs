//! The main measurement: exits of an L2, timed from inside, with a stock Linux as L1.

use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hypernest::kvm::host::{HostCaps, KvmFacts};
use hypernest_lab::host::Host;
use hypernest_lab::plan::{LAB_DIR_VARIABLE, LAB_HOST_VARIABLE};
use hypernest_lab::suite::{Test, TestResult};
use serde_json::Value;

use crate::stock_linux;

pub(crate) const TESTS: &[Test] = &[
    Test::new("l2_exit::an_enlightened_vmcs_saves_host_exits", evmcs)
        .only_on(&[Host::Here, Host::Intel])
        .needs(needs_evmcs)
        .stage(stock_linux::INTEL)
        .limit_seconds(120),
    svm_test("l2_exit::svm_is_measured", svm),
    svm_test("l2_exit::a_crash_of_l1_is_shown_with_its_console", crash),
    Test::new(
        "l2_exit::what_the_cpu_lacks_is_refused_with_the_reason",
        refused,
    ),
];

const fn svm_test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Here, Host::Amd])
        .needs(needs_svm)
        .stage(stock_linux::AMD)
        .limit_seconds(180)
}

pub(crate) const BENCH: &str = "hypernest-bench";

fn needs_kernel() -> Result<(), String> {
    let lab = std::env::var_os(LAB_DIR_VARIABLE).unwrap_or_default();
    if !Path::new(&lab).join("linux-6.12/vmlinux").is_file() {
        return Err(format!("a kernel for L1 ({LAB_DIR_VARIABLE})"));
    }
    Ok(())
}

fn needs(has: fn(&KvmFacts) -> bool, what: &str) -> Result<(), String> {
    needs_kernel()?;
    let host = HostCaps::probe().map_err(|e| e.to_string())?;
    has(&host.kvm).then_some(()).ok_or_else(|| what.to_owned())
}

pub(crate) fn needs_evmcs() -> Result<(), String> {
    needs(
        |kvm| kvm.guest_vmx() && kvm.evmcs.is_some_and(|versions| versions != 0),
        "VMX for guests, and eVMCS in KVM",
    )?;
    // The owner of a process's directory is its user.
    std::fs::metadata("/proc/self")
        .is_ok_and(|own| own.uid() == 0)
        .then_some(())
        .ok_or_else(|| "root, to load kvm_intel without shadow VMCS".to_owned())
}

pub(crate) fn needs_svm() -> Result<(), String> {
    needs(
        |kvm| kvm.guest_svm() && kvm.hv_cpuid.is_some(),
        "SVM for guests, and Hyper-V in KVM",
    )
}

/// The directory of the modules of a lab host's kernel.
pub(crate) const LAB_MODULES: &str = "/modules";

fn bench(arguments: &[&str]) -> Result<Output, Box<dyn Error>> {
    let mut command = Command::new(BENCH);
    command.arg("l2-exit").args(arguments).stdin(Stdio::null());
    if Path::new(LAB_MODULES).join("kvm-intel.ko").is_file() {
        command.args(["--host-modules", LAB_MODULES]);
    }
    Ok(command.output()?)
}

pub(crate) const L1_PARAMETERS: &str =
    "mitigations=off no_timer_check tsc=reliable cryptomgr.notests audit=0";

/// A report of 50 samples, and whether the command succeeded.
fn report(modes: &str, append: &str) -> Result<(Value, bool), Box<dyn Error>> {
    let output = bench(&[
        "--json",
        "--l1",
        "linux",
        "--modes",
        modes,
        "--samples",
        "50",
        "--rounds",
        "1",
        "--append",
        &format!("{L1_PARAMETERS} {append}"),
    ])?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&output.stdout)?;
    println!("{report:#}");
    Ok((report, output.status.success()))
}

fn measured<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["results"].as_array().expect("a list");
    let entry = all.iter().find(|entry| entry["mode"] == name);
    let entry = entry.unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(entry["outcome"], "measured", "{name}");
    let summary = &entry["parts"]["round_trip"]["summary"];
    assert_eq!(summary["samples"], 50, "{name}");
    assert!(summary["p50"].as_f64() > Some(0.0), "{name}");
    assert_eq!(entry["facts"]["clocksource"], "hyperv_clocksource_tsc_page");
    entry
}

fn says_evmcs(entry: &Value) -> bool {
    entry["facts"]["kvm_log"]
        .to_string()
        .contains("Using Hyper-V Enlightened VMCS")
}

fn evmcs() -> TestResult {
    let (report, well) = report("evmcs,classic", "")?;
    let (with, without) = (measured(&report, "evmcs"), measured(&report, "classic"));
    assert!(well && says_evmcs(with) && !says_evmcs(without));
    let exits = |entry: &Value| entry["host_exits_per_l2_exit"].as_f64().expect("a number");
    // At least an exit of L2 and the entry after it.
    assert!(exits(with) >= 2.0 && exits(with) < exits(without));
    // Only there is the unit reproducible.
    if std::env::var(LAB_HOST_VARIABLE).is_ok_and(|host| host == "intel") {
        assert_eq!(report["unit"]["name"], "emulated instructions");
        let median = |entry: &Value| entry["parts"]["round_trip"]["summary"]["p50"].as_f64();
        assert!(median(with) < median(without));
    }
    Ok(())
}

fn svm() -> TestResult {
    let (report, well) = report("svm", "")?;
    let entry = measured(&report, "svm");
    assert!(well && entry["host_exits_per_l2_exit"].as_f64() >= Some(2.0));
    Ok(())
}

fn crash() -> TestResult {
    // The later of two parameters counts: without an init the kernel panics, and with panic=-1 resets.
    let (report, well) = report("svm", "rdinit=/nothing")?;
    let entry = &report["results"][0];
    assert!(!well);
    assert_eq!(entry["outcome"], "failed");
    assert_eq!(entry["why"], "L1 crashed and reset itself");
    let console = entry["console"].as_str().expect("text");
    assert!(console.contains("Kernel panic"), "{console}");
    Ok(())
}

fn refused() -> TestResult {
    let host = HostCaps::probe()?;
    let cpu = &host.system.cpu;
    let (mode, reason) = match cpu.vendor.as_str() {
        _ if !cpu.vmx && !cpu.svm => ("svm", "svm: this host's CPU shows neither VMX nor SVM"),
        "GenuineIntel" => ("svm", "svm: SVM is AMD's"),
        _ => ("evmcs", "evmcs: VMX and eVMCS are Intel's"),
    };
    let output = bench(&["--dry-run", "--modes", mode])?;
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(reason), "{said}");
    Ok(())
}
