//! Save and restore: a guest keeps its whole state, and continues as if it had not been interrupted.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hypernest::kvm::state::VcpuState;
use hypernest::state::snapshot::Snapshot;
use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};
use hypernest_nested::nested_state::NestedState;

use crate::kernel_log::KernelLog;
use crate::linux::{initramfs, linux};
use crate::migration;
use crate::needs;
use crate::stock_linux;
use crate::vm::{Ended, Site, Vm};

const fn micro(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests).limit_seconds(120)
}

const fn hyperv(name: &'static str, run: fn() -> TestResult) -> Test {
    micro(name, run).needs(needs::hyperv)
}

const fn with_linux(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(stock_linux::AMD)
        .needs(needs::hyperv)
        .limit_seconds(200)
}

pub(crate) const TESTS: &[Test] = &[
    micro("state::a_guest_without_enlightenments_goes_on", || {
        goes_on(&["--hv", "none"])
    }),
    micro("state::a_guest_with_a_split_irqchip_goes_on", || {
        goes_on(&["--hv", "none", "--irqchip", "split"])
    }),
    micro("state::a_guest_of_machine_type_direct_1_goes_on", || {
        goes_on(&["--hv", "none", "--machine", "direct-1"])
    }),
    hyperv("state::a_guest_of_profile_windows_goes_on", || {
        goes_on(&["--hv", "windows"])
    }),
    hyperv("state::a_guest_of_profile_nested_goes_on", || {
        let hv = match needs::evmcs() {
            Ok(()) => "nested",
            Err(_) => "nested,-evmcs",
        };
        goes_on(&["--hv", hv, "--nested", "--irqchip", "split"])
    }),
    hyperv("state::a_guest_of_profile_all_goes_on", || {
        goes_on(&["--hv", "all", "--nested"])
    }),
    hyperv("state::a_guest_that_sees_kvm_too_goes_on", || {
        goes_on(&["--hv", "windows", "--kvm-leaves"])
    }),
    // The test takes seconds of guest time, too many for the Intel lab.
    hyperv("state::a_timer_that_is_due_later_expires_once", due_later)
        .only_on(&[Host::Here, Host::Amd]),
    micro("state::a_restored_guest_can_be_reset", reset),
    micro("state::what_becomes_of_a_saved_vm_is_as_asked", then),
    hyperv("state::what_could_not_be_restored_is_not_saved", stays),
    micro("state::damage_is_refused_by_name", damaged),
    micro(
        "state::kvm_logs_nothing_during_save_restore_and_migration",
        quiet,
    )
    .only_on(&[Host::Amd, Host::Intel]),
    with_linux("state::linux_with_4_vcpus_goes_on", || {
        linux_goes_on(&["--cpus", "4"])
    }),
    with_linux("state::linux_with_a_split_irqchip_goes_on", || {
        linux_goes_on(&["--cpus", "4", "--irqchip", "split"])
    }),
    with_linux("state::linux_without_enlightenments_goes_on", || {
        linux_goes_on(&["--cpus", "4", "--hv", "none", "--kvm-leaves"])
    }),
    micro("state::an_l2_under_svm_goes_on", || {
        l2_goes_on(
            "svm",
            "nested,-evmcs",
            Measured {
                kinds: &["cpuid", "rdmsr-direct", "hlt", "timer"],
                ..MOSTLY_IN_L1
            },
        )
    })
    .needs(needs::nested_svm)
    .limit_seconds(180),
    micro("state::an_l2_under_vmx_goes_on", || {
        l2_goes_on(
            "classic",
            "nested,-evmcs,-emsr-bitmap,-tlbflush-direct",
            MOSTLY_IN_L1,
        )
    })
    .needs(needs::evmcs)
    .limit_seconds(180),
    micro("state::an_l2_under_evmcs_goes_on", || {
        l2_goes_on("evmcs", "nested", MOSTLY_IN_L1)
    })
    .needs(needs::evmcs)
    .limit_seconds(180),
    // In this state KVM returns a blob that it would refuse itself.
    micro("state::an_l2_that_was_first_resumed_goes_on", || {
        l2_goes_on("evmcs resume-first", "nested", MOSTLY_IN_L1)
    })
    .needs(needs::evmcs)
    .limit_seconds(180),
];

/// Saves the VM called `test` in `saved`, which ends it; returns its output until then.
pub(crate) fn save(site: &Site, vm: Vm) -> Result<Ended, Box<dyn Error>> {
    let saved = site.control(&["save", "test", "saved", "--then", "stop"])?;
    saved
        .expect_code(0)
        .map_err(|error| format!("{error}\nthe VM wrote to stderr:\n{}", vm.complained()))?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    Ok(ended)
}

/// Starts the VM that is saved in `saved`.
pub(crate) fn restore(site: &Site, arguments: &[&str]) -> Result<Vm, Box<dyn Error>> {
    let mut command = site.hypernest();
    command.stdin(Stdio::piped());
    Ok(Vm::start(
        command.args(["restore", "saved"]).args(arguments),
    )?)
}

/// A guest with state of many kinds.
fn keeper(site: &Site, words: &str, arguments: &[&str]) -> Command {
    let mut command = site.enlightened_guest(&format!("keep cpus=2 {words}"));
    command.args(["--cpus", "2"]).args(arguments);
    command
}

/// The number of the last lap in the output.
pub(crate) fn laps(said: &str) -> u64 {
    let laps = said
        .lines()
        .filter_map(|l| l.trim_start_matches('\0').strip_prefix("keep: "));
    laps.filter_map(|lap| lap.parse().ok()).max().unwrap_or(0)
}

/// Checks that the guest continues with the next lap after its output `before`, which may end anywhere in a
/// line, and that it does some more.
fn expect_more_laps(vm: &mut Vm, before: &str) -> TestResult {
    let done = laps(before);
    vm.wait_until("three more laps", |vm| {
        laps(&format!("{before}{}", vm.said())) >= done + 3
    })?;
    expect_every_lap(&format!("{before}{}", vm.said()))
}

fn expect_every_lap(said: &str) -> TestResult {
    let whole = &said[..said.rfind('\n').unwrap_or(0)];
    let laps = whole
        .lines()
        .filter_map(|line| line.trim_start_matches('\0').strip_prefix("keep: "));
    let laps: Vec<u64> = laps.filter_map(|lap| lap.parse().ok()).collect();
    assert!(!said.contains("FAIL"), "{said}");
    assert!(laps.iter().copied().eq(1..=laps.len() as u64), "{said}");
    Ok(())
}

fn goes_on(arguments: &[&str]) -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "", arguments))?;
    vm.wait_for("keep: 3\n")?;
    let mut said = save(&site, vm)?.stdout;
    // A restored VM can be saved again, in the same place, and RAM may be read eagerly or lazily.
    for how in [&[][..], &["--eager"], &["--serial", "none"]] {
        let mut vm = restore(&site, how)?;
        expect_more_laps(&mut vm, &said)?;
        said.push_str(&save(&site, vm)?.stdout);
        expect_every_lap(&said)?;
    }
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

fn quiet() -> TestResult {
    let site = Site::new()?;
    let mut log = KernelLog::from_now()?;
    let mut vm = Vm::start(keeper(&site, "", &["--hv", "none", "--kvm-leaves"]))?;
    vm.wait_for("keep: 1\n")?;
    let said = save(&site, vm)?.stdout;
    let mut vm = restore(&site, &[])?;
    expect_more_laps(&mut vm, &said)?;
    let mut there = migration::destination(&site, "other", &[])?;
    migration::migrate(&site, "test", "other", &[])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    there.wait_for("keep: ")?;
    assert_eq!(log.complaints_of_kvm()?, [""; 0]);
    Ok(())
}

fn due_later() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "due=8000000", &["--hv", "windows"]))?;
    vm.wait_for("keep: 1\n")?;
    let ended = save(&site, vm)?;
    assert!(!ended.stdout.contains("expired"), "{}", ended.stdout);
    let mut vm = restore(&site, &[])?;
    vm.wait_for("keep: the timer expired")?;
    expect_more_laps(&mut vm, &ended.stdout)?;
    Ok(())
}

/// After a reset, RAM that is still in the file is as empty as any other.
fn reset() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "", &["--hv", "none"]))?;
    vm.wait_for("keep: 2\n")?;
    let said = save(&site, vm)?.stdout;
    let mut vm = restore(&site, &["--paused"])?;
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    assert_eq!(site.status()?["state"], "paused");
    assert_eq!(vm.said(), "");
    site.control(&["resume", "test"])?.expect_code(0)?;
    expect_more_laps(&mut vm, &said)?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("the first lap of another boot", |vm| {
        vm.said().contains("keep: 1\n")
    })?;
    assert_eq!(site.status()?["resets"], 1);
    // The kernel is part of the saved VM: its file is not needed.
    fs::rename(site.path("guest"), site.path("gone"))?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("a third boot", |vm| {
        vm.said().matches("keep: 1\n").count() == 2
    })?;
    assert_eq!(site.status()?["resets"], 2);
    Ok(())
}

fn then() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "", &["--hv", "none"]))?;
    vm.wait_for("keep: 1\n")?;
    let state_after = |arguments: &[&str]| -> Result<String, Box<dyn Error>> {
        let command = [&["save", "test", "saved"], arguments].concat();
        site.control(&command)?.expect_code(0)?;
        Ok(site.status()?["state"].as_str().unwrap_or("").to_owned())
    };
    assert_eq!(state_after(&[])?, "running");
    assert_eq!(state_after(&["--then", "pause"])?, "paused");
    assert_eq!(state_after(&[])?, "paused");
    assert_eq!(state_after(&["--then", "run"])?, "running");
    let done = laps(&vm.said());
    vm.wait_for(&format!("keep: {}\n", done + 2))?;
    // A VM that cannot be saved continues, and an existing saved VM remains.
    let refused = site.control(&["save", "test", "guest", "--then", "stop"])?;
    refused.expect_error(1, &["guest"])?;
    assert_eq!(site.status()?["state"], "running");
    // Two VMs of one name cannot run.
    restore(&site, &[])?
        .end()?
        .expect_error(1, &["already running"])?;
    let mut other = restore(&site, &["--name", "other"])?;
    other.wait_for("keep: ")?;
    Ok(())
}

fn stays() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "", &["--hv", "passthrough"]))?;
    vm.wait_for("keep: 1\n")?;
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_error(1, &["hv-passthrough", "cannot be saved or migrated"])?;
    assert_eq!(site.status()?["state"], "running");
    let done = laps(&vm.said());
    vm.wait_for(&format!("keep: {}\n", done + 2))?;
    assert!(!site.path("saved").exists());
    Ok(())
}

fn damaged() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(keeper(&site, "", &["--hv", "none"]))?;
    vm.wait_for("keep: 1\n")?;
    save(&site, vm)?;
    let refuses = |arguments: &[&str], code: i32, texts: &[&str]| -> TestResult {
        restore(&site, arguments)?
            .end()?
            .expect_error(code, texts)?;
        Ok(())
    };
    restore(&site, &["--check"])?.end()?.expect_code(0)?;
    let state = site.path("saved/state");
    let whole = fs::read(&state)?;
    let mut bytes = whole.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&state, &bytes)?;
    refuses(&[], 1, &["saved", "section", "damaged"])?;
    fs::write(&state, &whole[..last])?;
    refuses(&[], 1, &["saved", "section", "cut off"])?;
    fs::write(&state, "not the state of any VM")?;
    refuses(&[], 1, &["saved", "not the saved state"])?;
    fs::write(&state, &whole)?;
    let ram = site.path("saved/ram");
    let length = fs::metadata(&ram)?.len();
    let file = fs::OpenOptions::new().write(true).open(&ram)?;
    file.set_len(length - 4096)?;
    refuses(&[], 1, &["ram"])?;
    file.set_len(length)?;
    // The checksum detects damage that the length does not: the program at 1 MiB is lost.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 1 << 20)?;
    refuses(&["--check"], 1, &["ram"])?;
    refuses(&["--eager"], 1, &["ram"])?;
    fs::remove_file(&ram)?;
    refuses(&[], 1, &["ram"])?;
    refuses(
        &["--debugcon", "none", "--debug-exit"],
        2,
        &["--debug-exit"],
    )?;
    Ok(())
}

/// Without kvmclock Linux cannot be notified that it was stopped, and its watchdogs report half a minute of
/// downtime, which is possible on a busy machine. Its clocks are therefore paused meanwhile, except for those
/// by which it can be notified.
fn linux_goes_on(arguments: &[&str]) -> TestResult {
    let clock = match arguments.contains(&"--kvm-leaves") {
        true => "continue",
        false => "pause",
    };
    let site = Site::new()?;
    let command = linux(&site, "linux-6.12/vmlinux", "loglevel=5");
    // Every CPU is busy, and the console shows progress.
    initramfs(
        &site,
        "sh -c 'for i in 1 2 3; do while :; do :; done & done; \
         i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo tick $i; /busybox usleep 100000; done'",
    )?;
    let mut vm = Vm::start(command?.args(arguments))?.patient();
    vm.wait_for("tick 5\r\n")?;
    let mut done = ticks(&save(&site, vm)?.stdout);
    for _ in 0..2 {
        let mut vm = restore(&site, &["--clock", clock])?.patient();
        vm.wait_for(&format!("tick {}\r\n", done + 20))?;
        let said = vm.said();
        for bad in ["BUG", "WARNING", "Call Trace", "stall", "nstable", "lockup"] {
            assert!(!said.contains(bad), "{said}");
        }
        done = ticks(&save(&site, vm)?.stdout);
    }
    Ok(())
}

fn ticks(said: &str) -> u64 {
    let ticks = said.lines().filter_map(|line| line.strip_prefix("tick "));
    ticks
        .filter_map(|tick| tick.trim().parse().ok())
        .max()
        .unwrap_or(0)
}

/// Whether L2 was running when the VM in `dir` was saved.
pub(crate) fn had_l2(dir: &Path) -> Result<bool, Box<dyn Error>> {
    let (mut sections, _) = Snapshot::open(dir)?.into_parts();
    let section = sections.take("vcpu/0")?;
    let state = VcpuState::decode(&mut section.decoder(VcpuState::VERSION)?)?;
    let nested = NestedState::parse(&state.nested).map_err(|e| e.to_string())?;
    Ok(nested.in_guest_mode())
}

/// What an L1 measures.
#[derive(Clone, Copy)]
struct Measured {
    n: u32,
    kinds: &'static [&'static str],
    /// The turns of an empty loop of L2 before each exit.
    spins: u32,
}

/// L2 runs nearly all the time.
const MOSTLY_IN_L2: Measured = Measured {
    n: 400,
    kinds: &["cpuid"],
    spins: 200_000,
};

/// L1 runs most of the time, L0 for it.
const MOSTLY_IN_L1: Measured = Measured {
    n: 3000,
    kinds: &["cpuid"],
    spins: 0,
};

/// Checks that L1 sees no unexpected exit, and finishes, in a VM that is saved in L1 or L2, and in one that
/// is saved in L2.
fn l2_goes_on(mode: &str, hv: &str, anywhere: Measured) -> TestResult {
    l2_goes_on_in(mode, hv, anywhere)?;
    let in_l2 = l2_goes_on_in(mode, hv, MOSTLY_IN_L2)?;
    assert!(in_l2 > 0, "L2 never ran when the VM was saved");
    Ok(())
}

/// The same in one VM; how often L2 ran when it was saved.
fn l2_goes_on_in(mode: &str, hv: &str, measured: Measured) -> Result<u32, Box<dyn Error>> {
    let Measured { n, kinds, spins } = measured;
    let site = Site::new()?;
    let line = format!(
        "l1 mode={mode} kinds={} n={n} warmup=5 spins={spins}",
        kinds.join(",")
    );
    let mut command = site.enlightened_guest(&line);
    let mut vm = Vm::start(command.args(["--nested", "--hv", hv]))?.patient();
    vm.wait_for(&format!("l1: running {}", kinds[0]))?;
    let (mut saves, mut in_l2) = (0, 0);
    let mut said = String::new();
    // At arbitrary points of L1 and L2: at some of these L2 runs. The guest may finish before it is saved
    // again.
    for _ in 0..8 {
        let saved = site.control(&["save", "test", "saved", "--then", "stop"])?;
        if saved.expect_code(0).is_err() {
            break;
        }
        let ended = vm.end()?;
        ended.expect_code(0)?;
        said.push_str(&ended.stdout);
        saves += 1;
        in_l2 += u32::from(had_l2(&site.path("saved"))?);
        vm = restore(&site, &[])?.patient();
        let is_there = vm.wait_until("its control socket", |_| site.status().is_ok());
        if in_l2 >= 3 || is_there.is_err() {
            break;
        }
    }
    let ended = vm.end()?;
    ended.expect_code(0)?;
    ended.expect_lines(&["l1: done"])?;
    said.push_str(&ended.stdout);
    for kind in kinds {
        assert_eq!(said.matches(&format!("l1: running {kind}\n")).count(), 1);
    }
    println!("L2 ran at {in_l2} of {saves} saves of {line}");
    Ok(in_l2)
}
