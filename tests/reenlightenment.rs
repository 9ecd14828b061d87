//! A stock Linux as L1, with KVM and a running L2, migrated between TSC frequencies: L1's KVM adapts, and no
//! clock steps back in L1 or L2.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::BufWriter;

use hypernest_lab::cpio::Writer;
use hypernest_lab::host::{Host, IntelCpu};
use hypernest_lab::suite::{Stage, Test, TestResult};
use hypernest_nested::tsc::{Clock, Next, Report, Said, next_said};

use crate::linux::held;
use crate::needs;
use crate::time::{needs_scaling, number, of_native};
use crate::vm::{Site, Vm, is_long_run};

/// The Intel lab with exact timers and a Linux; its emulated seconds are short.
const INTEL: Stage = Stage {
    name: "linux-with-exact-timers",
    intel: IntelCpu::IceLake,
    with: &["linux-6.12/vmlinux", "linux-6.12/modules"],
    ..Stage::PLAIN
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("reenlightenment::linux_and_its_guest_adapt", moves)
        .only_on(&[Host::Intel])
        .stage(INTEL)
        .needs(needs::evmcs)
        .needs(needs_scaling)
        .limit_seconds(400),
];

type Failure = Box<dyn Error>;

/// Loads KVM, starts L2 and a sampler, and prints the kernel's messages about clocks from then on.
const INIT: &str = r#"#!/busybox sh
b=/busybox
$b mkdir -p /proc /sys /dev /run
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
export XDG_RUNTIME_DIR=/run
for m in irqbypass kvm kvm-intel; do $b insmod /modules/$m.ko; done
$b dmesg -c | $b grep -i 'enlightened vmcs'
/hypernest run --name l2 --kernel /guest --cmdline "kvmclock beat=20000000" --hv none --memory 16M --serial none --debugcon stdio &
/tscprobe --serial /dev/ttyS1 --beat-us 10000 &
echo "@started"
while :; do
  $b dmesg -c | $b grep -iE 'unstable|clocksource|skew|bug:|warning:|stall|call trace'
  echo "@look"
  $b sleep 1
done
"#;

const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off cryptomgr.notests no_timer_check";

fn initramfs(site: &Site) -> TestResult {
    let mut archive = Writer::new(BufWriter::new(File::create(site.path("initrd"))?));
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.copy("busybox", &held("busybox")?)?;
    for program in ["hypernest", "tscprobe"] {
        archive.copy(program, &crate::l2probe::program(program)?)?;
    }
    archive.copy("guest", &site.path("guest"))?;
    for module in ["irqbypass.ko", "kvm.ko", "kvm-intel.ko"] {
        let path = held(&format!("linux-6.12/modules/{module}"))?;
        archive.copy(&format!("modules/{module}"), &path)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.finish()?;
    Ok(())
}

/// The output of L1 and its L2 on one host.
struct Stay {
    console: String,
    /// The output of tscprobe.
    probe: Vec<u8>,
}

impl Stay {
    /// L2's lines, without those that the console interleaved with others.
    fn l2(&self) -> Vec<[i128; 4]> {
        let lines = self.console.lines().filter(|line| line.starts_with("l2 "));
        let read = |line: &str| {
            let get = |name| number(line, name).ok();
            Some([get("tsc")?, get("ns")?, get("tsc-back")?, get("ns-back")?])
        };
        lines.filter_map(read).collect()
    }

    /// L1's reports.
    fn l1(&self) -> Vec<Report> {
        let mut rest = self.probe.as_slice();
        let mut reports = Vec::new();
        loop {
            let bytes = match next_said(rest) {
                Next::Incomplete => return reports,
                Next::Skip { bytes, .. } => bytes,
                Next::Said(said, bytes) => {
                    if let Said::Report(report) = said {
                        reports.push(report);
                    }
                    bytes
                }
            };
            rest = &rest[bytes..];
        }
    }

    fn check(&self, what: &str) -> TestResult {
        let complaints: Vec<_> = self
            .console
            .lines()
            .filter(|line| line.starts_with('['))
            .filter(|line| !line.contains("nlightened VMCS"))
            .collect();
        assert!(complaints.is_empty(), "{what}: L1 logged {complaints:#?}");
        for [_, _, tsc_back, ns_back] in self.l2() {
            assert_eq!((tsc_back, ns_back), (0, 0), "{what}: L2 stepped back");
        }
        for report in self.l1() {
            for clock in [Clock::Tsc, Clock::Monotonic, Clock::Raw] {
                let back = report.tally(clock).map_or(0, |tally| tally.backward);
                assert_eq!(back, 0, "{what}: L1's {} stepped back", clock.name());
            }
        }
        Ok(())
    }
}

/// The lines that show the frequency after a move: the last three.
fn settled(lines: &[[i128; 4]]) -> &[[i128; 4]] {
    &lines[lines.len().saturating_sub(3)..]
}

/// The error of kvmclock in L2 between two of its lines, in ppm, if its TSC runs at `khz`.
fn drift_ppm(lines: &[[i128; 4]], khz: u32) -> Result<i128, Failure> {
    let (first, last) = match lines {
        [first, .., last] => (first, last),
        _ => return Err(format!("too few lines: {lines:?}").into()),
    };
    let (ticks, ns) = (last[0] - first[0], last[1] - first[1]);
    let expected = ticks * 1_000_000 / i128::from(khz);
    Ok((ns - expected) * 1_000_000 / expected.max(1))
}

fn moves() -> TestResult {
    let count = if is_long_run() { 20 } else { 2 };
    let native = of_native(100)?.0;
    let site = Site::new()?;
    initramfs(&site)?;
    // 20 % above the host's, then in turn the host's own and 30 % below, which this host emulates.
    let mut khz = of_native(120)?.0;
    let first = khz.to_string();
    let mut vm = Vm::start(
        site.hypernest()
            .args(["run", "--name", "test", "--memory", "192M", "--nested"])
            .args(["--hv", "nested,-hv-tsc-invariant", "--initrd", "initrd"])
            .args([
                OsStr::new("--kernel"),
                held("linux-6.12/vmlinux")?.as_os_str(),
            ])
            .args(["--cmdline", COMMAND_LINE, "--tsc-khz", &first])
            .args(["--serial2", "file:probe-0", "--log", "info"]),
    )?
    .patient();
    vm.wait_for("@started")?;
    let look = |vm: &Vm, round: usize| Stay {
        console: vm.said(),
        probe: fs::read(site.path(format!("probe-{round}"))).unwrap_or_default(),
    };
    let mut before: Option<Stay> = None;
    for round in 0..=count {
        vm.wait_until("L2's lines", |vm| vm.said().matches("\nl2 ").count() >= 5)?;
        vm.wait_until("L1's reports", |vm| look(vm, round).l1().len() >= 3)?;
        let stay = look(&vm, round);
        stay.check(&format!("after {round} moves"))?;
        if round == 0 {
            assert!(stay.console.contains("nlightened VMCS"), "no eVMCS");
        }
        let lines = stay.l2();
        let last = settled(&lines);
        let ppm = drift_ppm(last, khz)?;
        println!("{round} moves, at {khz} kHz: L2's clock is off by {ppm} ppm");
        assert!(ppm.abs() <= 5, "after {round} moves: {last:?}");
        if let Some(before) = &before {
            let (last, first) = (before.l2().pop(), lines.first().copied());
            assert!(
                last.zip(first)
                    .is_some_and(|(last, first)| last[0] < first[0] && last[1] < first[1]),
                "L2 went from {last:?} to {first:?}"
            );
            let last = before.l1().pop().and_then(|r| r.now(Clock::Monotonic));
            let first = stay.l1().first().and_then(|r| r.now(Clock::Monotonic));
            assert!(last < first, "L1 went from {last:?} to {first:?}");
        }
        if round == count {
            break;
        }
        site.control(&["save", "test", "saved", "--then", "stop"])?
            .expect_code(0)?;
        vm.end()?.expect_code(0)?;
        let target = if round % 2 == 0 {
            native
        } else {
            of_native(70)?.0
        };
        let target_text = target.to_string();
        let probe = format!("file:probe-{}", round + 1);
        vm = Vm::start(
            site.hypernest()
                .args(["restore", "saved", "--tsc-khz", &target_text])
                .args(["--serial2", &probe, "--log", "info"]),
        )?
        .patient();
        // L1's KVM acknowledges a tenth of a second after the notification.
        let adapted = |site: &Site| {
            let status = site.status().ok()?;
            (status["tsc"]["changes"] == 1 && status["tsc"]["emulating"] == false)
                .then(|| status["tsc"]["khz"].as_u64())?
        };
        vm.wait_until("L1's KVM to adapt", |_| adapted(&site).is_some())?;
        assert_eq!(adapted(&site), Some(u64::from(target)));
        khz = target;
        before = Some(stay);
        // L1's hypernest and its terminal may hold lines that L2 printed before L1's KVM adapted.
        let so_far = vm.said().matches("\nl2 ").count();
        vm.wait_until("L2's lines of the new frequency", |vm| {
            let lines = look(vm, round + 1).l2();
            let new = vm.said().matches("\nl2 ").count() - so_far;
            new >= 5 && drift_ppm(settled(&lines), khz).is_ok_and(|ppm| ppm.abs() <= 5)
        })?;
    }
    site.control(&["stop", "test"])?;
    Ok(())
}
