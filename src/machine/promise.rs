//! The guest-visible hardware that a guest was promised when it was created, and whether another host can
//! provide it.
//!
//! A guest reads the properties of its processor and its hypervisor once and relies on them permanently. So a
//! saved VM contains them: its CPUID, its feature MSRs, its enlightenments one by one. A destination must
//! provide the same again, or it refuses the VM, and [`Promise::check`] names each mismatch. ([`crate::time`]
//! handles the TSC's frequency.)

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::plan::{self, Plan};
use crate::config::{Irqchip, VmConfig};
use crate::cpuid::CpuVendor;
use crate::cpuid::feature as f;
use crate::cpuid::msrs::{self, MsrLack};
use crate::cpuid::{self, CpuLack, CpuidEntry, GuestCpuid, feature_msrs};
use crate::hyperv::{
    self, Enlightenment, EnlightenmentRequest, EnlightenmentSet, HostHv, Profile, ToldEvmcs,
};
use crate::kvm::dirty_ring;
use crate::kvm::host::HostCaps;
use crate::units::Msr;

/// The name of its section.
pub const SECTION: &str = "promise";
/// The version of that section.
pub const VERSION: u32 = 1;

/// The guest-visible hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The enlightenments that are on, each by its name and with its value; `none` alone if none is.
    pub hv: Vec<String>,
    /// CPUID of vCPU 0.
    pub cpuid: Vec<CpuidEntry>,
    /// The feature MSRs that were set to the values of the host's KVM.
    pub feature_msrs: Vec<FeatureMsr>,
    /// The size that `KVM_GET_XSAVE2` returned, in bytes.
    pub xsave_size: u32,
}

/// A feature MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureMsr {
    /// Its number.
    pub msr: u32,
    /// Its value.
    pub value: u64,
}

/// A promise that this host cannot keep.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// Another vendor's processor.
    #[error("the guest was shown a processor of {promised}, and this host's is {host}")]
    Vendor {
        /// The guest's.
        promised: CpuVendor,
        /// This host's.
        host: CpuVendor,
    },
    /// A missing feature of the processor.
    #[error("this host lacks: {0}")]
    Cpu(CpuLack),
    /// A missing feature MSR.
    #[error("this host's KVM cannot provide {0}")]
    Msr(MsrLack),
    /// A missing paravirtual feature of KVM.
    #[error("this host's KVM lacks its paravirtual feature of bit {bit} (CPUID 0x40000001.EAX)")]
    KvmFeature {
        /// The bit in EAX.
        bit: u8,
    },
    /// A missing enlightenment.
    #[error("{0}")]
    Hyperv(hyperv::EnlightenmentProblem),
    /// An unknown enlightenment.
    #[error("enlightenments that this version of hypernest does not support: {0}")]
    Unknown(String),
    /// An enlightenment that excludes migration.
    #[error("{id} excludes migration: {why}")]
    Stays {
        /// The enlightenment.
        id: Enlightenment,
        /// The reason.
        why: &'static str,
    },
    /// Another version of the enlightened VMCS.
    #[error(
        "hv-evmcs: the guest was shown versions {:#06x} of the enlightened VMCS, and this host's KVM has \
         {:#06x}",
        .promised.version, .host.version
    )]
    Evmcs {
        /// The guest's.
        promised: ToldEvmcs,
        /// This host's.
        host: ToldEvmcs,
    },
    /// The enlightened VMCS lacks a field.
    #[error(
        "hv-evmcs: this host's KVM has no PERF_GLOBAL_CTRL in the enlightened VMCS (Linux 6.1 has it)"
    )]
    EvmcsPerfGlobalCtrl,
    /// A missing capability of KVM.
    #[error("this host's KVM lacks {cap}, which the VM's {what} needs")]
    Cap {
        /// Its name.
        cap: &'static str,
        /// The feature of the VM that requires it.
        what: &'static str,
    },
    /// The XSAVE area is too large.
    #[error(
        "the saved XSAVE area has {promised} bytes, and this host's KVM accepts at most {host}"
    )]
    XsaveSize {
        /// The saved size.
        promised: u32,
        /// This host's maximum.
        host: u32,
    },
    /// Too many vCPUs.
    #[error("the VM has {promised} vCPUs, and this host's KVM allows {host}")]
    Vcpus {
        /// The saved number.
        promised: u32,
        /// This host's maximum.
        host: u32,
    },
}

impl Mismatch {
    /// The names of missing CPU features that can be masked.
    pub fn masks(&self) -> Vec<&'static str> {
        match self {
            Self::Cpu(CpuLack::Feature(f::VMX | f::SVM)) => Vec::new(),
            Self::Cpu(CpuLack::Feature(feature)) => vec![feature.name],
            Self::Msr(lack) => lack.features().map(|feature| feature.name).collect(),
            _ => Vec::new(),
        }
    }
}

impl Promise {
    /// The promise to a guest of `config` by `plan`.
    pub fn of(plan: &Plan, config: &VmConfig) -> Self {
        let cpuid = plan.cpuid.for_vcpu(0);
        let set = feature_msrs(
            &cpuid,
            plan.cpuid.vendor(),
            config.cpus.model,
            &plan.feature_msrs,
        );
        let of_host = |&(msr, _): &(Msr, u64)| msrs::wanted().any(|wanted| wanted == msr);
        Self {
            hv: plan.hyperv.explicit().items(),
            feature_msrs: set
                .into_iter()
                .filter(of_host)
                .map(|(msr, value)| FeatureMsr { msr: msr.0, value })
                .collect(),
            cpuid,
            xsave_size: plan.xsave_size,
        }
    }

    /// The plan for the vCPUs of this guest, with its `config`, on `host`: the same as before.
    ///
    /// # Errors
    /// All promises that this host cannot keep.
    pub fn check(&self, config: &VmConfig, host: &HostCaps) -> Result<Plan, Vec<Mismatch>> {
        let mut mismatches = self.processor(host);
        mismatches.extend(capabilities(config, host));
        let host_size = plan::xsave_size(host);
        if self.xsave_size > host_size {
            mismatches.push(Mismatch::XsaveSize {
                promised: self.xsave_size,
                host: host_size,
            });
        }
        let hyperv = self
            .enlightenments(config, host)
            .map_err(|found| mismatches.extend(found))
            .ok();
        let cpuid = GuestCpuid::promised(self.cpuid.clone(), config.cpus.topology);
        match hyperv {
            Some(hyperv) if mismatches.is_empty() => Ok(Plan {
                hyperv,
                cpuid,
                feature_msrs: self.msrs(),
                xsave_size: host_size,
                dirty_rings: dirty_ring::supported_on_host(&host.system.cpu),
                tsc_khz: None,
            }),
            _ => Err(mismatches),
        }
    }

    /// The enlightenments that are on, as far as this program supports them.
    pub fn enabled(&self) -> EnlightenmentSet {
        let items = self.hv.iter().map(String::as_str);
        let request = EnlightenmentRequest::from_items(items, Profile::None).unwrap_or_default();
        request.wanted.into_keys().collect()
    }

    fn msrs(&self) -> Vec<(Msr, u64)> {
        let each = self.feature_msrs.iter();
        each.map(|m| (Msr(m.msr), m.value)).collect()
    }

    fn processor(&self, host: &HostCaps) -> Vec<Mismatch> {
        let promised = cpuid::vendor(&self.cpuid);
        if promised != host.kvm.vendor() {
            // A comparison of single features would be meaningless.
            return vec![Mismatch::Vendor {
                promised,
                host: host.kvm.vendor(),
            }];
        }
        let deadline = host.kvm.caps.tsc_deadline_timer;
        let host_msrs = host.kvm.feature_msrs.iter();
        let host_msrs: Vec<_> = host_msrs.map(|(&msr, &value)| (Msr(msr), value)).collect();
        let cpu = cpuid::lacks(&self.cpuid, &host.kvm.cpuid, deadline);
        let msrs = msrs::lacks(&self.msrs(), &host_msrs);
        let kvm = self.kvm_features() & !eax(&host.kvm.cpuid, 0x4000_0001);
        cpu.into_iter()
            .map(Mismatch::Cpu)
            .chain(msrs.into_iter().map(Mismatch::Msr))
            .chain(
                (0..32)
                    .filter(|bit| kvm & 1 << bit != 0)
                    .map(|bit| Mismatch::KvmFeature { bit }),
            )
            .collect()
    }

    /// KVM's paravirtual features that the guest was shown, if any.
    fn kvm_features(&self) -> u32 {
        let bases = [0x4000_0000, cpuid::KVM_LEAVES_BESIDE_HYPERV];
        let base = bases.into_iter().find(|base| {
            let leaf = self.cpuid.iter().find(|e| e.function == *base);
            leaf.is_some_and(cpuid::is_kvm_signature)
        });
        base.map_or(0, |base| eax(&self.cpuid, base | 1))
    }

    fn enlightenments(
        &self,
        config: &VmConfig,
        host: &HostCaps,
    ) -> Result<hyperv::Resolved, Vec<Mismatch>> {
        let items = self.hv.iter().map(String::as_str);
        let request =
            EnlightenmentRequest::from_items(items, Profile::None).map_err(|problems| {
                let each = problems.into_iter();
                each.map(|problem| Mismatch::Unknown(problem.to_string()))
                    .collect::<Vec<_>>()
            })?;
        let resolved = hyperv::resolve(&request, &HostHv::from(host), config.cpus.nested).map_err(
            |problems| {
                problems
                    .into_iter()
                    .map(Mismatch::Hyperv)
                    .collect::<Vec<_>>()
            },
        )?;
        let stay = resolved.migration_blockers().into_iter();
        let mut mismatches: Vec<_> = stay.map(|(id, why)| Mismatch::Stays { id, why }).collect();
        let (promised, here) = (ToldEvmcs::in_cpuid(&self.cpuid), resolved.evmcs());
        if promised.version != here.version {
            mismatches.push(Mismatch::Evmcs {
                promised,
                host: here,
            });
        } else if promised.perf_global_ctrl && !here.perf_global_ctrl {
            mismatches.push(Mismatch::EvmcsPerfGlobalCtrl);
        }
        if mismatches.is_empty() {
            Ok(resolved.told(promised))
        } else {
            Err(mismatches)
        }
    }
}

/// The KVM capabilities that this VM requires besides its promise.
fn capabilities(config: &VmConfig, host: &HostCaps) -> Vec<Mismatch> {
    let caps = &host.kvm.caps;
    let kernel = config.irqchip == Irqchip::Kernel;
    let needs = [
        (!kernel || caps.pit2, "KVM_CAP_PIT2", "timer"),
        (
            kernel || caps.split_irqchip,
            "KVM_CAP_SPLIT_IRQCHIP",
            "split irqchip",
        ),
        (
            !config.cpus.nested || caps.nested_state > 0,
            "KVM_CAP_NESTED_STATE",
            "nested state",
        ),
    ];
    let lacking = needs.into_iter().filter(|(there, ..)| !there);
    let mut mismatches: Vec<_> = lacking
        .map(|(_, cap, what)| Mismatch::Cap { cap, what })
        .collect();
    let (count, most) = (config.cpus.count, caps.max_vcpus);
    if most > 0 && count > most {
        mismatches.push(Mismatch::Vcpus {
            promised: count,
            host: most,
        });
    }
    mismatches
}

fn eax(entries: &[CpuidEntry], function: u32) -> u32 {
    let leaf = entries.iter().find(|e| e.function == function);
    leaf.map_or(0, |leaf| leaf.eax)
}

#[cfg(test)]
#[path = "promise_tests.rs"]
mod tests;
