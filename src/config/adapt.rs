//! From the configuration of a saved VM to the one with which it continues on this host.

use std::path::Path;

use super::VmConfig;
use super::build::{Build, Checked, Files};
use super::endpoints::Endpoint;
use super::file::ConfigFile;
use super::flags::LocalFlags;
use super::host::HostLimits;
use super::placement;
use super::problem::{ConfigError, Origin, Problem};
use super::saved_devices::{SHORTHANDS, Shorthand};
use crate::boot::Boot;
use crate::units::TscKhz;

/// The configuration for continuing a saved VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapted {
    /// The VM's configuration, with its host resources replaced.
    pub checked: Checked,
    /// The frequency to assume for this host's TSC, if it is not the real one.
    pub host_khz: Option<TscKhz>,
    /// Whether the flags name the kernel and its files on this host.
    pub boot_is_local: bool,
}

/// The configuration of a VM that was saved as `saved`, with this host's settings from `flags`. Its kernel
/// need not exist.
///
/// Host resources in the saved configuration are left out, with a warning: only this host's user decides
/// which of its files are opened.
///
/// # Errors
/// All problems at once.
pub fn adapt(
    saved: &VmConfig,
    flags: &LocalFlags,
    host: HostLimits,
) -> Result<Adapted, ConfigError> {
    // On a command line for a saved VM it describes the host; the guest's value is saved.
    let mut base = saved.clone();
    let guest_khz = base.time.khz.take();
    let goes = |setting: &str| Shorthand::find(setting).is_some() || !flags.given(setting);
    let mut left_out = base.remove_endpoints(goes);
    let boot_is_local = flags.given("kernel");
    if boot_is_local && let Boot::Kernel(boot) = &mut base.boot {
        boot.initrd = None;
        boot.modules.clear();
    }
    let mut local = flags.0.draft();
    let mut devices = Build::new(&local, host, Files::MustBeThere);
    devices.saved_devices(&mut base.devices);
    let problems = devices.into_problems();
    local.replace(&SHORTHANDS, problems);
    // Those that are connected to something else now; without another image, a disk is an error.
    left_out.retain(|endpoint| {
        let id = endpoint.value.split(',').next();
        let device = base
            .devices
            .iter()
            .find(|device| Some(device.id.as_str()) == id);
        match Shorthand::find(endpoint.setting) {
            Some(short) => {
                !short.required && device.is_none_or(|d| !d.values.contains_key(short.key))
            }
            None => true,
        }
    });
    let file = ConfigFile::new(Path::new("saved state"), base.to_toml());
    let draft = file.draft();
    placement::with_saved_memory(&draft, &mut local);
    let mut draft = draft.overlay(local);
    if saved.debugcon.is_none() && flags.given("debugcon") {
        draft.problems.push(Problem {
            origin: Origin::Flag("debugcon"),
            what: "the saved VM has no debug console".to_owned(),
            help: Some("leave it out: devices cannot be added to a saved VM".to_owned()),
        });
    }
    for key in ["initrd", "module"] {
        if flags.given(key) && !boot_is_local {
            draft.problems.push(Problem {
                origin: Origin::Flag(key),
                what: "it belongs to the kernel that was saved with the VM".to_owned(),
                help: Some("give --kernel as well, to boot other files after a reset".to_owned()),
            });
        }
    }
    let files = match boot_is_local {
        true => Files::MustBeThere,
        false => Files::MayLack,
    };
    let mut checked = Build::new(&draft, host, files).finish()?;
    checked
        .warnings
        .extend(left_out.into_iter().map(not_opened));
    let host_khz = std::mem::replace(&mut checked.config.time.khz, guest_khz);
    Ok(Adapted {
        checked,
        host_khz,
        boot_is_local,
    })
}

/// The text comes from another host: it is escaped, since it may contain terminal control sequences.
fn not_opened(Endpoint { setting, value }: Endpoint) -> Problem {
    Problem {
        origin: Origin::Flag(setting),
        what: format!("{value:?} of the saved configuration is not opened"),
        help: Some(format!("to open it on this host, give --{setting}")),
    }
}

#[cfg(test)]
#[path = "adapt_tests.rs"]
mod tests;
