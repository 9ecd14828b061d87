//! Hyper-V's interface in hypernest, compared with that in QEMU with the same enlightenments.
//!
//! The same guest program prints CPUID 0x40000000 and up and every readable synthetic MSR under both. All
//! differences must be listed in [`DIFFERENCES`], and every listed difference must exist.

mod dump;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

use hypernest::hyperv::enlightenment::Argument;
use hypernest::hyperv::qemu::{self, DIFFERENCES, Difference, UNKNOWN_TO_QEMU, When};
use hypernest::hyperv::resolve::lack;
use hypernest::hyperv::{
    Enlightenment as E, EnlightenmentRequest, HostHv, Profile, Resolved, resolve,
};
use hypernest::kvm::host::HostCaps;
use hypernest_guest::GUEST;
use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};

use dump::Dump;

pub(crate) const STAGE: Stage = Stage {
    name: "qemu",
    with: &["qemu"],
    ..Stage::PLAIN
};

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "differential::a_planted_difference_is_found",
        dump::planted_differences,
    )
    .needs(|| Ok(())),
    Test::new("differential::every_enlightenment_is_as_in_qemu", every)
        .needs(needs_hyperv_and_qemu)
        .only_on(&[Host::Here, Host::Amd])
        .stage(STAGE)
        .limit_seconds(300),
    // All other figures are KVM's and the same there, and each VM takes long in the Intel lab.
    Test::new("differential::the_enlightened_vmcs_is_as_in_qemu", evmcs)
        .needs(needs_evmcs_and_qemu)
        .stage(STAGE)
        .limit_seconds(120),
];

const QEMU: &str = "qemu-system-x86_64";

fn needs_qemu() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|directory| directory.join(QEMU).is_file())
        .then_some(())
        .ok_or_else(|| format!("{QEMU} on the PATH"))
}

pub(crate) fn needs_hyperv_and_qemu() -> Result<(), String> {
    needs_qemu()?;
    let host = HostCaps::probe().map_err(|e| e.to_string())?;
    if host.kvm.caps.hyperv {
        Ok(())
    } else {
        Err("a KVM with Hyper-V (CONFIG_KVM_HYPERV)".to_owned())
    }
}

pub(crate) fn needs_evmcs_and_qemu() -> Result<(), String> {
    needs_hyperv_and_qemu()?;
    let host = HostCaps::probe().map_err(|e| e.to_string())?;
    match lack(E::Evmcs, &HostHv::from(&host), true) {
        None => Ok(()),
        Some(_) => Err("an enlightened VMCS (Intel's VMX, nested)".to_owned()),
    }
}

/// The profiles, and each enlightenment alone with its requirements.
fn every() -> TestResult {
    let host = HostHv::from(&HostCaps::probe()?);
    let mut lists: Vec<String> = Profile::ALL.iter().map(ToString::to_string).collect();
    if lack(E::Evmcs, &host, true).is_some() {
        lists.retain(|list| *list != Profile::Nested.name());
        lists.push("nested,-evmcs".to_owned());
    }
    let single = E::all().filter(|id| *id != E::Passthrough && lack(*id, &host, true).is_none());
    lists.extend(single.flat_map(|id| {
        let values: &[&str] = match id.row().argument {
            Argument::None => &[""],
            Argument::Number { .. } => &["=0x42"],
            Argument::Text { .. } => &["=short", "=twelve bytes"],
            Argument::OnOffAuto => &["=on", "=auto", "=off"],
        };
        let company = if shows_hyperv_in_qemu(id) {
            ""
        } else {
            ",relaxed"
        };
        values
            .iter()
            .map(move |value| format!("{id}{value}{company}"))
    }));
    // Enlightenments that KVM hides have an effect only together with others.
    lists.push("windows,enforce-cpuid".to_owned());
    compare(&lists, &host)
}

/// Whether QEMU offers Hyper-V to a guest if this is the only flag (the start of `hyperv::qemu` describes the
/// difference).
fn shows_hyperv_in_qemu(id: E) -> bool {
    let announced = !id.row().bits.is_empty() && id != E::NoNonarchCoresharing;
    (announced || id == E::Spinlocks) && !UNKNOWN_TO_QEMU.contains(&id)
}

/// The lists that need a host with an enlightened VMCS.
fn evmcs() -> TestResult {
    let host = HostHv::from(&HostCaps::probe()?);
    let lists = ["nested", "evmcs", "passthrough"].map(str::to_owned);
    compare(&lists, &host)
}

fn compare(lists: &[String], host: &HostHv) -> TestResult {
    let directory = tempfile::tempdir()?;
    let guest = directory.path().join("guest");
    std::fs::write(&guest, GUEST)?;

    let mut problems = Vec::new();
    let mut possible = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for list in lists {
        println!("--hv {list}");
        let request =
            EnlightenmentRequest::parse(list, Profile::None).map_err(|e| format!("{e:?}"))?;
        let resolved = resolve(&request, host, true).map_err(|e| format!("{list}: {e:?}"))?;
        let flags = qemu::flags(&request, &resolved);
        let ours = hypernest(&guest, list)?;
        let theirs = qemu(&guest, &flags)?;
        for found in ours.differences(&theirs) {
            let listed = DIFFERENCES
                .iter()
                .position(|listed| applies(listed, &resolved) && found.is_within(listed.place));
            match listed {
                Some(index) => _ = seen.insert(index),
                None => problems.push(format!("--hv {list}: {found} (QEMU's flags: {flags})")),
            }
        }
        let applying = (0..DIFFERENCES.len()).filter(|&i| applies(&DIFFERENCES[i], &resolved));
        possible.extend(applying);
    }
    for &index in possible.difference(&seen) {
        let Difference { place, what, .. } = &DIFFERENCES[index];
        problems.push(format!(
            "hyperv::qemu::DIFFERENCES lists {place:?} ({what}), which no longer differs"
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n").into())
    }
}

fn applies(difference: &Difference, resolved: &Resolved) -> bool {
    match difference.when {
        When::With(id) => resolved.has(id),
        When::Without(id) => resolved.is_on() && !resolved.has(id),
    }
}

fn hypernest(guest: &Path, list: &str) -> Result<Dump, Box<dyn Error>> {
    let mut command = Command::new("hypernest");
    command.arg("run").arg("--kernel").arg(guest);
    command.args(["--cmdline", "hvdump", "--memory", "32M", "--nested"]);
    // As QEMU's `kvm=off` below.
    command.args(["--hv", list, "--kvm-leaves=false"]);
    command.args(["--serial", "none", "--debugcon", "stdio", "--debug-exit"]);
    // The exit code is the guest's code.
    run(&mut command, 0)
}

fn qemu(guest: &Path, flags: &str) -> Result<Dump, Box<dyn Error>> {
    let mut command = Command::new(QEMU);
    command.args(["-M", "q35", "-bios", "qboot.rom", "-nodefaults"]);
    command.args(["-no-user-config", "-display", "none", "-accel", "kvm"]);
    let separator = if flags.is_empty() { "" } else { "," };
    command.args(["-cpu", &format!("host,kvm=off{separator}{flags}")]);
    command.args(["-m", "32M", "-append", "hvdump", "-kernel"]);
    command.arg(guest);
    command.args(["-chardev", "stdio,id=console"]);
    command.args(["-device", "isa-debugcon,iobase=0x402,chardev=console"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    // The device makes 2 * code + 1 of the guest's code.
    run(&mut command, 1)
}

fn run(command: &mut Command, success: i32) -> Result<Dump, Box<dyn Error>> {
    let output = command.stdin(Stdio::null()).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.code() != Some(success) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}\n{stdout}{stderr}", output.status).into());
    }
    Ok(Dump::parse(&stdout)?)
}
