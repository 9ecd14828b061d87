//! `/dev/kvm` and the modules behind it.

use super::{Check, CheckStatus, Group};
use crate::kvm::host::{HostError, KvmFacts, System};

fn check(
    id: &'static str,
    title: &'static str,
    status: CheckStatus,
    found: impl Into<String>,
) -> Check {
    Check::new(id, Group::Kvm, title, status, found)
}

pub(super) fn checks(system: &System, kvm: Result<&KvmFacts, &HostError>) -> Vec<Check> {
    let mut checks = vec![
        device(system, kvm),
        check(
            "kernel",
            "host kernel",
            CheckStatus::Info,
            format!("Linux {}", system.kernel),
        ),
    ];
    if let Ok(kvm) = kvm {
        checks.push(module(system));
        checks.extend(ignore_msrs(system));
        checks.push(msr_exits(kvm));
        checks.push(statistics(kvm));
    }
    checks
}

fn device(system: &System, kvm: Result<&KvmFacts, &HostError>) -> Check {
    let title = "/dev/kvm";
    match kvm {
        Ok(_) => {
            let permissions = system.device.as_ref().map_or(String::new(), |device| {
                let group = device
                    .group
                    .clone()
                    .unwrap_or_else(|| device.gid.to_string());
                format!("; group {group}, mode {:04o}", device.mode)
            });
            check(
                "kvm-device",
                title,
                CheckStatus::Ok,
                format!("opens, interface version 12{permissions}"),
            )
        }
        Err(error) => {
            let (found, cure) = explain(error);
            check("kvm-device", title, CheckStatus::Fail, found)
                .means("no virtual machine can run here")
                .cure(cure)
        }
    }
}

/// The finding and the remedy for an error.
fn explain(error: &HostError) -> (String, String) {
    match error {
        HostError::NoDevice(reason) => (format!("missing: {}", reason.found()), reason.cure()),
        HostError::NoPermission { group } => (
            format!("there, but you may not open it: it belongs to group {group}"),
            format!("as root: `usermod -aG {group} USER`, then log in again"),
        ),
        HostError::Open { why, source } => (
            format!("does not open: {source} ({why})"),
            "load kvm_intel or kvm_amd; if it does not load, see the kernel's log for the reason"
                .to_owned(),
        ),
        HostError::ApiVersion { .. } | HostError::TooOld { .. } => {
            (error.to_string(), "run a newer kernel".to_owned())
        }
        HostError::StaleTscKhz { module, .. } => (
            error.to_string(),
            format!("as root: `modprobe -r {module} kvm && modprobe {module}`"),
        ),
        HostError::Probe(cause) => (
            format!("opens, but fails: {cause}"),
            "look into the kernel's log; another hypervisor may hold the CPU's virtualization"
                .to_owned(),
        ),
    }
}

fn module(system: &System) -> Check {
    let title = "KVM module";
    let loaded: Vec<_> = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .filter(|name| system.modules.contains_key(*name))
        .collect();
    if loaded.is_empty() {
        check(
            "kvm-module",
            title,
            CheckStatus::Fail,
            "neither kvm_intel nor kvm_amd is loaded, yet KVM \
            works",
        )
        .means(
            "this KVM runs guests without the CPU's virtualization, and cannot give it to a guest; \
                kernels start slowly or not at all",
        )
        .cure("use a host whose CPU shows VMX or SVM and load kvm_intel or kvm_amd there")
    } else {
        check("kvm-module", title, CheckStatus::Ok, loaded.join(", "))
    }
}

fn ignore_msrs(system: &System) -> Option<Check> {
    let title = "kvm.ignore_msrs";
    Some(if system.flag("kvm", "ignore_msrs")? {
        check("kvm-ignore-msrs", title, CheckStatus::Warn, "Y")
            .means("a guest that reads a register that does not exist gets 0 instead of a fault: guests \
                that probe for features, as Hyper-V does, can be misled")
            .cure("as root: `echo N > /sys/module/kvm/parameters/ignore_msrs`")
    } else {
        check("kvm-ignore-msrs", title, CheckStatus::Ok, "N")
    })
}

fn msr_exits(kvm: &KvmFacts) -> Check {
    let title = "MSR filter";
    if kvm.caps.x86_user_space_msr && kvm.caps.x86_msr_filter {
        check("kvm-msr-filter", title, CheckStatus::Ok, "there")
    } else {
        check("kvm-msr-filter", title, CheckStatus::Fail, "missing")
            .means(
                "hypernest cannot own Hyper-V's crash and re-enlightenment registers, which is how it keeps \
                 a guest's clock right",
            )
            .cure("run Linux 5.10 or newer")
    }
}

fn statistics(kvm: &KvmFacts) -> Check {
    let title = "KVM statistics";
    if kvm.caps.binary_stats_fd {
        check("kvm-statistics", title, CheckStatus::Ok, "there")
    } else {
        check("kvm-statistics", title, CheckStatus::Warn, "missing")
            .means("host exits per exit of a nested guest cannot be counted")
            .cure("run Linux 5.14 or newer")
    }
}
