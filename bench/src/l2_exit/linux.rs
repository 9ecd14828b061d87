//! `--l1 linux`: L1 is a stock kernel with its KVM, and the agent as its init.

use std::path::Path;
use std::time::Duration;

use super::interrupt::Interrupts;
use super::modes::{self, Boot, boots};
use super::outcome::outcome;
use super::shadow::ShadowVmcs;
use super::{Args, L2ExitError, l1};
use crate::kvm_module::Vendor;
use crate::progress::Progress;
use crate::report::{Entry, L1, Outcome, Vmm};
use crate::unit::Unit;
use crate::usage::{self, Usage};
use hypernest_nested::l2exit::{Kind, Mode};

/// The boots and their modes, in the order of the boots.
#[derive(Debug)]
pub(super) struct Plan(Vec<Boot>);

impl Plan {
    /// As few boots as possible for `modes`.
    pub(super) fn new(modes: &[Mode], shadow_now: Option<bool>) -> Self {
        Self(boots(modes, shadow_now))
    }
}

fn describe(boot: &Boot) -> String {
    let names: Vec<_> = boot.modes.iter().map(|mode| mode.name()).collect();
    let shadow = match boot.shadow {
        Some(true) => ", shadow VMCS on",
        Some(false) => ", shadow VMCS off",
        None => "",
    };
    format!("with --hv {}{shadow}: {}", boot.hv, names.join(", "))
}

/// Runs all boots. If a user interrupts, the result is `true` with the results so far.
pub(super) fn measure(
    args: &Args,
    vendor: Vendor,
    plan: &Plan,
    shadow: &mut ShadowVmcs,
    interrupts: &Interrupts,
    unit: &Unit,
) -> Result<(Vec<Entry>, bool), L2ExitError> {
    let kernel = args.linux.kernel();
    let kernel = kernel.ok_or_else(|| Usage::of(usage::no_kernel_directory("--l1 linux")))?;
    let directory = tempfile::tempdir().map_err(L2ExitError::Temporary)?;
    let initrd = directory.path().join("initrd");
    l1::write_initrd(&initrd, &args.linux.agent, &kernel.join("modules"), vendor)?;
    let setup = l1::Setup {
        kernel: kernel.join("vmlinux"),
        initrd,
        memory: args.linux.memory.clone(),
        append: args.linux.append.clone(),
        rounds: usize::try_from(args.linux.rounds).expect("at most 1000"),
        agent: format!(
            "--samples {} --rounds {} --warmup {} --limit {}",
            args.linux_samples(),
            args.linux.rounds,
            args.warmup,
            // Shorter than L1's own limit, so that L1 can report which L2 it was.
            (args.linux.timeout / 2).max(1)
        ),
        limit: Duration::from_secs(args.linux.timeout),
    };
    let mut entries = Vec::new();
    let mut interrupted = false;
    let progress = Progress::on_stderr(None);
    progress.cycle(1, 1.0, plan.0.len());
    for boot in &plan.0 {
        if interrupts.arrived() {
            interrupted = true;
            break;
        }
        progress.say(&format!("booting L1 {}", describe(boot)));
        progress.steps().mode("Linux");
        let (of_boot, ended) = one_boot(boot, &setup, shadow, directory.path(), unit)?;
        entries.extend(of_boot);
        progress.steps().ended();
        if ended {
            interrupted = true;
            break;
        }
    }
    entries.sort_by_key(|entry| entry.mode);
    Ok((entries, interrupted))
}

/// Boots once. An error becomes an outcome, so that the other boots still run.
fn one_boot(
    boot: &Boot,
    setup: &l1::Setup,
    shadow: &mut ShadowVmcs,
    directory: &Path,
    unit: &Unit,
) -> Result<(Vec<Entry>, bool), L2ExitError> {
    let all_failed = |why: String| {
        let failed = |&mode: &Mode| {
            let why = why.clone();
            let outcome = Outcome::Failed {
                why,
                console: String::new(),
                partial: None,
            };
            entry(mode, outcome)
        };
        boot.modes.iter().map(failed).collect()
    };
    if let Err(why) = shadow.set(boot.shadow) {
        return Ok((all_failed(why), false));
    }
    let l1 = match l1::boot(setup, boot, directory) {
        Ok(l1) => l1,
        Err(error) => return Ok((all_failed(crate::chain(&error)), false)),
    };
    let entries = boot.modes.iter().map(|&mode| {
        let outcome = outcome(modes::of_linux(mode), &l1, setup.rounds, unit)?;
        Ok(entry(mode, outcome))
    });
    let entries = entries.collect::<Result<_, L2ExitError>>()?;
    Ok((entries, l1.interrupted))
}

fn entry(mode: Mode, outcome: Outcome) -> Entry {
    Entry {
        l1: L1::Linux,
        vmm: Vmm::Hypernest,
        mode,
        kind: Kind::Cpuid.name().to_owned(),
        touch: None,
        cpus: 1,
        hv: modes::hv(mode).to_owned(),
        shadow_vmcs: mode.shadow_vmcs(),
        runs: None,
        outcome,
    }
}
