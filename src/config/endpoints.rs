//! The host resources that a configuration opens. Those of a saved VM or of a migration's source are not
//! trusted.

use super::saved_devices::Shorthand;
use super::{CharBackend, VmConfig};
use crate::boot::Boot;

/// A host resource that a configuration opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The setting that names it.
    pub setting: &'static str,
    /// The setting's value.
    pub value: String,
}

impl VmConfig {
    /// The files, sockets and pseudo-terminals that the VM's devices and its statistics open, and the host's
    /// names in other keys of devices. Standard input and output are not included: the process already has
    /// them. Nor are the boot files, which are only read.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.clone().remove_endpoints(|_| true)
    }

    /// Removes those of [`VmConfig::endpoints`] whose setting `go` selects: the devices stay, without a
    /// connection.
    pub(super) fn remove_endpoints(&mut self, go: impl Fn(&str) -> bool) -> Vec<Endpoint> {
        let [serial, serial2] = &mut self.serial;
        let consoles = [
            ("serial", Some(serial)),
            ("serial2", Some(serial2)),
            ("debugcon", self.debugcon.as_mut()),
        ];
        let mut removed = Vec::new();
        for (setting, backend) in consoles {
            let Some(backend) = backend.filter(|_| go(setting)) else {
                continue;
            };
            let value = match backend {
                CharBackend::None | CharBackend::Stdio => continue,
                _ => backend.to_string(),
            };
            *backend = CharBackend::None;
            removed.push(Endpoint { setting, value });
        }
        for device in &mut self.devices {
            let setting = Shorthand::of_device(device).map_or("device", |short| short.setting);
            if !go(setting) {
                continue;
            }
            let local = device.remove_local();
            if !local.is_empty() {
                let local = local.iter().map(|(key, value)| format!(",{key}={value}"));
                removed.push(Endpoint {
                    setting,
                    value: format!("{}{}", device.id, local.collect::<String>()),
                });
            }
        }
        if go("firmware-vars")
            && let Boot::Firmware(boot) = &mut self.boot
            && let Some(path) = boot.vars.take()
        {
            removed.push(Endpoint {
                setting: "firmware-vars",
                value: path.display().to_string(),
            });
        }
        if go("stats")
            && let Some(path) = self.stats.take()
        {
            removed.push(Endpoint {
                setting: "stats",
                value: path.display().to_string(),
            });
        }
        removed
    }
}
