//! Stock Debian kernels boot, and use the enlightenments that they are offered.

use std::error::Error;
use std::process::Stdio;

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};

use crate::linux::{ASK, Report, initramfs, initramfs_with, linux};
use crate::needs;
use crate::vm::{Ended, Site, Vm};

/// With all kernels, and the modules of one; and with one host CPU: with two, the emulator sometimes breaks
/// guests of several vCPUs, or itself.
pub(crate) const AMD: Stage = Stage {
    name: "linux",
    cpus: 1,
    memory_mib: 2048,
    with: &[
        "linux-6.12/vmlinux",
        "linux-6.12/vmlinuz",
        "linux-6.12/modules",
        "linux-6.1/vmlinux",
        "linux-6.1/vmlinuz",
    ],
    ..Stage::PLAIN
};

/// With the only kernel that is fast enough for the Intel lab.
pub(crate) const INTEL: Stage = Stage {
    name: "one-linux",
    cpus: 1,
    memory_mib: 1536,
    with: &["linux-6.12/vmlinux", "linux-6.12/modules"],
    ..Stage::PLAIN
};

const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(AMD)
        .needs(needs::hyperv)
        .limit_seconds(200)
}

pub(crate) const TESTS: &[Test] = &[
    amd("stock_linux::6_12_vmlinux_1_vcpu", || {
        enlightened("linux-6.12/vmlinux", 1, &[]).map(drop)
    }),
    amd("stock_linux::6_12_bzimage_4_vcpus", || {
        let report = enlightened("linux-6.12/vmlinuz", 4, &["--cpus", "4,cores=2,threads=2"])?;
        assert_eq!(report.section("siblings"), ["0-1", "0-1", "2-3", "2-3"]);
        Ok(())
    }),
    amd("stock_linux::6_1_vmlinux_4_vcpus_split_irqchip", || {
        enlightened(
            "linux-6.1/vmlinux",
            4,
            &["--cpus", "4", "--irqchip", "split"],
        )
        .map(drop)
    }),
    amd("stock_linux::6_1_bzimage_1_vcpu", || {
        enlightened("linux-6.1/vmlinuz", 1, &[]).map(drop)
    }),
    // The command of the README, without other flags for enlightenments.
    amd("stock_linux::nested_on_an_amd_host", || {
        let report = enlightened("linux-6.12/vmlinux", 1, &["--nested"])?;
        assert!(report.has_flag("svm"), "the guest sees no SVM");
        Ok(())
    })
    .needs(needs::nested_svm),
    amd("stock_linux::with_a_cpu_model", model),
    amd("stock_linux::without_enlightenments", plain),
    amd("stock_linux::reboots_once", || {
        reboots("reboot=k").map(drop)
    }),
    amd("stock_linux::reboots_by_a_triple_fault", || {
        // Linux loads an empty IDT and executes INT3 (native_machine_emergency_restart).
        let ended = reboots("reboot=t")?;
        ended.expect_error(0, &["stopped: triple fault", "the machine is reset"])?;
        Ok(())
    }),
    amd(
        "stock_linux::without_a_clock_of_hyperv_it_has_kvms",
        without_a_clock_of_hyperv,
    )
    .limit_seconds(600),
    Test::new("stock_linux::on_an_intel_host", || {
        enlightened("linux-6.12/vmlinux", 1, &["--nested"]).map(drop)
    })
    .only_on(&[Host::Intel])
    .stage(INTEL)
    .needs(needs::evmcs)
    .limit_seconds(60),
];

/// Boots, checks that the guest powered off and that its log has no warnings.
fn boot(kernel: &str, arguments: &[&str]) -> Result<Report, Box<dyn Error>> {
    let site = Site::new()?;
    let ended = Vm::start(linux(&site, kernel, "")?.args(arguments))?
        .patient()
        .end()?;
    ended.expect_code(0)?;
    let report = Report::read(&ended.stdout);
    if report.section("interrupts").is_empty() {
        return Err(ended.wrong("a report of the guest's init"));
    }
    println!("{}", ended.stdout);
    let log = report.section("log");
    for bad in ["bug:", "warning:", "call trace", "oops:", "acpi error"] {
        let complaints: Vec<_> = log
            .iter()
            .filter(|line| line.to_lowercase().contains(bad))
            .collect();
        assert!(
            complaints.is_empty(),
            "the guest complains: {complaints:#?}"
        );
    }
    for table in ["APIC", "FACP", "DSDT", "MCFG", "SRAT", "WAET"] {
        assert!(has(&report, "devices", table), "no ACPI table {table}");
    }
    for device in ["0000:00:00.0", "rtc0", "serio0", "smbios_entry_point"] {
        assert!(has(&report, "devices", device), "no device {device}");
    }
    assert!(!has(&report, "devices", "HPET"));
    Ok(report)
}

fn has(report: &Report, section: &str, line: &str) -> bool {
    report.section(section).iter().any(|l| l == line)
}

/// The guest uses all enlightenments that Linux supports.
fn enlightened(kernel: &str, vcpus: usize, arguments: &[&str]) -> Result<Report, Box<dyn Error>> {
    let report = boot(kernel, arguments)?;
    for line in [
        "Hypervisor detected: Microsoft Hyper-V",
        "Using hypercall for remote TLB flush",
        "Using IPI hypercalls",
        "Using enlightened APIC",
    ] {
        assert_eq!(report.logged(line), 1, "{line}");
    }
    assert!(has(&report, "clocksource", "hyperv_clocksource_tsc_page"));
    assert!(has(&report, "clockevent", "Hyper-V clockevent"));
    // Direct synthetic timers have their own interrupt, and the local APIC's timer is not used.
    assert!(report.interrupts("HVS") > Some(0), "no HVS interrupts");
    assert_eq!(report.interrupts("LOC"), Some(0));
    assert_eq!(report.cpus(), vcpus);
    Ok(report)
}

fn model() -> TestResult {
    let report = boot("linux-6.12/vmlinux", &["--cpu", "x86-64-v2"])?;
    for flag in ["sse4_2", "popcnt", "cx16", "ssse3", "lahf_lm", "hypervisor"] {
        assert!(report.has_flag(flag), "x86-64-v2 has {flag}");
    }
    for flag in ["avx", "avx2", "bmi1", "fma", "svm", "vmx"] {
        assert!(!report.has_flag(flag), "x86-64-v2 has no {flag}");
    }
    assert_eq!(report.logged("Hypervisor detected: Microsoft Hyper-V"), 1);
    Ok(())
}

/// The reverse: the effects above come from the enlightenments.
fn plain() -> TestResult {
    let report = boot("linux-6.12/vmlinux", &["--hv", "none"])?;
    assert_eq!(report.logged("Hyper-V"), 0);
    assert_eq!(report.interrupts("HVS").unwrap_or(0), 0);
    assert!(report.interrupts("LOC") > Some(0));
    assert!(!has(&report, "clocksource", "hyperv_clocksource_tsc_page"));
    expect_kvmclock(&report);
    Ok(())
}

/// Linux has a clock that costs no exit and keeps its frequency across moves, without a calibration.
fn expect_kvmclock(report: &Report) {
    assert!(
        has(report, "clocksource", "kvm-clock") || has(report, "clocksource", "tsc"),
        "{:?}",
        report.section("clocksource")
    );
    assert_eq!(report.logged("calibration failed"), 0);
}

/// Without Hyper-V, or with too little of it for Linux: KVM's clock, with or without a PIT.
fn without_a_clock_of_hyperv() -> TestResult {
    for hv in ["none", "relaxed", "vpindex,time"] {
        for irqchip in ["kernel", "split"] {
            for cpus in ["1", "2"] {
                println!("--hv {hv} --irqchip {irqchip} --cpus {cpus}");
                let arguments = ["--hv", hv, "--irqchip", irqchip, "--cpus", cpus];
                expect_kvmclock(&boot("linux-6.12/vmlinux", &arguments)?);
            }
        }
    }
    // With a CPU model, and with SVM offered.
    for more in [&["--cpu", "x86-64-v2"][..], &["--nested"]] {
        let arguments = [&["--hv", "none", "--irqchip", "split"], more].concat();
        expect_kvmclock(&boot("linux-6.12/vmlinux", &arguments)?);
    }
    Ok(())
}

/// One reboot: by the keyboard controller Linux asks for it ten times in a row and must get it once. It boots
/// the initramfs that the VM was started with, whatever is at its path by then.
fn reboots(how: &str) -> Result<Ended, Box<dyn Error>> {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", how)?;
    initramfs(&site, ASK)?;
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("@end")?;
    initramfs_with(&site, "#!/busybox sh\necho another initramfs\n", &[])?;
    vm.tell("reboot")?;
    vm.wait_until("the second report's end", |vm| {
        vm.said().matches("@end").count() == 2
    })?;
    assert!(!vm.said().contains("another initramfs"));
    let status = site.status()?;
    assert_eq!(status["resets"], 1, "{status}");
    site.control(&["stop", "test"])?.expect_code(0)?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    assert!(site.run_directories()?.is_empty());
    Ok(ended)
}
