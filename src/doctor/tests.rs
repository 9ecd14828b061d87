use std::io;

use super::text::{Style, render};
use super::*;
use crate::kvm::host::{Device, HugePages, KvmCaps, NoDevice};

/// A virtual machine without VMX whose KVM has no Hyper-V.
const PLAIN: &str = include_str!("hosts/plain.json");
/// Linux 6.12 on an emulated AMD EPYC.
const AMD: &str = include_str!("hosts/amd.json");
/// Linux 6.12 on an emulated Intel Skylake-X.
const INTEL: &str = include_str!("hosts/intel.json");

fn host(recorded: &str) -> HostCaps {
    serde_json::from_str(recorded).unwrap()
}

fn judge(host: &HostCaps, profile: Profile) -> Diagnosis {
    diagnose(&host.system, Ok(&host.kvm), profile)
}

fn failed(diagnosis: &Diagnosis) -> Vec<&'static str> {
    diagnosis
        .checks
        .iter()
        .filter(|check| check.status == CheckStatus::Fail)
        .map(|check| check.id)
        .collect()
}

fn working(diagnosis: &Diagnosis) -> Vec<&'static str> {
    diagnosis
        .profiles
        .iter()
        .filter(|verdict| verdict.works)
        .map(|verdict| verdict.profile)
        .collect()
}

#[test]
fn on_intel_with_everything_the_nested_profile_works() {
    let diagnosis = judge(&host(INTEL), Profile::Nested);
    assert!(diagnosis.works);
    assert_eq!(failed(&diagnosis), [""; 0]);
    assert_eq!(
        working(&diagnosis),
        ["none", "windows", "nested", "all", "passthrough"]
    );
    let text = render(&diagnosis, Style::Plain);
    assert!(text.contains("enlightened VMCS: version 1\n"), "{text}");
    assert!(
        text.ends_with("\nProfile nested works on this host.\n"),
        "{text}"
    );
}

#[test]
fn on_amd_the_nested_profile_works_without_evmcs_and_the_report_names_it() {
    let diagnosis = judge(&host(AMD), Profile::Nested);
    assert!(diagnosis.works);
    assert_eq!(failed(&diagnosis), [""; 0]);
    assert_eq!(
        working(&diagnosis),
        ["none", "windows", "nested", "all", "passthrough"]
    );
    let text = render(&diagnosis, Style::Plain);
    assert!(
        text.contains("hv-evmcs is left out: it needs Intel's VMX"),
        "{text}"
    );
    assert!(
        text.ends_with("\nProfile nested works on this host.\n"),
        "{text}"
    );
}

#[test]
fn an_intel_host_without_evmcs_fails_the_nested_profile_for_that_alone() {
    let mut host = host(INTEL);
    host.kvm.evmcs = None;
    host.kvm.caps.hyperv_enlightened_vmcs = false;
    let diagnosis = judge(&host, Profile::Nested);
    assert!(!diagnosis.works);
    assert_eq!(failed(&diagnosis), ["evmcs"]);
    let text = render(&diagnosis, Style::Plain);
    assert!(
        text.ends_with(
            "\nProfile nested does not work on this host: hv-evmcs is the one thing missing.\nWhat works \
             here: --hv nested,-evmcs\n"
        ),
        "{text}"
    );
    assert!(judge(&host, Profile::Windows).works);
}

#[test]
fn without_vmx_and_hyperv_each_of_them_is_named() {
    let diagnosis = judge(&host(PLAIN), Profile::Nested);
    assert!(!diagnosis.works);
    assert_eq!(
        failed(&diagnosis),
        [
            "kvm-module",
            "cpu-virtualization",
            "guest-virtualization",
            "kvm-hyperv",
            "evmcs"
        ]
    );
    assert_eq!(working(&diagnosis), ["none"]);
    assert!(diagnosis.enlightenments.iter().all(|e| !e.available));
    let text = render(&diagnosis, Style::Plain);
    for says in [
        "KVM reports no Hyper-V capability: this kernel was built without\n        CONFIG_KVM_HYPERV",
        "neither vmx nor svm in /proc/cpuinfo",
        "KVM shows guests neither VMX nor SVM",
    ] {
        assert!(text.contains(says), "{text}");
    }
    assert!(judge(&host(PLAIN), Profile::None).works);
}

fn set(host: &mut HostCaps, module: &str, parameter: &str, value: &str) {
    host.system
        .modules
        .entry(module.to_owned())
        .or_default()
        .insert(parameter.to_owned(), value.to_owned());
}

fn hide_vmx(host: &mut HostCaps) {
    for leaf in &mut host.kvm.cpuid {
        if leaf.function == 1 {
            leaf.ecx &= !(1 << 5);
        }
    }
}

fn no_hyperv(host: &mut HostCaps) {
    let hyperv = &mut host.kvm.caps;
    *hyperv = KvmCaps {
        x86_user_space_msr: hyperv.x86_user_space_msr,
        x86_msr_filter: hyperv.x86_msr_filter,
        nested_state: hyperv.nested_state,
        ..KvmCaps::default()
    };
    host.kvm.hv_cpuid = None;
    host.kvm.evmcs = None;
}

/// A change to a good Intel host, and the expected text of a check.
type Change = (
    fn(&mut HostCaps),
    &'static str,
    CheckStatus,
    &'static str,
    &'static str,
);

#[test]
fn each_thing_that_can_be_wrong_is_found_with_its_cure() {
    let changes: [Change; 25] = [
        (
            |h| set(h, "kvm", "ignore_msrs", "Y"),
            "kvm-ignore-msrs",
            CheckStatus::Warn,
            "Y",
            "echo N",
        ),
        (
            |h| h.kvm.caps.x86_msr_filter = false,
            "kvm-msr-filter",
            CheckStatus::Fail,
            "missing",
            "Linux 5.10",
        ),
        (
            |h| h.kvm.caps.binary_stats_fd = false,
            "kvm-statistics",
            CheckStatus::Warn,
            "missing",
            "Linux 5.14",
        ),
        (
            |h| h.system.modules.clear(),
            "kvm-module",
            CheckStatus::Fail,
            "neither",
            "load kvm_intel",
        ),
        (
            |h| {
                h.system.cpu.vmx = false;
                h.system.cpu.hypervisor = true;
            },
            "cpu-virtualization",
            CheckStatus::Fail,
            "neither vmx",
            "nested virtualization",
        ),
        (
            |h| {
                h.system.cpu.vmx = false;
                h.system.cpu.hypervisor = false;
            },
            "cpu-virtualization",
            CheckStatus::Fail,
            "neither vmx",
            "firmware",
        ),
        (
            |h| set(h, "kvm_intel", "nested", "N"),
            "nested-parameter",
            CheckStatus::Fail,
            "kvm_intel.nested is off",
            "modprobe kvm_intel nested=1",
        ),
        (
            hide_vmx,
            "guest-virtualization",
            CheckStatus::Fail,
            "neither VMX nor SVM",
            "nested=1",
        ),
        (
            |h| h.kvm.caps.nested_state = 0,
            "nested-state",
            CheckStatus::Warn,
            "cannot be saved",
            "Linux 4.20",
        ),
        (
            |h| set(h, "kvm_intel", "ept", "N"),
            "nested-paging",
            CheckStatus::Warn,
            "kvm_intel.ept is off",
            "ept=1",
        ),
        (
            |h| set(h, "kvm_intel", "enable_shadow_vmcs", "N"),
            "shadow-vmcs",
            CheckStatus::Info,
            "off",
            "enable_shadow_vmcs=1",
        ),
        (
            |h| set(h, "kvm_intel", "enable_apicv", "Y"),
            "virtual-apic",
            CheckStatus::Ok,
            "is on",
            "",
        ),
        (
            no_hyperv,
            "kvm-hyperv",
            CheckStatus::Fail,
            "although the kernel was built with",
            "kvm_intel or kvm_amd",
        ),
        (
            |h| {
                no_hyperv(h);
                h.system.config.kvm_hyperv = None;
            },
            "kvm-hyperv",
            CheckStatus::Fail,
            "most likely",
            "CONFIG_KVM_HYPERV=y",
        ),
        (
            |h| h.kvm.caps.sys_hyperv_cpuid = false,
            "hyperv-cpuid",
            CheckStatus::Warn,
            "only for a vCPU",
            "Linux 5.11",
        ),
        (
            |h| {
                hide_vmx(h);
                h.kvm.evmcs = None;
            },
            "evmcs",
            CheckStatus::Fail,
            "cannot be shown VMX",
            "nested=1",
        ),
        (
            |h| h.kvm.evmcs = None,
            "evmcs",
            CheckStatus::Fail,
            "KVM has none",
            "Linux 4.20",
        ),
        (
            |h| h.kvm.evmcs = Some(0x0201),
            "evmcs",
            CheckStatus::Ok,
            "versions 1 to 2",
            "",
        ),
        (
            |h| {
                h.system.clock.current = Some("hpet".into());
                h.system.clock.available = vec!["hpet".into(), "tsc".into()];
            },
            "clocksource",
            CheckStatus::Warn,
            "hpet",
            "echo tsc",
        ),
        (
            |h| {
                h.system.clock.current = Some("acpi_pm".into());
                h.system.clock.available.clear();
            },
            "clocksource",
            CheckStatus::Warn,
            "acpi_pm",
            "unstable",
        ),
        (
            |h| h.kvm.tsc_khz = None,
            "tsc-frequency",
            CheckStatus::Warn,
            "not reported",
            "log",
        ),
        (
            |h| {
                h.kvm.tsc_khz = Some(2_594_700);
                h.kvm.refined_tsc_khz = Some(2_596_100);
            },
            "tsc-frequency",
            CheckStatus::Fail,
            "another frequency",
            "modprobe",
        ),
        (
            |h| {
                h.kvm.tsc_khz = Some(2_596_000);
                h.kvm.refined_tsc_khz = Some(2_596_100);
            },
            "tsc-frequency",
            CheckStatus::Warn,
            "2596100 kHz refined",
            "load KVM again",
        ),
        (
            |h| h.kvm.tsc_offset = Some(false),
            "tsc-offset",
            CheckStatus::Warn,
            "as it is",
            "",
        ),
        (
            |h| h.kvm.tsc_offset = None,
            "tsc-offset",
            CheckStatus::Warn,
            "does not show",
            "Linux 5.16",
        ),
    ];
    for (change, id, status, found, cure) in changes {
        let mut host = host(INTEL);
        host.system.config.kvm_hyperv = Some(true);
        change(&mut host);
        let diagnosis = judge(&host, Profile::Nested);
        let check = diagnosis
            .checks
            .iter()
            .find(|check| check.id == id)
            .unwrap_or_else(|| panic!("no check {id}"));
        assert_eq!(check.status, status, "{check:?}");
        assert!(check.found.contains(found), "{check:?}");
        let advice = check.cure.as_deref().unwrap_or_default();
        assert!(advice.contains(cure), "{check:?}");
    }
}

#[test]
fn a_host_that_does_not_nest_fails_the_nested_profile_for_that() {
    let mut host = host(INTEL);
    hide_vmx(&mut host);
    host.kvm.evmcs = None;
    let diagnosis = judge(&host, Profile::Nested);
    let nested = diagnosis
        .profiles
        .iter()
        .find(|verdict| verdict.profile == "nested")
        .unwrap();
    assert!(!nested.works);
    assert_eq!(nested.instead, None);
    assert!(
        nested
            .problems
            .iter()
            .any(|p| p.contains("neither VMX nor SVM")),
        "{nested:?}"
    );
    let text = render(&diagnosis, Style::Plain);
    let (_, conclusion) = text.rsplit_once("\n\n").unwrap();
    assert!(conclusion.contains("neither VMX"), "{conclusion}");
    assert!(judge(&host, Profile::Windows).works);
}

#[test]
fn without_kvm_nothing_works_and_the_reason_is_given() {
    let refused = || io::Error::from_raw_os_error(libc::ENODEV);
    let system = System {
        device: Some(Device {
            mode: 0o660,
            ..Device::default()
        }),
        ..System::default()
    };
    for (error, found, cure) in [
        (
            HostError::NoDevice(NoDevice::NotLoaded {
                module: "kvm_intel",
            }),
            "kvm_intel is not loaded",
            "modprobe kvm_intel",
        ),
        (
            HostError::NoDevice(NoDevice::VirtualMachine),
            "virtual machine",
            "nested virtualization",
        ),
        (
            HostError::NoPermission {
                group: "kvm".into(),
            },
            "group kvm",
            "usermod -aG kvm",
        ),
        (
            HostError::Open {
                why: "no module",
                source: refused(),
            },
            "no module",
            "kernel's log",
        ),
        (HostError::ApiVersion { found: 11 }, "version 11", "newer"),
        (
            HostError::TooOld {
                missing: KvmCaps::default().missing(),
            },
            "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)",
            "newer",
        ),
    ] {
        let diagnosis = diagnose(&system, Err(&error), Profile::None);
        assert!(!diagnosis.works);
        assert_eq!(failed(&diagnosis), ["kvm-device"]);
        assert_eq!(working(&diagnosis), [""; 0]);
        let check = &diagnosis.checks[0];
        assert!(check.found.contains(found), "{check:?}");
        assert!(check.cure.as_deref().unwrap().contains(cure), "{check:?}");
        let text = render(&diagnosis, Style::Plain);
        assert!(text.contains("Profile none does not work"), "{text}");
    }
}

#[test]
fn huge_pages_are_shown_where_there_are_any() {
    let mut host = host(PLAIN);
    let found = |host: &HostCaps| {
        let checks = judge(host, Profile::None).checks;
        checks
            .into_iter()
            .find(|check| check.id == "hugepages")
            .unwrap()
    };
    assert!(found(&host).found.contains("none reserved"));
    host.system.hugepages.push(HugePages {
        size_kib: 2048,
        total: 8,
        free: 3,
    });
    assert_eq!(found(&host).found, "3 of 8 free (2048 KiB each)");
}

#[test]
fn small_pages_are_warned_of_with_what_to_do() {
    let mut host = host(PLAIN);
    let found = |host: &HostCaps| {
        let checks = judge(host, Profile::None).checks;
        checks
            .into_iter()
            .find(|check| check.id == "transparent-hugepages")
    };
    assert_eq!(found(&host), None);
    for word in ["always", "madvise"] {
        host.system.thp = Some(word.to_owned());
        let check = found(&host).unwrap();
        assert_eq!(
            (check.status, check.found.as_str()),
            (CheckStatus::Ok, word)
        );
    }
    host.system.thp = Some("never".to_owned());
    let check = found(&host).unwrap();
    assert_eq!(check.status, CheckStatus::Warn);
    assert!(check.cure.unwrap().contains("echo madvise"));
}

#[test]
fn every_failure_says_what_it_means_and_what_to_do() {
    for recorded in [PLAIN, AMD, INTEL] {
        let diagnosis = judge(&host(recorded), Profile::Nested);
        let mut ids: Vec<_> = diagnosis.checks.iter().map(|check| check.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "ids are unique");
        for check in &diagnosis.checks {
            if check.status == CheckStatus::Fail {
                assert!(check.means.is_some() && check.cure.is_some(), "{check:?}");
            }
        }
        for e in &diagnosis.enlightenments {
            assert_eq!(e.available, e.lack.is_none());
        }
    }
}

#[test]
fn plain_text_has_no_colours_and_coloured_text_says_the_same() {
    let diagnosis = judge(&host(AMD), Profile::Nested);
    let plain = render(&diagnosis, Style::Plain);
    let colour = render(&diagnosis, Style::Colour);
    assert!(!plain.contains('\x1b'));
    let mut stripped = String::new();
    for (at, piece) in colour.split('\x1b').enumerate() {
        stripped.push_str(if at == 0 {
            piece
        } else {
            piece.split_once('m').unwrap().1
        });
    }
    assert_eq!(stripped, plain);
}
