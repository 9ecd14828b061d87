//! Whether a guest can run its own guests.

use super::{Check, CheckStatus, Group};
use crate::kvm::host::{KvmFacts, System};

fn check(
    id: &'static str,
    title: &'static str,
    status: CheckStatus,
    found: impl Into<String>,
) -> Check {
    Check::new(id, Group::Nesting, title, status, found)
}

pub(super) fn checks(system: &System, kvm: &KvmFacts) -> Vec<Check> {
    let mut checks = vec![cpu(system)];
    checks.extend(nested_parameter(system));
    checks.push(guest(kvm));
    if kvm.guest_vmx() || kvm.guest_svm() {
        checks.push(nested_state(kvm));
    }
    checks.extend(two_dimensional_paging(system));
    checks.extend(shadow_vmcs(system));
    checks.extend(virtual_apic(system));
    checks
}

fn cpu(system: &System) -> Check {
    let title = "CPU virtualization";
    let found = match (system.cpu.vmx, system.cpu.svm) {
        (true, _) => "VMX",
        (_, true) => "SVM",
        _ => {
            let check = check(
                "cpu-virtualization",
                title,
                CheckStatus::Fail,
                "neither vmx nor svm in /proc/cpuinfo",
            );
            return if system.cpu.hypervisor {
                check
                    .means("this host is a virtual machine that is not shown the CPU's virtualization")
                    .cure("enable nested virtualization on this machine's host, or use a physical machine")
            } else {
                check
                    .means("the CPU has no virtualization, or the firmware disables it")
                    .cure("enable VT-x or SVM in the firmware's setup")
            };
        }
    };
    check("cpu-virtualization", title, CheckStatus::Ok, found)
}

fn nested_parameter(system: &System) -> Option<Check> {
    let (module, value) = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .find_map(|module| Some((module, system.flag(module, "nested")?)))?;
    let title = "module parameter nested";
    Some(if value {
        check(
            "nested-parameter",
            title,
            CheckStatus::Ok,
            format!("{module}.nested is on"),
        )
    } else {
        check(
            "nested-parameter",
            title,
            CheckStatus::Fail,
            format!("{module}.nested is off"),
        )
        .means("KVM hides the CPU's virtualization from every guest")
        .cure(format!(
            "with all VMs stopped, as root: `modprobe -r {module} && modprobe {module} \
                nested=1`; for good: put `options {module} nested=1` into a file of /etc/modprobe.d"
        ))
    })
}

fn guest(kvm: &KvmFacts) -> Check {
    let title = "virtualization for guests";
    match (kvm.guest_vmx(), kvm.guest_svm()) {
        (true, _) => check("guest-virtualization", title, CheckStatus::Ok, "guests can be shown VMX"),
        (_, true) => check("guest-virtualization", title, CheckStatus::Ok, "guests can be shown SVM"),
        _ => check(
            "guest-virtualization",
            title,
            CheckStatus::Fail,
            "KVM shows guests neither VMX nor SVM (KVM_GET_SUPPORTED_CPUID)",
        )
        .means("no hypervisor starts inside a guest: neither the Hyper-V role nor WSL2 nor KVM")
        .cure("see the other lines of this group: the CPU must have it, and the module must be loaded with \
            nested=1"),
    }
}

fn nested_state(kvm: &KvmFacts) -> Check {
    let title = "state of nested guests";
    if kvm.caps.nested_state > 0 {
        check(
            "nested-state",
            title,
            CheckStatus::Ok,
            "can be saved and restored",
        )
    } else {
        check(
            "nested-state",
            title,
            CheckStatus::Warn,
            "cannot be saved (KVM_CAP_NESTED_STATE is 0)",
        )
        .means("a VM that runs guests of its own can be neither saved nor migrated")
        .cure("run Linux 4.20 or newer")
    }
}

fn two_dimensional_paging(system: &System) -> Option<Check> {
    let (name, module, value) = [("ept", "kvm_intel"), ("npt", "kvm_amd")]
        .into_iter()
        .find_map(|(name, module)| Some((name, module, system.flag(module, name)?)))?;
    let title = "nested paging";
    Some(if value {
        check(
            "nested-paging",
            title,
            CheckStatus::Ok,
            format!("{module}.{name} is on"),
        )
    } else {
        check(
            "nested-paging",
            title,
            CheckStatus::Warn,
            format!("{module}.{name} is off"),
        )
        .means(
            "page tables are shadowed: guests are slow, and nested guests slower; the Hyper-V role \
                does not start without it",
        )
        .cure(format!("load {module} with {name}=1, on a CPU that has it"))
    })
}

fn shadow_vmcs(system: &System) -> Option<Check> {
    let title = "shadow VMCS";
    Some(if system.flag("kvm_intel", "enable_shadow_vmcs")? {
        check(
            "shadow-vmcs",
            title,
            CheckStatus::Ok,
            "kvm_intel.enable_shadow_vmcs is on",
        )
    } else {
        check(
            "shadow-vmcs",
            title,
            CheckStatus::Info,
            "kvm_intel.enable_shadow_vmcs is off, or the CPU has \
            none",
        )
        .means(
            "a hypervisor inside the guest that does not use hv-evmcs exits for every VMREAD and VMWRITE",
        )
        .cure(
            "load kvm_intel with enable_shadow_vmcs=1, or use hv-evmcs, which makes it unnecessary",
        )
    })
}

fn virtual_apic(system: &System) -> Option<Check> {
    let (name, module, value) = [("enable_apicv", "kvm_intel"), ("avic", "kvm_amd")]
        .into_iter()
        .find_map(|(name, module)| Some((name, module, system.flag(module, name)?)))?;
    let title = "virtual APIC";
    Some(if value {
        check(
            "virtual-apic",
            title,
            CheckStatus::Ok,
            format!("{module}.{name} is on"),
        )
        .means(
            "hv-avic is useful: it keeps Windows from disabling this; only the trace event \
                kvm:kvm_apicv_inhibit_changed shows when KVM itself disables it, and why",
        )
    } else {
        check(
            "virtual-apic",
            title,
            CheckStatus::Info,
            format!("{module}.{name} is off, or the CPU has none"),
        )
        .means("interrupts of a guest cost exits; hv-avic has no effect")
        .cure(format!("load {module} with {name}=1, on a CPU that has it"))
    })
}
