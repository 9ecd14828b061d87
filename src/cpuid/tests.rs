//! The CPUID of guests on an Intel and on an AMD host.

use proptest::prelude::*;

use super::feature::{self as f, Feature};
use super::{CpuSpec, CpuidEntry, CpuidProblem, GuestCpuid};
use crate::cpuid::CpuModel;
use crate::cpuid::CpuVendor;
use crate::cpuid::Topology;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        function,
        index,
        indexed: matches!(function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d),
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn kvm_leaves() -> [CpuidEntry; 2] {
    [
        leaf(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
    ]
}

/// An Intel server as KVM_GET_SUPPORTED_CPUID reports it, reduced to the relevant leaves.
pub(crate) fn intel() -> Vec<CpuidEntry> {
    let mut entries = vec![
        leaf(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(
            1,
            0,
            [0x0006_06a6, 0x0740_0800, 0xf7fa_3223 | 1 << 5, 0x1f8b_fbff],
        ),
        leaf(2, 0, [0x00fe_ff01, 0xf0, 0, 0]),
        leaf(4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
        leaf(4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
        leaf(4, 2, [0xfc00_4143, 0x04c0_003f, 0x3ff, 0]),
        leaf(4, 3, [0xfc0f_c163, 0x03c0_003f, 0xbfff, 4]),
        leaf(4, 4, [0; 4]),
        leaf(6, 0, [4, 0, 0, 0]),
        leaf(
            7,
            0,
            [2, 0xf1bf_27eb | 1 << 11 | 1 << 4, 0x0000_5f5e, 0xac01_0400],
        ),
        leaf(7, 1, [0, 0, 0, 0]),
        leaf(7, 2, [0, 0, 0, 0x37]),
        leaf(0xa, 0, [0x0830_0802, 0, 0, 0x603]),
        leaf(0xb, 0, [0; 4]),
        leaf(0xd, 0, [0x2e7, 0xa88, 0xa88, 0]),
        leaf(0xd, 1, [0xf, 0x9c0, 0x1800, 0]),
        leaf(0xd, 2, [0x100, 0x240, 0, 0]),
        leaf(0xd, 5, [0x40, 0x440, 0, 0]),
        leaf(0xd, 6, [0x200, 0x480, 0, 0]),
        leaf(0xd, 7, [0x400, 0x680, 0, 0]),
        leaf(0xd, 9, [8, 0xa80, 0, 0]),
        leaf(0x12, 0, [1, 0, 0, 0]),
        leaf(0x1f, 0, [0; 4]),
        leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        leaf(0x8000_0002, 0, [0x6574_6e49; 4]),
        leaf(0x8000_0006, 0, [0, 0, 0x0500_7040, 0]),
        leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, 0, [0x0034_3934, 0x0100_0000, 0, 0]),
    ];
    entries.extend(kvm_leaves());
    entries
}

/// An AMD server.
pub(crate) fn amd() -> Vec<CpuidEntry> {
    let mut entries = vec![
        leaf(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(1, 0, [0x0080_0f12, 0x0008_0800, 0xf7f8_3203, 0x178b_fbff]),
        leaf(6, 0, [4, 0, 0, 0]),
        leaf(7, 0, [0, 0x209c_01ab, 0, 0x2000_0000]),
        leaf(0xd, 0, [7, 0x340, 0x340, 0]),
        leaf(0xd, 1, [0xf, 0x340, 0, 0]),
        leaf(0xd, 2, [0x100, 0x240, 0, 0]),
        leaf(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0x0080_0f12, 0, 0x0040_01f7, 0x2fd3_fbff]),
        leaf(0x8000_0005, 0, [0, 0, 0x2008_0140, 0x4004_0140]),
        leaf(0x8000_0007, 0, [0; 4]),
        leaf(0x8000_0008, 0, [0x3030, 0x1000_1000, 0x6007, 0]),
        leaf(0x8000_000a, 0, [1, 8, 0, 9]),
        leaf(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, 1, [0x0001_c163, 0x03c0_003f, 0x1fff, 1]),
        leaf(0x8000_001d, 2, [0; 4]),
        leaf(0x8000_001e, 0, [0; 4]),
        leaf(0x8000_0021, 0, [0x45, 0, 0, 0]),
    ];
    entries.extend(kvm_leaves());
    entries
}

fn spec(model: CpuModel, nested: bool) -> CpuSpec {
    CpuSpec {
        model,
        without: Vec::new(),
        topology: Topology {
            sockets: 2,
            cores: 3,
            threads: 2,
        },
        nested,
        invariant_tsc: false,
        tsc_deadline: true,
        hyperv: Vec::new(),
        kvm_leaves: false,
    }
}

fn guest(host: &[CpuidEntry], spec: &CpuSpec, vcpu: u32) -> Vec<CpuidEntry> {
    GuestCpuid::new(host, spec).unwrap().for_vcpu(vcpu)
}

fn get(entries: &[CpuidEntry], function: u32, index: u32) -> [u32; 4] {
    let entry = entries
        .iter()
        .find(|e| e.function == function && e.index == index)
        .unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn has(entries: &[CpuidEntry], function: u32) -> bool {
    entries.iter().any(|e| e.function == function)
}

fn shown(entries: &[CpuidEntry], features: &[Feature]) -> Vec<&'static str> {
    features
        .iter()
        .filter(|f| f.is_in(entries))
        .map(|f| f.name)
        .collect()
}

#[test]
fn transactional_memory_enclaves_and_mwait_are_hidden() {
    let hidden = [f::RTM, f::HLE, f::TSXLDTRK, f::SGX, f::SGX_LC, f::MONITOR];
    assert!(!shown(&intel(), &hidden).is_empty());
    for model in [CpuModel::Host, CpuModel::X86_64V3] {
        let guest = guest(&intel(), &spec(model, true), 0);
        assert_eq!(shown(&guest, &hidden), [""; 0]);
        assert!(!has(&guest, 0x12));
    }
}

#[test]
fn virtualization_is_shown_only_when_nested() {
    for model in [CpuModel::Host, CpuModel::X86_64V2, CpuModel::X86_64V3] {
        let plain = guest(&intel(), &spec(model, false), 0);
        assert!(!f::VMX.is_in(&plain) && f::HYPERVISOR.is_in(&plain));
        assert!(f::VMX.is_in(&guest(&intel(), &spec(model, true), 0)));
        let plain = guest(&amd(), &spec(model, false), 0);
        assert!(!f::SVM.is_in(&plain) && !has(&plain, 0x8000_000a));
        let nested = guest(&amd(), &spec(model, true), 0);
        assert!(f::SVM.is_in(&nested));
        assert_eq!(get(&nested, 0x8000_000a, 0), [1, 8, 0, 9]);
    }
}

#[test]
fn topology_on_intel() {
    // 2 packages of 3 cores of 2 threads: ids take 1 + 2 bits below the package.
    let table = GuestCpuid::new(&intel(), &spec(CpuModel::Host, false)).unwrap();
    assert_eq!(table.apic_id(7), 9);
    let guest = table.for_vcpu(7);
    // Second thread of the first core of the second package.
    assert_eq!(get(&guest, 1, 0)[1], 0x0908_0800);
    assert!(f::HTT.is_in(&guest) && !f::CMP_LEGACY.is_in(&guest));
    for function in [0xb, 0x1f] {
        assert_eq!(get(&guest, function, 0), [1, 2, 0x100, 9]);
        assert_eq!(get(&guest, function, 1), [3, 6, 0x201, 9]);
        assert_eq!(get(&guest, function, 2), [0, 0, 2, 9]);
    }
    // L1 and L2 by the 2 threads of a core, L3 by the 8 ids of a package with 4 ids for cores.
    let caches: Vec<u32> = (0..5).map(|i| get(&guest, 4, i)[0]).collect();
    assert_eq!(
        caches,
        [0x0c00_4121, 0x0c00_4122, 0x0c00_4143, 0x0c01_c163, 0]
    );
}

#[test]
fn topology_on_amd() {
    let guest = guest(&amd(), &spec(CpuModel::Host, false), 7);
    assert_eq!(get(&guest, 1, 0)[1], 0x0908_0800);
    assert!(f::HTT.is_in(&guest) && f::CMP_LEGACY.is_in(&guest));
    // 3 bits of id below the package, 6 threads in it.
    assert_eq!(get(&guest, 0x8000_0008, 0)[2], 0x3005);
    // Core 4 (package 1, core 0, in 2 bits), 2 threads; node 1.
    assert_eq!(get(&guest, 0x8000_001e, 0), [9, 0x104, 1, 0]);
    assert_eq!(get(&guest, 0x8000_001d, 0)[0], 0x0000_4121);
    assert_eq!(get(&guest, 0x8000_001d, 1)[0], 0x0001_4163);
    assert_eq!(get(&guest, 0xd, 0)[0], 7);
    // The highest basic leaf is 0xd.
    assert_eq!(get(&guest, 0xb, 0), [1, 2, 0x100, 9]);
}

#[test]
fn single_vcpu_is_not_a_hyperthread() {
    let mut spec = spec(CpuModel::Host, false);
    spec.topology = Topology {
        sockets: 1,
        cores: 1,
        threads: 1,
    };
    for host in [intel(), amd()] {
        let guest = guest(&host, &spec, 0);
        assert_eq!(get(&guest, 1, 0)[1] >> 16, 1);
        assert_eq!(shown(&guest, &[f::HTT, f::CMP_LEGACY]), [""; 0]);
        assert_eq!(get(&guest, 0xb, 0), [0, 1, 0x100, 0]);
        assert_eq!(get(&guest, 0xb, 1), [0, 1, 0x201, 0]);
    }
}

#[test]
fn amd_guests_see_no_intel_msr_and_no_stray_psfd() {
    let guest = guest(&amd(), &spec(CpuModel::Host, true), 0);
    assert!(f::ARCH_CAPABILITIES.is_in(&amd()) && f::AMD_PSFD.is_in(&amd()));
    assert_eq!(shown(&guest, &[f::ARCH_CAPABILITIES, f::AMD_PSFD]), [""; 0]);
    let intel = self::guest(&intel(), &spec(CpuModel::Host, true), 0);
    assert!(f::ARCH_CAPABILITIES.is_in(&intel));
}

#[test]
fn clocks_are_as_asked() {
    let mut spec = spec(CpuModel::Host, false);
    let plain = guest(&intel(), &spec, 0);
    assert!(f::TSC_DEADLINE.is_in(&plain) && !f::INVTSC.is_in(&plain));
    spec.invariant_tsc = true;
    spec.tsc_deadline = false;
    let other = guest(&intel(), &spec, 0);
    assert!(!f::TSC_DEADLINE.is_in(&other) && f::INVTSC.is_in(&other));
    assert_eq!(
        GuestCpuid::new(&amd(), &spec),
        Err(vec![CpuidProblem::NoInvariantTsc])
    );
}

#[test]
fn kvm_leaves_are_shown_only_on_request_and_beside_hyperv() {
    let mut spec = spec(CpuModel::Host, false);
    let range = 0x4000_0000..0x4fff_ffff;
    let leaves = |spec: &CpuSpec| -> Vec<u32> {
        guest(&intel(), spec, 0)
            .iter()
            .map(|e| e.function)
            .filter(|f| range.contains(f))
            .collect()
    };
    assert!(leaves(&spec).is_empty());
    spec.kvm_leaves = true;
    assert_eq!(leaves(&spec), [0x4000_0000, 0x4000_0001]);
    spec.hyperv = vec![leaf(0x4000_0000, 0, [0x4000_0001, 0, 0, 0])];
    assert_eq!(leaves(&spec), [0x4000_0000, 0x4000_0100, 0x4000_0101]);
    let both = guest(&intel(), &spec, 0);
    assert_eq!(get(&both, 0x4000_0100, 0)[0], 0x4000_0101);
    assert_eq!(get(&both, 0x4000_0101, 0)[0], 0x0100_7efb & !(1 << 6));
}

#[test]
fn level_is_the_same_on_any_host_that_supports_it() {
    let guest = guest(&intel(), &spec(CpuModel::X86_64V3, false), 0);
    assert_eq!(get(&guest, 0, 0)[0], 0xd);
    assert_eq!(get(&guest, 1, 0)[0], 0x0003_06f2);
    assert_eq!(get(&guest, 0xd, 0), [7, 0x340, 0x340, 0]);
    assert!(!guest.iter().any(|e| e.function == 0xd && e.index > 2));
    assert_eq!(
        shown(&guest, &[f::AVX2, f::BMI2, f::AVX512F, f::AVX512VL]),
        ["avx2", "bmi2"]
    );
    for function in [0xa, 0x14, 0x1f] {
        assert!(!has(&guest, function), "{function:#x}");
    }
    assert_eq!(get(&guest, 0x8000_0008, 0)[0], 0x302e);
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|function| get(&guest, function, 0))
        .flat_map(u32::to_le_bytes)
        .take_while(|b| *b != 0)
        .collect();
    assert_eq!(brand, b"hypernest x86-64-v3");

    let v2 = self::guest(&intel(), &spec(CpuModel::X86_64V2, false), 0);
    assert!(!has(&v2, 0xd));
    assert_eq!(shown(&v2, &[f::SSE4_2, f::XSAVE, f::AVX]), ["sse4_2"]);
    let v4 = self::guest(&intel(), &spec(CpuModel::X86_64V4, false), 0);
    assert_eq!(get(&v4, 0xd, 0), [0xe7, 0xa80, 0xa80, 0]);
    assert!(f::AVX512VL.is_in(&v4) && f::MD_CLEAR.is_in(&v4));

    let amd = self::guest(&amd(), &spec(CpuModel::X86_64V3, true), 0);
    assert_eq!(get(&amd, 0x8000_0001, 0)[0], 0x0080_0f12);
    assert!(has(&amd, 0x8000_001d) && !has(&amd, 4));
}

#[test]
fn all_missing_features_are_reported_at_once() {
    let mut host = amd();
    f::SVM.set(&mut host, false);
    let problems = GuestCpuid::new(&host, &spec(CpuModel::X86_64V4, true)).unwrap_err();
    assert_eq!(
        problems,
        [
            CpuidProblem::DoesNotNest {
                vendor: CpuVendor::Amd
            },
            CpuidProblem::BelowLevel {
                level: "x86-64-v4",
                missing: vec![
                    f::AVX512F,
                    f::AVX512DQ,
                    f::AVX512CD,
                    f::AVX512BW,
                    f::AVX512VL
                ]
            }
        ]
    );
    assert!(problems[1].to_string().contains("avx512f, avx512dq"));
}

#[test]
fn entries_round_trip_in_the_form_of_kvm() {
    for entry in intel() {
        let kvm = kvm_bindings::kvm_cpuid_entry2::from(&entry);
        assert_eq!(CpuidEntry::from(&kvm), entry);
    }
}

proptest! {
    #[test]
    fn any_host_table_is_accepted(
        raw in proptest::collection::vec(
            (prop_oneof![0u32..0x20, 0x4000_0000u32..0x4000_0003, 0x8000_0000u32..0x8000_0022], 0u32..40,
                any::<[u32; 4]>()),
            0..60,
        ),
        model in 0..4usize,
        sockets in 1u32..6,
        cores in 1u32..6,
        threads in 1u32..3,
    ) {
        let mut host: Vec<CpuidEntry> = raw.into_iter().map(|(f, i, r)| leaf(f, i, r)).collect();
        let models = [CpuModel::Host, CpuModel::X86_64V2, CpuModel::X86_64V3, CpuModel::X86_64V4];
        let mut spec = spec(models[model], false);
        spec.topology = Topology { sockets, cores, threads };
        if GuestCpuid::new(&host, &spec).is_err() {
            host.extend(intel());
        }
        if let Ok(guest) = GuestCpuid::new(&host, &spec) {
            let entries = guest.for_vcpu(sockets * cores * threads - 1);
            prop_assert!(entries.is_sorted_by_key(|e| (e.function, e.index)));
        }
    }
}

#[test]
fn unnamed_and_masked_features_are_hidden() {
    let mut host = amd();
    let mut set = |function, index, change: fn(&mut CpuidEntry)| {
        let leaf = host.iter_mut();
        change(
            leaf.into_iter()
                .find(|e| (e.function, e.index) == (function, index))
                .unwrap(),
        );
    };
    // Bits without a name, one that KVM emulates, a state component without a name.
    set(0x8000_0021, 0, |leaf| leaf.eax = 0xffff_ffff);
    set(7, 0, |leaf| leaf.ecx = 1 << 7 | 1 << 31);
    set(0xd, 0, |leaf| leaf.eax = 7 | 1 << 19);
    host.push(leaf(0xd, 19, [0x80, 0x340, 0, 0]));
    let spec = CpuSpec {
        without: vec!["lfence_rdtsc", "fpu"],
        ..spec(CpuModel::Host, true)
    };
    let guest = guest(&host, &spec, 0);
    let [eax, ..] = get(&guest, 0x8000_0021, 0);
    assert_eq!(eax & (1 << 2 | 1 << 17 | 1 << 12), 0, "{eax:#x}");
    assert_ne!(eax & 1 << 6, 0, "{eax:#x}");
    assert_eq!(get(&guest, 7, 0)[2], 0);
    assert_eq!(get(&guest, 0xd, 0)[0], 7);
    assert!(!guest.iter().any(|e| (e.function, e.index) == (0xd, 19)));
    // AMD repeats fpu.
    assert_eq!(get(&guest, 1, 0)[3] & 1, 0);
    assert_eq!(get(&guest, 0x8000_0001, 0)[3] & 1, 0);
}
