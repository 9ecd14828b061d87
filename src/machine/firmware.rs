//! A VM that starts in firmware: its flash memory, and what firmware is told of the machine.

use super::MachineError;
use super::build::Origin;
use crate::boot::{self, BootFiles, FirmwareBoot, Platform};
use crate::config::VmConfig;
use crate::devices::flash::{Flash, FlashError};
use crate::devices::fw_cfg::Files;
use crate::devices::table::DeviceConfig;
use crate::layout;
use crate::memory::{GuestRam, NoRam};
use crate::units::Gpa;

/// Puts code and variables into the flash memory, as far as they are there yet.
pub(super) fn install(
    flash: &Flash,
    boot: &FirmwareBoot,
    origin: &Origin,
) -> Result<(), MachineError> {
    match origin {
        Origin::New(files) => {
            install_code(flash, files)?;
            if let Some(template) = boot::firmware_template(boot)? {
                flash.set_vars(&template, boot.vars.as_deref())?;
            }
        }
        Origin::Saved(files) => {
            if let Some(files) = files {
                install_code(flash, files)?;
            }
            if let Some(path) = &boot.vars {
                flash.keep_vars_in(path)?;
            }
        }
    }
    Ok(())
}

/// Puts the code of `files` into the flash memory.
pub(super) fn install_code(flash: &Flash, files: &BootFiles) -> Result<(), MachineError> {
    let code = boot::firmware_code(files)?;
    Ok(flash.set_code(&code)?)
}

/// The end of the code also lies below 1 MiB at power-on, as on every PC: there, firmware that starts in real
/// mode finds itself.
pub(super) fn shadow(flash: &Flash, ram: &GuestRam) -> Result<(), NoRam> {
    let area = layout::BIOS_AREA;
    let code = flash.code_end(area.end - area.start);
    ram.write(Gpa(area.end - code.len() as u64), &code)
}

/// The files that firmware reads of fw_cfg, beside the ACPI tables.
pub(super) fn files(config: &VmConfig, platform: &Platform, vmx: bool) -> Files {
    /// IA32_FEATURE_CONTROL (Intel SDM vol. 3, 24.7): locked, with VMX outside SMX.
    const VMX_ON_AND_LOCKED: u64 = 0b101;
    let ram = config.ram_ranges();
    let (anchor, tables) = boot::smbios_blobs(platform, &ram);
    let mut files = vec![
        ("etc/e820", boot::e820(&ram)),
        ("etc/smbios/smbios-anchor", anchor),
        ("etc/smbios/smbios-tables", tables),
        ("bootorder", boot_order(&config.devices)),
    ];
    if vmx {
        let value = VMX_ON_AND_LOCKED.to_le_bytes().to_vec();
        files.push(("etc/msr_feature_control", value));
    }
    files
}

/// What firmware tries to boot from, in the order of the configuration: paths in Open Firmware's form, a line
/// each.
fn boot_order(devices: &[DeviceConfig]) -> Vec<u8> {
    let paths = devices.iter().filter_map(|device| {
        let path = device.of.row().boot_path?;
        Some(format!("/pci@i0cf8/{}", path(device.slot)))
    });
    let mut lines = paths.collect::<Vec<_>>().join("\n").into_bytes();
    lines.push(0);
    lines
}

impl From<FlashError> for MachineError {
    fn from(error: FlashError) -> Self {
        Self::Flash(Box::new(error))
    }
}
