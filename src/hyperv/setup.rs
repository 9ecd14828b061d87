//! The steps for a VM and its vCPUs to enable the enlightenments, as data: a thin layer carries them out.

use super::enlightenment::{Enlightenment as E, Scope};
use super::msr;
use super::partition::OWNED;
use super::resolve::Resolved;
use crate::units::{Msr, VpIndex};

/// One step of a vCPU's creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuSetup {
    /// KVM_ENABLE_CAP(KVM_CAP_HYPERV_SYNIC2), no arguments. Needs the LAPIC in KVM.
    EnableSynic,
    /// KVM_ENABLE_CAP(KVM_CAP_HYPERV_ENLIGHTENED_VMCS) with a pointer to a u16 in args\[0\]; KVM must
    /// return `version` in it.
    EnableEvmcs {
        /// The version in leaf 0x4000000A.
        version: u16,
    },
    /// KVM_ENABLE_CAP(KVM_CAP_HYPERV_ENFORCE_CPUID) with args\[0\] = 1.
    EnforceCpuid,
    /// KVM_SET_CPUID2.
    SetCpuid,
    /// KVM_SET_MSRS.
    SetMsr(Msr, u64),
}

/// MSRs that exit to hypernest instead of KVM: a range of KVM_X86_SET_MSR_FILTER with all bits 0 (denied)
/// for reads and writes. Requires KVM_CAP_X86_USER_SPACE_MSR with KVM_MSR_EXIT_REASON_FILTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFilterRange {
    /// The first MSR.
    pub base: Msr,
    /// The number of MSRs.
    pub count: u32,
}

/// The synthetic MSRs in KVM that are state, in the order in which a restore writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedMsrs {
    /// MSRs of the VM, accessed on any one vCPU.
    pub vm: Vec<Msr>,
    /// MSRs of every vCPU.
    pub vcpu: Vec<Msr>,
}

impl SavedMsrs {
    /// The writes that restore the values `saved` of the VM's MSRs. KVM drops a write to HYPERCALL while
    /// GUEST_OS_ID is 0, and a guest may have set it back to 0 since, so another value is written first.
    pub fn writes(saved: &[(Msr, u64)]) -> Vec<(Msr, u64)> {
        let of = |msr: Msr| saved.iter().copied().find(|(m, _)| *m == msr);
        let first = [msr::GUEST_OS_ID, msr::HYPERCALL];
        let rest = saved.iter().copied().filter(|(m, _)| !first.contains(m));
        [
            of(msr::HYPERCALL).map(|_| (msr::GUEST_OS_ID, 1)),
            of(msr::HYPERCALL),
            of(msr::GUEST_OS_ID),
        ]
        .into_iter()
        .flatten()
        .chain(rest)
        .collect()
    }
}

impl Resolved {
    /// The steps for vCPU `vp` before it runs, in this order.
    ///
    /// Capabilities come before CPUID: KVM computes the guest's VMX controls from both, so the enlightened
    /// VMCS must be enabled by then. MSRs come after CPUID, and VP_INDEX before any GSI route to a synthetic
    /// interrupt: KVM finds the vCPU by it.
    pub fn vcpu_setup(&self, vp: VpIndex) -> Vec<VcpuSetup> {
        let synic = self.has(E::Synic);
        [
            synic.then_some(VcpuSetup::EnableSynic),
            self.has(E::Evmcs).then_some(VcpuSetup::EnableEvmcs {
                version: self.evmcs_version,
            }),
            self.has(E::EnforceCpuid).then_some(VcpuSetup::EnforceCpuid),
            Some(VcpuSetup::SetCpuid),
            self.has(E::VpIndex)
                .then_some(VcpuSetup::SetMsr(msr::VP_INDEX, u64::from(vp.0))),
            // KVM enables the controller with the capability; by the TLFS it is off at power-on.
            synic.then_some(VcpuSetup::SetMsr(msr::SCONTROL, 0)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The MSRs that hypernest owns in this VM.
    pub fn msr_filter(&self) -> Vec<MsrFilterRange> {
        OWNED
            .into_iter()
            .filter(|id| self.has(*id))
            .flat_map(|id| id.row().msrs)
            .map(|range| MsrFilterRange {
                base: range.first,
                count: range.last.0 - range.first.0 + 1,
            })
            .collect()
    }

    /// The MSRs in KVM that are saved with a VM. Some are owned by hypernest ([`super::Partition`]), but
    /// KVM's copy has an effect.
    pub fn saved_msrs(&self) -> SavedMsrs {
        let mut saved = SavedMsrs::default();
        if !self.is_on() {
            return saved;
        }
        saved.vm.extend([msr::GUEST_OS_ID, msr::HYPERCALL]);
        for range in self.reachable.iter().flat_map(|id| id.row().msrs) {
            let list = match range.scope {
                Scope::Vm => &mut saved.vm,
                Scope::Vcpu => &mut saved.vcpu,
            };
            if range.state {
                list.extend((range.first.0..=range.last.0).map(Msr));
            }
        }
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::intel;
    use super::super::{EnlightenmentRequest, Profile, resolve};
    use super::*;

    fn resolved(list: &str) -> Resolved {
        let request = EnlightenmentRequest::parse(list, Profile::Windows).unwrap();
        resolve(&request, &intel(), true).unwrap()
    }

    #[test]
    fn capabilities_come_before_cpuid_and_msrs_after() {
        assert_eq!(
            resolved("nested,enforce-cpuid").vcpu_setup(VpIndex(3)),
            [
                VcpuSetup::EnableSynic,
                VcpuSetup::EnableEvmcs { version: 0x0101 },
                VcpuSetup::EnforceCpuid,
                VcpuSetup::SetCpuid,
                VcpuSetup::SetMsr(msr::VP_INDEX, 3),
                VcpuSetup::SetMsr(msr::SCONTROL, 0),
            ]
        );
        assert_eq!(
            resolved("none").vcpu_setup(VpIndex(0)),
            [VcpuSetup::SetCpuid]
        );
        assert_eq!(
            resolved("time").vcpu_setup(VpIndex(0)),
            [VcpuSetup::SetCpuid]
        );
    }

    #[test]
    fn the_filter_covers_what_hypernest_owns() {
        let (crash, reenlightenment) = (
            MsrFilterRange {
                base: Msr(0x4000_0100),
                count: 6,
            },
            MsrFilterRange {
                base: Msr(0x4000_0106),
                count: 3,
            },
        );
        assert_eq!(resolved("none").msr_filter(), []);
        assert_eq!(resolved("windows").msr_filter(), [crash]);
        assert_eq!(resolved("nested").msr_filter(), [crash, reenlightenment]);
        assert_eq!(resolved("reenlightenment").msr_filter(), [reenlightenment]);
    }

    #[test]
    fn saved_msrs_include_all_that_a_guest_can_change() {
        assert_eq!(resolved("none").saved_msrs(), SavedMsrs::default());
        let saved = resolved("windows").saved_msrs();
        assert_eq!(saved.vm[..2], [msr::GUEST_OS_ID, msr::HYPERCALL]);
        for number in [
            0x4000_0021,
            0x4000_0100,
            0x4000_0105,
            0x4000_0107,
            0x4000_0118,
        ] {
            assert!(saved.vm.contains(&Msr(number)), "{number:#x}");
        }
        let synic = [0x4000_0073, 0x4000_0010].into_iter();
        for number in synic.chain(0x4000_0080..=0x4000_0083) {
            assert!(saved.vcpu.contains(&Msr(number)), "{number:#x}");
        }
        for number in (0x4000_0090..=0x4000_009f).chain(0x4000_00b0..=0x4000_00b7) {
            assert!(saved.vcpu.contains(&Msr(number)), "{number:#x}");
        }
        // The VP index is set at creation; the others are clocks and commands.
        for number in [
            0x4000_0002,
            0x4000_0003,
            0x4000_0020,
            0x4000_0022,
            0x4000_0070,
            0x4000_0084,
        ] {
            assert!(
                saved.vm.iter().chain(&saved.vcpu).all(|m| m.0 != number),
                "{number:#x}"
            );
        }
        let place = |number| saved.vcpu.iter().position(|m| m.0 == number);
        assert!(place(0x4000_009f) < place(0x4000_00b0));
        assert!(place(0x4000_00b6) < place(0x4000_00b7));
    }

    #[test]
    fn registers_of_the_synic_are_not_set_without_it() {
        let saved = resolved("time").saved_msrs();
        assert!(
            saved
                .vcpu
                .iter()
                .all(|m| !(0x4000_0080..0x4000_00c0).contains(&m.0))
        );
        // KVM provides them whether or not they are announced.
        assert!(saved.vcpu.contains(&Msr(0x4000_0073)));
        let enforced = resolved("time,enforce-cpuid").saved_msrs();
        assert!(!enforced.vcpu.contains(&Msr(0x4000_0073)));
    }

    #[test]
    fn hypercall_page_is_restored_for_any_guest_id() {
        let (id, page, crash) = (msr::GUEST_OS_ID, msr::HYPERCALL, msr::CRASH_P0);
        assert_eq!(
            SavedMsrs::writes(&[(id, 0), (page, 0x1000), (crash, 5)]),
            [(id, 1), (page, 0x1000), (id, 0), (crash, 5)]
        );
        assert_eq!(SavedMsrs::writes(&[]), []);
    }
}
