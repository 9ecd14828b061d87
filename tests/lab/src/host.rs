//! The hosts of the lab and their boot parameters.

use std::path::PathBuf;

use clap::ValueEnum;

/// A host to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Host {
    /// This machine's own KVM.
    Here,
    /// An emulated AMD machine: SVM, no eVMCS.
    Amd,
    /// An emulated Intel machine: VMX and eVMCS.
    Intel,
}

impl Host {
    /// All of them, in the order they are reported.
    pub const ALL: [Host; 3] = [Host::Here, Host::Amd, Host::Intel];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Host::Here => "here",
            Host::Amd => "amd",
            Host::Intel => "intel",
        }
    }

    /// The host with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|host| host.name() == name)
    }

    /// KVM's module for its CPU.
    pub(crate) fn kvm_module(self) -> &'static str {
        match self {
            Host::Intel => "kvm-intel",
            Host::Amd | Host::Here => "kvm-amd",
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The kernel an emulated host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum)]
pub enum Kernel {
    /// Linux 6.12: all of KVM's Hyper-V.
    #[default]
    #[value(name = "6.12")]
    Linux612,
    /// Linux 6.1: no direct L2 flush.
    #[value(name = "6.1")]
    Linux61,
    /// The newest Linux in the archive's backports. It is fetched when it is first used.
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 3] = [Kernel::Linux612, Kernel::Linux61, Kernel::Newest];

    /// The kernel with that directory.
    pub fn from_directory(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.directory() == name)
    }

    /// Its directory in the cache and below `/lab`.
    pub fn directory(self) -> &'static str {
        match self {
            Kernel::Linux612 => "linux-6.12",
            Kernel::Linux61 => "linux-6.1",
            Kernel::Newest => "linux-newest",
        }
    }
}

/// The CPU that the emulated Intel host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum)]
pub enum IntelCpu {
    /// A Skylake server at 3.5 GHz, under which the figures of exits are taken. Timers of the host are exact
    /// to 96,000 instructions only.
    #[default]
    Skylake,
    /// An Ice Lake client at 1.5 GHz. The host's kernel uses its TSC deadline timer, so that timers are
    /// exact.
    IceLake,
}

impl IntelCpu {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skylake => "skylake",
            Self::IceLake => "ice-lake",
        }
    }

    /// Bochs's name of it.
    pub(crate) fn model(self) -> &'static str {
        match self {
            Self::Skylake => "corei7_skylake_x",
            Self::IceLake => "corei7_icelake_u",
        }
    }
}

/// A feature of a CPU by QEMU's name, as `sse4.2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CpuFeature(String);

impl CpuFeature {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for CpuFeature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if !text.is_empty() && text.chars().all(named) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected the name of a feature, as sse4.2".to_owned())
        }
    }
}

/// A parameter of a kernel module in the host, as `kvm_intel.enable_shadow_vmcs=0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModuleParameter {
    /// The module, with dashes as its file has them.
    pub module: String,
    /// `name=value`.
    pub setting: String,
}

impl std::str::FromStr for ModuleParameter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (module, setting) = text
            .split_once('.')
            .filter(|(_, setting)| setting.contains('='))
            .ok_or("expected MODULE.NAME=VALUE, as kvm_intel.enable_shadow_vmcs=0")?;
        let module = module.replace('_', "-");
        if !["kvm", "kvm-intel", "kvm-amd", "irqbypass"].contains(&module.as_str()) {
            return Err(format!(
                "{module} is not a module the lab loads: kvm, kvm_intel, kvm_amd"
            ));
        }
        Ok(Self {
            module,
            setting: setting.to_owned(),
        })
    }
}

/// How to boot an emulated host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    /// CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its CPU, if it is the Intel host.
    pub intel: IntelCpu,
    /// The CPU features removed from the AMD host, by QEMU's names.
    pub without: Vec<CpuFeature>,
    /// Module parameters.
    pub parameters: Vec<ModuleParameter>,
    /// Parts of the lab's directory to copy into the host, as `linux-6.12/vmlinux` or `qemu`.
    pub with: Vec<String>,
    /// Images in the lab's directory that the AMD host has as disks, from `/dev/vda` on. What it writes to
    /// them is lost when it ends.
    pub disks: Vec<String>,
    /// More files: from here, to there.
    pub files: Vec<(PathBuf, String)>,
}

impl Machine {
    /// The paths in the lab's directory that it uses.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        let named = self.with.iter().chain(&self.disks).map(String::as_str);
        named.chain([self.kernel.directory()])
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mib: DEFAULT_MEMORY_MIB,
            kernel: Kernel::default(),
            intel: IntelCpu::default(),
            without: Vec::new(),
            parameters: Vec::new(),
            with: Vec::new(),
            disks: Vec::new(),
            files: Vec::new(),
        }
    }
}

/// Enough for an L1 of 512 MiB beside the initramfs.
pub const DEFAULT_MEMORY_MIB: u32 = 1536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features() {
        let feature: CpuFeature = "sse4.2".parse().unwrap();
        assert_eq!(feature.name(), "sse4.2");
        for bad in ["", "sse4.2,svm=off", "a=b"] {
            assert!(bad.parse::<CpuFeature>().is_err(), "{bad}");
        }
    }

    #[test]
    fn module_parameters() {
        let parameter: ModuleParameter = "kvm_intel.enable_shadow_vmcs=0".parse().unwrap();
        assert_eq!(parameter.module, "kvm-intel");
        assert_eq!(parameter.setting, "enable_shadow_vmcs=0");
        for bad in ["kvm_intel", "kvm_intel.nested", "nested=1", "ext4.x=1"] {
            assert!(bad.parse::<ModuleParameter>().is_err(), "{bad}");
        }
    }
}
