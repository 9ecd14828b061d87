//! TSC and clocks.

use super::{Check, CheckStatus, Group};
use crate::kvm::host::{KvmFacts, System};

fn check(
    id: &'static str,
    title: &'static str,
    status: CheckStatus,
    found: impl Into<String>,
) -> Check {
    Check::new(id, Group::Time, title, status, found)
}

pub(super) fn checks(system: &System, kvm: &KvmFacts) -> Vec<Check> {
    let mut checks = vec![clocksource(system), frequency(kvm), invariant(system, kvm)];
    checks.push(scaling(kvm));
    checks.extend(offset(kvm));
    checks
}

/// KVM keeps a master clock, which the reference TSC page needs, only over these (`gtod_is_based_on_tsc` in
/// arch/x86/kvm/x86.c). `tsc-early` is the TSC before its frequency has been refined.
const TSC_BASED: [&str; 3] = ["tsc", "tsc-early", "hyperv_clocksource_tsc_page"];

fn clocksource(system: &System) -> Check {
    let title = "host clocksource";
    let Some(current) = system.clock.current.as_deref() else {
        return check("clocksource", title, CheckStatus::Warn, "not known");
    };
    if TSC_BASED.contains(&current) {
        return check("clocksource", title, CheckStatus::Ok, current);
    }
    let cure = if system.clock.available.iter().any(|name| name == "tsc") {
        "as root: `echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource`"
    } else {
        "the kernel found the TSC unstable: its log gives the reason; `tsc=reliable` on its command line \
         overrides that"
    };
    check("clocksource", title, CheckStatus::Warn, current)
        .means("KVM cannot keep Hyper-V's reference TSC page: with hv-time, every reading of the guest's \
                clock exits to the host")
        .cure(cure)
}

fn frequency(kvm: &KvmFacts) -> Check {
    let title = "TSC frequency";
    if let Err(error) = kvm.check_tsc_khz() {
        return check(
            "tsc-frequency",
            title,
            CheckStatus::Fail,
            "KVM has another frequency than the TSC",
        )
        .means("no VM can run here")
        .cure(error.to_string());
    }
    match (kvm.tsc_khz, kvm.refined_tsc_khz) {
        (Some(khz), Some(refined)) => check(
            "tsc-frequency",
            title,
            CheckStatus::Warn,
            format!("{khz} kHz for KVM, {refined} kHz refined by the kernel"),
        )
        .means("guests' clocks drift by the difference, which their time service can correct")
        .cure("load KVM again, without VMs"),
        (Some(khz), None) => check(
            "tsc-frequency",
            title,
            CheckStatus::Ok,
            format!("{khz} kHz"),
        ),
        (None, _) => check(
            "tsc-frequency",
            title,
            CheckStatus::Warn,
            "not reported by KVM",
        )
        .means("the guest must measure it itself, and cannot migrate to another host")
        .cure("see the kernel's log for the reason why it considers the TSC unstable"),
    }
}

fn invariant(system: &System, kvm: &KvmFacts) -> Check {
    let title = "invariant TSC";
    match (kvm.guest_invariant_tsc(), system.cpu.constant_tsc) {
        (true, _) => check(
            "tsc-invariant",
            title,
            CheckStatus::Ok,
            "yes, and guests can be shown it",
        ),
        (false, true) => check(
            "tsc-invariant",
            title,
            CheckStatus::Warn,
            "the host's TSC is invariant, but KVM does not show that to guests",
        )
        .means("hv-tsc-invariant is not available"),
        (false, false) => check("tsc-invariant", title, CheckStatus::Warn, "no").means(
            "the TSC may change its rate or stop: guests must be notified by hv-reenlightenment, and \
                hv-tsc-invariant is not available",
        ),
    }
}

fn scaling(kvm: &KvmFacts) -> Check {
    let title = "TSC scaling";
    match (kvm.caps.tsc_control, kvm.caps.vm_tsc_control) {
        (true, true) => check("tsc-scaling", title, CheckStatus::Ok, "yes").means(
            "a VM from a host with another TSC frequency keeps its own here, for good or until its \
                guest has adapted (hv-reenlightenment)",
        ),
        (true, false) => check(
            "tsc-scaling",
            title,
            CheckStatus::Info,
            "the CPU has it, but KVM cannot set \
            it for a whole VM",
        )
        .means("a VM from a host with another TSC frequency cannot migrate here")
        .cure("run Linux 5.17 or newer"),
        (false, _) => check("tsc-scaling", title, CheckStatus::Info, "no").means(
            "a VM from a host with another TSC frequency can migrate here only if its guest takes \
                    a new one at once (hv-reenlightenment without TSC emulation); --tsc-khz is not \
                    available",
        ),
    }
}

fn offset(kvm: &KvmFacts) -> Option<Check> {
    let title = "TSC offset";
    Some(match kvm.tsc_offset {
        Some(true) => check(
            "tsc-offset",
            title,
            CheckStatus::Ok,
            "KVM offsets and shows it",
        ),
        Some(false) => check(
            "tsc-offset",
            title,
            CheckStatus::Warn,
            "guests see the host's TSC as it is",
        )
        .means(
            "a saved VM can be restored here only if it was saved here, since the last boot, and with \
                --clock continue",
        ),
        None if kvm.caps.any_hyperv() => check(
            "tsc-offset",
            title,
            CheckStatus::Warn,
            "KVM does not show it",
        )
        .means(
            "a restored VM may lose KVM's master clock, and clock readings then exit to the host",
        )
        .cure("run Linux 5.16 or newer"),
        None => return None,
    })
}
