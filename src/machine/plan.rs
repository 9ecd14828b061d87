//! Configuration and host -> the guest-visible hardware. Pure: every refusal happens here, before anything is
//! created.

use super::error::Impossible;
use super::pci_devices::CpuFacts;
use crate::config::{Irqchip, VmConfig};
use crate::cpuid::{CpuSpec, GuestCpuid, address_width, has_kvmclock, msr_feature};
use crate::hyperv::{self, HostHv, Resolved};
use crate::kvm::dirty_ring;
use crate::kvm::host::HostCaps;
use crate::kvm::msr::MsrRange;
use crate::layout::AddressWidth;
use crate::time::HostTsc;
use crate::units::{Msr, TscKhz};

/// The data from which vCPUs are created.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The enlightenments that are on.
    pub hyperv: Resolved,
    /// The guest's CPUID.
    pub cpuid: GuestCpuid,
    /// KVM's feature MSRs.
    pub feature_msrs: Vec<(Msr, u64)>,
    /// The size of `KVM_GET_XSAVE2`'s buffer, in bytes.
    pub xsave_size: u32,
    /// Whether dirty rings are reliable here.
    pub dirty_rings: bool,
    /// The frequency with which the vCPUs are created; `None` means the host's.
    pub tsc_khz: Option<TscKhz>,
}

impl Plan {
    /// The plan for `config` on this host, or all requirements that the host does not fulfil.
    pub fn new(config: &VmConfig, host: &HostCaps) -> Result<Self, Vec<Impossible>> {
        let nested = config.cpus.nested;
        let hyperv = hyperv::resolve(&config.hv, &HostHv::from(host), nested);
        let spec = CpuSpec {
            model: config.cpus.model,
            without: config.cpus.without.clone(),
            topology: config.cpus.topology,
            nested,
            invariant_tsc: hyperv
                .as_ref()
                .is_ok_and(|r| r.has(hyperv::Enlightenment::TscInvariant)),
            tsc_deadline: host.kvm.caps.tsc_deadline_timer,
            hyperv: hyperv
                .as_ref()
                .map(Resolved::cpuid_leaves)
                .unwrap_or_default(),
            kvm_leaves: false,
        };
        let of_hyperv = hyperv.as_ref().map_or(true, Resolved::is_a_clock_for_linux);
        let spec = CpuSpec {
            kvm_leaves: config.kvm_leaves.unwrap_or(!of_hyperv),
            ..spec
        };
        let kvmclock = spec.kvm_leaves && has_kvmclock(&host.kvm.cpuid);
        // Without a PIT, Linux can measure neither its TSC nor its APIC timer, and waits forever for a tick.
        let no_clock = config.irqchip == Irqchip::Split && !of_hyperv && !kvmclock;
        let feature_msrs = host.kvm.feature_msrs.iter();
        let mut feature_msrs: Vec<_> = feature_msrs
            .map(|(&msr, &value)| (Msr(msr), value))
            .collect();
        msr_feature::hide(&mut feature_msrs, &config.cpus.without);
        let tsc_khz = config.time.khz;
        let host_tsc = HostTsc::from(host);
        let tsc = tsc_khz
            .map_or(Ok(()), |khz| host_tsc.runs_at(khz))
            .and_then(|()| host_tsc.can(config.time.downtime));
        match (hyperv, GuestCpuid::new(&host.kvm.cpuid, &spec), tsc) {
            (Ok(hyperv), Ok(cpuid), Ok(())) if !no_clock => Ok(Self {
                tsc_khz,
                hyperv,
                cpuid,
                xsave_size: xsave_size(host),
                dirty_rings: dirty_ring::supported_on_host(&host.system.cpu),
                feature_msrs,
            }),
            (hyperv, cpuid, tsc) => Err(hyperv
                .err()
                .into_iter()
                .flatten()
                .map(Impossible::Hyperv)
                .chain(cpuid.err().into_iter().flatten().map(Impossible::Cpuid))
                .chain(tsc.err().map(Impossible::Time))
                .chain(no_clock.then_some(Impossible::NoClock))
                .collect()),
        }
    }

    /// The guest-visible width of physical addresses.
    pub fn address_width(&self) -> AddressWidth {
        address_width(&self.cpuid.for_vcpu(0), self.cpuid.vendor())
    }

    /// Whether the guest sees VMX, and SVM: CPUID 1.ECX\[5\], 0x80000001.ECX\[2\].
    pub fn nesting(&self) -> (bool, bool) {
        let leaves = self.cpuid.for_vcpu(0);
        let has = |function, bit: u32| {
            let leaf = leaves.iter().find(|e| e.function == function);
            leaf.is_some_and(|e| e.ecx >> bit & 1 != 0)
        };
        (has(1, 5), has(0x8000_0001, 2))
    }

    /// What tables say of the vCPUs.
    pub(super) fn cpu_facts(&self) -> CpuFacts {
        CpuFacts {
            address_width: self.address_width(),
            vmx: self.nesting().0,
        }
    }

    /// Whether the PIT re-injects ticks that the guest has missed: KVM inhibits AVIC meanwhile
    /// (APICV_INHIBIT_REASON_PIT_REINJ), and hv-avic offers a guest with AVIC a replacement.
    pub fn pit_reinjects(&self) -> bool {
        !self.hyperv.has(hyperv::Enlightenment::Avic)
    }

    /// The MSRs that exit to user space.
    pub fn user_msrs(&self) -> Vec<MsrRange> {
        self.hyperv
            .msr_filter()
            .into_iter()
            .map(|range| MsrRange {
                first: range.base,
                count: range.count,
            })
            .collect()
    }
}

/// KVM_GET_XSAVE's buffer, or a larger one if KVM_GET_XSAVE2 requires it.
pub(super) fn xsave_size(host: &HostCaps) -> u32 {
    host.kvm.caps.xsave2.max(4096)
}
