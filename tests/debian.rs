//! Stock distributions on a disk: they boot with their own kernel and initramfs, and Debian's data is whole
//! after saves, restores and live migrations under load.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::setup::alpine;
use hypernest_lab::setup::debian::{E2FSCK, IMAGE, INITRAMFS, KERNEL, PARAMETERS};
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::linux::{Report, held};
use crate::migration::move_on_with;
use crate::needs;
use crate::net::{ip, load_tun};
use crate::state::{restore, save};
use crate::vm::{Ended, Site, Vm, is_long_run};

/// Each test has its own disk.
const STAGE: Stage = Stage {
    name: "debian",
    memory_mib: 3072,
    with: &[
        KERNEL,
        INITRAMFS,
        E2FSCK,
        "net",
        "linux-6.12/modules/tun.ko",
    ],
    disks: &[IMAGE, IMAGE],
    without: &["sse4.2"],
    ..Stage::PLAIN
};

/// Apart, so that a machine that cannot get Alpine still has Debian.
const ALPINE: Stage = Stage {
    name: "alpine",
    with: &[alpine::KERNEL, alpine::INITRAMFS],
    disks: &[alpine::IMAGE],
    ..Stage::PLAIN
};

const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(STAGE)
        .needs(needs::hyperv)
        .limit_seconds(900)
}

pub(crate) const TESTS: &[Test] = &[
    amd("debian::boots_from_its_disk", boots),
    amd("debian::moves_under_verified_load", moves),
];

/// Only in long runs, since not every machine has pip.
pub(crate) const LONG: &[Test] =
    &[amd("debian::alpine_boots_from_its_own_image", boots_alpine).stage(ALPINE)];

/// `hypernest run` of Debian on a disk of the lab's host, with its console on stdin and stdout.
fn debian(site: &Site, disk: &str) -> Result<Command, Box<dyn Error>> {
    let command_line = format!("root=/dev/vda ro console=ttyS0 {PARAMETERS}");
    run(site, disk, [KERNEL, INITRAMFS, &command_line])
}

fn run(
    site: &Site,
    disk: &str,
    [kernel, initramfs, command_line]: [&str; 3],
) -> Result<Command, Box<dyn Error>> {
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--memory", "384M"])
        .args(["--disk", disk, "--cmdline", command_line, "--kernel"])
        .arg(held(kernel)?)
        .arg("--initrd")
        .arg(held(initramfs)?)
        .stdin(Stdio::piped());
    Ok(command)
}

/// Waits for the login of root, and makes its shell one that prints nothing but the output of its commands.
pub(crate) fn log_in(vm: &mut Vm) -> TestResult {
    vm.wait_for("root@debian:~#")?;
    vm.tell("exec sh")?;
    vm.tell("stty -echo; PS1=; echo; echo @rea''dy")?;
    vm.wait_for("@ready")
}

/// What the kernel's log does not contain.
const TROUBLE: &str = "bug:|warning:|call trace|oops|hung|(error|fail).*vd|vd.*(error|fail)";

/// The guest powers off by itself and was not in trouble before.
pub(crate) fn power_off(mut vm: Vm) -> Result<Ended, Box<dyn Error>> {
    vm.tell(&format!("echo @log; dmesg | grep -iE '{TROUBLE}'"))?;
    vm.tell("echo @end; poweroff")?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    Ok(ended)
}

pub(crate) fn quiet(said: &str) {
    let report = Report::read(said);
    let log = report.section("log");
    assert_eq!(log, [""; 0], "the guest complains");
    assert!(said.contains("reboot: Power down"), "{said}");
}

/// The file system on a disk of this host is whole, and its journal is empty.
fn expect_clean(disk: &str) -> TestResult {
    let output = Command::new(held(E2FSCK)?.join("e2fsck"))
        .args(["-f", "-n", disk])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("{said}{complained}");
    assert!(output.status.success(), "{}", output.status);
    assert!(!complained.contains("journal"), "{complained}");
    Ok(())
}

const LOOK: &str = r#"
echo @root; grep ' / ' /proc/mounts
echo @system; systemctl is-system-running --wait; systemctl --failed --plain --no-legend
echo @kernel; dmesg | grep -o 'Hypervisor detected.*'; uname -o
echo @disk; cat /sys/block/vda/size; seq 200000 >/root/kept; sha256sum /root/kept
echo @seen
"#;

/// What `seq 200000 | sha256sum` prints.
const KEPT: &str = "5af7b95208fdcff454bab3f5eddf567a688a3796c703d4fef91072e38645c062";

fn boots() -> TestResult {
    const DISK: &str = "/dev/vda";
    let site = Site::new()?;
    let mut vm = Vm::start(debian(&site, DISK)?)?.patient();
    log_in(&mut vm)?;
    for line in LOOK.trim().lines() {
        vm.tell(line)?;
    }
    vm.wait_for("@seen")?;
    let ended = power_off(vm)?;
    println!("{}", ended.stdout);
    let report = Report::read(&ended.stdout);
    let root = report.section("root");
    assert!(root[0].starts_with("/dev/vda / ext4 rw,"), "{root:?}");
    // Not degraded: no unit has failed.
    assert_eq!(report.section("system"), ["running"]);
    let kernel = report.section("kernel");
    let expected = ["Hypervisor detected: Microsoft Hyper-V", "GNU/Linux"];
    assert_eq!(kernel, expected);
    let sectors = fs::read_to_string("/sys/class/block/vda/size")?;
    let disk = report.section("disk");
    assert_eq!(disk, [sectors.trim(), &format!("{KEPT}  /root/kept")]);
    quiet(&ended.stdout);
    expect_clean(DISK)?;
    with_mounted(&site, DISK, |root| expect_kept(&root.join("root/kept")))
}

/// Mounts a disk of this host for `work`.
fn with_mounted<T>(
    site: &Site,
    disk: &str,
    work: impl FnOnce(&Path) -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let place = site.path("mounted");
    fs::create_dir(&place)?;
    let mounted = Command::new(held("busybox")?)
        .args(["mount", "-t", "ext4", disk])
        .arg(&place)
        .status()?;
    assert!(mounted.success(), "{mounted}");
    let result = work(&place);
    let unmounted = Command::new(held("busybox")?)
        .arg("umount")
        .arg(&place)
        .status()?;
    assert!(unmounted.success(), "{unmounted}");
    fs::remove_dir(&place)?;
    result
}

/// Alpine has no login on the serial port, and no password that fits: both are changed on its disk first.
fn boots_alpine() -> TestResult {
    const DISK: &str = "/dev/vda";
    const GETTY: &str = "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100";
    const COMMAND_LINE: &str = "root=/dev/vda rootfstype=ext4 console=ttyS0 quiet mitigations=off \
        cryptomgr.notests modules=ext4,virtio_pci,virtio_blk";
    let site = Site::new()?;
    let change = |name: &str, from: &str, to: &str| {
        with_mounted(&site, DISK, |root| {
            let path = root.join(name);
            let text = fs::read_to_string(&path)?;
            assert!(text.contains(from), "{name}: {text}");
            Ok(fs::write(path, text.replacen(from, to, 1))?)
        })
    };
    change("etc/inittab", &format!("#{GETTY}"), GETTY)?;
    change("etc/shadow", "root:*:", "root::")?;
    let files = [alpine::KERNEL, alpine::INITRAMFS, COMMAND_LINE];
    let mut vm = Vm::start(run(&site, DISK, files)?)?.patient();
    vm.wait_for(" login:")?;
    vm.tell("root")?;
    vm.wait_for(":~#")?;
    vm.tell("stty -echo; PS1=; echo; echo @rea''dy")?;
    vm.wait_for("@ready")?;
    vm.tell(
        "echo @root; mount -o remount,rw /; grep ' / ' /proc/mounts; . /etc/os-release; echo $ID",
    )?;
    vm.tell("seq 200000 >/root/kept; sha256sum /root/kept; echo @seen")?;
    vm.wait_for("@seen")?;
    vm.tell("poweroff")?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    println!("{}", ended.stdout);
    let report = Report::read(&ended.stdout);
    let [root, name, kept] = report.section("root") else {
        return Err("three lines".into());
    };
    assert!(root.starts_with("/dev/vda / ext4 rw,"), "{root}");
    assert_eq!(name, "alpine");
    assert!(kept.starts_with(KEPT), "{kept}");
    with_mounted(&site, DISK, |root| expect_kept(&root.join("root/kept")))
}

/// The file of the guest is there.
fn expect_kept(file: &Path) -> TestResult {
    let mut command = Command::new(held("busybox")?);
    let output = command.arg("sha256sum").arg(file).output()?;
    let sum = String::from_utf8_lossy(&output.stdout);
    assert!(sum.starts_with(KEPT), "{sum}");
    Ok(())
}

/// fio writes blocks with checksums in random order, flushes after every eighth, reads them back and checks
/// them, round after round, until there is a file `stop`. Meanwhile iperf3 sends to the host.
const LOAD: &str = r#"
cat >load <<'END'
round=0
while [ ! -e stop ]; do
  if ! fio --name=load --filename=data --size=12M --bsrange=4k-64k --rw=randrw --ioengine=libaio \
    --iodepth=8 --direct=1 --fsync=8 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --verify_state_save=0 \
    >report 2>&1; then echo BAD fio; cat report; break; fi
  round=$((round+1))
  echo round $round
done
echo @fio
grep -oE 'err= *[0-9]+|(READ|WRITE):|io=[^ ]*' report
END
for n in /sys/class/net/e*; do card=${n##*/}; done
ip addr add 10.9.3.2/24 dev $card
ip link set $card up
iperf3 --client 10.9.3.1 --time 0 --bitrate 4M --interval 5 --forceflush >sent 2>&1 &
sender=$!
sh load &
(while [ ! -e stop ]; do sleep 1; read a b c d e f written rest </sys/block/vda/stat; echo written $written
  echo sent $(cat /sys/class/net/$card/statistics/tx_bytes); done) &
"#;

/// Ends the load.
const STOP: &str = r#"
kill -0 $sender || echo BAD iperf3
kill -INT $sender; wait $sender; echo iperf3: $?
touch stop; wait
echo @sent; tail -n 6 sent
echo @idle
"#;

/// The largest number after `word` at the start of a line.
fn last(said: &str, word: &str) -> u64 {
    let lines = said.lines().map(str::trim_end);
    let numbers = lines.filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// The seconds in which the server of iperf3 with this log received something.
fn seconds_received(log: &Path) -> io::Result<usize> {
    let lines = fs::read_to_string(log)?;
    let of_a_second = |line: &&str| line.contains("bits/sec") && !line.contains(" 0.00 Bytes");
    Ok(lines.lines().filter(of_a_second).count())
}

/// The profiles of enlightenments, and what they need.
const PROFILES: [&[&str]; 4] = [
    &["--hv", "nested", "--nested"],
    &["--hv", "windows"],
    &["--hv", "all", "--nested"],
    &["--hv", "none"],
];

fn moves() -> TestResult {
    if !is_long_run() {
        return moves_with(PROFILES[0], 10);
    }
    for profile in PROFILES {
        moves_with(profile, 13)?;
    }
    Ok(())
}

fn moves_with(profile: &[&str], moves: usize) -> TestResult {
    const DISK: &str = "/dev/vdb";
    const TAP: &str = "tap,ifname=tap7";
    let site = Site::new()?;
    load_tun()?;
    ip("tuntap add tap7 mode tap")?;
    ip("addr add 10.9.3.1/24 dev tap7")?;
    ip("link set tap7 up")?;
    let log = site.path("server");
    let mut server = Command::new(held("net/iperf3")?)
        .args(["--server", "--one-off", "--forceflush"])
        .stdout(fs::File::create(&log)?)
        .spawn()?;
    let mut command = debian(&site, &format!("{DISK},cache=none"))?;
    let mut vm = Vm::start(command.args(["--net", TAP]).args(profile))?.patient();
    log_in(&mut vm)?;
    for line in LOAD.trim().lines() {
        vm.tell(line)?;
    }
    let mut before = String::new();
    for turn in 0..moves {
        let (done, sent) = (last(&before, "written"), last(&before, "sent"));
        // Sectors and bytes; the same in each process, however long it takes.
        vm.wait_until("more on the disk and from the card", |vm| {
            let said = vm.said();
            let goes_on =
                last(&said, "written") >= done + 2048 && last(&said, "sent") >= sent + (1 << 18);
            said.contains("BAD") || goes_on
        })?;
        let ended;
        let there = ["--disk", DISK, "--net", TAP];
        if turn % 3 == 0 {
            ended = save(&site, vm)?;
            vm = restore(&site, &there)?;
        } else {
            // There and back, as a save expects the first name.
            (ended, vm) = move_on_with(&site, vm, turn % 3 - 1, &[], &there)?;
        }
        vm = vm.patient();
        before.push_str(&ended.stdout);
        assert!(!before.contains("BAD"), "{before}");
        println!("{}", ended.stderr);
        let (written, sent) = (last(&before, "written"), last(&before, "sent"));
        println!("move {turn}: {written} sectors written, {sent} bytes sent");
    }
    let rounds = last(&before, "round");
    let seconds = seconds_received(&log)?;
    vm.wait_until("more at the peer of iperf3", |_| {
        seconds_received(&log).is_ok_and(|now| now >= seconds + 2)
    })?;
    for line in STOP.trim().lines() {
        vm.tell(line)?;
    }
    vm.wait_for("@idle")?;
    let ended = power_off(vm)?;
    before.push_str(&ended.stdout);
    println!("{profile:?}: {before}");
    assert!(!before.contains("BAD"), "{before}");
    assert!(last(&before, "round") > rounds, "{before}");
    quiet(&before);
    // Its status says which of two connections it saw end first.
    server.wait()?;
    println!("{}", fs::read_to_string(&log)?);
    ip("link delete tap7")?;
    expect_clean(DISK)
}
