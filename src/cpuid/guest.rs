//! Computes the CPUID of each vCPU from the host's CPUID and the VM's specification.

use thiserror::Error;

use super::compare::FEATURES;
use super::feature::{self as f, Feature};
use super::level::Level;
use super::{CpuidEntry, topology};
use crate::cpuid::CpuModel;
use crate::cpuid::CpuVendor;
use crate::cpuid::Reg;
use crate::cpuid::Topology;

/// The position of KVM's own leaves if Hyper-V's exist.
pub const KVM_LEAVES_BESIDE_HYPERV: u32 = 0x4000_0100;

/// The specification of the guest's processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSpec {
    /// The processor model.
    pub model: CpuModel,
    /// Packages, cores, threads; none of them 0.
    pub topology: Topology,
    /// Features of the model that are hidden, by name.
    pub without: Vec<&'static str>,
    /// Show VMX or SVM.
    pub nested: bool,
    /// Show an invariant TSC: a promise that its frequency never changes.
    pub invariant_tsc: bool,
    /// KVM_CAP_TSC_DEADLINE_TIMER, which KVM_GET_SUPPORTED_CPUID does not report.
    pub tsc_deadline: bool,
    /// The hypervisor's leaves ([`crate::hyperv::Resolved::cpuid_leaves`]).
    pub hyperv: Vec<CpuidEntry>,
    /// Show KVM's own leaves: at 0x40000100 beside Hyper-V's, at 0x40000000 without.
    pub kvm_leaves: bool,
}

/// Why the host cannot provide such a processor.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CpuidProblem {
    /// The host supports neither VMX nor SVM for guests.
    #[error(
        "the guest cannot be shown VMX or SVM (--nested): KVM does not support nesting on this host; load \
         {} with nested=1, on a processor with virtualization enabled",
        .vendor.module()
    )]
    DoesNotNest {
        /// The processor's vendor.
        vendor: CpuVendor,
    },
    /// The host is below the level.
    #[error("the host is below {level}: it does not have {}; use a lower level, or --cpu \
        host", names(.missing))]
    BelowLevel {
        /// The requested level.
        level: &'static str,
        /// The missing features.
        missing: Vec<Feature>,
    },
    /// The invariant TSC was requested, and the host has none.
    #[error(
        "the guest cannot be promised an invariant TSC: the host's is not (CPUID 0x80000007.EDX[8] is 0)"
    )]
    NoInvariantTsc,
}

fn names(features: &[Feature]) -> String {
    let names: Vec<&str> = features.iter().map(|f| f.name).collect();
    names.join(", ")
}

/// Hidden from every guest, though KVM could show them.
const HIDDEN: [Feature; 11] = [
    // Transactional memory: Hyper-V does not start on processors whose microcode aborts it, and it enables
    // side channels.
    f::RTM,
    f::HLE,
    f::TSXLDTRK,
    // Enclaves need memory sections that hypernest does not provide.
    f::SGX,
    f::SGX_LC,
    // KVM makes MWAIT a no-op: a guest that idles with it would spin.
    f::MONITOR,
    // KVM sets these as the guest sets CR4.
    f::OSXSAVE,
    f::OSPKE,
    // KVM keeps the shadow stack pointer outside MSRs and the XSAVE area (KVM_REG_GUEST_SSP), and it is not
    // saved.
    f::SHSTK,
    f::IBT,
    // KVM emulates it on every processor; Linux 6.12 does not, 7.3 does. A guest that saw it could not
    // migrate to an older kernel.
    f::GP_ON_USER_CPUID,
];

/// State components of XCR0 that guests see: x87, SSE, AVX, MPX's two, AVX-512's three, PKRU, AMX's two
/// (SDM vol. 1, "XSAVE-Supported Features and State-Component Bitmaps"). KVM_GET_XSAVE2 returns all of
/// them, and no supervisor state.
const STATE_COMPONENTS: u32 = 0b111 | 0b11 << 3 | 0b111 << 5 | 1 << 9 | 0b11 << 17;

/// The CPUID of a VM's vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCpuid {
    vendor: CpuVendor,
    topology: Topology,
    entries: Vec<CpuidEntry>,
}

impl GuestCpuid {
    /// Computes the guest's CPUID from KVM_GET_SUPPORTED_CPUID and the specification.
    ///
    /// # Errors
    /// All features that the host does not provide.
    pub fn new(host: &[CpuidEntry], spec: &CpuSpec) -> Result<Self, Vec<CpuidProblem>> {
        let vendor = vendor(host);
        let problems = problems(host, spec, vendor);
        if !problems.is_empty() {
            return Err(problems);
        }
        let hardware: Vec<CpuidEntry> = host
            .iter()
            .filter(|e| !(0x4000_0000..0x5000_0000).contains(&e.function))
            .copied()
            .collect();
        let mut entries = match Level::of(spec.model) {
            None => hardware,
            Some(level) => level.apply(&hardware, vendor),
        };
        hide_unknown(&mut entries);
        adjust(&mut entries, spec, vendor);
        for feature in f::ALL.iter().filter(|f| spec.without.contains(&f.name)) {
            f::hide(&mut entries, *feature);
        }
        entries.extend(&spec.hyperv);
        if spec.kvm_leaves {
            entries.extend(kvm_leaves(host, !spec.hyperv.is_empty()));
        }
        entries.sort_by_key(|e| (e.function, e.index));
        Ok(Self {
            vendor,
            topology: spec.topology,
            entries,
        })
    }

    /// The processor that a guest was shown on another host: vCPU 0's table there.
    pub fn promised(entries: Vec<CpuidEntry>, topology: Topology) -> Self {
        Self {
            vendor: vendor(&entries),
            topology,
            entries,
        }
    }

    /// The vendor of the guest's processor.
    pub fn vendor(&self) -> CpuVendor {
        self.vendor
    }

    /// The table of vCPU `index`, in creation order.
    pub fn for_vcpu(&self, index: u32) -> Vec<CpuidEntry> {
        let mut entries = self.entries.clone();
        topology::apply(&mut entries, self.topology, self.vendor, index);
        entries.sort_by_key(|e| (e.function, e.index));
        entries
    }

    /// The APIC id of vCPU `index`: its id for KVM_CREATE_VCPU.
    pub fn apic_id(&self, index: u32) -> u32 {
        topology::apic_id(self.topology, index)
    }
}

/// The vendor of the processor in `entries`.
pub(crate) fn vendor(entries: &[CpuidEntry]) -> CpuVendor {
    let mut id = [0; 12];
    if let Some(leaf) = entries.iter().find(|e| e.function == 0) {
        for (bytes, register) in id.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
    }
    CpuVendor::from_id(&id)
}

fn problems(host: &[CpuidEntry], spec: &CpuSpec, vendor: CpuVendor) -> Vec<CpuidProblem> {
    let mut problems = Vec::new();
    if spec.nested && !f::VMX.is_in(host) && !f::SVM.is_in(host) {
        problems.push(CpuidProblem::DoesNotNest { vendor });
    }
    if let Some(level) = Level::of(spec.model) {
        let missing: Vec<Feature> = level.required().filter(|f| !f.is_in(host)).collect();
        if !missing.is_empty() {
            problems.push(CpuidProblem::BelowLevel {
                level: level.name(),
                missing,
            });
        }
    }
    if spec.invariant_tsc && !f::INVTSC.is_in(host) {
        problems.push(CpuidProblem::NoInvariantTsc);
    }
    problems
}

/// Hides features without a name in the table. A newer KVM may have state for them that is not saved, and a
/// migration to an older one would fail for a feature that could be neither named nor masked.
fn hide_unknown(entries: &mut Vec<CpuidEntry>) {
    for entry in entries.iter_mut() {
        for (function, index, reg) in FEATURES {
            if (entry.function, entry.index) == (function, index) {
                *entry.reg_mut(reg) &= match (function, index, reg) {
                    (0xd, 0, Reg::Eax) => STATE_COMPONENTS,
                    // Intel PT's own features, all of which are part of its own state (RTIT MSRs).
                    (0x14, ..) => u32::MAX,
                    _ => f::named(function, index, reg),
                };
            }
        }
    }
    entries.retain(|e| {
        e.function != 0xd || e.index < 2 || STATE_COMPONENTS >> e.index.min(31) & 1 != 0
    });
}

fn adjust(entries: &mut Vec<CpuidEntry>, spec: &CpuSpec, vendor: CpuVendor) {
    for feature in HIDDEN {
        feature.set(entries, false);
    }
    f::HYPERVISOR.set(entries, true);
    f::TSC_DEADLINE.set(entries, spec.tsc_deadline);
    if !spec.invariant_tsc {
        f::INVTSC.set(entries, false);
    }
    if !spec.nested {
        f::VMX.set(entries, false);
        f::SVM.set(entries, false);
        // SVM's revision, ASIDs and features.
        entries.retain(|e| e.function != 0x8000_000a);
    }
    if vendor == CpuVendor::Amd {
        // An Intel MSR that KVM emulates everywhere: Windows does not expect it on AMD and stops.
        f::ARCH_CAPABILITIES.set(entries, false);
        // A bit of SPEC_CTRL: without the MSR, guests that set it (hvax64) get #GP.
        let spec_ctrl = [f::AMD_IBRS, f::AMD_STIBP, f::AMD_SSBD];
        if !spec_ctrl.iter().any(|f| f.is_in(entries)) {
            f::AMD_PSFD.set(entries, false);
        }
        // Intel's cache and topology leaves are reserved on AMD.
        entries.retain(|e| e.function != 4 && e.function != 0x1f);
    }
    // The leaf of enclaves is empty without SGX.
    entries.retain(|e| e.function != 0x12);
}

/// Whether `leaf` is the first of KVM's own leaves: "KVMKVMKVM\0\0\0" in EBX, ECX, EDX.
pub(crate) fn is_kvm_signature(leaf: &CpuidEntry) -> bool {
    (leaf.ebx, leaf.ecx, leaf.edx) == (0x4b4d_564b, 0x564b_4d56, 0x4d)
}

/// Whether KVM's leaves, as the host's KVM offers them, have its clock: bit 3, KVM_FEATURE_CLOCKSOURCE2.
pub fn has_kvmclock(host: &[CpuidEntry]) -> bool {
    let features = host.iter().find(|e| e.function == 0x4000_0001);
    features.is_some_and(|leaf| leaf.eax & 1 << 3 != 0)
}

/// KVM's signature and feature leaves. Guests search for them at 0x40000000 first, then in steps of 0x100.
fn kvm_leaves(host: &[CpuidEntry], beside_hyperv: bool) -> Vec<CpuidEntry> {
    /// PV end of interrupt, which shares its state with Hyper-V's VP assist page: the two must not be used
    /// together.
    const PV_EOI: u32 = 1 << 6;
    let base = if beside_hyperv {
        KVM_LEAVES_BESIDE_HYPERV
    } else {
        0x4000_0000
    };
    host.iter()
        .filter(|e| matches!(e.function, 0x4000_0000 | 0x4000_0001))
        .map(|e| {
            let mut entry = CpuidEntry {
                function: base | e.function & 1,
                ..*e
            };
            if e.function == 0x4000_0000 {
                entry.eax = base | 1;
            } else if beside_hyperv {
                entry.eax &= !PV_EOI;
            }
            entry
        })
        .collect()
}
