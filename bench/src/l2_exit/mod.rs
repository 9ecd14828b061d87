//! `hypernest-bench l2-exit`: how long an exit of L2 takes, with and without an enlightened VMCS.

pub(crate) mod configuration;
mod l1;
mod outcome;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use hypernest::kvm::host::{HostCaps, HostError, System};
use hypernest::units::TscKhz;
use hypernest_lab::host::Host;
use hypernest_lab::plan::{LAB_DIR_VARIABLE, LAB_HOST_VARIABLE};
use thiserror::Error;

use crate::histogram::HistogramError;
use crate::kvm_module::{self, ModuleError, Source, Vendor};
use crate::report::{self, Entry, FileError, HostFacts, Outcome, Report};
use crate::unit::{Unit, unit};
use configuration::{Boot, Configuration, Facts, boots};
use l1::{L1Error, Setup};
use outcome::outcome;

/// What runs as L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum L1 {
    /// A Linux kernel with its KVM
    Linux,
}

/// Times exits of an L2 from inside, with L1 in several configurations.
///
/// The exit code is 0 if all that was tried went well, 1 if something failed, 3 if this host can do nothing of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What runs as L1
    #[arg(long, value_enum, default_value = "linux")]
    l1: L1,
    /// A directory with vmlinux and, in modules/, kvm.ko, irqbypass.ko and kvm-intel.ko or kvm-amd.ko [default: linux-6.12 in $HYPERNEST_LAB_DIR]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// What to measure; what is named must be possible here [default: all that is]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    configs: Vec<Configuration>,
    /// Samples a round
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: u32,
    /// Rounds for each configuration, each with an L2 of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Exits before the first sample of a round
    #[arg(long, default_value_t = 50)]
    warmup: u32,
    /// L1's memory
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// More words for L1's command line
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
    Impossible(Vec<(Configuration, String)>),
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
    /// A signal.
    #[error("ended by a signal")]
    Interrupted,
    /// The result.
    #[error(transparent)]
    Files(#[from] FileError),
    /// stdout.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

fn list(items: &[(Configuration, String)]) -> String {
    items
        .iter()
        .map(|(configuration, why)| format!("\n  - {}: {why}", configuration.name()))
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
    let L1::Linux = args.l1;
    let host = HostCaps::probe()?;
    let facts = facts(&host)?;
    let (wanted, left_out) = choose(&args.configs, &facts)?;
    let plan = boots(&wanted, facts.shadow);
    for (configuration, why) in &left_out {
        eprintln!("left out: {}: {why}", configuration.name());
    }
    if args.dry_run {
        for boot in &plan {
            eprintln!("would boot L1 {}", describe(boot));
        }
        return Ok(true);
    }
    let report = measure(args, &host, &facts, &plan, left_out)?;
    print(args, &report)?;
    Ok(!report.failed())
}

fn print(args: &Args, report: &Report) -> Result<(), L2ExitError> {
    let out = match &args.out {
        Some(out) => Some(out.as_path()),
        None if args.json => None,
        None => Some(Path::new("l2-exit")),
    };
    let files = out.map(|out| report::write(report, out)).transpose()?;
    if args.json {
        let text = serde_json::to_string(report).map_err(|e| L2ExitError::Stdout(e.into()))?;
        return crate::print(&format!("{text}\n")).map_err(L2ExitError::Stdout);
    }
    crate::print(&report::table(report)).map_err(L2ExitError::Stdout)?;
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
        shadow: host.system.flag("kvm_intel", "enable_shadow_vmcs"),
        may_reload: nix::unistd::geteuid().is_root(),
    })
}

type WithReasons = Vec<(Configuration, String)>;

/// What is measured, and what is left out with the reason. Nothing that was asked for by name is left out.
fn choose(
    named: &[Configuration],
    facts: &Facts,
) -> Result<(Vec<Configuration>, WithReasons), L2ExitError> {
    let candidates: Vec<_> = if named.is_empty() {
        // Of the other vendor's only the one that this is all about is worth a word.
        let all = Configuration::value_variants().iter().copied();
        all.filter(|c| c.vendor() == facts.vendor || *c == Configuration::Evmcs)
            .collect()
    } else {
        named.to_vec()
    };
    let (mut possible, mut left_out) = (Vec::new(), Vec::new());
    for candidate in candidates {
        match facts.lack(candidate) {
            None => possible.push(candidate),
            Some(why) => left_out.push((candidate, why)),
        }
    }
    if possible.is_empty() || (!named.is_empty() && !left_out.is_empty()) {
        return Err(L2ExitError::Impossible(left_out));
    }
    Ok((possible, left_out))
}

fn describe(boot: &Boot) -> String {
    let names: Vec<_> = boot.configurations.iter().map(|c| c.name()).collect();
    let shadow = match boot.shadow {
        Some(true) => ", shadow VMCS on",
        Some(false) => ", shadow VMCS off",
        None => "",
    };
    format!("with --hv {}{shadow}: {}", boot.hv, names.join(", "))
}

fn measure(
    args: &Args,
    host: &HostCaps,
    facts: &Facts,
    plan: &[Boot],
    left_out: WithReasons,
) -> Result<Report, L2ExitError> {
    let kernel = match (&args.kernel, std::env::var_os(LAB_DIR_VARIABLE)) {
        (Some(kernel), _) => kernel.clone(),
        (None, Some(lab)) => PathBuf::from(lab).join("linux-6.12"),
        (None, None) => return Err(L2ExitError::NoKernel),
    };
    let lab = std::env::var(LAB_HOST_VARIABLE)
        .ok()
        .and_then(|name| Host::from_name(&name))
        .filter(|host| *host != Host::Here);
    let unit = unit(lab, host.kvm.tsc_khz.map(TscKhz));
    let directory = tempfile::tempdir().map_err(L2ExitError::Temporary)?;
    let initrd = directory.path().join("initrd");
    l1::write_initrd(&initrd, &args.agent, &kernel.join("modules"), facts.vendor)?;
    let setup = Setup {
        kernel: kernel.join("vmlinux"),
        initrd,
        memory: args.memory.clone(),
        append: args.append.clone(),
        rounds: usize::try_from(args.rounds).expect("at most 1000"),
        agent: format!(
            "--samples {} --rounds {} --warmup {} --limit {}",
            args.samples,
            args.rounds,
            args.warmup,
            // Shorter than L1's own limit, so that L1 can tell which L2 it was.
            (args.timeout / 2).max(1)
        ),
        limit: Duration::from_secs(args.timeout),
    };
    let source = args
        .host_modules
        .clone()
        .map_or(Source::Modprobe, Source::Directory);
    let mut shadow = ShadowVmcs {
        source,
        original: facts.shadow,
        now: facts.shadow,
    };
    let measured = plan.iter().map(|boot| {
        eprintln!("booting L1 {}", describe(boot));
        one_boot(boot, &setup, &mut shadow, directory.path(), &unit)
    });
    let measured: Result<Vec<_>, _> = measured.collect();
    if let Err(error) = shadow.restore() {
        eprintln!(
            "kvm_intel is not as it was before: {}",
            crate::chain(&error)
        );
    }
    let mut configurations: Vec<_> = measured?.into_iter().flatten().collect();
    configurations.sort_by_key(|entry| entry.name);
    configurations.extend(
        left_out
            .into_iter()
            .map(|(name, why)| entry(name, Outcome::LeftOut { why })),
    );
    Ok(Report {
        version: report::VERSION,
        made_by: format!("hypernest-bench {}", env!("CARGO_PKG_VERSION")),
        host: HostFacts {
            cpu: host.system.cpu.model.clone(),
            kernel: host.system.kernel.clone(),
            lab: lab.map(|lab| lab.name().to_owned()),
        },
        unit,
        l1_command_line: l1::command_line(&args.append),
        configurations,
    })
}

fn entry(name: Configuration, outcome: Outcome) -> Entry {
    Entry {
        name,
        hv: name.hv().to_owned(),
        shadow_vmcs: name.shadow(),
        outcome,
    }
}

/// The host's `kvm_intel.enable_shadow_vmcs`.
struct ShadowVmcs {
    source: Source,
    original: Option<bool>,
    now: Option<bool>,
}

impl ShadowVmcs {
    /// Makes it so. The error is why it is not.
    fn set(&mut self, wanted: Option<bool>) -> Result<(), String> {
        if wanted.is_none() || wanted == self.now {
            return Ok(());
        }
        let reloaded = self.reload(wanted == Some(true));
        self.now = System::read(Path::new("/")).flag("kvm_intel", "enable_shadow_vmcs");
        reloaded.map_err(|e| crate::chain(&e))?;
        if self.now == wanted {
            Ok(())
        } else {
            Err("the host's CPU has no shadow VMCS".to_owned())
        }
    }

    fn restore(&self) -> Result<(), ModuleError> {
        match self.original {
            Some(original) if self.now != self.original => self.reload(original),
            _ => Ok(()),
        }
    }

    fn reload(&self, on: bool) -> Result<(), ModuleError> {
        let parameter = format!("enable_shadow_vmcs={}", u8::from(on));
        kvm_module::reload(Vendor::Intel, &self.source, &parameter)
    }
}

/// Boots once; what goes wrong is an outcome, so that other boots are still made.
fn one_boot(
    boot: &Boot,
    setup: &Setup,
    shadow: &mut ShadowVmcs,
    directory: &Path,
    unit: &Unit,
) -> Result<Vec<Entry>, L2ExitError> {
    let all_failed = |why: String| {
        let failed = |name: &Configuration| {
            let console = String::new();
            let why = why.clone();
            entry(*name, Outcome::Failed { why, console })
        };
        boot.configurations.iter().map(failed).collect()
    };
    if let Err(why) = shadow.set(boot.shadow) {
        return Ok(all_failed(why));
    }
    let l1 = match l1::boot(setup, boot, directory) {
        Ok(l1) => l1,
        Err(error) => return Ok(all_failed(crate::chain(&error))),
    };
    if l1.interrupted {
        return Err(L2ExitError::Interrupted);
    }
    boot.configurations
        .iter()
        .map(|&name| Ok(entry(name, outcome(name.mode(), &l1, setup.rounds, unit)?)))
        .collect()
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
            shadow: None,
            may_reload: true,
        };
        let (wanted, left_out) = choose(&[], &amd).unwrap();
        assert_eq!(wanted, [Configuration::Svm]);
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].0, Configuration::Evmcs);
        let both = [Configuration::Svm, Configuration::Evmcs];
        let error = choose(&both, &amd).unwrap_err();
        assert!(error.is_host() && error.to_string().contains("evmcs: VMX"));
        let nothing = Facts {
            nested: false,
            ..amd
        };
        assert!(choose(&[], &nothing).is_err());
    }
}
