//! KVM's Hyper-V interface as a whole. Each enlightenment: [`super::verdict`].

use super::{Check, CheckStatus, Group};
use crate::kvm::host::{KvmFacts, System};

fn check(
    id: &'static str,
    title: &'static str,
    status: CheckStatus,
    found: impl Into<String>,
) -> Check {
    Check::new(id, Group::Hyperv, title, status, found)
}

pub(super) fn checks(system: &System, kvm: &KvmFacts) -> Vec<Check> {
    let mut checks = vec![support(system, kvm)];
    if kvm.caps.any_hyperv() {
        checks.push(leaves(kvm));
    }
    checks.push(evmcs(system, kvm));
    checks
}

fn support(system: &System, kvm: &KvmFacts) -> Check {
    let title = "CONFIG_KVM_HYPERV";
    let config = system.config.kvm_hyperv;
    if kvm.caps.any_hyperv() {
        let how = match config {
            Some(true) => "on",
            Some(false) => {
                "off in the kernel's configuration file, yet KVM reports Hyper-V capabilities"
            }
            None => "on, as KVM reports Hyper-V capabilities",
        };
        return check("kvm-hyperv", title, CheckStatus::Ok, how);
    }
    let none = "KVM reports no Hyper-V capability";
    let found = match config {
        Some(false) => format!("{none}: this kernel was built without CONFIG_KVM_HYPERV"),
        Some(true) => format!("{none}, although the kernel was built with CONFIG_KVM_HYPERV"),
        None => format!(
            "{none}: this kernel was most likely built without CONFIG_KVM_HYPERV (its configuration cannot \
             be read)"
        ),
    };
    let cure = if config == Some(true) {
        "find out whether the KVM modules belong to this kernel, and are the usual kvm_intel or kvm_amd"
    } else {
        "run a kernel built with CONFIG_KVM_HYPERV=y, as those of the distributions are; or run guests \
         without enlightenments: --hv none"
    };
    check("kvm-hyperv", title, CheckStatus::Fail, found)
        .means("no enlightenment is available")
        .cure(cure)
}

fn leaves(kvm: &KvmFacts) -> Check {
    let title = "Hyper-V CPUID leaves";
    if kvm.caps.sys_hyperv_cpuid {
        check("hyperv-cpuid", title, CheckStatus::Ok, "reported by KVM")
    } else {
        check(
            "hyperv-cpuid",
            title,
            CheckStatus::Warn,
            "reported by KVM only for a vCPU (KVM_CAP_SYS_HYPERV_CPUID is 0)",
        )
        .means("an old kernel: some enlightenments will be missing")
        .cure("run Linux 5.11 or newer")
    }
}

fn evmcs(system: &System, kvm: &KvmFacts) -> Check {
    let title = "enlightened VMCS";
    if let Some(versions) = kvm.evmcs {
        let [lowest, highest] = versions.to_le_bytes();
        let found = if lowest == highest {
            format!("version {lowest}")
        } else {
            format!("versions {lowest} to {highest}")
        };
        return check("evmcs", title, CheckStatus::Ok, found);
    }
    let missing = |found: &str| {
        check("evmcs", title, CheckStatus::Fail, found).means(
            "hv-evmcs is not available: a hypervisor inside the guest takes an exit for each VMCS access \
             that could be a memory access",
        )
    };
    if system.cpu.svm || kvm.guest_svm() {
        check(
            "evmcs",
            title,
            CheckStatus::Info,
            "none: it belongs to Intel's VMX, and this CPU has SVM",
        )
        .means("the profiles leave hv-evmcs out on this CPU, and start with everything else that they hold")
    } else if !kvm.caps.any_hyperv() {
        missing("none: KVM has no Hyper-V")
            .cure("a kernel built with CONFIG_KVM_HYPERV=y, on an Intel CPU that shows VMX")
    } else if !kvm.guest_vmx() {
        missing("no version: guests cannot be shown VMX")
            .cure("load kvm_intel with nested=1, on a CPU that shows VMX")
    } else {
        missing("KVM has none").cure("run Linux 4.20 or newer")
    }
}
