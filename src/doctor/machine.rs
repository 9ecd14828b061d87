//! Memory and processors.

use super::{Check, CheckStatus, Group};
use crate::kvm::host::{KvmFacts, System};

fn check(
    id: &'static str,
    title: &'static str,
    status: CheckStatus,
    found: impl Into<String>,
) -> Check {
    Check::new(id, Group::Machine, title, status, found)
}

pub(super) fn checks(system: &System, kvm: Option<&KvmFacts>) -> Vec<Check> {
    let mut checks = vec![cpu(system)];
    checks.extend(kvm.map(vcpus));
    checks.push(smt(system, kvm));
    checks.push(hugepages(system));
    checks.extend(thp(system));
    checks
}

fn cpu(system: &System) -> Check {
    let cpu = &system.cpu;
    let found = format!("{} × {} ({})", cpu.count, cpu.model, cpu.vendor);
    check("cpu", "host CPU", CheckStatus::Info, found)
}

fn vcpus(kvm: &KvmFacts) -> Check {
    let found = format!(
        "{} at most, {} recommended",
        kvm.caps.max_vcpus, kvm.caps.nr_vcpus
    );
    check("vcpus", "vCPUs per VM", CheckStatus::Info, found)
}

/// Bit 18 of CPUID 0x40000004.EAX in KVM's supported leaves: no two vCPUs share a core unless CPUID shows it
/// to the guest (`cpu_smt_possible` is false on the host).
const NO_CORESHARING: u32 = 1 << 18;

fn smt(system: &System, kvm: Option<&KvmFacts>) -> Check {
    let control = system.cpu.smt.as_deref().unwrap_or("not known");
    let check = check("smt", "SMT", CheckStatus::Info, control);
    let Some(leaf) = kvm.and_then(|kvm| kvm.hv_leaf(0x4000_0004)) else {
        return check;
    };
    check.means(if leaf.eax & NO_CORESHARING != 0 {
        "vCPUs never share a core: hv-no-nonarch-coresharing=auto comes out as on"
    } else {
        "vCPUs may share a core: hv-no-nonarch-coresharing=on is correct only if vCPUs are pinned accordingly"
    })
}

fn hugepages(system: &System) -> Check {
    let title = "huge pages";
    let pools: Vec<_> = system
        .hugepages
        .iter()
        .filter(|pool| pool.total > 0)
        .map(|pool| {
            format!(
                "{} of {} free ({} KiB each)",
                pool.free, pool.total, pool.size_kib
            )
        })
        .collect();
    if pools.is_empty() {
        check("hugepages", title, CheckStatus::Info, "none reserved")
            .means("--memory SIZE,hugepages=2M cannot be used; nested guests gain most from them, as their \
                page walks are the longest")
            .cure("as root: `sysctl vm.nr_hugepages=N`, N = half the guest's memory in MiB")
    } else {
        check("hugepages", title, CheckStatus::Ok, pools.join(", "))
    }
}

fn thp(system: &System) -> Option<Check> {
    let chosen = system.thp.as_deref()?;
    let check = |status| {
        check(
            "transparent-hugepages",
            "transparent huge pages for guest memory",
            status,
            chosen,
        )
    };
    Some(match chosen {
        "never" => check(CheckStatus::Warn)
            .means("guest memory is in small pages unless --memory SIZE,hugepages=2M is given: its page \
                walks are longer")
            .cure("as root: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"),
        _ => check(CheckStatus::Ok),
    })
}
