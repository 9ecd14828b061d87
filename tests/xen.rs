//! Xen as the guest: multiboot 1 with two modules, up to its first domain's init.

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::linux::{self, Report};
use crate::needs;
use crate::vm::{Site, Vm};

const STAGE: Stage = Stage {
    name: "xen",
    cpus: 1,
    memory_mib: 2048,
    with: &["xen", "linux-dom0/vmlinux"],
    ..Stage::PLAIN
};

pub(crate) const TESTS: &[Test] =
    &[
        Test::new("xen::boots_by_multiboot_to_the_init_of_dom0", boots)
            .only_on(&[Host::Amd])
            .stage(STAGE)
            .needs(needs::nested_svm)
            .limit_seconds(300),
    ];

/// Debian's Xen is built without support for running on Hyper-V, so no enlightenments are offered.
fn boots() -> TestResult {
    let site = Site::new()?;
    linux::initramfs(&site, "poweroff -f")?;
    let dom0 = linux::held("linux-dom0/vmlinux")?;
    let mut command = site.hypernest();
    command
        .args([
            "run", "--name", "test", "--memory", "640M", "--nested", "--hv", "none",
        ])
        .arg("--kernel")
        .arg(linux::held("xen")?)
        .args([
            "--cmdline",
            "console=com1 com1=115200,8n1 dom0_mem=256M sync_console",
        ])
        .arg("--module")
        .arg(format!("{},args=console=hvc0 quiet", dom0.display()))
        .args(["--module", "initrd"]);
    let mut vm = Vm::start(command)?;
    // Each step has the timeout of one wait; the whole boot takes longer.
    for said in ["(XEN) Xen version 4.", "Dom0 has maximum", "@log", "@end"] {
        vm.wait_for(said)?;
    }
    let ended = vm.end()?;
    ended.expect_code(0)?;
    let report = Report::read(&ended.stdout);
    if report.cpus() != 1 {
        return Err(ended.wrong("dom0's own report"));
    }
    Ok(())
}
