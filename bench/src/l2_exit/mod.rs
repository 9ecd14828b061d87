//! `hypernest-bench l2-exit`: how long an exit of L2 takes, with and without an enlightened VMCS.

mod choice;
mod image;
mod l1;
mod linux;
mod manual;
pub(crate) mod modes;
mod outcome;
mod shadow;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypernest::kvm::host::{HostCaps, HostError};
use hypernest::units::TscKhz;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use hypernest_nested::hyperv;
use hypernest_nested::l2exit::Mode;
use thiserror::Error;

use crate::environment;
use crate::histogram::HistogramError;
use crate::kvm_module::{Source, Vendor};
use crate::report::{self, ALL_KINDS, Entry, FileError, L1, Outcome, Report, Vmm};
use crate::unit::unit;
use choice::Choice;
use l1::L1Error;
use manual::ManualError;
use modes::Facts;
use shadow::ShadowVmcs;

/// Times exits of an L2 from inside, with L1 in several configurations.
///
/// The exit code is 0 if all that was tried went well, 1 if something failed, 3 if this host can do nothing of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What runs as L1: micro, linux, image=FILE (a kernel of yours whose guest runs l2probe), or manual (results of l2probe)
    #[arg(long, value_name = "L1", default_value = "linux")]
    l1: Choice,
    /// A directory with vmlinux and, in modules/, kvm.ko, irqbypass.ko and kvm-intel.ko or kvm-amd.ko [default: linux-6.12 in $HYPERNEST_LAB_DIR]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// What to measure; what is named must be possible here [default: all that is]
    #[arg(long, value_name = "MODE", value_delimiter = ',')]
    modes: Vec<Mode>,
    /// With --l1 manual: a result of l2probe and the mode that its L1 was started for, as evmcs=FILE, or qemu:evmcs=FILE where QEMU ran it
    #[arg(long, value_name = "MODE=FILE", value_parser = manual::labelled)]
    probe: Vec<manual::Labelled>,
    /// Samples a round
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: u32,
    /// Rounds for each configuration, each with an L2 of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Exits before the first sample of a round
    #[arg(long, default_value_t = 50)]
    warmup: u32,
    /// With --l1 image: its initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// L1's memory
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// More words for L1's command line; with --l1 image, all of it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// A static hypernest-bench to run in L1 [default: this program]
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/proc/self/exe",
        hide_default_value = true
    )]
    agent: PathBuf,
    /// Where the running kernel's kvm-intel.ko is, to load it anew [default: modprobe knows]
    #[arg(long, value_name = "DIR")]
    host_modules: Option<PathBuf>,
    /// The longest a boot of L1 may take with all its rounds, in seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Where to write the results [default: l2-exit, or nowhere with --json]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only say what would be measured
    #[arg(long)]
    dry_run: bool,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub(crate) enum L2ExitError {
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Something asked for by name, or everything.
    #[error("this host cannot measure what was asked for:{}", list(.0))]
    Impossible(WithReasons),
    /// Neither Intel nor AMD.
    #[error("this CPU is neither Intel's nor AMD's: {0:?}")]
    Vendor(String),
    /// No kernel for L1.
    #[error("no kernel for L1: give --kernel DIR, or set {LAB_DIR_VARIABLE}")]
    NoKernel,
    /// The initramfs.
    #[error(transparent)]
    L1(#[from] L1Error),
    /// A temporary directory.
    #[error("cannot make a temporary directory")]
    Temporary(#[source] io::Error),
    /// L1's figures.
    #[error("L1's report holds a broken histogram")]
    Histogram(#[from] HistogramError),
    /// Results of l2probe.
    #[error(transparent)]
    Manual(#[from] ManualError),
    /// A result of l2probe.
    #[error("cannot keep {}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The result.
    #[error(transparent)]
    Files(#[from] FileError),
    /// stdout.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

fn list(items: &[LeftOut]) -> String {
    items
        .iter()
        .map(|(mode, why)| format!("\n  - {mode}: {why}"))
        .collect()
}

impl L2ExitError {
    /// Whether the host lacks something.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Impossible(_) | Self::Vendor(_))
    }
}

/// Whether all that was tried went well.
pub(crate) fn run(args: &Args) -> Result<bool, L2ExitError> {
    let l1 = args.l1.l1();
    if l1 == L1::Manual {
        return by_hand(args);
    }
    let started = SystemTime::now();
    let host = HostCaps::probe()?;
    let facts = facts(&host)?;
    let (modes, left_out) = choose(l1, &args.modes, &facts)?;
    let plan = linux::Plan::new(&modes, facts.shadow);
    for (mode, why) in &left_out {
        eprintln!("left out: {mode}: {why}");
    }
    if args.dry_run {
        let lines: Vec<_> = match &args.l1 {
            Choice::Image(_) => image::lines(&modes).collect(),
            Choice::Of(_) => plan.lines().collect(),
        };
        for line in lines {
            eprintln!("would {line}");
        }
        return Ok(true);
    }
    let environment = environment::read(&host, &[]);
    let khz = host.kvm.tsc_khz.map(TscKhz);
    let unit = unit(environment::lab(), khz);
    let source = args
        .host_modules
        .clone()
        .map_or(Source::Modprobe, Source::Directory);
    let mut shadow = ShadowVmcs::new(source, facts.shadow);
    let measured = match &args.l1 {
        Choice::Image(file) => image::measure(args, file, &modes, &mut shadow, &unit, khz),
        Choice::Of(_) => linux::measure(args, facts.vendor, &plan, &mut shadow, &unit)
            .map(|(results, interrupted)| (results, Vec::new(), interrupted)),
    };
    let mut warnings = environment::warnings(&environment);
    if let Err(error) = shadow.restore() {
        let warning = format!(
            "kvm_intel is not as it was before: {}",
            crate::chain(&error)
        );
        eprintln!("{warning}");
        warnings.push(warning);
    }
    let (mut results, said, interrupted) = measured?;
    warnings.extend(said);
    results.extend(left_out.into_iter().map(|(mode, why)| Entry {
        l1,
        vmm: Vmm::Hypernest,
        mode,
        kind: ALL_KINDS.to_owned(),
        touch: None,
        cpus: 1,
        hv: modes::hv(mode).to_owned(),
        shadow_vmcs: mode.shadow_vmcs(),
        outcome: Outcome::LeftOut { why },
    }));
    let mut report = Report {
        version: report::VERSION,
        made_by: format!("hypernest-bench {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started: environment::rfc3339(started),
        environment,
        unit,
        interrupted,
        stopped_by: None,
        warnings,
        results,
        recommendations: Vec::new(),
    };
    report.recommendations = report::recommend(&report);
    print(args, &report)?;
    Ok(!report.failed() && !report.interrupted)
}

/// Nothing is run, so any machine will do.
fn by_hand(args: &Args) -> Result<bool, L2ExitError> {
    if args.probe.is_empty() {
        crate::print(&manual::steps()).map_err(L2ExitError::Stdout)?;
        return Ok(true);
    }
    let report = manual::report(&args.probe)?;
    print(args, &report)?;
    Ok(!report.failed())
}

impl Args {
    /// Where files go.
    fn directory(&self) -> Option<&Path> {
        match &self.out {
            Some(out) => Some(out.as_path()),
            None if self.json => None,
            None => Some(Path::new("l2-exit")),
        }
    }
}

fn print(args: &Args, report: &Report) -> Result<(), L2ExitError> {
    let files = args
        .directory()
        .map(|out| report::write(report, out))
        .transpose()?;
    if args.json {
        let text = serde_json::to_string(report).map_err(|e| L2ExitError::Stdout(e.into()))?;
        return crate::print(&format!("{text}\n")).map_err(L2ExitError::Stdout);
    }
    crate::print(&report::table(report, None)).map_err(L2ExitError::Stdout)?;
    for file in files.into_iter().flatten() {
        crate::print(&format!("written: {}\n", file.display())).map_err(L2ExitError::Stdout)?;
    }
    Ok(())
}

fn facts(host: &HostCaps) -> Result<Facts, L2ExitError> {
    let vendor = match host.system.cpu.vendor.as_str() {
        "GenuineIntel" => Vendor::Intel,
        "AuthenticAMD" => Vendor::Amd,
        other => return Err(L2ExitError::Vendor(other.to_owned())),
    };
    Ok(Facts {
        vendor,
        nested: match vendor {
            Vendor::Intel => host.kvm.guest_vmx(),
            Vendor::Amd => host.kvm.guest_svm(),
        },
        hyperv: host.kvm.hv_cpuid.is_some(),
        evmcs: host.kvm.evmcs.is_some_and(|versions| versions != 0),
        emsr_bitmap: nested_features(host) & hyperv::nested::MSR_BITMAP != 0,
        direct_flush: nested_features(host) & hyperv::nested::DIRECT_FLUSH != 0,
        shadow: host.system.flag("kvm_intel", "enable_shadow_vmcs"),
        may_reload: nix::unistd::geteuid().is_root(),
    })
}

/// EAX of CPUID leaf 0x4000000A as KVM can give it.
fn nested_features(host: &HostCaps) -> u32 {
    let mut leaves = host.kvm.hv_cpuid.iter().flatten();
    leaves
        .find(|leaf| leaf.function == hyperv::leaf::NESTED_FEATURES)
        .map_or(0, |leaf| leaf.eax)
}

type LeftOut = (Mode, String);
type WithReasons = Vec<LeftOut>;

/// What is measured, and what is left out with the reason. Nothing that was asked for by name is left out.
fn choose(l1: L1, named: &[Mode], facts: &Facts) -> Result<(Vec<Mode>, WithReasons), L2ExitError> {
    let candidates = if named.is_empty() { Mode::ALL } else { named };
    let (mut possible, mut left_out) = (Vec::new(), Vec::new());
    for &candidate in candidates {
        match facts.lack(l1, candidate) {
            None => possible.push(candidate),
            Some(why) => left_out.push((candidate, why)),
        }
    }
    if possible.is_empty() || (!named.is_empty() && !left_out.is_empty()) {
        return Err(L2ExitError::Impossible(left_out));
    }
    Ok((possible, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_must_be_possible() {
        let amd = Facts {
            vendor: Vendor::Amd,
            nested: true,
            hyperv: true,
            evmcs: false,
            emsr_bitmap: true,
            direct_flush: true,
            shadow: None,
            may_reload: true,
        };
        let (wanted, left_out) = choose(L1::Linux, &[], &amd).unwrap();
        assert_eq!(wanted, [Mode::Svm, Mode::SvmEmsr]);
        // One line for each that is not there, whoever's it is.
        assert_eq!(wanted.len() + left_out.len(), Mode::ALL.len());
        let both = [Mode::Svm, Mode::Evmcs];
        let error = choose(L1::Micro, &both, &amd).unwrap_err();
        assert!(error.is_host() && error.to_string().contains("evmcs: VMX"));
        let nothing = Facts {
            nested: false,
            ..amd
        };
        assert!(choose(L1::Micro, &[], &nothing).is_err());
    }
}
