//! Consoles and ports: a stock Linux talks by virtio-console, across restores and migrations.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hypernest_lab::suite::{Test, TestResult};

use crate::linux::{Report, initramfs_with, linux};
use crate::migration::move_on_with;
use crate::state::{restore, save};
use crate::virtio::amd;
use crate::vm::{Site, Vm, patience};

pub(crate) const TESTS: &[Test] = &[amd(
    "console::what_is_said_returns_by_a_console_and_a_port",
    goes_on,
)];

/// A name that udev would make a link for.
const PORT: &str = "org.qemu.guest_agent.0";

/// Init's own output is on COM1. Each line that comes to hvc0 and to the port is answered there. The port's
/// program ends when the host's end is closed, and begins again.
const INIT: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
echo @found
for port in /sys/class/virtio-ports/*; do echo "${port##*/} $($b cat $port/name 2>/dev/null)"; done
$b ls /sys/class/tty | $b grep hvc
port=/dev/$($b basename $($b dirname $($b grep -l guest_agent /sys/class/virtio-ports/*/name)))
echo @log
$b dmesg | $b grep -iE 'bug:|warning:|call trace|oops:|virtio.*(fail|error)'
echo @end
echo hello on hvc0 > /dev/hvc0
$b sh -c 'exec <>/dev/hvc0 >&0; /busybox stty -echo; while read line; do [ "$line" = size ] && line=$(/busybox stty size); echo "hvc $line"; done' &
while :; do
  $b sh -c "exec 3<>$port; while read line <&3; do echo port \$line >&3; done"
  $b usleep 20000
done &
# A flood that nobody reads must not stop the guest: the console's driver waits with a CPU of its own.
( while ! [ -e /flood ]; do $b usleep 20000; done; $b dd if=/dev/zero of=/dev/hvc1 bs=4096 count=64 2>/dev/null; echo @flooded ) &
exec $b sh -c 'while read line; do case $line in flood) >/flood ;; *) exec /busybox $line -f ;; esac; done'
"#;

/// A line there and back. It is said again every few seconds without an answer: what comes to a port that its
/// program is just closing is lost.
fn ask(stream: &mut UnixStream, line: &str, answer: &str) -> TestResult {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let deadline = Instant::now() + patience();
    let mut heard = Vec::new();
    while Instant::now() < deadline {
        stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut bytes = [0; 1000];
            match stream.read(&mut bytes) {
                Ok(0) => return Err(format!("the end instead of {answer:?}").into()),
                Ok(count) => heard.extend(&bytes[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
            if String::from_utf8_lossy(&heard).contains(answer) {
                return Ok(());
            }
        }
    }
    let heard = String::from_utf8_lossy(&heard);
    Err(format!("no {answer:?} but {heard:?}").into())
}

fn connect(site: &Site, name: &str) -> Result<UnixStream, Box<dyn Error>> {
    let deadline = Instant::now() + patience();
    loop {
        match UnixStream::connect(site.path(name)) {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() > deadline => return Err(e.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The back ends of the console and the port in this turn.
fn consoles(site: &Site, turn: usize) -> [String; 2] {
    let socket = |name: &str| format!("socket:{}", site.path(format!("{name}{turn}")).display());
    [socket("hvc"), socket("port")]
}

/// A line both ways on the console and the port, which a client has to itself.
fn talk(site: &Site, turn: usize) -> TestResult {
    let mut console = connect(site, &format!("hvc{turn}"))?;
    ask(
        &mut console,
        &format!("line {turn}"),
        &format!("hvc line {turn}"),
    )?;
    for client in 0..2 {
        let mut port = connect(site, &format!("port{turn}"))?;
        let line = format!("{turn} {client}");
        ask(&mut port, &line, &format!("port {line}"))?;
    }
    Ok(())
}

fn goes_on() -> TestResult {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    initramfs_with(&site, INIT, &[])?;
    let [console, port] = consoles(&site, 0);
    command.args(["--console", &console]);
    command.args(["--console", &format!("{port},name={PORT}")]);
    let stalled = format!("socket:{}", site.path("stalled").display());
    command.args(["--console", &stalled]);
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("@end")?;
    let report = Report::read(&vm.said());
    let found = report.section("found");
    for line in [&format!("vport1p1 {PORT}"), "hvc0", "hvc1"] {
        assert!(found.iter().any(|found| found == line), "{line}: {found:?}");
    }
    assert_eq!(report.section("log"), [""; 0]);
    talk(&site, 0)?;
    // A client that does not read.
    let silent = connect(&site, "stalled")?;
    vm.tell("flood")?;
    talk(&site, 0)?;
    vm.wait_for("@flooded")?;
    drop(silent);

    save(&site, vm)?;
    let [console, port] = consoles(&site, 1);
    let arguments = [
        "--clock",
        "pause",
        "--console",
        &console,
        "--console",
        &port,
    ];
    let vm = restore(&site, &arguments)?.patient();
    talk(&site, 1)?;
    let [console, port] = consoles(&site, 2);
    let there = ["--console", console.as_str(), "--console", &port];
    let (_, vm) = move_on_with(&site, vm, 0, &[], &there)?;
    let vm = vm.patient();
    talk(&site, 2)?;
    site.control(&["stop", "other"])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}
