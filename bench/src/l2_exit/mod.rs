//! `hypernest-bench l2-exit`: how long an exit of L2 takes, with and without an enlightened VMCS.

mod args;
mod choice;
mod image;
mod interrupt;
mod l1;
mod linux;
mod manual;
mod micro;
pub(crate) mod modes;
mod outcome;
mod probed;
mod shadow;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypernest::hyperv::HostHv;
use hypernest::kvm::host::{HostCaps, HostError};
use hypernest::units::TscKhz;
use hypernest_nested::hyperv;
use hypernest_nested::l2exit::Mode;
use thiserror::Error;

use crate::environment;
use crate::histogram::HistogramError;
use crate::kvm_module::Vendor;
use crate::qemu::QemuError;
use crate::report::{
    self, ALL_KINDS, Details, Entry, FileError, L1, Outcome, Report, StoppedBy, Vmm,
};
use crate::unit::{Unit, unit};
use crate::usage::Usage;
use crate::{FAILED, HOST, WRONG_USE};
pub(crate) use args::Args;
use choice::Choice;
use interrupt::Interrupts;
use l1::L1Error;
use micro::MicroError;
use modes::Facts;
use probed::ProbedError;
use shadow::ShadowVmcs;

/// Errors of `hypernest-bench l2-exit`.
#[derive(Debug, Error)]
pub(crate) enum L2ExitError {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error(transparent)]
    Host(#[from] HostError),
    /// A measurement that was requested by name, or all of them.
    #[error("this host does not support the requested measurements:{}", list(.0))]
    Impossible(Vec<LeftOut>),
    #[error("this CPU is neither Intel's nor AMD's: {0:?}")]
    Vendor(String),
    #[error(transparent)]
    Micro(#[from] MicroError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error("cannot hold back signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    L1(#[from] L1Error),
    #[error("cannot make a temporary directory")]
    Temporary(#[source] io::Error),
    #[error("L1's report holds a broken histogram")]
    Histogram(#[from] HistogramError),
    #[error(transparent)]
    Probed(#[from] ProbedError),
    #[error("cannot keep {}", path.display())]
    Keep { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Files(#[from] FileError),
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

fn list(items: &[LeftOut]) -> String {
    // Modes with the same reason share a line.
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (_, mode, why) in items {
        let mode = mode.to_string();
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, modes)) if modes.contains(&mode) => {}
            Some((_, modes)) => modes.push(mode),
            None => reasons.push((why, vec![mode])),
        }
    }
    let lines = reasons.iter();
    lines
        .map(|(why, modes)| format!("\n  - {}: {why}", modes.join(", ")))
        .collect()
}

impl L2ExitError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Qemu(_) => WRONG_USE,
            Self::Host(_) | Self::Impossible(_) | Self::Vendor(_) => HOST,
            Self::L1(error) => error.code(),
            _ => FAILED,
        }
    }
}

/// Runs the measurements. The result is whether all of them succeeded.
pub(crate) fn run(args: &Args) -> Result<bool, L2ExitError> {
    Usage::check(args.mistakes())?;
    let l1s: Vec<L1> = args.l1.iter().map(Choice::l1).collect();
    if l1s == [L1::Manual] {
        return by_hand(args);
    }
    let started = SystemTime::now();
    let host = HostCaps::probe()?;
    let facts = facts(&host)?;
    let chosen = choose(&l1s, &args.modes, &facts)?;
    for (l1, mode, why) in &chosen.left_out {
        eprintln!("left out: {mode} with L1 {}: {why}", l1.name());
    }
    if args.dry_run {
        for &(l1, mode) in &chosen.possible {
            eprintln!("would measure {mode} with L1 {}", l1.name());
        }
        return Ok(true);
    }
    let pins = args.pins();
    let environment = environment::read(&host, &pins);
    let unit = unit(environment::lab(), host.kvm.tsc_khz.map(TscKhz));
    let mut run = Run {
        args,
        host: &host,
        vendor: facts.vendor,
        shadow: ShadowVmcs::new(args.module_source(), facts.shadow),
        unit: &unit,
        tsc: host.kvm.tsc_khz.map(TscKhz),
        pins: &pins,
        interrupts: Interrupts::hold().map_err(L2ExitError::Signals)?,
        results: Vec::new(),
        warnings: environment::warnings(&environment),
        interrupted: false,
        stopped_by: None,
    };
    let measured = run.measure(&chosen);
    run.restore();
    measured?;
    run.results.extend(chosen.left_out());
    let mut report = Report {
        version: report::VERSION,
        made_by: format!("hypernest-bench {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started: environment::rfc3339(started),
        environment,
        interrupted: run.interrupted,
        stopped_by: run.stopped_by,
        warnings: run.warnings,
        results: run.results,
        recommendations: Vec::new(),
        unit,
    };
    report.recommendations = report::recommend(&report);
    print(args, &report)?;
    Ok(!report.failed() && !report.interrupted)
}

/// Only prints or merges; this works on any host.
fn by_hand(args: &Args) -> Result<bool, L2ExitError> {
    if args.probe.is_empty() {
        let host = args.asks_for_qemu().then(HostCaps::probe).transpose()?;
        let host = host.as_ref().map(HostHv::from);
        crate::print(&manual::steps(host.as_ref())).map_err(L2ExitError::Stdout)?;
        return Ok(true);
    }
    let report = manual::report(&args.probe)?;
    print(args, &report)?;
    Ok(!report.failed())
}

/// A run over all L1s.
struct Run<'a> {
    args: &'a Args,
    host: &'a HostCaps,
    vendor: Vendor,
    shadow: ShadowVmcs,
    unit: &'a Unit,
    tsc: Option<TscKhz>,
    pins: &'a [u32],
    interrupts: Interrupts,
    results: Vec<Entry>,
    warnings: Vec<String>,
    interrupted: bool,
    stopped_by: Option<StoppedBy>,
}

impl Run<'_> {
    fn measure(&mut self, chosen: &Chosen) -> Result<(), L2ExitError> {
        let modes = chosen.modes(L1::Micro);
        if !modes.is_empty() {
            let vmms = self.args.runners(self.host)?;
            let wish = self.args.wish(modes, vmms, self.pins);
            let measurement = micro::measure(
                &wish,
                self.vendor,
                &mut self.shadow,
                &self.interrupts,
                self.unit,
            )?;
            self.results.extend(measurement.entries);
            self.warnings.extend(measurement.warnings);
            self.interrupted = measurement.interrupted;
            self.stopped_by = measurement.stopped_by;
        }
        // Such an L1 has one vCPU, which inherits this thread's CPU binding.
        if let Some(Err(error)) = self.pins.first().map(|&cpu| micro::threads::bind(cpu)) {
            self.warnings
                .push(format!("cannot bind L1's vCPU to a CPU: {error}"));
        }
        for choice in &self.args.l1 {
            let modes = chosen.modes(choice.l1());
            if modes.is_empty() || self.interrupted {
                continue;
            }
            match choice {
                Choice::Of(L1::Linux) => self.linux(&modes)?,
                Choice::Image(file) => self.image(file, &modes)?,
                Choice::Of(_) => {}
            }
        }
        Ok(())
    }

    fn linux(&mut self, modes: &[Mode]) -> Result<(), L2ExitError> {
        let plan = linux::Plan::new(modes, self.shadow.now());
        let (entries, interrupted) = linux::measure(
            self.args,
            self.vendor,
            &plan,
            &mut self.shadow,
            &self.interrupts,
            self.unit,
        )?;
        self.results.extend(entries);
        self.interrupted = interrupted;
        Ok(())
    }

    fn image(&mut self, file: &Path, modes: &[Mode]) -> Result<(), L2ExitError> {
        let (args, shadow) = (self.args, &mut self.shadow);
        let (entries, warnings, interrupted) =
            image::measure(args, file, modes, shadow, self.unit, self.tsc)?;
        self.results.extend(entries);
        self.warnings.extend(warnings);
        self.interrupted = interrupted;
        Ok(())
    }

    fn restore(&mut self) {
        if let Err(error) = self.shadow.restore() {
            let warning = format!(
                "kvm_intel's setting was not restored: {}",
                crate::chain(&error)
            );
            eprintln!("{warning}");
            self.warnings.push(warning);
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
    let details = Details {
        kind: None,
        explain: args.explain,
    };
    crate::print(&report::table(report, details)).map_err(L2ExitError::Stdout)?;
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
        virtualization: host.system.cpu.vmx || host.system.cpu.svm,
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

/// EAX of CPUID leaf 0x4000000A as KVM supports it.
fn nested_features(host: &HostCaps) -> u32 {
    let mut leaves = host.kvm.hv_cpuid.iter().flatten();
    leaves
        .find(|leaf| leaf.function == hyperv::leaf::NESTED_FEATURES)
        .map_or(0, |leaf| leaf.eax)
}

type LeftOut = (L1, Mode, String);

/// The measurements to run, and those left out with the reason.
#[derive(Debug)]
struct Chosen {
    possible: Vec<(L1, Mode)>,
    left_out: Vec<LeftOut>,
}

impl Chosen {
    fn modes(&self, l1: L1) -> Vec<Mode> {
        let of_l1 = self.possible.iter().filter(|(of, _)| *of == l1);
        of_l1.map(|&(_, mode)| mode).collect()
    }

    fn left_out(self) -> impl Iterator<Item = Entry> {
        self.left_out.into_iter().map(|(l1, mode, why)| Entry {
            l1,
            vmm: Vmm::Hypernest,
            mode,
            kind: ALL_KINDS.to_owned(),
            touch: None,
            cpus: 1,
            hv: modes::hv(mode).to_owned(),
            shadow_vmcs: mode.shadow_vmcs(),
            runs: None,
            outcome: Outcome::LeftOut { why },
        })
    }
}

/// The modes that each L1 supports. A mode that was requested by name, and that no L1 supports, is refused.
fn choose(l1s: &[L1], named: &[Mode], facts: &Facts) -> Result<Chosen, L2ExitError> {
    let candidates = if named.is_empty() { Mode::ALL } else { named };
    let mut chosen = Chosen {
        possible: Vec::new(),
        left_out: Vec::new(),
    };
    let mut impossible = Vec::new();
    for &mode in candidates {
        let before = chosen.possible.len();
        for &l1 in l1s {
            match facts.lack(l1, mode) {
                None => chosen.possible.push((l1, mode)),
                Some(why) => chosen.left_out.push((l1, mode, why)),
            }
        }
        if chosen.possible.len() == before {
            let reasons = chosen.left_out.iter();
            impossible.extend(reasons.filter(|(_, of, _)| *of == mode).cloned());
        }
    }
    if chosen.possible.is_empty() || (!named.is_empty() && !impossible.is_empty()) {
        return Err(L2ExitError::Impossible(impossible));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_must_be_possible() {
        let amd = Facts {
            vendor: Vendor::Amd,
            virtualization: true,
            nested: true,
            hyperv: true,
            evmcs: false,
            emsr_bitmap: true,
            direct_flush: true,
            shadow: None,
            may_reload: true,
        };
        let chosen = choose(&[L1::Linux], &[], &amd).unwrap();
        assert_eq!(chosen.modes(L1::Linux), [Mode::Svm, Mode::SvmEmsr]);
        // One line for each mode that is left out, for either vendor.
        assert_eq!(2 + chosen.left_out.len(), Mode::ALL.len());
        let both = [Mode::Svm, Mode::Evmcs];
        let error = choose(&[L1::Micro], &both, &amd).unwrap_err();
        assert!(
            error.code() == HOST
                && error
                    .to_string()
                    .ends_with("evmcs: VMX and eVMCS are Intel's; this host's CPU has SVM")
        );
        // One of the L1s supports it.
        let direct = [Mode::SvmDirectFlush];
        let chosen = choose(&[L1::Micro, L1::Linux], &direct, &amd).unwrap();
        assert_eq!(chosen.modes(L1::Micro), direct);
        assert_eq!(chosen.modes(L1::Linux), []);
        assert_eq!(chosen.left_out().count(), 1);
        assert!(choose(&[L1::Linux], &direct, &amd).is_err());
        let nothing = Facts {
            nested: false,
            ..amd
        };
        assert!(choose(&[L1::Micro], &[], &nothing).is_err());
    }
}
