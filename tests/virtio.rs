//! virtio over PCI: a stock Linux finds the devices, places their BARs, and uses them, also after resets,
//! restores and migrations.

use std::collections::BTreeSet;
use std::error::Error;
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::linux::{ASK, Report, initramfs_with, linux};
use crate::migration::move_on;
use crate::needs;
use crate::state::{restore, save};
use crate::stock_linux;
use crate::vm::{Site, Vm};

const AMD: Stage = Stage {
    name: "virtio",
    with: &["linux-6.12/vmlinux", "linux-6.12/modules"],
    ..stock_linux::AMD
};

pub(crate) const TESTS: &[Test] = &[
    amd("virtio::rng_in_linux_with_the_irqchip_in_kvm", || rng(&[])),
    amd("virtio::rng_in_linux_with_a_split_irqchip", || {
        rng(&["--irqchip", "split"])
    }),
    Test::new("virtio::rng_in_linux_on_an_intel_host", found_on_intel)
        .only_on(&[Host::Intel])
        .stage(stock_linux::INTEL)
        .needs(needs::evmcs)
        .limit_seconds(100),
    amd("virtio::rng_continues_with_the_irqchip_in_kvm", || {
        rng_continues(&[])
    }),
    amd("virtio::rng_continues_with_a_split_irqchip", || {
        rng_continues(&["--irqchip", "split"])
    }),
];

/// A test with a stock Linux and its modules.
pub(crate) const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(AMD)
        .needs(needs::hyperv)
        .limit_seconds(400)
}

/// Two devices on one interrupt line: the pins of slots 3 and 11 are neighbours by eight.
const DEVICES: [&str; 4] = [
    "--device",
    "virtio-rng,slot=3",
    "--device",
    "virtio-rng,slot=11",
];

/// By each `draw`: from each of them.
const DRAWN: usize = 2;

const MODULE: (&str, &str) = ("virtio-rng.ko", "linux-6.12/modules/virtio-rng.ko");

/// The start of every init here. `draw` reads 32 bytes from each entropy source and prints them.
const BEGIN: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b insmod /virtio-rng.ko
pci=/sys/bus/pci
rng=/sys/class/misc/hw_random
A=0000:00:03.0
B=0000:00:0b.0
draw() {
  for name in $($b cat $rng/rng_available); do
    case $name in virtio_rng*) ;; *) continue ;; esac
    echo $name > $rng/rng_current
    echo "$1 $name $($b dd if=/dev/hwrng bs=32 count=1 2>/dev/null | $b od -An -v -tx1 | $b tr -d ' \n')"
  done
}
without_msi() {
  echo $1 > $pci/drivers/virtio-pci/unbind
  echo 0 > $pci/devices/$1/msi_bus
  echo $1 > $pci/drivers/virtio-pci/bind
}
"#;

/// MSI-X, then INTx for one of them; a BAR that moves, seen without a driver; all found anew; both
/// by INTx, of one line, when the guest ends.
const CHECKS: &str = r#"
echo @found
for device in $pci/devices/*; do
  echo "${device##*/} $($b cat $device/vendor) $($b cat $device/device) $($b cat $device/revision)"
done
echo @bars
$b head -n 1 $pci/devices/$A/resource
echo @msix
draw drawn
$b grep virtio /proc/interrupts
echo @intx
without_msi $A
draw drawn
$b grep virtio /proc/interrupts
echo @moved
start=$($b head -n 1 $pci/devices/$A/resource | $b cut -d ' ' -f 1)
echo $A > $pci/drivers/virtio-pci/unbind
echo "before $($b devmem $((start + 18)) 16)"
$b printf '\x00\x00\x00\xd8\x00\x00\x00\x00' | $b dd of=$pci/devices/$A/config bs=8 seek=2 count=1 conv=notrunc 2>/dev/null
echo "after $($b devmem $((start + 18)) 16)"
echo "there $($b devmem $((0xd8000000 + 18)) 16)"
echo @rescanned
echo 1 > $pci/devices/$A/remove
echo 1 > $pci/devices/$B/remove
echo 1 > $pci/rescan
draw drawn
$b grep virtio /proc/interrupts
echo @shared
without_msi $A
without_msi $B
draw drawn
$b grep virtio /proc/interrupts
echo @log
$b dmesg | $b grep -v 'module verification failed' | $b grep -iE 'bug:|warning:|call trace|oops:|irq .*nobody|virtio.*(fail|error)|pci.*(fail|error|no space|conflict)'
echo @end
"#;

/// One device by MSI-X and one by its pin, until the VM ends.
const KEEPER: &str = r#"
without_msi $B
i=0
while [ $i -lt 100000 ]; do
  i=$((i+1))
  draw "tick $i"
  $b usleep 50000
done
"#;

fn init(site: &Site, script: &str) -> TestResult {
    initramfs_with(site, &format!("{BEGIN}{script}"), &[MODULE])
}

/// All checks, and all again after the guest's own reboot, which shuts the devices down first.
fn rng(arguments: &[&str]) -> TestResult {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(&site, &format!("{CHECKS}exec $b {ASK}\n"))?;
    command.args(DEVICES).args(arguments);
    let boots = boot_twice(&site, command)?;
    boots.iter().for_each(|said| check(said));
    distinct(&boots.concat());
    Ok(())
}

/// Starts a guest whose init ends with `@end` and [`ASK`]; it reboots by itself and then powers off. Returns
/// what each of its boots printed.
pub(crate) fn boot_twice(site: &Site, mut command: Command) -> Result<[String; 2], Box<dyn Error>> {
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("@end")?;
    vm.tell("reboot")?;
    vm.wait_until("the second boot's end", |vm| {
        vm.said().matches("@end").count() == 2
    })?;
    assert_eq!(site.status()?["resets"], 1);
    vm.tell("poweroff")?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    println!("{}", ended.stdout);
    let boots = ended.stdout.split_once("reboot: Restarting system");
    let (first, second) = boots.ok_or("the guest did not restart")?;
    Ok([first.to_owned(), second.to_owned()])
}

/// The devices across a reset, a save with a restore, and a live migration.
fn rng_continues(arguments: &[&str]) -> TestResult {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(&site, KEEPER)?;
    command.args(DEVICES).args(arguments);
    let mut vm = Vm::start(command)?.patient();
    vm.wait_until("random bytes", |vm| ticks(&vm.said()) >= 3)?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("random bytes after a reset", |vm| {
        vm.said().matches("tick 3 ").count() >= 4
    })?;
    assert_eq!(site.status()?["resets"], 1);
    let ended = save(&site, vm)?;
    let mut drawn = distinct(&ended.stdout);
    let done = ticks(&ended.stdout);
    let mut vm = restore(&site, &["--clock", "pause"])?.patient();
    vm.wait_until("more after a restore", |vm| ticks(&vm.said()) >= done + 3)?;

    let (ended, there) = move_on(&site, vm, 0, &[])?;
    let done = ticks(&ended.stdout);
    let mut vm = there.patient();
    vm.wait_until("more after a migration", |vm| ticks(&vm.said()) >= done + 3)?;
    for said in [&ended.stdout, &vm.said()] {
        for bad in ["BUG", "WARNING", "Call Trace", "nobody cared"] {
            assert!(!said.contains(bad), "{said}");
        }
        let more = distinct(said);
        assert!(drawn.is_disjoint(&more), "no bytes come twice");
        drawn.extend(more);
    }
    site.control(&["stop", "other"])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}

/// What a boot reported.
fn check(said: &str) {
    let report = Report::read(said);
    let section = |name: &str| report.section(name);
    for slot in ["03", "0b"] {
        let line = format!("0000:00:{slot}.0 0x1af4 0x1044 0x01");
        assert!(section("found").contains(&line), "{:?}", section("found"));
    }
    let bar = &section("bars")[0];
    assert!(!bar.starts_with("0x0000000000000000 "), "not placed: {bar}");
    for name in ["msix", "intx", "rescanned", "shared"] {
        let drawn = section(name).iter().filter(|line| is_draw(line)).count();
        assert_eq!(drawn, DRAWN, "{name}: {:?}", section(name));
    }
    let lines_of = |name: &str, kind: &str| {
        let lines = section(name).iter();
        lines.filter(|line| line.contains(kind)).count()
    };
    assert_eq!(lines_of("msix", "IO-APIC"), 0);
    assert!(lines_of("msix", "MSI") >= 2);
    assert!(lines_of("intx", "MSI") >= 2);
    for name in ["intx", "shared"] {
        assert_eq!(lines_of(name, "IO-APIC"), 1);
    }
    assert_eq!(lines_of("shared", "MSI"), 0);
    assert_eq!(
        section("moved"),
        ["before 0x0001", "after 0xFFFF", "there 0x0001"]
    );
    assert_eq!(section("log"), [""; 0], "the guest complains");
}

/// A line with 32 random bytes.
fn is_draw(line: &str) -> bool {
    let last = line.rsplit(' ').next().unwrap_or_default();
    last.len() == 64 && last.bytes().all(|b| b.is_ascii_hexdigit())
}

/// All drawn bytes; no two lines are equal.
fn distinct(said: &str) -> BTreeSet<String> {
    let lines = said.lines().map(str::trim_end).filter(|line| is_draw(line));
    let drawn: Vec<_> = lines
        .filter_map(|line| Some(line.rsplit_once(' ')?.1.to_owned()))
        .collect();
    let set: BTreeSet<_> = drawn.iter().cloned().collect();
    assert_eq!(set.len(), drawn.len(), "bytes came twice");
    set
}

/// The number of times that both devices were read.
fn ticks(said: &str) -> usize {
    let ticks = said.lines().map(str::trim_end).filter_map(|line| {
        let (number, _) = line.strip_prefix("tick ")?.split_once(' ')?;
        is_draw(line).then(|| number.parse().ok()).flatten()
    });
    let mut ticks: Vec<usize> = ticks.collect();
    ticks.sort_unstable();
    let both = ticks.windows(2).filter(|pair| pair[0] == pair[1]);
    both.map(|pair| pair[0]).max().unwrap_or(0)
}

fn found_on_intel() -> TestResult {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(&site, "draw drawn\n$b poweroff -f\n")?;
    let ended = Vm::start(command.args(DEVICES))?.patient().end()?;
    ended.expect_code(0)?;
    assert_eq!(distinct(&ended.stdout).len(), 2, "{}", ended.stdout);
    Ok(())
}
