//! Firmware's files for flash memory.

use super::config::FirmwareBoot;
use super::error::BootError;
use super::files::BootFiles;
use super::image::{Content, Image, Role};
use crate::devices::flash;

/// The code of a VM that starts in firmware.
///
/// # Errors
/// If it cannot be read, is damaged, or is no flash image.
pub fn firmware_code(files: &BootFiles) -> Result<Vec<u8>, BootError> {
    let code = files.first();
    code.check()?;
    content(code)
}

/// The variables that a new VM starts with, if its firmware keeps any.
///
/// # Errors
/// If they cannot be read, or are no flash image.
pub fn firmware_template(boot: &FirmwareBoot) -> Result<Option<Vec<u8>>, BootError> {
    let template = boot.template.as_deref();
    let image = template.map(|path| Image::open(Role::Variables, path));
    image.transpose()?.as_ref().map(content).transpose()
}

fn content(image: &Image) -> Result<Vec<u8>, BootError> {
    let len = image.len();
    if len > flash::MAX_LEN || !len.is_multiple_of(flash::BLOCK) {
        return Err(BootError::NoFlash {
            role: image.role(),
            path: image.path().to_owned(),
            len,
        });
    }
    image.head(usize::try_from(len).unwrap_or(usize::MAX))
}
