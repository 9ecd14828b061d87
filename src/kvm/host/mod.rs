//! The host's capabilities as named fields: everything that can be queried before a VM exists.

mod caps;
mod hv;
mod system;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use caps::KvmCaps;
pub use system::{Clock, Cpu, Device, HugePages, KernelConfig, System};

use crate::cpuid::CpuVendor;
use crate::cpuid::CpuidEntry;
use crate::units::TscKhz;

use super::{KvmError, cap, cpuid, ioctl_error, tsc};

/// A host that has a working KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCaps {
    /// Facts from outside KVM.
    pub system: System,
    /// Facts from KVM.
    pub kvm: KvmFacts,
}

/// The facts that KVM reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvmFacts {
    /// `KVM_CHECK_EXTENSION`.
    pub caps: KvmCaps,
    /// `KVM_GET_SUPPORTED_CPUID`: the leaves that guests can be shown.
    pub cpuid: Vec<CpuidEntry>,
    /// `KVM_GET_SUPPORTED_HV_CPUID`; `None` if this KVM has no Hyper-V support.
    pub hv_cpuid: Option<Vec<CpuidEntry>>,
    /// The eVMCS versions, lowest in the low byte, highest in the high byte; `None` if there is no eVMCS.
    pub evmcs: Option<u16>,
    /// The feature MSRs, including VMX's: (number, value).
    pub feature_msrs: BTreeMap<u32, u64>,
    /// A new vCPU's TSC frequency, which is the host's.
    pub tsc_khz: Option<u32>,
    /// The host kernel's TSC frequency, if the kernel has refined it since KVM was loaded and KVM keeps the
    /// old one.
    pub refined_tsc_khz: Option<u32>,
    /// A new vCPU's TSC is offset from the host's, as the guest's own clock requires; `None` if KVM does not
    /// report the offset (before Linux 5.16).
    pub tsc_offset: Option<bool>,
}

/// Why KVM cannot be used on this host.
#[derive(Debug, Error)]
pub enum HostError {
    /// There is no `/dev/kvm`.
    #[error("there is no /dev/kvm: {}; {}", .0.found(), .0.cure())]
    NoDevice(NoDevice),
    /// `/dev/kvm` is there, but may not be opened.
    #[error(
        "no permission to open /dev/kvm: it belongs to group {group}; add yourself to it (as root: `usermod \
         -aG {group} USER`), then log in again"
    )]
    NoPermission {
        /// The device's group, by name or number.
        group: String,
    },
    /// `/dev/kvm` does not open for another reason.
    #[error("cannot open /dev/kvm: {why}")]
    Open {
        /// The usual meaning of this error.
        why: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another version than the KVM interface since 2007.
    #[error(
        "/dev/kvm has version {found} of the KVM interface; hypernest requires {KVM_API_VERSION}, which \
         every kernel since 2.6.22 has"
    )]
    ApiVersion {
        /// The version found.
        found: i32,
    },
    /// A kernel without a capability that every VM needs.
    #[error("this KVM is too old: it lacks {}", list(.missing))]
    TooOld {
        /// The missing capabilities, each with the first Linux that has it.
        missing: Vec<(&'static str, &'static str)>,
    },
    /// KVM's frequency of the TSC differs from the kernel's.
    #[error(
        "KVM uses {kvm} for this host's TSC, the kernel's value when KVM was loaded; the kernel has since \
         refined it to {kernel}, and guests' clocks would run at the wrong rate; reload KVM (as root: \
         `modprobe -r {module} kvm && modprobe {module}`)"
    )]
    StaleTscKhz {
        /// KVM's frequency.
        kvm: TscKhz,
        /// The kernel's.
        kernel: TscKhz,
        /// `kvm_intel` or `kvm_amd`.
        module: &'static str,
    },
    /// A query of KVM failed.
    #[error("cannot query KVM's capabilities")]
    Probe(#[from] KvmError),
}

/// Why there is no `/dev/kvm`, as far as the CPU's flags and the modules show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDevice {
    /// This is a virtual machine whose CPU shows no virtualization.
    VirtualMachine,
    /// This is a physical machine whose CPU shows no virtualization.
    NoVirtualization,
    /// The CPU has it, but the module is not loaded.
    NotLoaded {
        /// `kvm_intel` or `kvm_amd`.
        module: &'static str,
    },
    /// The module is loaded, but there is no device file.
    NoFile {
        /// `kvm_intel` or `kvm_amd`.
        module: &'static str,
    },
}

impl NoDevice {
    fn of(system: &System) -> Self {
        let module = match (system.cpu.vmx, system.cpu.svm) {
            (true, _) => "kvm_intel",
            (_, true) => "kvm_amd",
            _ if system.cpu.hypervisor => return Self::VirtualMachine,
            _ => return Self::NoVirtualization,
        };
        if system.modules.contains_key(module) {
            Self::NoFile { module }
        } else {
            Self::NotLoaded { module }
        }
    }

    /// The finding.
    pub fn found(self) -> String {
        match self {
            Self::VirtualMachine => {
                "this is a virtual machine, and its CPU shows neither VMX nor SVM".to_owned()
            }
            Self::NoVirtualization => "the CPU shows neither VMX nor SVM".to_owned(),
            Self::NotLoaded { module } => {
                format!("the CPU has virtualization, but {module} is not loaded")
            }
            Self::NoFile { module } => {
                format!("{module} is loaded, but its device is not visible here")
            }
        }
    }

    /// The remedy.
    pub fn cure(self) -> String {
        match self {
            Self::VirtualMachine => {
                "enable nested virtualization on this machine's host".to_owned()
            }
            Self::NoVirtualization => {
                "enable VT-x or SVM in the firmware's setup, if the CPU has it".to_owned()
            }
            Self::NotLoaded { module } => format!(
                "load it (as root: `modprobe {module}`); if that fails, search the kernel's log for \
                 \"disabled by bios\""
            ),
            Self::NoFile { .. } => {
                "if this is a container, pass the device into it (`--device /dev/kvm`)".to_owned()
            }
        }
    }
}

fn list(missing: &[(&str, &str)]) -> String {
    let each: Vec<_> = missing
        .iter()
        .map(|(name, since)| format!("{name} (Linux {since})"))
        .collect();
    each.join(", ")
}

impl HostCaps {
    /// Queries this host. Creates a VM with one vCPU for facts that need them, and drops it again.
    ///
    /// # Errors
    /// If KVM cannot be used; the error contains the remedy.
    pub fn probe() -> Result<Self, HostError> {
        let system = System::read(Path::new("/"));
        let kvm = KvmFacts::probe(&system)?;
        Ok(Self { system, kvm })
    }

    /// Queries only the facts of this host that planning a VM needs: facts of [`System`] and [`KvmFacts`]
    /// that serve only to explain the host stay unknown, and no VM is created where KVM answers without one
    /// (since Linux 5.11), since destroying it takes longer than all the rest. Returns the open KVM as well.
    ///
    /// # Errors
    /// If KVM cannot be used; the error contains the remedy.
    pub fn for_a_vm() -> Result<(Self, Kvm), HostError> {
        let root = Path::new("/");
        let kvm = Kvm::new().map_err(|e| open_error(&System::read(root), e.into()))?;
        let caps = asked(&kvm)?;
        let system = System::read_for_a_vm(root);
        let facts = if caps.hyperv_cpuid && !caps.sys_hyperv_cpuid {
            KvmFacts::with_a_vm(&kvm, caps)?
        } else {
            KvmFacts::without_a_vm(&kvm, caps)?
        };
        let host = Self { system, kvm: facts };
        Ok((host, kvm))
    }

    /// Queries the TSC's frequency and offset if they are still unknown, which requires a VM.
    ///
    /// # Errors
    /// If no VM can be created, or KVM's frequency differs from the TSC's.
    pub fn ask_tsc(&mut self, kvm: &Kvm) -> Result<(), HostError> {
        if self.kvm.tsc_khz.is_none() {
            let failed = |ioctl| ioctl_error(ioctl, "create a VM to query the TSC's frequency");
            let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
            self.kvm.ask_tsc_of_vm(&vm);
            let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
            self.kvm.ask_tsc_of_vcpu(&vcpu)?;
        }
        self.kvm.check_tsc_khz()
    }
}

/// The capabilities of a usable KVM.
fn asked(kvm: &Kvm) -> Result<KvmCaps, HostError> {
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(HostError::ApiVersion { found });
    }
    let caps = KvmCaps::probe(kvm);
    let missing = caps.missing();
    if missing.is_empty() {
        Ok(caps)
    } else {
        Err(HostError::TooOld { missing })
    }
}

impl KvmFacts {
    /// Queries KVM on this host, which `system` describes.
    ///
    /// # Errors
    /// If KVM cannot be used; the error contains the remedy.
    pub fn probe(system: &System) -> Result<Self, HostError> {
        let kvm = Self::open(system)?;
        let caps = asked(&kvm)?;
        Self::with_a_vm(&kvm, caps)
    }

    /// The facts that `/dev/kvm` reports.
    fn without_a_vm(kvm: &Kvm, caps: KvmCaps) -> Result<Self, HostError> {
        let leaves = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl_error(
                "KVM_GET_SUPPORTED_CPUID",
                "read the CPU features that KVM supports",
            ))?;
        let hv_leaves = cpuid::supported_hv_cpuid(kvm)?;
        Ok(Self {
            cpuid: leaves.as_slice().iter().map(Into::into).collect(),
            hv_cpuid: hv_leaves.map(|leaves| leaves.iter().map(Into::into).collect()),
            feature_msrs: feature_msrs(kvm, &caps)?,
            caps,
            ..Self::default()
        })
    }

    /// The same, plus the facts that need a VM and its vCPU.
    fn with_a_vm(kvm: &Kvm, caps: KvmCaps) -> Result<Self, HostError> {
        let facts = Self::without_a_vm(kvm, caps)?;
        let caps = &facts.caps;
        let vm = kvm
            .create_vm()
            .map_err(ioctl_error("KVM_CREATE_VM", "create a VM to query KVM"))?;
        // Some facts of a vCPU depend on the local APIC.
        vm.create_irq_chip().map_err(ioctl_error(
            "KVM_CREATE_IRQCHIP",
            "create a VM to query KVM",
        ))?;
        let mut tsc = Self {
            caps: caps.clone(),
            ..Self::default()
        };
        tsc.ask_tsc_of_vm(&vm);
        let vcpu = vm
            .create_vcpu(0)
            .map_err(ioctl_error("KVM_CREATE_VCPU", "create a vCPU to query KVM"))?;
        tsc.ask_tsc_of_vcpu(&vcpu)?;
        let evmcs = evmcs(caps, &vcpu)?;
        // After eVMCS was enabled: a vCPU includes it only then.
        let hv_cpuid = match &facts.hv_cpuid {
            None if caps.hyperv_cpuid => {
                let leaves = cpuid::vcpu_supported_hv_cpuid(&vcpu)?;
                Some(leaves.iter().map(Into::into).collect())
            }
            leaves => leaves.clone(),
        };
        Ok(Self {
            hv_cpuid,
            evmcs,
            tsc_khz: tsc.tsc_khz,
            refined_tsc_khz: tsc.refined_tsc_khz,
            tsc_offset: tsc.tsc_offset,
            ..facts
        })
    }

    /// The TSC facts of a new VM without vCPUs: none before Linux 5.17, and none where the host's
    /// TSC is unstable.
    fn ask_tsc_of_vm(&mut self, vm: &VmFd) {
        let Ok(khz) = tsc::vm_khz(vm) else {
            return;
        };
        self.tsc_khz = Some(khz.0).filter(|khz| *khz > 0);
        let kernel = tsc::kernel_khz_of_vm(vm).ok();
        self.note_refined(kernel);
        if self.refined_tsc_khz.is_some() {
            // A vCPU that KVM cannot run at its frequency has no scaling ratio and reports no offset
            // (`set_tsc_khz`).
            let _frequency_only = tsc::set_vm_khz(vm, TscKhz(0));
        }
    }

    /// The TSC facts of its first vCPU.
    fn ask_tsc_of_vcpu(&mut self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        if self.tsc_khz.is_none() {
            // KVM fails this where the host's TSC is unstable, for which `None` stands.
            self.tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0);
            if self.tsc_khz.is_some() {
                self.note_refined(tsc::kernel_khz(vcpu).ok());
            }
        }
        if self.caps.vcpu_attributes && tsc::has_tsc_offset(vcpu) {
            self.tsc_offset = Some(tsc::tsc_offset(vcpu)? != 0);
        }
        Ok(())
    }

    fn note_refined(&mut self, kernel: Option<TscKhz>) {
        let kernel = kernel.map(|khz| khz.0);
        self.refined_tsc_khz = kernel.filter(|khz| *khz > 0 && Some(*khz) != self.tsc_khz);
    }

    /// Checks that KVM's frequency is near enough to the TSC's own for guests' clocks to be right.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_tsc_khz(&self) -> Result<(), HostError> {
        let (Some(kvm), Some(kernel)) = (self.tsc_khz, self.refined_tsc_khz) else {
            return Ok(());
        };
        stale_tsc_khz(TscKhz(kvm), TscKhz(kernel), self.vendor())
    }

    /// Opens `/dev/kvm` of this host, which `system` describes.
    ///
    /// # Errors
    /// If it cannot be opened; the error contains the remedy.
    pub fn open(system: &System) -> Result<Kvm, HostError> {
        Kvm::new().map_err(|e| open_error(system, e.into()))
    }

    /// The processor's vendor: CPUID 0.
    pub fn vendor(&self) -> CpuVendor {
        let mut id = [0; 12];
        if let Some(leaf) = self.leaf(0, 0) {
            id[..4].copy_from_slice(&leaf.ebx.to_le_bytes());
            id[4..8].copy_from_slice(&leaf.edx.to_le_bytes());
            id[8..].copy_from_slice(&leaf.ecx.to_le_bytes());
        }
        CpuVendor::from_id(&id)
    }

    /// The first leaf `function`, subleaf `index`, of those that guests can be shown.
    pub fn leaf(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.cpuid
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
    }

    /// Guests can be shown VMX: CPUID 1.ECX bit 5.
    pub fn guest_vmx(&self) -> bool {
        self.leaf(1, 0).is_some_and(|leaf| leaf.ecx & (1 << 5) != 0)
    }

    /// Guests can be shown SVM: CPUID 0x80000001.ECX bit 2.
    pub fn guest_svm(&self) -> bool {
        self.leaf(0x8000_0001, 0)
            .is_some_and(|leaf| leaf.ecx & (1 << 2) != 0)
    }

    /// Guests can be shown an invariant TSC: CPUID 0x80000007.EDX bit 8.
    pub fn guest_invariant_tsc(&self) -> bool {
        self.leaf(0x8000_0007, 0)
            .is_some_and(|leaf| leaf.edx & (1 << 8) != 0)
    }

    /// The Hyper-V leaf `function`, as KVM supports it.
    pub fn hv_leaf(&self, function: u32) -> Option<&CpuidEntry> {
        self.hv_cpuid
            .iter()
            .flatten()
            .find(|leaf| leaf.function == function)
    }
}

/// Checks that KVM, whose TSC frequency is `kvm`, can run guests on a TSC of `kernel`. Beyond its tolerance
/// it creates vCPUs without a scaling ratio, or has them catch up at each entry (`set_tsc_khz`).
///
/// # Errors
/// If it cannot.
pub fn stale_tsc_khz(kvm: TscKhz, kernel: TscKhz, vendor: CpuVendor) -> Result<(), HostError> {
    if tsc::within_tolerance(kvm, kernel) {
        return Ok(());
    }
    let module = match vendor {
        CpuVendor::Amd => "kvm_amd",
        _ => "kvm_intel",
    };
    Err(HostError::StaleTscKhz {
        kvm,
        kernel,
        module,
    })
}

/// The version of eVMCS is available only from a vCPU with eVMCS enabled; the capability alone is no
/// evidence, since KVM reports it on every Intel host, also with `nested=0`.
fn evmcs(caps: &KvmCaps, vcpu: &VcpuFd) -> Result<Option<u16>, KvmError> {
    if !caps.hyperv_enlightened_vmcs {
        return Ok(None);
    }
    Ok(cap::enable_evmcs(vcpu)?.map(|versions| versions.0))
}

fn feature_msrs(kvm: &Kvm, caps: &KvmCaps) -> Result<BTreeMap<u32, u64>, KvmError> {
    if !caps.get_msr_features {
        return Ok(BTreeMap::new());
    }
    let numbers = kvm.get_msr_feature_index_list().map_err(ioctl_error(
        "KVM_GET_MSR_FEATURE_INDEX_LIST",
        "list the feature MSRs",
    ))?;
    let mut values = BTreeMap::new();
    for number in numbers.as_slice() {
        let entry = kvm_msr_entry {
            index: *number,
            ..Default::default()
        };
        let mut one = Msrs::from_entries(&[entry]).expect("room for one MSR");
        // KVM lists feature MSRs that not every CPU has (the other vendor's); reading stops at the
        // first of them.
        if kvm.get_msrs(&mut one).is_ok_and(|read| read == 1)
            && let Some(entry) = one.as_slice().first()
        {
            values.insert(*number, entry.data);
        }
    }
    Ok(values)
}

fn open_error(system: &System, source: io::Error) -> HostError {
    match source.raw_os_error() {
        Some(libc::ENOENT) => HostError::NoDevice(NoDevice::of(system)),
        Some(libc::EACCES | libc::EPERM) => HostError::NoPermission {
            group: system.device.as_ref().map_or_else(
                || "kvm".to_owned(),
                |device| {
                    device
                        .group
                        .clone()
                        .unwrap_or_else(|| device.gid.to_string())
                },
            ),
        },
        Some(libc::ENODEV | libc::ENXIO) => HostError::Open {
            why: "the device file exists, but no KVM module is loaded",
            source,
        },
        _ => HostError::Open {
            why: "the kernel refused",
            source,
        },
    }
}

#[cfg(test)]
mod tests;
