//! The micro-hypervisors as L1: every mode and kind that a host supports, and figures that agree with each
//! other.

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::plan::LAB_HOST_VARIABLE;
use hypernest_lab::suite::{Test, TestResult};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::l2_exit::{BENCH, L1_PARAMETERS, LAB_MODULES, needs_evmcs, needs_svm};
use crate::stock_linux;

pub(crate) const TESTS: &[Test] = &[
    intel("micro::repeats_and_keeps_to_its_baseline_on_intel", repeats),
    intel("micro::host_exits_are_what_the_mode_predicts", predicted),
    intel("micro::comes_close_to_linux", close_to_linux),
    amd("micro::every_mode_and_kind_on_amd", on_amd).limit_seconds(180),
    amd("micro::a_stuck_l2_is_ended_and_what_it_took_is_kept", stuck),
    amd("micro::what_an_interrupt_finds_is_kept", interrupted),
];

const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Here, Host::Amd])
        .needs(needs_svm)
        .stage(stock_linux::AMD)
        .limit_seconds(120)
}

const fn intel(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Here, Host::Intel])
        .needs(needs_evmcs)
        .stage(stock_linux::INTEL)
        .limit_seconds(180)
}

/// The expected figures of the Intel lab, with [`FULL`].
const BASELINE: &str = include_str!("../bench/baselines/intel.json");

/// All modes, and all kinds that work on one vCPU. A second of the Intel lab takes minutes, so the timeout of
/// a stuck VM is shorter than elsewhere.
const FULL: [&str; 10] = [
    "--samples",
    "50",
    "--warmup",
    "10",
    "--max-cycles",
    "7",
    "--cpus",
    "1",
    "--stuck-after",
    "1",
];

/// A result in a file.
struct Measured {
    file: PathBuf,
    report: Value,
    _directory: tempfile::TempDir,
}

impl Measured {
    fn entries(&self) -> impl Iterator<Item = &Value> {
        self.report["results"].as_array().into_iter().flatten()
    }

    fn entry(&self, l1: &str, mode: &str, kind: &str) -> &Value {
        let entry = self
            .entries()
            .find(|entry| entry["l1"] == l1 && entry["mode"] == mode && entry["kind"] == kind);
        let entry = entry.unwrap_or_else(|| panic!("no {l1} {mode} {kind}"));
        assert_eq!(entry["outcome"], "measured", "{entry:#}");
        entry
    }
}

fn measure(arguments: &[&str]) -> Result<Measured, Box<dyn Error>> {
    let mut command = Command::new(BENCH);
    command
        .args(["l2-exit", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if Path::new(LAB_MODULES).join("kvm-intel.ko").is_file() {
        command.args(["--host-modules", LAB_MODULES]);
    }
    let output = command.output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let failed: Vec<_> = report["results"]
        .as_array()
        .ok_or("no results")?
        .iter()
        .filter(|entry| entry["outcome"] == "failed")
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(output.status.success());
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("l2-exit.json");
    std::fs::write(&file, &output.stdout)?;
    Ok(Measured {
        file,
        report,
        _directory: directory,
    })
}

/// The output of `hypernest-bench baseline`, and whether it succeeded.
fn baseline(arguments: &[&std::ffi::OsStr]) -> Result<(String, bool), Box<dyn Error>> {
    let output = Command::new(BENCH)
        .arg("baseline")
        .args(arguments)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8(said)?, output.status.success()))
}

/// Fails if the figures of `new` differ by more than this percentage from those in `old`.
fn within(percent: &str, new: &Measured, old: &Path) -> Result<(), Box<dyn Error>> {
    let (changes, well) = baseline(&[
        new.file.as_os_str(),
        "--within".as_ref(),
        percent.as_ref(),
        "--against".as_ref(),
        old.as_os_str(),
    ])?;
    if well { Ok(()) } else { Err(changes.into()) }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn median(entry: &Value) -> f64 {
    number(&entry["parts"]["round_trip"]["summary"]["p50"])
}

/// Kinds with more than a few instructions of L2 or L1 between samples: they wait for a timer, or the exit
/// costs next to nothing.
const UNEVEN: [&str; 7] = [
    "rdmsr-direct",
    "wrmsr-direct",
    "hlt",
    "timer",
    "preemption-timer",
    "ipi",
    "interrupt",
];

/// Checks that the figures of each entry agree with each other.
fn hangs_together(measured: &Measured, even: bool) {
    let mut seen = 0;
    for entry in measured.entries().filter(|e| e["outcome"] == "measured") {
        seen += 1;
        let what = format!("{} {}", entry["mode"], entry["kind"]);
        let parts = &entry["parts"];
        let mean = |part: &str| parts[part]["summary"]["mean"].as_f64();
        let whole = mean("round_trip").expect("a mean");
        if let (Some(there), Some(inside), Some(back)) =
            (mean("l2_to_l1"), mean("l1"), mean("l1_to_l2"))
        {
            // The sum is exact for each sample; histograms have three digits.
            let sum = there + inside + back;
            assert!((sum / whole - 1.0).abs() < 0.003, "{what}: {sum} {whole}");
        }
        let kind = entry["kind"].as_str().unwrap_or_default();
        if even && !UNEVEN.contains(&kind) {
            let all = whole * number(&parts["round_trip"]["summary"]["samples"]);
            let stopwatch = number(&entry["stopwatch"]);
            let ratio = stopwatch / all;
            assert!((0.95..1.05).contains(&ratio), "{what}: {stopwatch} {all}");
        }
    }
    assert!(seen > 0);
}

fn is_lab(host: &str) -> bool {
    std::env::var(LAB_HOST_VARIABLE).is_ok_and(|name| name == host)
}

fn repeats() -> TestResult {
    let first = measure(&FULL)?;
    // Only there is time counted in instructions.
    let counted = is_lab("intel");
    hangs_together(&first, counted);
    if !counted {
        return Ok(());
    }
    let again = measure(&[&FULL[..], &["--no-reasons"]].concat())?;
    let directory = tempfile::tempdir()?;
    let kept = directory.path().join("kept.json");
    std::fs::write(&kept, baseline(&[first.file.as_os_str()])?.0)?;
    within("1", &again, &kept).map_err(|changes| format!("two runs disagree:\n{changes}"))?;
    std::fs::write(&kept, BASELINE)?;
    within("2", &first, &kept).map_err(|changes| {
        format!(
            "the figures are not those of bench/baselines/intel.json:\n{changes}if that is meant, update \
             it:\n  cargo lab exec --host intel -- sh -c 'hypernest-bench l2-exit --json --host-modules \
             {LAB_MODULES} {} > /r.json; hypernest-bench baseline /r.json' > bench/baselines/intel.json",
            FULL.join(" ")
        )
        .into()
    })
}

/// Host exits for each exit of L2, by reason, without what the host causes: its interrupts, and the rare page
/// that its memory management takes away and L1 uses again.
fn reasons(entry: &Value) -> Vec<(&str, f64)> {
    let of_host = |reason: &str, count: f64| match reason {
        "external-interrupt" => true,
        "ept-violation" => count < 0.1,
        _ => false,
    };
    let all = entry["host_exits_by_reason"].as_object();
    let all = all.unwrap_or_else(|| panic!("not counted by reason: {entry:#}"));
    all.iter()
        .map(|(reason, count)| (reason.as_str(), number(count)))
        .filter(|(reason, count)| !of_host(reason, *count))
        .collect()
}

fn predicted() -> TestResult {
    let measured = measure(
        &[
            &FULL[..],
            &[
                "--touch",
                "minimal",
                "--kinds",
                "cpuid,hypercall,rdmsr-direct",
            ],
            &["--modes", "classic,classic+shadow,evmcs"],
        ]
        .concat(),
    )?;
    for (kind, exit) in [("cpuid", "cpuid"), ("hypercall", "vmcall")] {
        for mode in ["classic", "classic+shadow", "evmcs"] {
            let entry = measured.entry("micro", mode, kind);
            // The exit and the resume; without enlightenments, also the reads of the reason and RIP and the
            // write of RIP.
            let mut wanted = vec![(exit, 1.0), ("vmresume", 1.0)];
            if mode == "classic" {
                wanted.extend([("vmread", 2.0), ("vmwrite", 1.0)]);
            }
            wanted.sort_by_key(|(reason, _)| *reason);
            let mut found = reasons(entry);
            found.sort_by_key(|(reason, _)| *reason);
            assert_eq!(found, wanted, "{mode} {kind}");
            // The timed run also counts the host's interrupts.
            let (all, wanted) = (
                number(&entry["host_exits_per_l2_exit"]),
                wanted.iter().map(|(_, count)| count).sum::<f64>(),
            );
            assert!(
                (wanted..wanted + 0.25).contains(&all),
                "{mode} {kind}: {all}"
            );
        }
    }
    // Neither L1 nor the host takes part in it.
    let direct = measured.entry("micro", "evmcs", "rdmsr-direct");
    assert!(direct["parts"]["l1"].is_null());
    assert!(number(&direct["host_exits_per_l2_exit"]) < 0.25);
    Ok(())
}

fn close_to_linux() -> TestResult {
    let append = L1_PARAMETERS;
    let measured = measure(
        &[
            &FULL[..],
            &["--l1", "micro,linux", "--modes", "evmcs,evmcs+emsr,classic"],
            &["--kinds", "cpuid", "--no-reasons", "--rounds", "1"],
            &["--append", append],
        ]
        .concat(),
    )?;
    let of = |l1, mode| median(measured.entry(l1, mode, "cpuid"));
    if is_lab("intel") {
        for mode in ["evmcs", "evmcs+emsr", "classic"] {
            let ratio = of("micro", mode) / of("linux", mode);
            println!("{mode}: {ratio:.3} of Linux");
            assert!((0.75..=1.25).contains(&ratio), "{mode}: {ratio}");
        }
        // With all its parts; the MSR bitmap alone saves some 1,000 of 14,000 instructions.
        let gain = of("micro", "evmcs+emsr") / of("micro", "classic");
        println!("eVMCS: {gain:.3} of the time without");
        assert!(gain <= 0.6, "{gain}");
    }
    Ok(())
}

fn on_amd() -> TestResult {
    // Includes the kind that needs two vCPUs.
    let measured = measure(&["--samples", "50", "--warmup", "10", "--max-cycles", "1"])?;
    hangs_together(&measured, false);
    for mode in ["svm", "svm+emsr", "svm+direct-flush"] {
        let kinds = measured
            .entries()
            .filter(|entry| entry["mode"] == mode && entry["outcome"] == "measured");
        // All except the VMX-preemption timer.
        assert_eq!(kinds.count(), 21, "{mode}");
        let cpuid = measured.entry("micro", mode, "cpuid");
        assert!(number(&cpuid["host_exits_per_l2_exit"]) >= 2.0);
        if !cpuid["host_exits_by_reason"].is_null() {
            assert!(reasons(cpuid).contains(&("vmrun", 1.0)), "{cpuid:#}");
        }
    }
    // The host handles it for L1.
    let flush = |mode| measured.entry("micro", mode, "flush-hypercall");
    assert!(flush("svm+direct-flush")["parts"]["l1"].is_null());
    let exits = |mode| number(&flush(mode)["host_exits_per_l2_exit"]);
    assert!(exits("svm+direct-flush") < exits("svm"));
    Ok(())
}

/// The only entry of a run that ended early, and its report.
fn cut_short(output: &std::process::Output) -> Result<(Value, Value), Box<dyn Error>> {
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let entries = report["results"].as_array().ok_or("no results")?;
    let entry = entries.iter().find(|entry| entry["mode"] == "svm");
    let entry = entry.ok_or("no svm")?.clone();
    Ok((entry, report))
}

fn samples(measured: &Value) -> u64 {
    let summary = &measured["parts"]["round_trip"]["summary"];
    summary["samples"].as_u64().expect("a number")
}

/// For the watchdog, an L2 that takes samples for longer than the timeout is stuck: neither shows progress.
fn stuck() -> TestResult {
    let wanted = 200_000;
    let output = Command::new(BENCH)
        .args(["l2-exit", "--json", "--modes", "svm", "--kinds", "cpuid"])
        .args(["--max-cycles", "1", "--no-reasons", "--stuck-after", "3"])
        .args(["--samples", &wanted.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let (entry, report) = cut_short(&output)?;
    assert_eq!(entry["outcome"], "failed", "{entry:#}");
    let why = entry["why"].as_str().unwrap_or_default();
    assert!(why.contains("stuck: nothing happened for 3 s"), "{why}");
    assert!((1..wanted).contains(&samples(&entry["partial"])));
    assert_eq!(report["interrupted"], false);
    Ok(())
}

fn interrupted() -> TestResult {
    let mut child = Command::new(BENCH)
        .args(["l2-exit", "--json", "--modes", "svm", "--kinds", "cpuid"])
        .args(["--samples", "50", "--precision", "0.0001"])
        .args(["--max-cycles", "10000", "--no-reasons"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
    while let Some(line) = said.next().transpose()? {
        if line.starts_with("cycle 2") {
            break;
        }
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    let (entry, report) = cut_short(&child.wait_with_output()?)?;
    drop(said);
    assert_eq!(report["interrupted"], true);
    assert_eq!(entry["outcome"], "measured", "{entry:#}");
    assert!(samples(&entry) >= 50);
    Ok(())
}
