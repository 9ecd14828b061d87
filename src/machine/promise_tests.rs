use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::boot::{Boot, KernelBoot};
use crate::config::{CpuConfig, OnTripleFault, TimeConfig};
use crate::cpuid::CpuModel;
use crate::cpuid::Topology;
use crate::cpuid::{feature as f, tests as leaves};
use crate::devices::char::CharBackend;
use crate::hyperv::HvCap;
use crate::hyperv::host::tests as hv;
use crate::kvm::host::{KvmCaps, KvmFacts, System};
use crate::layout::MachineType;
use crate::life::OnCrash;
use crate::machine::Impossible;
use crate::memory::MemoryConfig;
use crate::time::{Downtime, TscRefusal};

/// VMX's capabilities as reported by KVM on some host.
fn vmx() -> BTreeMap<u32, u64> {
    [
        (0x8b, 7 << 32),
        (0x10a, 0x000c_0c00_00eb),
        (0x480, 0x00da_0400_11e5_7ed0),
        (0x485, 0x2000_41e5),
        (0x486, 0x8000_0021),
        (0x488, 0x2000),
        (0x48a, 0x2e),
        (0x48b, 0x0255_bfff_0000_0000),
        (0x48c, 0x0f01_0633_4141),
        (0x48d, 0x00ff_0000_0016),
        (0x48e, 0xfff9_fffe_0400_6172),
        (0x48f, 0x01ff_ffff_0003_6dfb),
        (0x490, 0x0003_f3ff_0000_11fb),
        (0x491, 1),
    ]
    .into()
}

fn host(vendor: CpuVendor) -> HostCaps {
    let intel = vendor == CpuVendor::Intel;
    let there = if intel { hv::intel() } else { hv::amd() };
    let has = |cap| there.caps.contains(&cap);
    HostCaps {
        system: System {
            kernel: "6.12.0".to_owned(),
            ..System::default()
        },
        kvm: KvmFacts {
            caps: KvmCaps {
                pit2: true,
                split_irqchip: true,
                nested_state: 8320,
                max_vcpus: 1024,
                tsc_deadline_timer: true,
                hyperv: has(HvCap::Hyperv),
                hyperv_vapic: has(HvCap::Vapic),
                hyperv_spin: has(HvCap::Spin),
                hyperv_time: has(HvCap::Time),
                hyperv_synic2: has(HvCap::Synic2),
                hyperv_vp_index: has(HvCap::VpIndex),
                hyperv_tlbflush: has(HvCap::TlbFlush),
                hyperv_send_ipi: has(HvCap::SendIpi),
                hyperv_enlightened_vmcs: has(HvCap::EnlightenedVmcs),
                x86_user_space_msr: has(HvCap::UserSpaceMsr),
                x86_msr_filter: has(HvCap::MsrFilter),
                hyperv_enforce_cpuid: has(HvCap::EnforceCpuid),
                ..KvmCaps::default()
            },
            cpuid: if intel {
                leaves::intel()
            } else {
                leaves::amd()
            },
            hv_cpuid: Some(there.hv_cpuid),
            feature_msrs: if intel { vmx() } else { [(0x8b, 5)].into() },
            ..KvmFacts::default()
        },
    }
}

fn config(hv: &str) -> VmConfig {
    VmConfig {
        name: "vm".to_owned(),
        machine: MachineType::Pc1,
        memory: MemoryConfig::of(64 << 20),
        pins: Default::default(),
        cpus: CpuConfig {
            count: 2,
            topology: Topology {
                sockets: 1,
                cores: 2,
                threads: 1,
            },
            model: CpuModel::Host,
            without: Vec::new(),
            nested: true,
        },
        boot: Boot::Kernel(KernelBoot {
            kernel: "vmlinux".into(),
            initrd: None,
            cmdline: String::new(),
            modules: Vec::new(),
        }),
        serial: [CharBackend::None, CharBackend::None],
        irqchip: Irqchip::Kernel,
        debug_exit: None,
        debugcon: None,
        devices: Vec::new(),
        fw_cfg: true,
        dirty_ring_size: None,
        on_crash: OnCrash::Continue,
        on_triple_fault: OnTripleFault::Reset,
        stop_timeout: None,
        time: TimeConfig::default(),
        stats: None,
        hv: EnlightenmentRequest::parse(hv, Profile::Nested).unwrap(),
        kvm_leaves: Some(true),
    }
}

fn promise(config: &VmConfig, host: &HostCaps) -> Promise {
    Promise::of(&Plan::new(config, host).unwrap(), config)
}

const PROFILES: [(CpuVendor, &str); 6] = [
    (CpuVendor::Intel, "none"),
    (CpuVendor::Intel, "windows"),
    (CpuVendor::Intel, "nested"),
    (CpuVendor::Intel, "all"),
    (CpuVendor::Amd, "nested,-evmcs"),
    (CpuVendor::Amd, "windows,enforce-cpuid,spinlocks=0x1fff"),
];

#[test]
fn the_same_host_keeps_every_promise() {
    for (vendor, list) in PROFILES {
        for model in [CpuModel::Host, CpuModel::X86_64V2, CpuModel::X86_64V3] {
            let mut config = config(list);
            config.cpus.model = model;
            let host = host(vendor);
            let made = Plan::new(&config, &host).unwrap();
            let promise = Promise::of(&made, &config);
            let kept = promise.check(&config, &host).unwrap();
            for vp in 0..2 {
                assert_eq!(kept.cpuid.for_vcpu(vp), made.cpuid.for_vcpu(vp), "{list}");
                assert_eq!(kept.cpuid.apic_id(vp), made.cpuid.apic_id(vp));
                let vp = crate::units::VpIndex(vp);
                assert_eq!(kept.hyperv.vcpu_setup(vp), made.hyperv.vcpu_setup(vp));
            }
            assert_eq!(kept.hyperv.enabled(), made.hyperv.enabled());
            assert_eq!(kept.hyperv.cpuid_leaves(), made.hyperv.cpuid_leaves());
            assert_eq!(kept.hyperv.saved_msrs(), made.hyperv.saved_msrs());
            assert_eq!(kept.user_msrs(), made.user_msrs());
            let features = |plan: &Plan| {
                let cpuid = plan.cpuid.for_vcpu(0);
                feature_msrs(&cpuid, vendor, model, &plan.feature_msrs)
            };
            assert_eq!(features(&kept), features(&made), "{list}");
            assert_eq!(Promise::of(&kept, &config), promise, "saved again");
        }
    }
}

#[test]
fn a_newer_host_shows_the_guest_what_it_saw_before() {
    let (old, mut new) = (host(CpuVendor::Intel), host(CpuVendor::Intel));
    let mut config = config("windows");
    f::AVX2.set(&mut new.kvm.cpuid, true);
    f::UMIP.set(&mut new.kvm.cpuid, true);
    let mut old = old;
    f::UMIP.set(&mut old.kvm.cpuid, false);
    if let Some(microcode) = new.kvm.feature_msrs.get_mut(&0x8b) {
        *microcode = 9 << 32;
    }
    let promise = promise(&config, &old);
    // The content of a profile may change; the enabled set does not.
    config.hv = EnlightenmentRequest::profile(Profile::None);
    let kept = promise.check(&config, &new).unwrap();
    assert!(!f::UMIP.is_in(&kept.cpuid.for_vcpu(0)));
    assert!(kept.feature_msrs.contains(&(Msr(0x8b), 7 << 32)));
    assert!(kept.hyperv.has(Enlightenment::Synic));
}

/// The mismatches when `change` is made to the destination of a guest with these enlightenments.
fn refusals(vendor: CpuVendor, hv: &str, change: impl Fn(&mut HostCaps)) -> Vec<String> {
    let config = config(hv);
    let mut there = host(vendor);
    let promise = promise(&config, &there);
    change(&mut there);
    match promise.check(&config, &there) {
        Ok(_) => Vec::new(),
        Err(mismatches) => mismatches.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn what_another_host_lacks_is_named() {
    type Change = fn(&mut HostCaps);
    let cases: [(&str, Change, &str); 19] = [
        (
            "none",
            |h| f::AVX2.set(&mut h.kvm.cpuid, false),
            "CPU feature avx2",
        ),
        (
            "none",
            |h| f::VMX.set(&mut h.kvm.cpuid, false),
            "CPU feature vmx",
        ),
        (
            "none",
            |h| set(h, 7, 1, |leaf| leaf.ebx = 0xf0bf_27eb & !(1 << 18)),
            "CPU feature rdseed",
        ),
        (
            "none",
            |h| h.kvm.caps.tsc_deadline_timer = false,
            "tsc_deadline_timer",
        ),
        (
            "none",
            |h| set(h, 0x8000_0008, 0, |leaf| leaf.eax = 0x3027),
            "bits of a physical address: the guest was shown 52, this host has 39",
        ),
        (
            "none",
            |h| set(h, 0xd, 0, |leaf| leaf.eax &= !0xe0),
            "CPUID 0xd.0:EAX[5]",
        ),
        (
            "none",
            |h| set(h, 0xd, 9, |leaf| leaf.ebx = 0x240),
            "XSAVE state component 9: the guest was shown 8 bytes at 2688, this host has 8 at 576",
        ),
        (
            "none",
            |h| set(h, 0xa, 0, |leaf| leaf.eax = 0x0730_0402),
            "performance counters: the guest was shown 8, this host has 4",
        ),
        (
            "none",
            |h| set(h, 0x4000_0001, 0, |leaf| leaf.eax &= !(1 << 5)),
            "paravirtual feature of bit 5",
        ),
        (
            "none",
            |h| change_msr(h, 0x48b, 0x0055_bfff_0000_0000),
            "IA32_VMX_PROCBASED_CTLS2",
        ),
        (
            "none",
            |h| change_msr(h, 0x10a, 0xeb),
            "IA32_ARCH_CAPABILITIES",
        ),
        ("none", |h| h.kvm.caps.pit2 = false, "KVM_CAP_PIT2"),
        (
            "none",
            |h| h.kvm.caps.nested_state = 0,
            "KVM_CAP_NESTED_STATE",
        ),
        ("none", |h| h.kvm.caps.max_vcpus = 1, "2 vCPUs"),
        (
            "windows",
            |h| h.kvm.caps.hyperv_synic2 = false,
            "hv-synic is not available: KVM does not support KVM_CAP_HYPERV_SYNIC2",
        ),
        (
            "windows",
            |h| h.kvm.caps.hyperv = false,
            "KVM_CAP_HYPERV is 0",
        ),
        (
            "nested",
            |h| hv_leaf(h, 0x4000_000a, |leaf| leaf.eax = 0x000a_0102),
            "hv-evmcs: the guest was shown versions 0x0101 of the enlightened VMCS, and this host's KVM \
             has 0x0102",
        ),
        (
            "nested",
            |h| hv_leaf(h, 0x4000_000a, |leaf| leaf.ebx = 0),
            "PERF_GLOBAL_CTRL",
        ),
        (
            "nested",
            |h| hv_leaf(h, 0x4000_000a, |leaf| leaf.eax = 0),
            "hv-evmcs is not available",
        ),
    ];
    for (list, change, expected) in cases {
        let found = refusals(CpuVendor::Intel, list, change);
        assert!(
            found.iter().any(|each| each.contains(expected)),
            "{expected}: {found:#?}"
        );
    }
}

fn set(host: &mut HostCaps, function: u32, index: u32, change: impl Fn(&mut CpuidEntry)) {
    let index = if function == 7 { 0 } else { index };
    for leaf in &mut host.kvm.cpuid {
        if (leaf.function, leaf.index) == (function, index) {
            change(leaf);
        }
    }
}

fn hv_leaf(host: &mut HostCaps, function: u32, change: impl Fn(&mut CpuidEntry)) {
    for leaf in host.kvm.hv_cpuid.iter_mut().flatten() {
        if leaf.function == function {
            change(leaf);
        }
    }
}

fn change_msr(host: &mut HostCaps, msr: u32, value: u64) {
    host.kvm.feature_msrs.insert(msr, value);
}

#[test]
fn everything_is_named_at_once() {
    let found = refusals(CpuVendor::Intel, "nested", |h| {
        f::AVX2.set(&mut h.kvm.cpuid, false);
        f::BMI2.set(&mut h.kvm.cpuid, false);
        change_msr(h, 0x48b, 0);
        h.kvm.caps.pit2 = false;
        h.kvm.caps.hyperv_tlbflush = false;
        h.kvm.caps.hyperv_send_ipi = false;
    });
    for expected in [
        "avx2",
        "bmi2",
        "PROCBASED_CTLS2",
        "KVM_CAP_PIT2",
        "hv-tlbflush is not available",
        "hv-ipi is not available",
    ] {
        assert!(found.iter().any(|f| f.contains(expected)), "{found:#?}");
    }
}

#[test]
fn another_vendors_processor_is_one_mismatch_and_not_fifty() {
    let found = refusals(CpuVendor::Intel, "windows", |h| *h = host(CpuVendor::Amd));
    assert_eq!(
        found,
        ["the guest was shown a processor of Intel, and this host's is AMD"]
    );
}

#[test]
fn what_cannot_leave_its_host_says_so() {
    let auto = refusals(
        CpuVendor::Intel,
        "windows,no-nonarch-coresharing=auto",
        |_| {},
    );
    assert!(auto.is_empty(), "auto came out as off: {auto:?}");
    let mut there = host(CpuVendor::Intel);
    hv_leaf(&mut there, 0x4000_0004, |leaf| leaf.eax |= 1 << 18);
    let config = config("windows,no-nonarch-coresharing=auto");
    let mismatches = promise(&config, &there).check(&config, &there).unwrap_err();
    assert!(
        matches!(
            mismatches[..],
            [Mismatch::Stays {
                id: Enlightenment::NoNonarchCoresharing,
                ..
            }]
        ),
        "{mismatches:?}"
    );
}

#[test]
fn an_enlightenment_of_the_future_is_named() {
    let (config, host) = (config("windows"), host(CpuVendor::Intel));
    let mut promise = promise(&config, &host);
    promise.hv.push("hv-from-the-future".to_owned());
    let mismatches = promise.check(&config, &host).unwrap_err();
    assert!(mismatches[0].to_string().contains("hv-from-the-future"));
}

proptest! {
    #[test]
    fn any_promise_is_kept_or_refused(
        cpuid: Vec<(u32, u32, [u32; 4])>,
        msrs: Vec<(u32, u64)>,
        hv in proptest::collection::vec("[a-z=,0-9 -]{0,20}", 0..6),
        xsave_size: u32,
        real: bool,
    ) {
        let (config, host) = (config("nested"), host(CpuVendor::Intel));
        let mut made = promise(&config, &host);
        let entry = |(function, index, [eax, ebx, ecx, edx]): (u32, u32, [u32; 4])| CpuidEntry {
            function, index, indexed: true, eax, ebx, ecx, edx,
        };
        let cpuid = cpuid.into_iter().map(entry);
        if real {
            made.cpuid.extend(cpuid);
        } else {
            made.cpuid = cpuid.collect();
        }
        made.feature_msrs.extend(msrs.into_iter().map(|(msr, value)| FeatureMsr { msr, value }));
        made.hv.extend(hv);
        made.xsave_size = xsave_size;
        let json = serde_json::to_string(&made).unwrap();
        let read: Promise = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &made);
        if let Ok(plan) = read.check(&config, &host) {
            plan.cpuid.for_vcpu(1);
        }
    }
}

/// Every accepted combination of interrupt controllers and Hyper-V gives Linux a clock: Hyper-V's, or KVM's.
#[test]
fn a_guest_that_linux_finds_no_hyperv_clock_in_has_kvms() {
    let kvm_leaf = |plan: &Plan| {
        let leaves = plan.cpuid.for_vcpu(0);
        let own = leaves
            .iter()
            .find(|leaf| crate::cpuid::is_kvm_signature(leaf));
        own.map(|leaf| leaf.function)
    };
    for vendor in [CpuVendor::Intel, CpuVendor::Amd] {
        let host = host(vendor);
        for (hv, leaf) in [
            ("none", Some(0x4000_0000)),
            ("relaxed", Some(0x4000_0100)),
            ("vpindex", Some(0x4000_0100)),
            ("vpindex,time", Some(0x4000_0100)),
            ("vpindex,frequencies", Some(0x4000_0100)),
            ("vpindex,time,frequencies", None),
            ("windows", None),
        ] {
            for irqchip in [Irqchip::Kernel, Irqchip::Split] {
                for model in [CpuModel::Host, CpuModel::X86_64V2] {
                    let mut config = config(hv);
                    config.irqchip = irqchip;
                    config.cpus.model = model;
                    config.kvm_leaves = None;
                    let plan = Plan::new(&config, &host).unwrap();
                    assert_eq!(kvm_leaf(&plan), leaf, "{vendor:?} {hv} {irqchip:?}");
                    config.kvm_leaves = Some(false);
                    let refused = Plan::new(&config, &host).err();
                    // A PIT is enough for a Linux to measure its clock, though a slow one.
                    let expected = leaf.is_some() && irqchip == Irqchip::Split;
                    assert_eq!(refused.is_some(), expected, "{vendor:?} {hv} {irqchip:?}");
                    if let Some(refused) = refused {
                        assert!(matches!(refused[..], [Impossible::NoClock]));
                    }
                }
            }
        }
    }
}

/// `--clock pause` is refused at the start where KVM cannot hold a guest's TSC back.
#[test]
fn a_pause_that_the_host_cannot_give_is_refused_at_the_start() {
    let mut config = config("none");
    config.time.downtime = Downtime::Pause;
    let mut host = host(CpuVendor::Amd);
    for offset in [None, Some(true)] {
        host.kvm.tsc_offset = offset;
        assert!(Plan::new(&config, &host).is_ok());
    }
    host.kvm.tsc_offset = Some(false);
    let refused = Plan::new(&config, &host).unwrap_err();
    assert!(matches!(
        refused[..],
        [Impossible::Time(TscRefusal::CannotPause)]
    ));
    config.time.downtime = Downtime::Continue;
    assert!(Plan::new(&config, &host).is_ok());
}

/// KVM's reason to inhibit AVIC that a VMM can remove.
#[test]
fn the_pit_does_not_reinject_for_a_guest_that_is_offered_avic() {
    let mut host = host(CpuVendor::Amd);
    let avic = [("avic".to_owned(), "Y".to_owned())];
    host.system
        .modules
        .insert("kvm_amd".to_owned(), avic.into());
    let plan = |hv| Plan::new(&config(hv), &host).unwrap();
    assert!(plan("nested,-evmcs,-avic").pit_reinjects());
    assert!(!plan("nested,-evmcs").pit_reinjects());
}
