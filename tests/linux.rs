//! Stock Linux as a guest: an initramfs for the test, and the report of its init.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use hypernest_lab::cpio::Writer;
use hypernest_lab::plan::LAB_DIR_VARIABLE;

use crate::vm::Site;

/// The command line of every boot: a console, and parameters that disable irrelevant work that is slow in an
/// emulated host.
pub(crate) const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests";

/// Prints a report, then runs init's last command.
const INIT: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
echo "@log"
$b dmesg | $b grep -iE 'hyper-?v|hypercall|enlightened|clocksource|smp:|acpi.*(error|warn)|bios bug|firmware bug|bug:|warning:|call trace|oops:'
echo "@interrupts"
$b cat /proc/interrupts
echo "@clocksource"
$b cat /sys/devices/system/clocksource/clocksource0/current_clocksource
echo "@clockevent"
$b cat /sys/devices/system/clockevents/clockevent0/current_device
echo "@flags"
$b grep -m1 ^flags /proc/cpuinfo
echo "@siblings"
$b cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list
echo "@devices"
$b ls -1 /sys/bus/pci/devices /sys/class/rtc /sys/bus/serio/devices /sys/firmware/acpi/tables /sys/firmware/dmi/tables
echo "@product"
$b cat /sys/class/dmi/id/product_name
echo "@end"
"#;

/// For [`initramfs`]: init asks the console, by which [`Vm::tell`](crate::vm::Vm::tell) answers `reboot` or
/// `poweroff`. Every boot of a VM has the same initramfs, so the guest alone does not know which one it is.
pub(crate) const ASK: &str = "sh -c 'read last; exec /busybox $last -f'";

/// The path of `what` in the lab.
pub(crate) fn held(what: &str) -> Result<PathBuf, Box<dyn Error>> {
    let lab = std::env::var_os(LAB_DIR_VARIABLE)
        .ok_or_else(|| format!("{LAB_DIR_VARIABLE} is not set: run this by `cargo lab test`"))?;
    Ok(Path::new(&lab).join(what))
}

/// `hypernest run` of the lab's `kernel`, with its console on stdout.
pub(crate) fn linux(
    site: &Site,
    kernel: &str,
    command_line: &str,
) -> Result<Command, Box<dyn Error>> {
    initramfs(site, "poweroff -f")?;
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--memory", "256M"])
        .args(["--initrd", "initrd", "--kernel"])
        .arg(held(kernel)?)
        .args(["--cmdline", &format!("{COMMAND_LINE} {command_line}")]);
    Ok(command)
}

/// Writes a new initramfs; after its report init calls busybox with `last`.
pub(crate) fn initramfs(site: &Site, last: &str) -> Result<(), Box<dyn Error>> {
    initramfs_with(site, &format!("{INIT}exec $b {last}\n"), &[])
}

/// Writes a new initramfs with this init and these of the lab's files at its root: (name, name in the lab).
pub(crate) fn initramfs_with(
    site: &Site,
    init: &str,
    files: &[(&str, &str)],
) -> Result<(), Box<dyn Error>> {
    let unfinished = site.path("initrd.new");
    let mut archive = Writer::new(BufWriter::new(File::create(&unfinished)?));
    archive.file("init", 0o755, init.as_bytes())?;
    archive.copy("busybox", &held("busybox")?)?;
    for (name, from) in files {
        archive.copy(name, &held(from)?)?;
    }
    // Linux' device number of the console (Documentation/admin-guide/devices.txt).
    archive.character_device("dev/console", 5, 1)?;
    archive.finish()?;
    fs::rename(unfinished, site.path("initrd"))?;
    Ok(())
}

/// The report of init, by section.
pub(crate) struct Report(BTreeMap<String, Vec<String>>);

impl Report {
    /// Parses the console's output.
    pub(crate) fn read(console: &str) -> Self {
        let mut sections = BTreeMap::<String, Vec<String>>::new();
        let mut section = None;
        for line in console.lines().map(|line| line.trim_end()) {
            if let Some(name) = line.strip_prefix('@') {
                section = Some(sections.entry(name.to_owned()).or_default());
            } else if let Some(lines) = &mut section {
                lines.push(line.to_owned());
            }
        }
        Self(sections)
    }

    pub(crate) fn section(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The number of lines of the log that contain `text`.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let log = self.section("log");
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// A row of /proc/interrupts, summed over the CPUs; `None` if there is no such row.
    pub(crate) fn interrupts(&self, row: &str) -> Option<u64> {
        let rows = self.section("interrupts");
        let counts = rows.iter().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (name.trim() == row).then_some(rest)
        })?;
        Some(
            counts
                .split_whitespace()
                .map_while(|n| n.parse::<u64>().ok())
                .sum(),
        )
    }

    /// The number of CPUs that Linux uses.
    pub(crate) fn cpus(&self) -> usize {
        let header = self.section("interrupts").first();
        header.map_or(0, |line| line.split_whitespace().count())
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        let flags = self.section("flags").iter();
        flags
            .flat_map(|line| line.split_whitespace())
            .any(|word| word == flag)
    }
}
