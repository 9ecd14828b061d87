//! `hypernest-bench probe-l1`: the init of an L1 that runs l2probe in its own guest, from the initramfs of
//! `hypernest-bench initramfs`.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use hypernest::config::{ConfigError, Flags, HostLimits, build};
use hypernest::machine::{Machine, MachineError, Outcome};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios;
use thiserror::Error;

use crate::kvm_module::{self, ModuleError, Vendor};
use crate::l1_agent::{MODULES, mount_at};
use crate::l2::run_at_most;

/// L2's kernel in L1's initramfs.
pub(crate) const KERNEL: &str = "/vmlinux";
/// L2's initramfs.
pub(crate) const INITRD: &str = "/l2.cpio";
/// L2's command line.
pub(crate) const COMMAND_LINE: &str = "/l2.cmdline";
/// The command line of a Linux with such an initramfs.
pub(crate) const LINUX: &str = "console=ttyS0 quiet panic=-1 rdinit=/init";
/// The output of L2's console.
const CONSOLE: &str = "/dev/ttyS0";
/// The output of L2's result.
const RESULT: &str = "/dev/ttyS1";

/// L2's command line, with `append` and with more arguments for `probe`.
pub(crate) fn command_line(append: &str, probe: &str) -> String {
    let words = [LINUX, append, "--", "--serial", probe];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Runs as the init of an L1 that `hypernest-bench initramfs` has made.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// L2's memory
    #[arg(long, default_value = "192M")]
    memory: String,
    /// L2's enlightenments
    #[arg(long, default_value = "windows")]
    hv: String,
    /// Timeout for L2, in seconds
    #[arg(long, default_value_t = 3600)]
    limit: u64,
}

/// L2 gave no result.
#[derive(Debug, Error)]
enum ProbeL1Error {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("this CPU is neither Intel's nor AMD's")]
    Vendor,
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("L2 was stopped after {0} s")]
    Stuck(u64),
    #[error("L2 did not power off: {0:?}")]
    Ended(Outcome),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProbeL1Error {
    let what = what.into();
    move |source| ProbeL1Error::Io { what, source }
}

/// Runs L2 and powers off. Returns only if this process is not an init.
pub(crate) fn run(args: &Args) -> io::Error {
    if std::process::id() != 1 {
        return io::Error::other(
            "probe-l1 is the init of an L1; `hypernest-bench initramfs` puts it there",
        );
    }
    if let Err(error) = probe(args) {
        // To the console, whose end is shown when there is no result.
        eprintln!("probe-l1: {}", crate::chain(&error));
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

fn probe(args: &Args) -> Result<(), ProbeL1Error> {
    for (kind, target) in [("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_at(kind, target).map_err(io_error(format!("cannot mount {target}")))?;
    }
    let modules = Path::new(MODULES);
    for module in ["irqbypass.ko", "kvm.ko", vendor()?.file()] {
        kvm_module::load(&modules.join(module), "")?;
    }
    let command_line = fs::read_to_string(COMMAND_LINE).map_err(io_error(COMMAND_LINE))?;
    let [console, result] = [CONSOLE, RESULT].map(|port| format!("file:{port}"));
    let flags = Flags::from_pairs([
        ("name", "l2"),
        ("kernel", KERNEL),
        ("initrd", INITRD),
        ("cmdline", &command_line),
        ("memory", &args.memory),
        ("hv", &args.hv),
        ("serial", &console),
        ("serial2", &result),
    ]);
    let config = build(None, &flags, HostLimits::read())?.config;
    let machine = Machine::new(config, &[])?;
    let (outcome, in_time) = run_at_most(machine, Duration::from_secs(args.limit))?;
    // A power-off drops the data that is still in the port.
    let port = File::options().write(true).open(RESULT);
    let port = port.map_err(io_error(RESULT))?;
    termios::tcdrain(&port).map_err(|e| io_error(RESULT)(e.into()))?;
    match outcome {
        _ if !in_time => Err(ProbeL1Error::Stuck(args.limit)),
        Outcome::PowerOff => Ok(()),
        other => Err(ProbeL1Error::Ended(other)),
    }
}

/// The vendor of this CPU.
fn vendor() -> Result<Vendor, ProbeL1Error> {
    const CPUINFO: &str = "/proc/cpuinfo";
    let text = fs::read_to_string(CPUINFO).map_err(io_error(CPUINFO))?;
    vendor_of(&text).ok_or(ProbeL1Error::Vendor)
}

fn vendor_of(cpuinfo: &str) -> Option<Vendor> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let (_, name) = fields.find(|(key, _)| key.trim() == "vendor_id")?;
    match name.trim() {
        "GenuineIntel" => Some(Vendor::Intel),
        "AuthenticAMD" => Some(Vendor::Amd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_by_the_kernels_name_for_them() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\n";
        assert_eq!(vendor_of(cpuinfo), Some(Vendor::Intel));
        let amd = cpuinfo.replace("GenuineIntel", "AuthenticAMD");
        assert_eq!(vendor_of(&amd), Some(Vendor::Amd));
        assert_eq!(vendor_of("vendor_id : other\n"), None);
        assert_eq!(vendor_of(""), None);
    }

    #[test]
    fn l2probe_gets_what_is_after_the_dashes() {
        assert_eq!(
            command_line("", ""),
            "console=ttyS0 quiet panic=-1 rdinit=/init -- --serial"
        );
        assert!(command_line("a", "--rounds 2").ends_with("/init a -- --serial --rounds 2"));
    }
}
