//! What a guest was promised when it was created, and whether another host can keep it.
//!
//! A guest looks at its processor and its hypervisor once and relies on what it saw for good. So a saved VM
//! takes along what it was shown: its CPUID, its feature MSRs, its enlightenments one by one. Where it goes
//! on, it is shown the same again, or it does not go on there, and [`Promise::check`] names each thing that
//! is in the way. (The TSC's frequency is [`crate::time`]'s.)

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

/// The section that holds it, and its version.
pub const SECTION: &str = "promise";
/// The version of that section.
pub const VERSION: u32 = 1;

/// What a guest was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The enlightenments that are on, each by its name and with its value; `none` alone if none is.
    pub hv: Vec<String>,
    /// CPUID, as vCPU 0 has it.
    pub cpuid: Vec<CpuidEntry>,
    /// The feature MSRs that were set to what the host's KVM had.
    pub feature_msrs: Vec<FeatureMsr>,
    /// How many bytes `KVM_GET_XSAVE2` gave.
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

/// Something that a guest was promised and this host cannot keep.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// Another vendor's processor.
    #[error("the guest was shown a processor of {promised}, and this host's is {host}")]
    Vendor {
        /// In the guest.
        promised: CpuVendor,
        /// Here.
        host: CpuVendor,
    },
    /// A feature of the processor.
    #[error("this host cannot give: {0}")]
    Cpu(CpuLack),
    /// A feature MSR.
    #[error("this host's KVM cannot give {0}")]
    Msr(MsrLack),
    /// One of KVM's own paravirtual features.
    #[error("this host's KVM lacks its paravirtual feature of bit {bit} (CPUID 0x40000001.EAX)")]
    KvmFeature {
        /// Which.
        bit: u8,
    },
    /// An enlightenment.
    #[error("{0}")]
    Hyperv(hyperv::EnlightenmentProblem),
    /// An enlightenment that this program does not know.
    #[error("enlightenments that this version of hypernest does not take: {0}")]
    Unknown(String),
    /// An enlightenment that keeps the VM where it is.
    #[error("{id} keeps the VM where it was made: {why}")]
    Stays {
        /// Which one.
        id: Enlightenment,
        /// Why.
        why: &'static str,
    },
    /// Another version of the enlightened VMCS.
    #[error(
        "hv-evmcs: the guest was told of versions {:#06x} of the enlightened VMCS, and this host's KVM has \
         {:#06x}",
        .promised.version, .host.version
    )]
    Evmcs {
        /// In the guest.
        promised: ToldEvmcs,
        /// Here.
        host: ToldEvmcs,
    },
    /// The enlightened VMCS lacks a field.
    #[error(
        "hv-evmcs: this host's KVM has no PERF_GLOBAL_CTRL in the enlightened VMCS (Linux 6.1 has it)"
    )]
    EvmcsPerfGlobalCtrl,
    /// A capability of KVM's.
    #[error("this host's KVM lacks {cap}, which the VM's {what} needs")]
    Cap {
        /// Its name.
        cap: &'static str,
        /// For what.
        what: &'static str,
    },
    /// Too large an XSAVE area.
    #[error("the saved XSAVE area has {promised} bytes, and this host's KVM takes {host} at most")]
    XsaveSize {
        /// Saved.
        promised: u32,
        /// Here.
        host: u32,
    },
    /// Too many vCPUs.
    #[error("the VM has {promised} vCPUs, and this host's KVM allows {host}")]
    Vcpus {
        /// Saved.
        promised: u32,
        /// Here.
        host: u32,
    },
}

impl Mismatch {
    /// The names of CPU features that are in the way and can be masked.
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
    /// What a guest made of `config` by `plan` is shown.
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

    /// What the vCPUs of this guest, which is one of `config`, are made from on `host`: the same as before.
    ///
    /// # Errors
    /// Everything that this host cannot keep.
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

    /// The enlightenments that are on, as far as this program knows them.
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
            // Feature by feature, the two have little to do with each other.
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

/// What this VM needs of KVM besides what its guest is shown.
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
