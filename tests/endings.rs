//! The access that ends, resets or pauses a VM is the last action of its vCPU; and no guest can prevent its
//! user from ending it.

use std::error::Error;
use std::process::Command;
use std::sync::{Arc, Mutex};

use hypernest::bus::{LockedDevice, Region};
use hypernest::config::{Flags, HostLimits, build};
use hypernest::layout;
use hypernest::machine::{ExtraPorts, Machine, Outcome};
use hypernest::state::{Decoder, Encoder, StateError};
use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

/// The guest writes this continuously after the access.
const MARK: char = '!';

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

const fn hyperv(name: &'static str, run: fn() -> TestResult) -> Test {
    test(name, run).needs(needs::hyperv)
}

pub(crate) const TESTS: &[Test] = &[
    test("endings::no_instruction_follows_the_end", ends),
    test("endings::no_instruction_follows_a_reset", || {
        ["keyboard", "output-port", "cf9", "port92"]
            .into_iter()
            .try_for_each(resets)
    }),
    hyperv("endings::no_instruction_follows_a_reset_by_hyper_v", || {
        resets("hv")
    }),
    test("endings::no_instruction_follows_a_panic_by_pvpanic", || {
        crashes("pvpanic")
    }),
    hyperv("endings::no_instruction_follows_a_crash_by_hyper_v", || {
        crashes("hv-crash")
    }),
    hyperv(
        "endings::a_storm_of_crashes_leaves_the_user_in_charge",
        storms,
    ),
    test("endings::a_pause_outlasts_a_storm_of_panics", pauses),
    test(
        "endings::a_panicking_vcpu_thread_ends_the_vm",
        thread_panics,
    ),
    test("endings::a_save_under_a_storm_of_panics_succeeds", saves),
];

/// A guest with `cpus` vCPUs that runs `program`.
fn guest(site: &Site, program: &str, cpus: u32) -> Command {
    let pm1 = layout::PM1A_EVENT.start;
    let mut command = site.enlightened_guest(&format!("{program} cpus={cpus} pm1={pm1:#x}"));
    command.args(["--cpus", &cpus.to_string()]);
    if program.contains("hv") {
        command.args(["--hv", "hv-reset,hv-crash,hv-vpindex"]);
    } else {
        command.args(["--hv", "none"]);
    }
    command
}

fn unmarked(ended: &Ended) -> TestResult {
    if ended.stdout.contains(MARK) {
        return Err(ended.wrong("no instruction after the access"));
    }
    Ok(())
}

fn ends() -> TestResult {
    let site = Site::new()?;
    for cpus in [1, 4] {
        for (via, code) in [("debug-exit", 7), ("outs", 7), ("acpi", 0)] {
            let ended = Vm::start(guest(&site, &format!("ending via={via}"), cpus))?.end()?;
            ended.expect_code(code)?;
            ended.expect_lines(&[&format!("ending: by {via}")])?;
            unmarked(&ended)?;
        }
    }
    Ok(())
}

fn resets(via: &str) -> TestResult {
    let site = Site::new()?;
    for cpus in [1, 4] {
        let ended = Vm::start(guest(&site, &format!("ending via={via}"), cpus))?.end()?;
        ended.expect_code(0)?.expect_lines(&[
            &format!("ending: by {via}"),
            &format!("ok ending: by {via}, second boot"),
        ])?;
        unmarked(&ended)?;
    }
    Ok(())
}

fn crashes(via: &str) -> TestResult {
    let site = Site::new()?;
    let program = format!("ending via={via}");
    for cpus in [1, 4] {
        let with = |policy| {
            let mut command = guest(&site, &program, cpus);
            command.args(["--on-crash", policy]);
            command
        };
        let ended = Vm::start(with("stop"))?.end()?;
        ended.expect_error(1, &["on-crash"])?;
        unmarked(&ended)?;
        let ended = Vm::start(with("reset"))?.end()?;
        ended.expect_code(0)?;
        unmarked(&ended)?;
        let mut vm = Vm::start(with("pause"))?;
        vm.wait_for("ending: by")?;
        while site.status()?["state"] != "crashed" {}
        assert!(!vm.said().contains(MARK), "{}", vm.said());
        // The instruction is completed once, and the guest continues after it.
        site.control(&["resume", "test"])?.expect_code(0)?;
        vm.wait_for("!")?;
        site.control(&["stop", "test"])?.expect_code(0)?;
        vm.end()?.expect_code(0)?;
    }
    Ok(())
}

/// Checks that the guest's output does not grow while its VM has one of these states.
fn stands_still(site: &Site, vm: &Vm, states: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut seen = None;
    for _ in 0..5 {
        let state = site.status()?["state"].clone();
        if !states.iter().any(|wanted| state == *wanted) {
            return Err(format!("the state is {state}, not one of {states:?}").into());
        }
        // Earlier output may still arrive once.
        let said = vm.said().len();
        if seen.is_some_and(|seen| seen == said) {
            return Ok(());
        }
        seen = Some(said);
    }
    Err(format!("the guest still runs: {seen:?} bytes of output").into())
}

fn storms() -> TestResult {
    let site = Site::new()?;
    for policy in ["continue", "reset", "pause", "stop"] {
        let mut command = guest(&site, "storm hv", 3);
        let mut vm = Vm::start(command.args(["--on-crash", policy]))?;
        if policy == "stop" {
            vm.end()?.expect_error(1, &["on-crash"])?;
            continue;
        }
        vm.wait_for("storm")?;
        site.control(&["pause", "test"])?.expect_code(0)?;
        stands_still(&site, &vm, &["paused", "crashed"])?;
        if policy != "pause" {
            site.control(&["resume", "test"])?.expect_code(0)?;
        }
        site.control(&["stop", "test"])?.expect_code(0)?;
        vm.end()?.expect_code(0)?;
    }
    Ok(())
}

fn pauses() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(guest(&site, "storm", 3))?;
    vm.wait_for("!")?;
    for _ in 0..5 {
        site.control(&["pause", "test"])?.expect_code(0)?;
        stands_still(&site, &vm, &["paused"])?;
        site.control(&["resume", "test"])?.expect_code(0)?;
    }
    site.control(&["stop", "test"])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}

fn saves() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(guest(&site, "storm", 3))?;
    vm.wait_for("!")?;
    for _ in 0..3 {
        site.control(&["save", "test", "saved", "--then", "pause"])?
            .expect_code(0)?;
        stands_still(&site, &vm, &["paused"])?;
        site.control(&["resume", "test"])?.expect_code(0)?;
    }
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}

/// Panics at the guest's first write.
struct Panics;

impl LockedDevice for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: Region, _offset: u64, _data: &[u8]) {
        panic!("on purpose");
    }

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

fn thread_panics() -> TestResult {
    let site = Site::new()?;
    let kernel = site.path("guest");
    let flags = Flags::from_pairs([
        ("name", "panics"),
        ("kernel", kernel.to_str().ok_or("not UTF-8")?),
        ("cmdline", "hello"),
        ("memory", "32M"),
        ("hv", "none"),
        ("serial", "none"),
    ]);
    let config = build(None, &flags, HostLimits::default())?.config;
    let ports = ExtraPorts::new(layout::DEBUGCON_PORT, 1, Arc::new(Mutex::new(Panics)));
    match Machine::new(config, &[ports])?.run()? {
        Outcome::Failed(why) if why.contains("vcpu0 panicked") => Ok(()),
        outcome => Err(format!("ended with {outcome:?}").into()),
    }
}
