//! The contents of a saved VM, read and checked without KVM.
//!
//! [`InspectReport::read`] goes through every section as a restore does, up to the first request to KVM, so a
//! VM that it accepts is complete and well-formed.
//! [`Promise::check`](crate::machine::promise::Promise::check) decides whether a given host can run it.

mod cpu;
mod error;
mod text;
mod vcpu;

use serde::Serialize;

pub use cpu::SavedCpu;
pub use error::InspectError;
pub use text::render;
pub use vcpu::{Nested, SavedVcpu};

use crate::boot::{Boot, BootError, BootFiles};
use crate::config::{Irqchip, VmConfig};
use crate::hyperv::{Partition, msr};
use crate::kvm::state::{VcpuState, VmState, decode_msrs};
use crate::machine::promise::Promise;
use crate::machine::{Identity, check_devices, transfer};
use crate::state::snapshot::{RamImage, SavedFiles, Snapshot};
use crate::state::{FORMAT_VERSION, Sections};
use crate::time::SavedTime;
use crate::units::{Gpa, Msr, VpIndex};

/// The version of the report's JSON form (docs/schema/inspect.schema.json), incremented by a change that
/// breaks readers.
pub const VERSION: u32 = 1;

/// A number as hexadecimal text: most JSON readers do not have 64-bit integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Hex(String);

impl From<u64> for Hex {
    fn from(value: u64) -> Self {
        Self(format!("{value:#x}"))
    }
}

/// The contents of a saved VM.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The version of this form.
    pub version: u32,
    /// The version of the state file's format.
    pub format: u32,
    /// The program that saved the VM.
    pub writer: String,
    /// The VM's name when it was saved.
    pub name: String,
    /// The VM's configuration as the keys of a configuration file.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The enlightenments that are on, with their values.
    pub hv: Vec<String>,
    /// The guest's processor.
    pub cpu: SavedCpu,
    /// Its clocks.
    pub time: SavedTime,
    /// The VM-wide Hyper-V registers that the guest has set.
    pub hyperv: Vec<Register>,
    /// Its vCPUs.
    pub vcpus: Vec<SavedVcpu>,
    /// Its devices.
    pub devices: Vec<SectionSize>,
    /// Its RAM.
    pub ram: Ram,
    /// The host resources that its configuration names. A restore opens none of them without its flag.
    pub endpoints: Vec<SavedEndpoint>,
    /// The files that a reset boots.
    pub boot: Vec<BootFile>,
    /// All sections.
    pub sections: Vec<SectionSize>,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SectionSize {
    /// Its name, without `device/` among the devices.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The length of its body.
    pub bytes: usize,
}

/// A register that is not 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Register {
    /// Its name, or its number if it has none here.
    pub name: String,
    /// Its value.
    pub value: Hex,
}

/// A host resource that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedEndpoint {
    /// The setting.
    pub setting: String,
    /// Its value.
    pub value: String,
}

/// A kernel, an initrd or a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootFile {
    /// `kernel`, `initrd` or `module`.
    pub role: String,
    /// Its path on the host that started the VM; it is not opened.
    pub path: String,
    /// Its length in bytes if it was saved with the VM; otherwise a reset requires it on the command line.
    pub bytes: Option<u64>,
}

/// RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ram {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of it in the file; the rest is zero.
    pub data: u64,
    /// Its regions.
    pub pieces: Vec<RamRegion>,
    /// All of it was read, and the checksums match.
    pub checked: bool,
}

/// A region of RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RamRegion {
    /// Its first guest address.
    pub gpa: Hex,
    /// Its length in bytes.
    pub bytes: u64,
}

impl InspectReport {
    /// Reads a saved VM: all of its state, and its RAM too if `check_ram`.
    ///
    /// # Errors
    /// The first error found.
    pub fn read(snapshot: Snapshot, check_ram: bool) -> Result<Self, InspectError> {
        let files = snapshot.boot().cloned();
        let (sections, image) = snapshot.into_parts();
        let mut report = Self::of(sections, |config| ram(config, &image, check_ram))?;
        if let Some(files) = files {
            report.add_boot_files(&files, check_ram)?;
        }
        Ok(report)
    }

    fn add_boot_files(&mut self, files: &SavedFiles, check: bool) -> Result<(), InspectError> {
        let (found, expected) = (files.entries().len(), self.boot.len());
        if found != expected {
            return Err(InspectError::Boot(BootError::OtherFiles {
                found,
                expected,
            }));
        }
        for (file, entry) in self.boot.iter_mut().zip(files.entries()) {
            file.bytes = Some(entry.range.end - entry.range.start);
        }
        if check {
            files.verify()?;
        }
        Ok(())
    }

    /// The same for a state without its RAM.
    ///
    /// # Errors
    /// The first error found.
    pub fn of(
        mut sections: Sections,
        ram: impl FnOnce(&VmConfig) -> Result<Ram, InspectError>,
    ) -> Result<Self, InspectError> {
        let parts = parts(&sections);
        let writer = sections.writer().to_owned();
        let Identity {
            config,
            promise,
            time,
        } = Identity::take(&mut sections)?;
        let ram = ram(&config)?;
        let hyperv = hyperv(&config, &promise, &mut sections)?;
        let cpu = SavedCpu::of(&promise);
        let mut vcpus = Vec::new();
        for vp in 0..config.cpus.count {
            let section = sections.take(&transfer::vcpu_section(VpIndex(vp)))?;
            let mut d = section.decoder(VcpuState::VERSION)?;
            let state = VcpuState::decode(&mut d)?;
            d.finish()?;
            vcpus.push(SavedVcpu::of(vp, &state, &promise, &section.name)?);
        }
        check_devices(&config, &mut sections)?;
        sections.finish()?;
        let devices = parts.iter().filter_map(|part| {
            let name = part.name.strip_prefix("device/")?.to_owned();
            Some(SectionSize {
                name,
                ..part.clone()
            })
        });
        Ok(Self {
            version: VERSION,
            format: FORMAT_VERSION,
            writer,
            name: config.name.clone(),
            config: in_json(&config)?,
            hv: promise.hv,
            cpu,
            time,
            hyperv,
            vcpus,
            devices: devices.collect(),
            ram,
            endpoints: endpoints(&config),
            boot: boot_files(&config.boot),
            sections: parts,
        })
    }
}

fn parts(sections: &Sections) -> Vec<SectionSize> {
    sections
        .iter()
        .map(|section| SectionSize {
            name: section.name.clone(),
            version: section.version,
            bytes: section.body.len(),
        })
        .collect()
}

fn ram(config: &VmConfig, image: &RamImage, check: bool) -> Result<Ram, InspectError> {
    let pieces = image.index().pieces();
    let expected = config.ram_ranges();
    if pieces != expected {
        return Err(InspectError::Ram {
            found: pieces.to_vec(),
            expected,
        });
    }
    if check {
        image.verify()?;
    }
    Ok(Ram {
        size: image.index().len(),
        data: image.data(),
        pieces: pieces
            .iter()
            .map(|&(Gpa(gpa), bytes)| RamRegion {
                gpa: gpa.into(),
                bytes,
            })
            .collect(),
        checked: check,
    })
}

fn endpoints(config: &VmConfig) -> Vec<SavedEndpoint> {
    let all = config.endpoints().into_iter();
    all.map(|endpoint| SavedEndpoint {
        setting: endpoint.setting.to_owned(),
        value: endpoint.value,
    })
    .collect()
}

fn boot_files(boot: &Boot) -> Vec<BootFile> {
    BootFiles::named(boot)
        .map(|(role, path)| BootFile {
            role: role.to_string(),
            path: path.display().to_string(),
            bytes: None,
        })
        .collect()
}

/// The sections `hyperv` and `vm`.
fn hyperv(
    config: &VmConfig,
    promise: &Promise,
    sections: &mut Sections,
) -> Result<Vec<Register>, InspectError> {
    let section = sections.take(transfer::HYPERV)?;
    let mut d = section.decoder(Partition::VERSION)?;
    let mut partition = Partition::with(promise.enabled());
    partition.load(&mut d)?;
    d.finish()?;
    let section = sections.take(transfer::VM)?;
    let mut d = section.decoder(transfer::VERSION)?;
    let msrs = decode_msrs(&mut d, "hyperv_msrs")?;
    if config.irqchip == Irqchip::Kernel {
        VmState::decode(&mut d)?;
    }
    d.finish()?;
    let mut registers = not_zero(msrs);
    for register in not_zero(partition.registers()) {
        // KVM has a copy of some of them.
        if !registers.iter().any(|r| r.name == register.name) {
            registers.push(register);
        }
    }
    Ok(registers)
}

fn not_zero(msrs: impl IntoIterator<Item = (Msr, u64)>) -> Vec<Register> {
    msrs.into_iter()
        .filter(|(_, value)| *value != 0)
        .map(|(msr, value)| Register {
            name: msr::name(msr).unwrap_or_else(|| msr.to_string()),
            value: value.into(),
        })
        .collect()
}

fn in_json(config: &VmConfig) -> Result<serde_json::Map<String, serde_json::Value>, InspectError> {
    toml::from_str(&config.to_toml()).map_err(|source| InspectError::Config(Box::new(source)))
}

#[cfg(test)]
mod tests;
