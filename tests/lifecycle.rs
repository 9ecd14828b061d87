//! Start, pause, resume, reset, power-off and crash: by the guest, by signals, by the control socket.

use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::Instant;

use hypernest::layout::{self, MachineType};
use hypernest_lab::suite::{Test, TestResult};
use nix::sys::signal::Signal;

use crate::needs;
use crate::vm::{Site, Vm, patience};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

const fn hyperv(name: &'static str, run: fn() -> TestResult) -> Test {
    test(name, run).needs(needs::hyperv)
}

pub(crate) const TESTS: &[Test] = &[
    test("lifecycle::debug_exit_ends_with_the_guests_code", || {
        let site = Site::new()?;
        let ended = Vm::start(site.guest("hello"))?.end()?;
        ended.expect_code(0)?;
        assert_eq!(ended.stdout, "\0hello from the guest: booted by PVH\n");
        assert_eq!(ended.stderr, "");
        let ended = Vm::start(site.guest("no-such-program"))?.end()?;
        ended.expect_code(2)?;
        assert!(site.run_directories()?.is_empty());
        Ok(())
    }),
    test("lifecycle::guest_resets_by_the_keyboard_controller", || {
        resets_by("keyboard", &[])
    }),
    test("lifecycle::guest_resets_by_the_reset_port", || {
        resets_by("cf9", &[])
    }),
    test("lifecycle::guest_resets_with_several_vcpus", || {
        resets_by("cf9", &["--cpus", "4", "--irqchip", "split"])
    }),
    test("lifecycle::guest_resets_by_a_triple_fault", triple_fault),
    test(
        "lifecycle::a_guest_that_only_triple_faults_is_stopped_with_the_report",
        only_triple_faults,
    ),
    test(
        "lifecycle::on_triple_fault_stop_ends_at_the_first_one",
        stops_at_a_triple_fault,
    ),
    test(
        "lifecycle::log_lines_by_the_guest_are_limited_over_the_vms_life",
        log_limits,
    ),
    hyperv("lifecycle::guest_resets_by_hyper_v", || {
        let site = Site::new()?;
        let mut command = site.enlightened_guest("reset via=hv");
        resets(command.args(["--hv", "hv-reset"]), "hv")
    }),
    test(
        "lifecycle::pause_resume_and_reset_by_the_control_socket",
        control,
    ),
    test("lifecycle::a_paused_guest_makes_no_exits", paused),
    test("lifecycle::power_button_powers_off", power_button),
    test("lifecycle::second_sigterm_ends_it", second_sigterm),
    test("lifecycle::an_interrupt_ends_it", || {
        ends_by(Signal::SIGINT)
    }),
    test("lifecycle::a_hangup_ends_it", || ends_by(Signal::SIGHUP)).needs(needs::hangups),
    hyperv(
        "lifecycle::a_crash_is_logged_and_kept_and_the_guest_goes_on",
        crash,
    ),
    hyperv("lifecycle::a_crash_pauses", crash_pauses),
    hyperv("lifecycle::a_crash_resets", crash_resets),
    hyperv("lifecycle::a_crash_stops", crash_stops),
    test("lifecycle::many_vcpus", many_vcpus),
    test("lifecycle::names_are_unique", names),
];

fn resets_by(via: &str, arguments: &[&str]) -> TestResult {
    let site = Site::new()?;
    resets(site.guest(&format!("reset via={via}")).args(arguments), via)
}

/// The guest resets itself once, and its second boot succeeds.
fn resets(command: &mut Command, via: &str) -> TestResult {
    let ended = Vm::start(command.args(["--log", "info"]))?.end()?;
    ended.expect_code(0)?;
    ended.expect_lines(&[
        &format!("reset: by {via}"),
        &format!("ok reset: by {via}, second boot"),
    ])?;
    let asked = ended.stderr.matches("requested a reset").count();
    assert_eq!(asked, 1, "{}", ended.stderr);
    Ok(())
}

const TRIPLE_FAULT: [&str; 3] = ["vCPU 0 stopped: triple fault", "rip 0", "what to try: "];

fn triple_fault() -> TestResult {
    let site = Site::new()?;
    for arguments in [&[][..], &["--on-triple-fault", "reset"]] {
        let ended = Vm::start(site.guest("reset via=triple").args(arguments))?.end()?;
        ended.expect_error(0, &TRIPLE_FAULT)?;
        ended.expect_error(0, &["the machine is reset (--on-triple-fault reset)"])?;
        ended.expect_lines(&["reset: by triple", "ok reset: by triple, second boot"])?;
    }
    Ok(())
}

fn only_triple_faults() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.guest("fault triple").args(["--cpus", "2"]))?.end()?;
    ended.expect_error(1, &TRIPLE_FAULT)?;
    ended.expect_error(
        1,
        &["the machine was reset 4 times in a row", "got nowhere"],
    )?;
    assert_eq!(
        ended.stdout.matches("fault: triple").count(),
        5,
        "{}",
        ended.stdout
    );
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

fn stops_at_a_triple_fault() -> TestResult {
    let site = Site::new()?;
    site.file(
        "vm.toml",
        "kernel = 'guest'\ncmdline = 'fault triple'\nmemory = '64M'\nhv = 'none'\nserial = 'none'\ndebugcon \
         = 'stdio'\n\
         on-triple-fault = 'stop'\n",
    )?;
    let mut by_file = site.hypernest();
    by_file.args(["run", "--config", "vm.toml"]);
    let mut by_flag = site.guest("fault triple");
    by_flag.args(["--on-triple-fault", "stop"]);
    for command in [&mut by_file, &mut by_flag] {
        let ended = Vm::start(command)?.end()?;
        ended.expect_error(1, &TRIPLE_FAULT)?;
        assert_eq!(
            ended.stdout.matches("fault: triple").count(),
            1,
            "{}",
            ended.stdout
        );
    }
    for (arguments, line) in [
        (
            &["config", "--config", "vm.toml"][..],
            "on-triple-fault = \"stop\"",
        ),
        (
            &["config", "--kernel", "guest"],
            "on-triple-fault = \"reset\"",
        ),
    ] {
        site.control(arguments)?
            .expect_code(0)?
            .expect_lines(&[line])?;
    }
    Ok(())
}

/// Resets do not renew a guest's log limits: it causes each of these lines in every power cycle.
fn log_limits() -> TestResult {
    const CYCLES: u64 = 40;
    for (via, line) in [
        ("panic", "the guest panicked (pvpanic)"),
        ("cf9", "the guest requested a reset"),
    ] {
        let site = Site::new()?;
        let mut command = site.guest(&format!("reset via={via} forever"));
        let mut vm = Vm::start(command.args(["--on-crash", "reset", "--log", "info"]))?;
        vm.wait_until("many resets", |_| {
            let resets = |status: serde_json::Value| status["resets"].as_u64();
            site.status().ok().and_then(resets) >= Some(CYCLES)
        })?;
        vm.signal(Signal::SIGINT)?;
        let ended = vm.end()?;
        ended.expect_code(0)?;
        // A burst of 8, and one for each minute of the run.
        let logged = ended.stderr.matches(line).count();
        assert!(
            (1..=16).contains(&logged),
            "{logged} lines; {}",
            ended.stderr
        );
        let length = ended.stderr.len();
        assert!(length < 4096, "{length} bytes of log: {}", ended.stderr);
    }
    Ok(())
}

/// A guest that only spins; returns when it runs.
fn spinning(site: &Site, arguments: &[&str]) -> Result<Vm, Box<dyn Error>> {
    let mut command = site.guest("fault spin");
    let mut vm = Vm::start(command.args(arguments))?;
    vm.wait_for("fault: spin")?;
    Ok(vm)
}

fn control() -> TestResult {
    let site = Site::new()?;
    let mut vm = spinning(&site, &["--cpus", "2"])?;
    let status = site.status()?;
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!(status["vcpus"], 2);
    assert_eq!(status["memory"], 64 << 20);
    assert_eq!(status["pid"], vm.pid().as_raw());
    for (request, state) in [
        ("pause", "paused"),
        ("pause", "paused"),
        ("resume", "running"),
        ("pause", "paused"),
    ] {
        site.control(&[request, "test"])?.expect_code(0)?;
        assert_eq!(site.status()?["state"], state, "after {request}");
    }
    // A paused VM can be reset, and then runs.
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("the second boot", |vm| {
        vm.said().matches("fault: spin").count() == 2
    })?;
    let status = site.status()?;
    assert_eq!(status["resets"], 1, "{status}");
    assert_eq!(status["state"], "running", "{status}");
    let list = site.control(&["list"])?;
    list.expect_code(0)?;
    assert!(list.stdout.contains("test"), "{}", list.stdout);
    site.control(&["stop", "test"])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    assert!(site.run_directories()?.is_empty());
    site.control(&["pause", "test"])?
        .expect_error(1, &["there is no running VM named \"test\""])?;
    Ok(())
}

/// A guest that reads a port continuously; its exits show whether it runs.
fn paused() -> TestResult {
    let site = Site::new()?;
    let mut command = site.guest(&waits_for_the_button());
    let mut vm = Vm::start(command.args(["--stats", "exits.json"]))?;
    vm.wait_for("waiting for the button")?;
    let mut exits = || -> Result<u64, Box<dyn Error>> {
        vm.signal(Signal::SIGUSR1)?;
        let log = site.path("exits.json.hlog");
        vm.wait_until("the statistics", |_| log.exists())?;
        fs::remove_file(log)?;
        let json: serde_json::Value = serde_json::from_slice(&fs::read(site.path("exits.json"))?)?;
        Ok(json["all"]["port-in"]["count"].as_u64().unwrap_or(0))
    };
    for _ in 0..2 {
        site.control(&["pause", "test"])?.expect_code(0)?;
        let at_pause = exits()?;
        assert!(at_pause > 0);
        assert_eq!(exits()?, at_pause);
        site.control(&["resume", "test"])?.expect_code(0)?;
        let start = Instant::now();
        while exits()? == at_pause {
            assert!(start.elapsed() < patience(), "no exits after resume");
        }
    }
    Ok(())
}

/// The arguments of a guest of the default machine type that waits for the power button.
fn waits_for_the_button() -> String {
    waits_for_the_button_of(MachineType::Pc1)
}

fn waits_for_the_button_of(machine: MachineType) -> String {
    let (pm1, s5) = (layout::PM1A_EVENT.start, machine.map().sleep_type_s5);
    format!("power pm1={pm1:#x} s5={s5}")
}

/// The first SIGTERM, like a request, presses the button; a guest that handles it powers off.
fn power_button() -> TestResult {
    for (by_signal, machine) in [(true, MachineType::Pc1), (false, MachineType::Direct1)] {
        let site = Site::new()?;
        let mut command = site.guest(&waits_for_the_button_of(machine));
        command.args(["--machine", machine.name()]);
        let mut vm = Vm::start(command)?;
        vm.wait_for("waiting for the button")?;
        if by_signal {
            vm.signal(Signal::SIGTERM)?;
        } else {
            site.control(&["power-button", "test"])?.expect_code(0)?;
        }
        vm.end()?.expect_code(0)?.expect_lines(&["power: off"])?;
        assert!(site.run_directories()?.is_empty());
    }
    Ok(())
}

/// This guest ignores the button: the second SIGTERM ends it.
fn second_sigterm() -> TestResult {
    let site = Site::new()?;
    let vm = spinning(&site, &[])?;
    vm.signal(Signal::SIGTERM)?;
    // It still runs: it replies.
    assert_eq!(site.status()?["state"], "running");
    vm.signal(Signal::SIGTERM)?;
    vm.end()?.expect_code(0)?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

fn ends_by(signal: Signal) -> TestResult {
    let site = Site::new()?;
    let vm = spinning(&site, &["--cpus", "4"])?;
    vm.signal(signal)?;
    vm.end()?.expect_code(0)?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

const CRASH: &str = r#"crash msg="the disk is on fire""#;
const LOGGED: &str = "the guest crashed: P0 0x1000 P1 0x1001 P2 0x1002 P3 0x";
const MESSAGE: &str = "the disk is on fire";

fn crash() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.enlightened_guest(CRASH))?.end()?;
    ended.expect_error(0, &[LOGGED, MESSAGE])?;
    ended.expect_lines(&["crash: reporting", "crash: still running"])?;
    assert!(ended.stderr.contains("P4 0x13"), "{}", ended.stderr);
    Ok(())
}

fn crash_pauses() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.enlightened_guest(CRASH).args(["--on-crash", "pause"]))?;
    vm.wait_until("the report", |vm| vm.complained().contains(LOGGED))?;
    let status = site.status()?;
    assert_eq!(status["state"], "crashed", "{status}");
    assert_eq!(status["crash"]["by"], "hyper-v", "{status}");
    assert_eq!(status["crash"]["message"], MESSAGE, "{status}");
    for (at, wanted) in [0x1000, 0x1001, 0x1002].into_iter().enumerate() {
        assert_eq!(status["crash"]["params"][at], wanted, "{status}");
    }
    assert_eq!(status["crash"]["params"][4], MESSAGE.len(), "{status}");
    assert!(!vm.said().contains("still running"));
    site.control(&["resume", "test"])?.expect_code(0)?;
    let ended = vm.end()?;
    ended
        .expect_code(0)?
        .expect_lines(&["crash: still running"])?;
    Ok(())
}

/// It crashes in every power cycle.
fn crash_resets() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.enlightened_guest(CRASH).args(["--on-crash", "reset"]))?;
    vm.wait_until("two reports", |vm| {
        vm.complained().matches(LOGGED).count() >= 2
    })?;
    assert!(!vm.said().contains("still running"));
    vm.signal(Signal::SIGINT)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}

fn crash_stops() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.enlightened_guest(CRASH).args(["--on-crash", "stop"]))?.end()?;
    ended.expect_error(1, &[LOGGED, MESSAGE, "on-crash"])?;
    assert!(!ended.stdout.contains("still running"));
    Ok(())
}

/// The maximum number of vCPUs is created, listed in the tables, and ended.
fn many_vcpus() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.guest("hello").args(["--cpus", "255"]))?.end()?;
    ended.expect_code(0)?;
    Ok(())
}

fn names() -> TestResult {
    let site = Site::new()?;
    let vm = spinning(&site, &[])?;
    let second = Vm::start(site.guest("hello"))?.end()?;
    let process = format!("(process {})", vm.pid());
    second.expect_error(1, &["a VM named test is already running", &process])?;
    assert_eq!(site.status()?["state"], "running");
    // A killed process leaves its directory, which the next one reuses.
    vm.signal(Signal::SIGKILL)?;
    assert_eq!(vm.end()?.status.code(), None);
    Vm::start(site.guest("hello"))?.end()?.expect_code(0)?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}
