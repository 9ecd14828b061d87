//! VMs that are saved on a host with one kernel continue on hosts with others, in both directions.
//!
//! The stages form a chain of six boots. Each passes the VMs that it saves to the following ones: 6.1 saves,
//! 6.12 restores and saves, the newest restores and saves, then 6.12 and 6.1 restore VMs of newer kernels.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use hypernest_lab::host::{Host, Kernel};
use hypernest_lab::plan::{CARRIED_DIR, LAB_HOST_VARIABLE};
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::golden::pack::pack;
use crate::golden::unpack::Golden;
use crate::golden::{svm_l2, take_this_hosts_frequency};
use crate::kernel_log::KernelLog;
use crate::needs;
use crate::state::{had_l2, laps};
use crate::vm::{Site, Vm};

const fn stage(name: &'static str, kernel: Kernel, after: Option<&'static str>) -> Stage {
    Stage {
        name,
        kernel,
        after,
        ..Stage::PLAIN
    }
}

const OLD: Stage = stage("kernels-1", Kernel::Linux61, None);
const MIDDLE: Stage = stage("kernels-2", Kernel::Linux612, Some(OLD.name));
const NEW: Stage = stage("kernels-3", Kernel::Newest, Some(MIDDLE.name));
const BACK_TO_MIDDLE: Stage = stage("kernels-4", Kernel::Linux612, Some(NEW.name));
const BACK_TO_OLD: Stage = stage("kernels-5", Kernel::Linux61, Some(BACK_TO_MIDDLE.name));
/// The same kernel with fewer nested features.
const LESS: Stage = Stage {
    parameters: &[
        "kvm_intel.vpid=0",
        "kvm_intel.unrestricted_guest=0",
        "kvm_amd.npt=0",
    ],
    ..stage("kernels-6", Kernel::Linux612, Some(BACK_TO_OLD.name))
};

const fn test(name: &'static str, stage: Stage, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd, Host::Intel])
        .stage(stage)
        .needs(needs::hyperv)
        .limit_seconds(300)
}

pub(crate) const TESTS: &[Test] = &[
    test("kernels::vms_are_saved_on_6_1", OLD, || save_all("6.1")),
    test("kernels::vms_of_6_1_go_on_on_6_12", MIDDLE, || {
        restore_all("6.1", "6.12")
    }),
    test("kernels::vms_are_saved_on_6_12", MIDDLE, || {
        save_all("6.12")
    }),
    test("kernels::vms_of_6_1_go_on_on_the_newest", NEW, || {
        restore_all("6.1", "newest")
    }),
    test("kernels::vms_of_6_12_go_on_on_the_newest", NEW, || {
        restore_all("6.12", "newest")
    }),
    test("kernels::vms_are_saved_on_the_newest", NEW, || {
        save_all("newest")
    }),
    test(
        "kernels::vms_of_the_newest_go_on_on_6_12",
        BACK_TO_MIDDLE,
        || restore_all("newest", "6.12"),
    ),
    test("kernels::vms_of_6_12_go_on_on_6_1", BACK_TO_OLD, || {
        restore_all("6.12", "6.1")
    }),
    test(
        "kernels::vms_of_the_newest_go_on_on_6_1",
        BACK_TO_OLD,
        || restore_all("newest", "6.1"),
    ),
    test(
        "kernels::features_that_module_parameters_switch_off_are_named",
        LESS,
        less_nesting,
    ),
];

/// What ordinary runs have of it: the saved VM that no newer kernel took.
pub(crate) const NEWEST: &[Test] = &[test(
    "kernels::an_l2_of_version_1_goes_on_on_the_newest",
    stage("newest", Kernel::Newest, None),
    svm_l2,
)
.only_on(&[Host::Amd])];

/// A guest with state of many kinds, or an L1 with a running L2.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    Keep,
    L1(&'static str),
}

struct Kept {
    name: &'static str,
    host: Option<Host>,
    guest: Guest,
    arguments: &'static [&'static str],
}

/// The CPU model of a guest for all of these kernels, without features that only some of them support.
const CPU: &str = "host,-flushbyasid,-gds-no";

const KEPT: &[Kept] = &[
    Kept {
        name: "none",
        host: None,
        guest: Guest::Keep,
        arguments: &["--hv", "none", "--cpu", CPU],
    },
    Kept {
        name: "windows",
        host: None,
        guest: Guest::Keep,
        arguments: &[
            "--hv",
            "windows,-tlbflush-ext",
            "--kvm-leaves",
            "--cpu",
            CPU,
        ],
    },
    Kept {
        name: "split",
        host: None,
        guest: Guest::Keep,
        arguments: &[
            "--hv",
            "nested,-evmcs,-tlbflush-ext,-tlbflush-direct",
            "--nested",
            "--irqchip",
            "split",
            "--cpu",
            CPU,
        ],
    },
    // All that the host supports, so that an older kernel must refuse it.
    Kept {
        name: "all",
        host: None,
        guest: Guest::Keep,
        arguments: &["--hv", "all,-tsc-invariant", "--nested"],
    },
    Kept {
        name: "l2-svm",
        host: Some(Host::Amd),
        guest: Guest::L1("svm"),
        arguments: &[
            "--hv",
            "nested,-evmcs,-tlbflush-ext,-tlbflush-direct",
            "--nested",
            "--cpu",
            CPU,
        ],
    },
    Kept {
        name: "l2-vmx",
        host: Some(Host::Intel),
        guest: Guest::L1("classic"),
        arguments: &[
            "--hv",
            "nested,-evmcs,-emsr-bitmap,-tlbflush-ext,-tlbflush-direct",
            "--nested",
            "--cpu",
            CPU,
        ],
    },
    Kept {
        name: "l2-evmcs",
        host: Some(Host::Intel),
        guest: Guest::L1("evmcs"),
        arguments: &[
            "--hv",
            "nested,-tlbflush-ext,-tlbflush-direct",
            "--nested",
            "--cpu",
            CPU,
        ],
    },
];

fn this_host() -> Option<Host> {
    let name = std::env::var(LAB_HOST_VARIABLE).ok()?;
    Host::from_name(&name)
}

fn kept_here() -> impl Iterator<Item = &'static Kept> {
    let here = this_host();
    KEPT.iter()
        .filter(move |kept| kept.host.is_none() || kept.host == here)
}

/// Features that the newer kernels' KVM supports and the older ones' does not; the VM `all` is refused for
/// them.
fn lacking(from: &str, to: &str) -> Vec<&'static str> {
    let mut lacking = Vec::new();
    let is_old = to == "6.1";
    if is_old && from != "6.1" {
        lacking.extend(["hv-tlbflush-ext", "hv-tlbflush-direct", "hv-ext-hypercalls"]);
    }
    match this_host() {
        Some(Host::Amd) if is_old && from != "6.1" => lacking.push("flushbyasid"),
        Some(Host::Intel) if from == "newest" && to != "newest" => lacking.push("gds-no"),
        _ => {}
    }
    lacking
}

fn carried(kernel: &str, kept: &Kept, what: &str) -> PathBuf {
    PathBuf::from(format!("{CARRIED_DIR}/{kernel}-{}.{what}", kept.name))
}

/// Runs all of `vms` and reports every failure.
fn each(run: impl Fn(&Kept) -> TestResult) -> TestResult {
    let mut log = KernelLog::from_now()?;
    let mut failed = Vec::new();
    for kept in kept_here() {
        if let Err(error) = run(kept) {
            failed.push(format!("{}: {error}", kept.name));
        }
        for line in log.complaints_of_kvm()? {
            failed.push(format!("{}: the host's kernel logged: {line}", kept.name));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.join("\n").into()),
    }
}

fn save_all(kernel: &str) -> TestResult {
    fs::create_dir_all(CARRIED_DIR)?;
    each(|kept| save(kernel, kept))
}

fn save(kernel: &str, kept: &Kept) -> TestResult {
    let site = Site::new()?;
    let said = match kept.guest {
        Guest::Keep => {
            let mut command = site.enlightened_guest("keep cpus=2");
            command.args(["--cpus", "2"]).args(kept.arguments);
            let mut vm = Vm::start(command)?;
            vm.wait_for("keep: 2\n")?;
            stop(&site, vm)?
        }
        Guest::L1(mode) => {
            let line = format!("l1 mode={mode} kinds=cpuid n=2000 warmup=5 spins=50000");
            let mut command = site.enlightened_guest(&line);
            let mut vm = Vm::start(command.args(kept.arguments))?.patient();
            vm.wait_for("l1: running cpuid")?;
            let mut said = stop(&site, vm)?;
            // Until L2 runs.
            for _ in 0..20 {
                if had_l2(&site.path("saved"))? {
                    break;
                }
                let mut command = site.hypernest();
                let mut vm = Vm::start(command.args(["restore", "saved"]))?.patient();
                vm.wait_until("its control socket", |_| site.status().is_ok())?;
                said.push_str(&stop(&site, vm)?);
            }
            assert!(had_l2(&site.path("saved"))?, "L2 never ran");
            said
        }
    };
    let (state, ram) = pack(&site.path("saved"))?;
    fs::write(carried(kernel, kept, "state"), state)?;
    fs::write(carried(kernel, kept, "ram"), ram)?;
    fs::copy(site.path("saved/boot"), carried(kernel, kept, "boot"))?;
    fs::write(carried(kernel, kept, "said"), said)?;
    Ok(())
}

fn stop(site: &Site, vm: Vm) -> Result<String, Box<dyn Error>> {
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    Ok(ended.stdout)
}

fn restore_all(from: &str, to: &str) -> TestResult {
    each(|kept| restore(from, to, kept))
}

/// The VM that was saved on the kernel `from`, in a separate directory.
fn unpacked(from: &str, kept: &Kept) -> Result<(Site, String), Box<dyn Error>> {
    let read = |what: &str| {
        let path = carried(from, kept, what);
        fs::read(&path).map_err(|e| format!("{}: {e} (was it saved?)", path.display()))
    };
    let site = Site::new()?;
    let (state, ram) = (read("state")?, read("ram")?);
    let packed = Golden {
        state: &state,
        ram: &ram,
        base: None,
    };
    packed.unpack(&site.path("saved"))?;
    fs::write(site.path("saved/boot"), read("boot")?)?;
    if this_host() == Some(Host::Amd) {
        take_this_hosts_frequency(&site.path("saved"))?;
    }
    Ok((site, String::from_utf8(read("said")?)?))
}

fn less_nesting() -> TestResult {
    let (name, expected) = match this_host() {
        Some(Host::Intel) => (
            "l2-vmx",
            [
                "vmx-vpid, vmx-unrestricted-guest; IA32_VMX_PROCBASED_CTLS2 (0x48b): the guest was shown",
                "vmx-invvpid",
                ",-vmx-unrestricted-guest",
            ],
        ),
        _ => ("l2-svm", ["CPU feature npt", "--cpu MODEL", ",-npt"]),
    };
    let kept = kept_here().find(|kept| kept.name == name);
    let (site, _) = unpacked("6.12", kept.ok_or("no L1 here")?)?;
    let mut command = site.hypernest();
    let ended = Vm::start(command.args(["restore", "saved", "--clock", "pause"]))?.end()?;
    ended.expect_error(3, &expected)?;
    Ok(())
}

fn restore(from: &str, to: &str, kept: &Kept) -> TestResult {
    let (site, before) = unpacked(from, kept)?;
    let mut command = site.hypernest();
    command.args(["restore", "saved", "--clock", "pause"]);
    let lacking = match kept.name {
        "all" => lacking(from, to),
        _ => Vec::new(),
    };
    if !lacking.is_empty() {
        let ended = Vm::start(command)?.end()?;
        ended.expect_error(3, &lacking)?;
        return Ok(());
    }
    let mut vm = Vm::start(command)?.patient();
    match kept.guest {
        Guest::Keep => {
            let done = laps(&before);
            vm.wait_until("two more laps", |vm| {
                laps(&format!("{before}{}", vm.said())) >= done + 2
            })?;
            assert!(!vm.said().contains("FAIL"), "{}", vm.said());
        }
        Guest::L1(_) => {
            let ended = vm.end()?;
            ended.expect_code(0)?;
            ended.expect_lines(&["l1: done"])?;
        }
    }
    Ok(())
}
