//! The process's interfaces to its host: signals, resource limits, file modes, and the time when its name is
//! free again.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;

use hypernest_lab::suite::{Test, TestResult};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

use crate::needs;
use crate::vm::{Site, Vm};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

pub(crate) const TESTS: &[Test] = &[
    test("process::files_and_sockets_are_the_owners", modes),
    test(
        "process::output_beyond_the_file_size_limit_is_dropped",
        console_limit,
    ),
    test(
        "process::ram_beyond_the_file_size_limit_is_refused",
        ram_limit,
    ),
    test("process::ram_beyond_the_data_limit_is_refused", data_limit),
    test(
        "process::a_truncated_ram_file_ends_the_guest_with_a_message",
        || truncated(&["resume", "test"]),
    ),
    test(
        "process::a_truncated_ram_file_ends_a_save_with_a_message",
        || truncated(&["save", "test", "again"]),
    ),
    test(
        "process::sigterm_is_reported_and_the_stop_timeout_ends_the_vm",
        stop_timeout,
    ),
    test("process::a_vm_is_gone_when_stop_or_save_returns", gone),
];

/// The guest program's RAM; see `Site::guest`.
const RAM: u64 = 64 << 20;

fn modes() -> TestResult {
    for mask in [0, 0o022, 0o077] {
        let site = Site::new()?;
        let mut command = site.hypernest();
        command
            .args(["run", "--name", "test", "--kernel", "guest"])
            .args(["--cmdline", "fault spin", "--memory", "64M", "--hv", "none"])
            .args(["--serial", "file:console.log", "--debugcon", "stdio"])
            .args(["--serial2", "socket:com2.sock"]);
        command.args(["--stats", "exits.json"]);
        let mut incoming = site.hypernest();
        incoming.args(["run", "--incoming", "unix:incoming.sock"]);
        let before = umask(Mode::from_bits_truncate(mask));
        let started = Vm::start(&mut command).and_then(|vm| Ok((vm, Vm::start(&mut incoming)?)));
        umask(before);
        let (mut vm, mut incoming) = started?;
        vm.wait_for("fault: spin")?;
        incoming.wait_until("its socket", |_| site.path("incoming.sock").exists())?;
        vm.signal(Signal::SIGUSR1)?;
        vm.wait_until("the statistics", |_| site.path("exits.json.hlog").exists())?;
        site.control(&["save", "test", "saved"])?.expect_code(0)?;
        for (name, mode) in [
            ("console.log", 0o600),
            ("com2.sock", 0o600),
            ("incoming.sock", 0o600),
            ("exits.json", 0o600),
            ("exits.json.hlog", 0o600),
            ("saved", 0o700),
            ("saved/ram", 0o600),
            ("saved/state", 0o600),
            ("hypernest", 0o700),
            ("hypernest/test", 0o700),
            ("hypernest/test/pid", 0o600),
            ("hypernest/test/control.sock", 0o600),
        ] {
            let found = fs::metadata(site.path(name))?.permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name} under umask {mask:03o}: {found:03o}");
        }
    }
    Ok(())
}

/// Starts a process with `start` under this limit of `resource`.
fn limited<R>(
    resource: Resource,
    limit: u64,
    start: impl FnOnce() -> R,
) -> Result<R, Box<dyn Error>> {
    let (soft, hard) = getrlimit(resource)?;
    setrlimit(resource, limit, hard)?;
    let started = start();
    setrlimit(resource, soft, hard)?;
    Ok(started)
}

/// As on a full disk, the guest continues.
fn console_limit() -> TestResult {
    let site = Site::new()?;
    let mut console = File::create(site.path("console.log"))?;
    console.seek(SeekFrom::Start(RAM))?;
    let vm = limited(Resource::RLIMIT_FSIZE, RAM, || {
        Vm::start_onto(site.guest("hello"), console)
    })??;
    let ended = vm.end()?;
    ended.expect_error(0, &["output failed: the guest continues", "File too large"])?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

/// Reserved huge pages are limited as a file.
fn ram_limit() -> TestResult {
    let site = Site::new()?;
    let mut command = site.hypernest();
    command.args([
        "run", "--kernel", "guest", "--hv", "none", "--serial", "none",
    ]);
    command.args(["--memory", "64M,hugepages=2M"]);
    let vm = limited(Resource::RLIMIT_FSIZE, RAM - 1, || Vm::start(command))??;
    vm.end()?
        .expect_error(1, &["memory file for guest RAM", "File too large"])?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

/// All other RAM is limited as data of the process.
fn data_limit() -> TestResult {
    let site = Site::new()?;
    let start = || Vm::start(site.guest("hello"));
    limited(Resource::RLIMIT_DATA, RAM - 1, start)??
        .end()?
        .expect_error(1, &["cannot map 64 MiB of guest RAM", "ulimit -d"])?;
    assert!(site.run_directories()?.is_empty());
    Ok(())
}

/// A lazily restored VM whose RAM file has been truncated, and that reads its RAM for `request`.
fn truncated(request: &[&str]) -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.guest("fault spin"))?;
    vm.wait_for("fault: spin")?;
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    let mut restored = Vm::start(site.hypernest().args(["restore", "saved", "--paused"]))?;
    restored.wait_until("the restored VM", |_| {
        site.path("hypernest/test/control.sock").exists()
    })?;
    assert_eq!(site.status()?["state"], "paused");
    File::options()
        .write(true)
        .open(site.path("saved/ram"))?
        .set_len(0)?;
    // The request may succeed or fail.
    site.control(request)?;
    let ended = restored.end()?;
    ended.expect_error(
        1,
        &[
            "hypernest: ",
            "its saved RAM saved/ram can no longer be read",
        ],
    )?;
    assert!(site.run_directories()?.is_empty());
    assert!(!site.path("again").exists());
    Ok(())
}

/// The guest does not react to the power button.
fn stop_timeout() -> TestResult {
    let site = Site::new()?;
    fs::write(
        site.path("vm.toml"),
        "kernel = 'guest'\ncmdline = 'fault spin'\nmemory = '64M'\nhv = 'none'\nserial = 'none'\ndebugcon = \
         'stdio'\n\
         stop-timeout = 1\n",
    )?;
    for in_file in [false, true] {
        let mut command = if in_file {
            let mut command = site.hypernest();
            command.args(["run", "--config", "vm.toml"]);
            command
        } else {
            let mut command = site.guest("fault spin");
            command.args(["--stop-timeout", "1"]);
            command
        };
        let mut vm = Vm::start(&mut command)?;
        vm.wait_for("fault: spin")?;
        vm.signal(Signal::SIGTERM)?;
        vm.end()?.expect_error(
            0,
            &[
                "SIGTERM: pressed the power button",
                "has not powered off in 1 s (--stop-timeout)",
            ],
        )?;
        assert!(site.run_directories()?.is_empty());
    }
    // Without a limit it continues, and the message has the remedy.
    let mut vm = Vm::start(site.guest("fault spin"))?;
    vm.wait_for("fault: spin")?;
    vm.signal(Signal::SIGTERM)?;
    vm.wait_until("the message", |vm| {
        vm.complained().contains("a second SIGTERM ends the VM")
    })?;
    assert_eq!(site.status()?["state"], "running");
    Ok(())
}

/// A VM of the same name starts at once, without a failed attempt.
fn gone() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(
        site.guest("fault spin")
            .args(["--serial2", "socket:com2.sock"]),
    )?;
    vm.wait_for("fault: spin")?;
    for round in 0..10 {
        let stop = if round % 2 == 0 {
            site.control(&["save", "test", "saved", "--then", "stop"])?
        } else {
            site.control(&["stop", "test"])?
        };
        stop.expect_code(0)?;
        // Both are evaluated before the process itself is reaped.
        let left = site.run_directories()?;
        let socket = site.path("com2.sock").exists();
        assert!(left.is_empty(), "round {round}: {left:?}");
        assert!(!socket, "round {round}: the serial socket is still there");
        let next = Vm::start(site.hypernest().args(["restore", "saved"]))?;
        vm.end()?.expect_code(0)?;
        vm = next;
        vm.wait_until("the restored VM", |_| site.status().is_ok())?;
    }
    Ok(())
}
