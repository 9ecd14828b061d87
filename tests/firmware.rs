//! Stock firmware boots stock kernels by GRUB from the guest's disks.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::setup::debian::IMAGE;
use hypernest_lab::setup::firmware::{
    GRUB_DISK, GRUB_SAYS, INITRAMFS_LEN, KERNEL_LEN, OVMF_CODE, OVMF_VARS, SEABIOS,
};
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::debian::{log_in, power_off, quiet};
use crate::linux::{ASK, Report, held, initramfs};
use crate::needs;
use crate::state::{restore, save};
use crate::vm::{Site, Vm};

/// The host's disk is Debian's.
const BIOS: Stage = Stage {
    name: "firmware",
    memory_mib: 2560,
    with: &[SEABIOS, GRUB_DISK],
    disks: &[IMAGE],
    without: &["sse4.2"],
    ..Stage::PLAIN
};

/// The AMD lab's emulator aborts when OVMF writes to CR8.
const UEFI: Stage = Stage {
    name: "uefi",
    memory_mib: 2048,
    with: &[OVMF_CODE, OVMF_VARS, GRUB_DISK, "linux-6.12/vmlinuz"],
    ..Stage::PLAIN
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("firmware::seabios_boots_debian", seabios)
        .only_on(&[Host::Amd])
        .stage(BIOS)
        .needs(needs::hyperv)
        .limit_seconds(600),
    Test::new("firmware::ovmf_boots_a_stock_kernel", ovmf)
        .only_on(&[Host::Intel])
        .stage(UEFI)
        .needs(needs::hyperv)
        .limit_seconds(900),
];

const GRUB: &str = "grub.raw";

/// `hypernest run` of this firmware, with GRUB on the first disk and its console on stdin and stdout.
fn firmware(site: &Site, code: &str) -> Result<Command, Box<dyn Error>> {
    fs::copy(held(GRUB_DISK)?, site.path(GRUB))?;
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--memory", "512M"])
        .arg("--firmware")
        .arg(held(code)?)
        .args(["--disk", GRUB])
        .stdin(Stdio::piped());
    Ok(command)
}

/// GRUB has started so many times.
fn grub_starts(vm: &mut Vm, times: usize) -> TestResult {
    vm.wait_until("GRUB starts", |vm| {
        vm.said().matches(GRUB_SAYS).count() >= times
    })?;
    Ok(())
}

/// A guest that was started by firmware resets into it again, also where it was restored.
fn seabios() -> TestResult {
    const DISK: &str = "/dev/vda";
    let site = Site::new()?;
    let mut command = firmware(&site, SEABIOS)?;
    let mut vm = Vm::start(command.args(["--disk", DISK]))?.patient();
    grub_starts(&mut vm, 1)?;
    log_in(&mut vm)?;
    // The kernel would print between the lines.
    vm.tell("dmesg -n 1")?;
    vm.tell("echo @tables; dmesg | grep -iE 'acpi.*(error|warning)|mcfg.*not|ecam.*not'")?;
    vm.tell("echo @ecam; dmesg | grep -o 'ECAM.*\\[mem 0x[0-9a-f]*' | sed 's/.*mem //' | sort -u")?;
    vm.tell("echo @bios; cat /sys/class/dmi/id/bios_vendor; echo @seen")?;
    vm.wait_for("@seen")?;
    let said = save(&site, vm)?.stdout;
    println!("{said}");
    let report = Report::read(&said);
    assert_eq!(report.section("tables"), [""; 0], "{said}");
    // Where SeaBIOS places it, and not where the tables of direct boot have it.
    assert_eq!(report.section("ecam"), ["0xb0000000"], "{said}");

    let mut vm = restore(&site, &["--disk", GRUB, "--disk", DISK])?.patient();
    vm.tell("echo @again; reboot")?;
    grub_starts(&mut vm, 1)?;
    log_in(&mut vm)?;
    let ended = power_off(vm)?;
    println!("{}", ended.stdout);
    quiet(&ended.stdout);
    Ok(())
}

/// A file of exactly `len` bytes, as a disk has them.
fn padded(site: &Site, name: &str, len: u64) -> TestResult {
    let file = OpenOptions::new().write(true).open(site.path(name))?;
    assert!(
        file.metadata()?.len() <= len,
        "{name} has grown: GRUB's configuration names its length"
    );
    Ok(file.set_len(len)?)
}

/// OVMF finds GRUB in the EFI system partition of a GPT disk, keeps its variables, and starts again after the
/// guest's reset.
fn ovmf() -> TestResult {
    let site = Site::new()?;
    initramfs(&site, ASK)?;
    fs::copy(held("linux-6.12/vmlinuz")?, site.path("vmlinuz"))?;
    padded(&site, "vmlinuz", KERNEL_LEN)?;
    padded(&site, "initrd", INITRAMFS_LEN)?;
    let template = held(OVMF_VARS)?;
    let mut command = firmware(&site, OVMF_CODE)?;
    command
        .args(["--firmware-vars", "vars", "--hv", "none"])
        .args(["--disk", "vmlinuz,readonly", "--disk", "initrd,readonly"]);
    let mut vm = Vm::start(command)?.patient();
    grub_starts(&mut vm, 1)?;
    vm.wait_for("@end")?;
    vm.tell("poweroff")?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    println!("{}", ended.stdout);
    for good in ["efi: EFI v2", "ECAM [mem 0xe0000000"] {
        assert!(ended.stdout.contains(good), "{good}");
    }
    for bad in ["ACPI Error", "ACPI BIOS Error", "BUG:"] {
        assert!(!ended.stdout.contains(bad), "{bad}");
    }
    let (kept, before) = (fs::read(site.path("vars"))?, fs::read(template)?);
    assert_eq!(kept.len(), before.len());
    assert_ne!(kept, before, "OVMF keeps its boot order");
    Ok(())
}
