//! What must be done to a VM and its vCPUs for the enlightenments, as data: a thin layer carries it out.

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
    /// KVM_ENABLE_CAP(KVM_CAP_HYPERV_ENLIGHTENED_VMCS) with a pointer to a u16 in args\[0\]; it must come back as `version`.
    EnableEvmcs {
        /// What leaf 0x4000000A tells the guest.
        version: u16,
    },
    /// KVM_ENABLE_CAP(KVM_CAP_HYPERV_ENFORCE_CPUID) with args\[0\] = 1.
    EnforceCpuid,
    /// KVM_SET_CPUID2.
    SetCpuid,
    /// KVM_SET_MSRS.
    SetMsr(Msr, u64),
}

/// MSRs that come to hypernest instead of KVM: a range of KVM_X86_SET_MSR_FILTER, all of whose bits are 0 (denied) for
/// reads and writes. It takes KVM_CAP_X86_USER_SPACE_MSR with KVM_MSR_EXIT_REASON_FILTER to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFilterRange {
    /// The first.
    pub base: Msr,
    /// How many.
    pub count: u32,
}

/// What a system reset writes, in order: KVM resets none of it by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResetMsrs {
    /// On any one vCPU, before those of the vCPUs.
    pub vm: Vec<(Msr, u64)>,
    /// On every vCPU, after its LAPIC has been reset (that switches the VP assist page off behind its MSR's back).
    pub vcpu: Vec<(Msr, u64)>,
}

impl Resolved {
    /// What vCPU `vp` needs before it runs, in this order.
    ///
    /// Capabilities come before CPUID: KVM computes what the guest's VMX may do from both, and the enlightened VMCS must be
    /// known by then. MSRs come after CPUID, and VP_INDEX before any GSI route to a synthetic interrupt: KVM looks the vCPU
    /// up by it.
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
            // KVM switches the controller on with the capability; TLFS has it off at power-on.
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

    /// What a system reset puts back, besides what [`super::Partition::reset`] does to the MSRs that hypernest owns.
    pub fn reset_msrs(&self) -> ResetMsrs {
        let mut reset = ResetMsrs {
            vm: Vec::new(),
            // 1 and not 0, which KVM takes for a vCPU that is added and synchronizes with the others. Some Windows hang at
            // boot if the TSC goes on from a large value.
            vcpu: vec![(msr::IA32_TSC, 1)],
        };
        if !self.is_on() {
            return reset;
        }
        // KVM ignores a write to HYPERCALL while GUEST_OS_ID is 0, so it is given a value first.
        reset.vm.extend([
            (msr::GUEST_OS_ID, 1),
            (msr::HYPERCALL, 0),
            (msr::GUEST_OS_ID, 0),
        ]);
        for range in self.reachable.iter().flat_map(|id| id.row().msrs) {
            let Some(value) = range.reset else { continue };
            let list = match range.scope {
                Scope::Vm => &mut reset.vm,
                Scope::Vcpu => &mut reset.vcpu,
            };
            list.extend((range.first.0..=range.last.0).map(|number| (Msr(number), value)));
        }
        reset
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::intel;
    use super::super::{Profile, Request, resolve};
    use super::*;

    fn resolved(list: &str) -> Resolved {
        let request = Request::parse(list, Profile::Windows).unwrap();
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
    fn a_reset_puts_back_all_that_a_guest_can_have_changed() {
        assert_eq!(
            resolved("none").reset_msrs(),
            ResetMsrs {
                vm: vec![],
                vcpu: vec![(Msr(0x10), 1)],
            }
        );
        let reset = resolved("windows").reset_msrs();
        assert_eq!(
            reset.vm[..3],
            [
                (Msr(0x4000_0000), 1),
                (Msr(0x4000_0001), 0),
                (Msr(0x4000_0000), 0)
            ]
        );
        for number in [
            0x4000_0021,
            0x4000_0100,
            0x4000_0105,
            0x4000_0107,
            0x4000_0118,
        ] {
            assert!(reset.vm.contains(&(Msr(number), 0)), "{number:#x}");
        }
        for number in [
            0x4000_0073,
            0x4000_0080,
            0x4000_0082,
            0x4000_0083,
            0x4000_00b0,
            0x4000_00b7,
        ] {
            assert!(reset.vcpu.contains(&(Msr(number), 0)), "{number:#x}");
        }
        for number in 0x4000_0090..=0x4000_009f {
            assert!(reset.vcpu.contains(&(Msr(number), 0x1_0000)));
        }
        // The VP index stays; what cannot be written is not.
        for number in [
            0x4000_0002,
            0x4000_0003,
            0x4000_0020,
            0x4000_0081,
            0x4000_0084,
        ] {
            assert!(
                reset
                    .vm
                    .iter()
                    .chain(&reset.vcpu)
                    .all(|(m, _)| m.0 != number)
            );
        }
    }

    #[test]
    fn without_the_synic_its_registers_are_left_alone() {
        let reset = resolved("time").reset_msrs();
        assert!(
            reset
                .vcpu
                .iter()
                .all(|(m, _)| !(0x4000_0080..0x4000_00c0).contains(&m.0))
        );
        // KVM serves them whether or not they are announced.
        assert!(reset.vcpu.contains(&(Msr(0x4000_0073), 0)));
        let enforced = resolved("time,enforce-cpuid").reset_msrs();
        assert!(!enforced.vcpu.contains(&(Msr(0x4000_0073), 0)));
    }
}
