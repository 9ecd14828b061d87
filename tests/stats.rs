//! Exit statistics: written at the end of the VM, and on a signal.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use hypernest_lab::suite::{Test, TestResult};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::needs;
use crate::vm::{Site, Vm};

pub(crate) const TESTS: &[Test] = &[
    Test::new("stats::every_exit_is_counted", every_exit).needs(needs::guests),
    Test::new("stats::msr_exits_are_counted", msr_exits).needs(needs::hyperv),
    Test::new("stats::written_by_signal_at_any_time", by_signal).needs(needs::guests),
];

pub(crate) fn json(path: &Path) -> Result<Value, Box<dyn Error>> {
    let json: Value = serde_json::from_slice(&fs::read(path)?)?;
    assert_eq!(json["format"], "hypernest-exits");
    assert_eq!(json["version"], 1);
    assert_eq!(json["vm"], "test");
    Ok(json)
}

pub(crate) fn count(json: &Value, reason: &str) -> u64 {
    json["all"][reason]["count"].as_u64().unwrap_or(0)
}

/// The tags of the log's histograms.
fn tags(path: &Path) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let text = fs::read(path)?;
    let mut tags = BTreeSet::new();
    for entry in IntervalLogIterator::new(&text) {
        let entry = entry.map_err(|error| format!("{}: {error:?}", path.display()))?;
        if let LogEntry::Interval(interval) = entry {
            let tag = interval.tag().ok_or("a histogram without a tag")?;
            tags.insert(tag.as_str().to_owned());
        }
    }
    Ok(tags)
}

/// 30 + 100 reads and writes of a port, and of memory without a device: each is one exit, and there are few
/// others.
fn every_exit() -> TestResult {
    let site = Site::new()?;
    let mut command = site.guest("exits n=100 warmup=30 kinds=pio-in,pio-out mmio=0xd0000000");
    command.args(["--stats", "exits.json"]);
    Vm::start(&mut command)?.end()?.expect_code(0)?;
    let json = json(&site.path("exits.json"))?;
    for reason in ["port-in", "mmio-read"] {
        let exits = count(&json, reason);
        assert!((130..150).contains(&exits), "{reason}: {json:#}");
        let figures = &json["all"][reason];
        let of = |name: &str| figures[name].as_f64().unwrap_or(-1.0);
        assert!(of("p50") > 0.0 && of("p50") <= of("p99"), "{figures:#}");
        assert!(
            of("p99") <= of("max") && of("max") <= of("sum"),
            "{figures:#}"
        );
        assert_eq!(figures, &json["vcpus"][0]["exits"][reason]);
    }
    // The samples are written to ports, too.
    assert!(count(&json, "port-out") > 130 + 3 * 100, "{json:#}");
    assert_eq!(count(&json, "internal-error"), 0);
    let tags = tags(&site.path("exits.json.hlog"))?;
    for tag in [
        "vcpu0.port-in",
        "vcpu0.mmio-read",
        "all.port-in",
        "all.port-out",
    ] {
        assert!(tags.contains(tag), "{tags:?}");
    }
    Ok(())
}

/// hypernest emulates the reenlightenment registers itself.
fn msr_exits() -> TestResult {
    let site = Site::new()?;
    let mut command = site.enlightened_guest("exits n=100 warmup=30 kinds=msr");
    command.args(["--hv", "hv-reenlightenment", "--stats", "exits.json"]);
    Vm::start(&mut command)?.end()?.expect_code(0)?;
    let json = json(&site.path("exits.json"))?;
    let exits = count(&json, "rdmsr") + count(&json, "wrmsr");
    assert!((130..150).contains(&exits), "{json:#}");
    Ok(())
}

/// Written while the guest runs, and at the end for all of its boots.
fn by_signal() -> TestResult {
    let site = Site::new()?;
    let path = site.path("exits.json");
    let mut command = site.guest("fault spin");
    command.args(["--cpus", "2", "--stats", "exits.json"]);
    let mut vm = Vm::start(&mut command)?;
    vm.wait_for("fault: spin")?;
    assert!(!path.exists());
    vm.signal(Signal::SIGUSR1)?;
    vm.wait_until("the statistics", |_| site.path("exits.json.hlog").exists())?;
    let first = count(&json(&path)?, "port-out");
    assert!(first > 0);
    assert_eq!(json(&path)?["vcpus"].as_array().map(Vec::len), Some(2));
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("the second boot", |vm| {
        vm.said().matches("fault: spin").count() == 2
    })?;
    vm.signal(Signal::SIGINT)?;
    vm.end()?.expect_code(0)?;
    let last = count(&json(&path)?, "port-out");
    assert!(
        last >= 2 * first,
        "{last} exits after two lives, {first} after one"
    );
    Ok(())
}
