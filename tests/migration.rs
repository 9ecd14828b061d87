//! Migration between two processes: the guest continues without interruption, and after any failure of either
//! process or the connection exactly one VM runs.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hypernest::migration::wire::FrameKind;
use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::linux::{initramfs, linux};
use crate::needs;
use crate::stats;
use crate::stock_linux;
use crate::vm::{Ended, Site, Vm, is_long_run};

/// In the Intel lab a second of a migration takes half a minute; only tests of Intel's features run there.
const fn micro(name: &'static str, run: fn() -> TestResult) -> Test {
    l2(name, run)
        .only_on(&[Host::Here, Host::Amd])
        .needs(needs::guests)
}

const fn l2(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).limit_seconds(180)
}

const fn hyperv(name: &'static str, run: fn() -> TestResult) -> Test {
    micro(name, run).needs(needs::hyperv)
}

pub(crate) const TESTS: &[Test] = &[
    micro("migration::a_guest_without_enlightenments_moves", || {
        moves(&["--hv", "none"])
    }),
    hyperv("migration::a_guest_of_each_profile_moves", each_profile),
    micro("migration::with_bitmaps_and_not_rings", || {
        moves(&["--hv", "none", "--dirty-ring-size", "0"])
    }),
    micro("migration::with_rings_that_run_full", full_rings).needs(needs::dirty_rings),
    micro("migration::by_several_connections_and_compressed", || {
        let more = ["--connections", "3", "--zstd", "--downtime-ms", "100"];
        moves_by(&["--hv", "none"], &more)
    }),
    micro("migration::a_guest_that_has_moved_can_be_reset", reset),
    micro(
        "migration::progress_ends_with_how_the_migration_ended",
        progress,
    ),
    micro("migration::a_paused_vm_moves_and_stays_paused", paused),
    micro(
        "migration::a_destination_that_lacks_something_is_told_apart",
        refused,
    ),
    micro(
        "migration::a_migration_can_be_cancelled_and_begun_again",
        cancelled,
    ),
    micro(
        "migration::a_dead_destination_leaves_the_vm_at_the_source",
        destination_dies,
    ),
    micro(
        "migration::a_dead_source_leaves_the_vm_that_was_handed_over",
        source_dies,
    ),
    micro("migration::a_cut_connection_leaves_one_vm", cut),
    Test::new(
        "migration::linux_with_4_vcpus_under_load_moves",
        linux_moves,
    )
    .only_on(&[Host::Amd])
    .stage(stock_linux::AMD)
    .needs(needs::hyperv)
    .limit_seconds(400),
    l2("migration::an_l2_under_svm_moves", || {
        l2_moves(
            "svm",
            "nested,-evmcs",
            4000,
            &["cpuid", "rdmsr-direct", "hlt", "timer"],
        )
    })
    .needs(needs::nested_svm),
    l2("migration::an_l2_under_evmcs_moves", || {
        l2_moves("evmcs", "nested", 20_000, &["cpuid", "rdmsr-direct"])
    })
    .needs(needs::evmcs),
];

/// The number of moves: `short`, or in long runs more.
fn times(short: u32) -> u32 {
    if is_long_run() { 50 } else { short }
}

/// The names that a VM has in turn, so that both ends can be on one host.
const NAMES: [&str; 2] = ["test", "other"];

/// A process that waits for a VM called `name` at the socket called `name`.
pub(crate) fn destination(
    site: &Site,
    name: &str,
    arguments: &[&str],
) -> Result<Vm, Box<dyn Error>> {
    let address = format!("unix:{name}");
    let mut command = site.hypernest();
    command
        .args(["run", "--incoming", &address, "--name", name])
        .args(arguments)
        .stdin(Stdio::piped());
    let mut vm = Vm::start(&mut command)?;
    let socket = site.path(name);
    vm.wait_until("its socket", |_| socket.exists())?;
    Ok(vm)
}

pub(crate) fn migrate(
    site: &Site,
    from: &str,
    to: &str,
    arguments: &[&str],
) -> Result<Ended, Box<dyn Error>> {
    let address = format!("unix:{to}");
    let mut command = site.hypernest();
    command.args(["migrate", from, &address]).args(arguments);
    Vm::start(&mut command)?.patient().end()
}

/// Migrates the VM called `NAMES[turn]` to a process with the other name; returns the output of the old
/// process, and the new one.
pub(crate) fn move_on(
    site: &Site,
    vm: Vm,
    turn: usize,
    arguments: &[&str],
) -> Result<(Ended, Vm), Box<dyn Error>> {
    move_on_with(site, vm, turn, arguments, &[])
}

/// The same to a process with the arguments `there`.
pub(crate) fn move_on_with(
    site: &Site,
    vm: Vm,
    turn: usize,
    arguments: &[&str],
    there: &[&str],
) -> Result<(Ended, Vm), Box<dyn Error>> {
    let (from, to) = (NAMES[turn % 2], NAMES[(turn + 1) % 2]);
    let there = destination(site, to, there)?;
    migrate(site, from, to, arguments)?.expect_code(0)?;
    // From now on the VM is at its destination, for all observers.
    let listed = site.control(&["list"])?.stdout;
    let names: Vec<_> = listed
        .lines()
        .skip(1)
        .filter_map(|l| l.split(' ').next())
        .collect();
    assert_eq!(names, [to], "{listed}");
    site.control(&["status", to])?.expect_code(0)?;
    let gone = !site
        .run_directories()?
        .contains(&site.path("hypernest").join(from));
    assert!(gone, "{from} was still there when migrate had returned");
    let ended = vm.end()?;
    ended.expect_code(0)?;
    Ok((ended, there))
}

/// A guest with state of many kinds, including some megabytes of memory, that writes continuously.
fn keeper(site: &Site, arguments: &[&str]) -> Result<Vm, Box<dyn Error>> {
    let mut command = site.enlightened_guest("keep cpus=2 memory=2048");
    Ok(Vm::start(command.args(["--cpus", "2"]).args(arguments))?)
}

/// The number of the last lap in the output.
fn laps(said: &str) -> u64 {
    let laps = said.lines().filter_map(|line| line.strip_prefix("keep: "));
    laps.filter_map(|lap| lap.parse().ok()).max().unwrap_or(0)
}

/// Checks that the guest continues from lap `done`, and does some more.
fn expect_more_laps(vm: &mut Vm, done: u64) -> TestResult {
    vm.wait_until("more laps", |vm| {
        vm.said().contains("FAIL") || laps(&vm.said()) >= done + 3
    })?;
    assert!(!vm.said().contains("FAIL"), "{}", vm.said());
    Ok(())
}

fn moves(arguments: &[&str]) -> TestResult {
    moves_by(arguments, &[])
}

fn moves_by(arguments: &[&str], how: &[&str]) -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, arguments)?;
    expect_more_laps(&mut vm, 0)?;
    for turn in 0..usize::try_from(times(2))? {
        let (ended, there) = move_on(&site, vm, turn, how)?;
        assert!(!ended.stdout.contains("FAIL"), "{}", ended.stdout);
        vm = there;
        expect_more_laps(&mut vm, laps(&ended.stdout))?;
        assert_eq!(site.run_directories()?.len(), 1);
    }
    Ok(())
}

/// Each lap writes to more pages than a ring has entries.
fn full_rings() -> TestResult {
    let site = Site::new()?;
    let small = ["--dirty-ring-size", "1024", "--stats", "exits.json"];
    let mut vm = keeper(&site, &[&["--hv", "none"], &small[..]].concat())?;
    expect_more_laps(&mut vm, 0)?;
    let (ended, mut there) = move_on(&site, vm, 0, &[])?;
    let exits = stats::json(&site.path("exits.json"))?;
    assert!(stats::count(&exits, "dirty-ring-full") > 0, "{exits:#}");
    expect_more_laps(&mut there, laps(&ended.stdout))
}

fn each_profile() -> TestResult {
    for profile in ["windows", "nested", "all"] {
        let hv = match needs::evmcs() {
            Err(_) if profile == "nested" => "nested,-evmcs",
            _ => profile,
        };
        let nested: &[&str] = match profile {
            "windows" => &[],
            _ => &["--nested"],
        };
        moves(&[&["--hv", hv], nested].concat())?;
    }
    Ok(())
}

fn reset() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    let (ended, mut vm) = move_on(&site, vm, 0, &[])?;
    expect_more_laps(&mut vm, laps(&ended.stdout))?;
    site.control(&["reset", "other"])?.expect_code(0)?;
    vm.wait_until("the first lap of another boot", |vm| {
        vm.said().contains("keep: 1\n")
    })?;
    // The new boot can be migrated, too.
    let (_, mut vm) = move_on(&site, vm, 1, &[])?;
    expect_more_laps(&mut vm, 1)
}

fn progress() -> TestResult {
    let last_phase = |ended: &Ended| -> Result<serde_json::Value, Box<dyn Error>> {
        let last = ended.stdout.lines().last().ok_or("nothing was shown")?;
        Ok(serde_json::from_str::<serde_json::Value>(last)?["phase"].clone())
    };
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    let ended = migrate(&site, "test", "nobody", &["--json"])?;
    ended.expect_code(1)?;
    assert_eq!(last_phase(&ended)?, "kept");
    let _there = destination(&site, "other", &[])?;
    let ended = migrate(&site, "test", "other", &["--json"])?;
    ended.expect_code(0)?;
    assert_eq!(last_phase(&ended)?, "gone");
    Ok(())
}

fn paused() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    site.control(&["pause", "test"])?.expect_code(0)?;
    let (ended, vm) = move_on(&site, vm, 0, &[])?;
    let (_, mut vm) = {
        let mut vm = vm;
        vm.wait_until("its control socket", |_| {
            site.control(&["status", "other"])
                .is_ok_and(|ended| ended.stdout.contains("other: paused"))
        })?;
        assert_eq!(vm.said(), "");
        move_on(&site, vm, 1, &[])?
    };
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    site.control(&["resume", "test"])?.expect_code(0)?;
    expect_more_laps(&mut vm, laps(&ended.stdout))
}

fn refused() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    // Its name is taken at the destination, and another TSC frequency is requested there.
    let there = Vm::start(site.hypernest().args([
        "run",
        "--incoming",
        "unix:there",
        "--on-tsc-change",
        "refuse",
        "--tsc-khz",
        "1234567",
    ]))?;
    let socket = site.path("there");
    let mut there = there;
    there.wait_until("its socket", |_| socket.exists())?;
    migrate(&site, "test", "there", &[])?.expect_error(
        1,
        &[
            "the destination cannot run this VM",
            "TSC",
            "the VM stays here",
        ],
    )?;
    there.end()?.expect_error(3, &["TSC"])?;
    let done = laps(&vm.said());
    expect_more_laps(&mut vm, done)?;
    // And an address without a listener.
    migrate(&site, "test", "nobody", &[])?.expect_error(1, &["cannot connect"])?;
    assert_eq!(site.status()?["migration"]["phase"], "kept");
    Ok(())
}

fn cancelled() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    let there = destination(&site, "other", &[])?;
    let slow = ["migrate", "test", "unix:other", "--bandwidth", "64K"];
    let mut moving = Vm::start(site.hypernest().args(slow))?;
    let phase = || {
        Some(
            site.status().ok()?["migration"]["phase"]
                .as_str()?
                .to_owned(),
        )
    };
    moving.wait_until("RAM to be copied", |_| {
        phase().as_deref() == Some("copying")
    })?;
    assert!(site.control(&["list"])?.stdout.contains("migrating"));
    migrate(&site, "test", "elsewhere", &[])?.expect_error(1, &["already in progress"])?;
    site.control(&["migrate", "test", "--cancel"])?
        .expect_code(0)?;
    moving.end()?.expect_error(1, &["cancelled"])?;
    there.end()?.expect_code(1)?;
    let done = laps(&vm.said());
    expect_more_laps(&mut vm, done)?;
    site.control(&["migrate", "test", "--cancel"])?
        .expect_error(1, &["no migration is in progress"])?;
    let (ended, mut vm) = move_on(&site, vm, 0, &[])?;
    expect_more_laps(&mut vm, laps(&ended.stdout))
}

/// A fault of the connection at the first frame of a kind.
#[derive(Clone, Copy)]
enum Fate {
    Cut,
    Kill(Pid),
}

/// Forwards data from the socket `front` to the socket `to`, until that frame.
struct Between(Option<JoinHandle<()>>);

impl Between {
    fn new(site: &Site, to: &str, kind: FrameKind, fate: Fate) -> Result<Self, Box<dyn Error>> {
        let listener = UnixListener::bind(site.path("front"))?;
        let to = site.path(to);
        let thread = std::thread::spawn(move || {
            let Ok((source, _)) = listener.accept() else {
                return;
            };
            let Ok(destination) = UnixStream::connect(to) else {
                return;
            };
            let ends = Arc::new(Mutex::new(()));
            let pass = |from: &UnixStream, to: &UnixStream| {
                let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
                let ends = Arc::clone(&ends);
                std::io::Result::Ok(std::thread::spawn(move || {
                    let mut header = [0; 12];
                    while from.read_exact(&mut header).is_ok() {
                        let length =
                            u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
                        let mut frame = header.to_vec();
                        frame.resize(12 + length as usize, 0);
                        if from.read_exact(&mut frame[12..]).is_err() {
                            break;
                        }
                        if u16::from_le_bytes([header[4], header[5]]) == kind.number() {
                            let _one = ends.lock();
                            if let Fate::Kill(pid) = fate {
                                let _ended = kill(pid, Signal::SIGKILL);
                            }
                            break;
                        }
                        if to.write_all(&frame).is_err() {
                            break;
                        }
                    }
                    let _both = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                }))
            };
            let threads = [pass(&source, &destination), pass(&destination, &source)];
            for thread in threads.into_iter().flatten() {
                let _panicked = thread.join();
            }
        });
        Ok(Self(Some(thread)))
    }

    fn end(mut self, site: &Site) {
        if let Some(thread) = self.0.take() {
            let _panicked = thread.join();
        }
        let _gone = std::fs::remove_file(site.path("front"));
    }
}

const PHASES: [FrameKind; 6] = [
    FrameKind::Promise,
    FrameKind::Pages,
    FrameKind::State,
    FrameKind::Ready,
    FrameKind::Commit,
    FrameKind::Running,
];

fn destination_dies() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    for kind in PHASES {
        let there = destination(&site, "other", &[])?;
        let between = Between::new(&site, "other", kind, Fate::Kill(there.pid()))?;
        migrate(&site, "test", "front", &[])?.expect_error(1, &["the VM stays here"])?;
        let ended = there.end()?;
        assert_eq!(ended.status.code(), None, "{kind:?}: it ended by itself");
        between.end(&site);
        let _left = std::fs::remove_file(site.path("other"));
        assert_eq!(site.status()?["state"], "running");
        let done = laps(&vm.said());
        expect_more_laps(&mut vm, done)?;
    }
    Ok(())
}

fn source_dies() -> TestResult {
    for kind in PHASES {
        let site = Site::new()?;
        let mut vm = keeper(&site, &["--hv", "none"])?;
        expect_more_laps(&mut vm, 0)?;
        let mut there = destination(&site, "other", &[])?;
        let between = Between::new(&site, "other", kind, Fate::Kill(vm.pid()))?;
        migrate(&site, "test", "front", &[])?.expect_code(1)?;
        let ended = vm.end()?;
        assert_eq!(ended.status.code(), None, "{kind:?}: it ended by itself");
        between.end(&site);
        if matches!(
            kind,
            FrameKind::Ready | FrameKind::Commit | FrameKind::Running
        ) {
            expect_more_laps(&mut there, laps(&ended.stdout))?;
        } else {
            there.end()?.expect_code(1)?;
        }
    }
    Ok(())
}

fn cut() -> TestResult {
    let site = Site::new()?;
    let mut vm = keeper(&site, &["--hv", "none"])?;
    expect_more_laps(&mut vm, 0)?;
    for kind in PHASES {
        let mut there = destination(&site, "other", &[])?;
        let between = Between::new(&site, "other", kind, Fate::Cut)?;
        let moved = migrate(&site, "test", "front", &[])?;
        between.end(&site);
        if kind == FrameKind::Running {
            // It runs there, but the source has no confirmation.
            moved.expect_error(1, &["it may run at", "stays stopped here"])?;
            assert_eq!(site.status()?["state"], "paused");
            assert!(site.control(&["list"])?.stdout.contains("undecided"));
            let done = laps(&vm.said());
            expect_more_laps(&mut there, done)?;
            site.control(&["stop", "test"])?.expect_code(0)?;
            assert_eq!(laps(&vm.end()?.stdout), done);
            return Ok(());
        }
        moved.expect_error(1, &["the VM stays here"])?;
        there.end()?.expect_code(1)?;
        let done = laps(&vm.said());
        expect_more_laps(&mut vm, done)?;
    }
    Ok(())
}

/// Busy CPUs, memory that is written and read again, and a clock that is read.
const LOAD: &str = "sh -c 'b=/busybox; busy() { while :; do :; done; }; busy & \
    files() { while :; do $b dd if=/dev/urandom of=/f bs=64k count=16 2>/dev/null; $b cat /f > /g; \
      $b cmp /f /g || echo DIFFERENT; done; }; files & \
    i=0; last=0; while [ $i -lt 100000 ]; do i=$((i+1)); read up rest < /proc/uptime; now=${up%.*}${up#*.}; \
      [ $now -ge $last ] || echo BACKWARDS; last=$now; echo tick $i; $b usleep 100000; done'";

fn ticks(said: &str) -> u64 {
    let ticks = said.lines().filter_map(|line| line.strip_prefix("tick "));
    let ticks = ticks.filter_map(|tick| tick.trim().parse().ok());
    ticks.max().unwrap_or(0)
}

fn linux_moves() -> TestResult {
    let profiles: &[_] = if is_long_run() {
        &["windows", "nested,-evmcs", "all", "none"]
    } else {
        &["windows", "none"]
    };
    for hv in profiles {
        let site = Site::new()?;
        let command = linux(&site, "linux-6.12/vmlinux", "loglevel=5");
        initramfs(&site, LOAD)?;
        let mut command = command?;
        command.args(["--cpus", "4", "--hv", hv]);
        if hv.starts_with("nested") {
            command.arg("--nested");
        }
        let mut vm = Vm::start(command)?.patient();
        vm.wait_for("tick 5\r\n")?;
        for turn in 0..usize::try_from(times(3))? {
            let (ended, there) = move_on(&site, vm, turn, &[])?;
            let done = ticks(&ended.stdout);
            vm = there.patient();
            vm.wait_until("more ticks", |vm| ticks(&vm.said()) >= done + 10)?;
            let said = format!("{}{}", ended.stdout, vm.said());
            for bad in [
                "BUG",
                "WARNING",
                "Call Trace",
                "stall",
                "as unstable",
                "lockup",
                "DIFFERENT",
                "BACKWARDS",
            ] {
                assert!(!said.contains(bad), "{hv}: {said}");
            }
        }
    }
    Ok(())
}

/// Checks that L1 sees no unexpected exit, and finishes.
fn l2_moves(mode: &str, hv: &str, n: u32, kinds: &[&str]) -> TestResult {
    let site = Site::new()?;
    let line = format!("l1 mode={mode} kinds={} n={n} warmup=5", kinds.join(","));
    let mut command = site.enlightened_guest(&line);
    let mut vm = Vm::start(command.args(["--nested", "--hv", hv]))?.patient();
    vm.wait_for("l1: running cpuid")?;
    let mut said = String::new();
    let mut moves = 0;
    let last = loop {
        let (from, to) = (NAMES[moves % 2], NAMES[(moves + 1) % 2]);
        if moves == usize::try_from(times(3))? {
            break vm.end()?;
        }
        let is_there = vm.wait_until("its control socket", |_| {
            let status = site.control(&["status", from]);
            status.is_ok_and(|ended| ended.status.success())
        });
        if is_there.is_err() {
            break vm.end()?;
        }
        let there = destination(&site, to, &[])?;
        let moved = migrate(&site, from, to, &[])?;
        if !moved.status.success() {
            // It finished before it could be migrated again; any other failure is an error.
            let gone = moved.stderr.contains("no running VM");
            if !gone && !vm.said().contains("l1: done") {
                return Err(moved.wrong("a move, or an L1 that has finished"));
            }
            break vm.end()?;
        }
        moved.expect_code(0)?;
        let ended = vm.end()?;
        ended.expect_code(0)?;
        said.push_str(&ended.stdout);
        vm = there.patient();
        moves += 1;
    };
    assert!(moves > 0, "L1 finished before it was moved");
    last.expect_code(0)?;
    last.expect_lines(&["l1: done"])?;
    said.push_str(&last.stdout);
    for kind in kinds {
        assert_eq!(said.matches(&format!("l1: running {kind}\n")).count(), 1);
    }
    Ok(())
}
