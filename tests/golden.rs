//! VMs that an earlier version saved continue.

use std::fs::{self, File};
use std::path::Path;

use hypernest::kvm::host::HostCaps;
use hypernest::state::Sections;
use hypernest::time::{HostTsc, SavedTime};
use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Site, Vm};

#[path = "golden/pack.rs"]
pub(crate) mod pack;
#[path = "golden/unpack.rs"]
pub(crate) mod unpack;

use unpack::{Golden, SPLIT, SVM_L2};

pub(crate) const TESTS: &[Test] = &[
    Test::new("golden::an_l2_under_svm_of_version_1_goes_on", svm_l2)
        .only_on(&[Host::Amd])
        .needs(needs::nested_svm)
        .limit_seconds(180),
    Test::new(
        "golden::two_vcpus_with_a_split_irqchip_of_version_1_go_on",
        || goes_on(&SPLIT, &[]),
    )
    .only_on(&[Host::Amd])
    .needs(needs::hyperv)
    .limit_seconds(120),
];

/// An L1 with a running L2 under SVM finishes.
pub(crate) fn svm_l2() -> TestResult {
    goes_on(&SVM_L2, &["l1: running hlt", "l1: done"])
}

/// The maximum length of a VM's state.
const MOST: u64 = 64 << 20;

/// The lab's AMD host has the TSC of the machine that it runs on, and cannot scale. The golden files must be
/// restored on every machine, so only this field is changed: it describes a guest that was just moved between
/// equal hosts.
pub(crate) fn take_this_hosts_frequency(dir: &Path) -> TestResult {
    let native = HostTsc::from(&HostCaps::probe()?).native;
    let path = dir.join("state");
    let mut sections = Sections::decode(File::open(&path)?, MOST)?;
    let mut time: SavedTime = sections.take("time")?.json(1)?;
    time.khz = native.ok_or("the host's frequency is not known")?;
    sections.push_json("time", 1, &time)?;
    let mut bytes = Vec::new();
    sections.encode(&mut bytes)?;
    fs::write(path, bytes)?;
    Ok(())
}

/// Its guest finishes successfully. For the guest, no time has passed since it was saved, however long ago
/// that was.
fn goes_on(golden: &Golden<'static>, lines: &[&str]) -> TestResult {
    let site = Site::new()?;
    golden.unpack(&site.path("saved"))?;
    take_this_hosts_frequency(&site.path("saved"))?;
    let mut command = site.hypernest();
    command.args(["restore", "saved", "--clock", "pause"]);
    let ended = Vm::start(command)?.patient().end()?;
    ended.expect_code(0)?;
    ended.expect_lines(lines)?;
    Ok(())
}
