//! A configuration in the form of its file.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::placement::show_pins;
use super::{ConfigError, ConfigFile, Irqchip, OnTripleFault, VmConfig};
use crate::boot::Boot;
use crate::devices::char::CharBackend;
use crate::devices::table::{DeviceConfig, DeviceValue, ID_KEY, SLOT_KEY, TYPE_KEY};
use crate::life::OnCrash;
use crate::memory::{HostMemory, HugePageSize, MemoryConfig};
use crate::time::{Downtime, Policy};

impl VmConfig {
    /// The whole configuration as TOML, including defaults: as a file, it results in this configuration
    /// again.
    pub fn to_toml(&self) -> String {
        let mut table = Table::new();
        let mut put = |key: &str, value: Value| {
            table.insert(key.to_owned(), value);
        };
        put("name", text(&self.name));
        put("machine", text(self.machine.name()));
        match &self.boot {
            Boot::Kernel(boot) => {
                put("kernel", path(&boot.kernel));
                if let Some(initrd) = &boot.initrd {
                    put("initrd", path(initrd));
                }
                put("cmdline", text(&boot.cmdline));
                let modules = boot.modules.iter();
                let modules =
                    modules.map(|m| sub([("path", path(&m.path)), ("args", text(&m.cmdline))]));
                put("module", Value::Array(modules.collect()));
            }
            Boot::Firmware(boot) => {
                let code = path(&boot.code);
                let firmware = match &boot.template {
                    Some(template) => sub([("path", code), ("template", path(template))]),
                    None => code,
                };
                put("firmware", firmware);
                if let Some(vars) = &boot.vars {
                    put("firmware-vars", path(vars));
                }
            }
        }
        let size = text(&super::parse::show_size(self.memory.size));
        put("memory", memory(size, &self.memory));
        let topology = self.cpus.topology;
        put(
            "cpus",
            sub([
                ("count", number(self.cpus.count)),
                ("sockets", number(topology.sockets)),
                ("cores", number(topology.cores)),
                ("threads", number(topology.threads)),
            ]),
        );
        if !self.pins.is_empty() {
            put("pin", text(&show_pins(&self.pins)));
        }
        put("cpu", text(&self.cpus.model_with_mask()));
        put("nested", Value::Boolean(self.cpus.nested));
        put("hv", text(&self.hv.to_string()));
        if let Some(shown) = self.kvm_leaves {
            put("kvm-leaves", Value::Boolean(shown));
        }
        put("serial", backend(&self.serial[0]));
        put("serial2", backend(&self.serial[1]));
        if let Some(debugcon) = &self.debugcon {
            put("debugcon", backend(debugcon));
        }
        put(
            "debug-exit",
            self.debug_exit
                .map_or(Value::Boolean(false), |port| number(port.into())),
        );
        put("fw-cfg", Value::Boolean(self.fw_cfg));
        // A VM without devices is saved as by earlier versions.
        if !self.devices.is_empty() {
            let devices = self.devices.iter().map(device);
            put("device", Value::Array(devices.collect()));
        }
        put(
            "irqchip",
            text(match self.irqchip {
                Irqchip::Kernel => "kernel",
                Irqchip::Split => "split",
            }),
        );
        put(
            "on-crash",
            text(match self.on_crash {
                OnCrash::Continue => "continue",
                OnCrash::Pause => "pause",
                OnCrash::Reset => "reset",
                OnCrash::Stop => "stop",
            }),
        );
        put(
            "on-triple-fault",
            text(match self.on_triple_fault {
                OnTripleFault::Reset => "reset",
                OnTripleFault::Stop => "stop",
            }),
        );
        if let Some(seconds) = self.stop_timeout {
            put("stop-timeout", number(seconds));
        }
        if let Some(khz) = self.time.khz {
            put("tsc-khz", number(khz.0));
        }
        put("on-tsc-change", text(word(&POLICIES, self.time.on_change)));
        put("clock", text(word(&DOWNTIMES, self.time.downtime)));
        if let Some(stats) = &self.stats {
            put("stats", path(stats));
        }
        if let Some(entries) = self.dirty_ring_size {
            put("dirty-ring-size", number(entries));
        }
        table.to_string()
    }
}

/// The name of a saved VM's configuration in messages.
const SAVED: &str = "saved state";

impl VmConfig {
    /// The configuration as it is saved with the VM: paths do not depend on the working directory of
    /// hypernest.
    pub fn to_saved(&self) -> String {
        let mut config = self.clone();
        config.memory.host = HostMemory::default();
        config.pins.clear();
        let boot: Vec<&mut PathBuf> = match &mut config.boot {
            Boot::Kernel(boot) => {
                let modules = boot.modules.iter_mut().map(|module| &mut module.path);
                let files = std::iter::once(&mut boot.kernel).chain(&mut boot.initrd);
                files.chain(modules).collect()
            }
            Boot::Firmware(boot) => {
                // The VM has its variables.
                boot.template = None;
                std::iter::once(&mut boot.code)
                    .chain(&mut boot.vars)
                    .collect()
            }
        };
        let backends = config.serial.iter_mut().chain(&mut config.debugcon);
        let backends = backends.filter_map(|backend| match backend {
            CharBackend::File(path) | CharBackend::Socket(path) => Some(path),
            CharBackend::None | CharBackend::Stdio | CharBackend::Pty => None,
        });
        let paths = boot.into_iter().chain(backends).chain(&mut config.stats);
        for path in paths {
            // The working directory may no longer exist; then the path stays as it was given.
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        config.to_toml()
    }

    /// Parses the form that [`VmConfig::to_saved`] writes.
    ///
    /// # Errors
    /// If the text is malformed.
    pub fn from_saved(text: String) -> Result<Self, ConfigError> {
        let file = ConfigFile::new(Path::new(SAVED), text);
        Ok(super::build::without_files(&file)?.config)
    }
}

/// The keyword of each policy.
pub(super) const POLICIES: [(&str, Policy); 4] = [
    ("auto", Policy::Auto),
    ("scale", Policy::Scale),
    ("reenlighten", Policy::Reenlighten),
    ("refuse", Policy::Refuse),
];

/// The keywords for the treatment of the time during which the VM does not run.
pub(super) const DOWNTIMES: [(&str, Downtime); 2] =
    [("continue", Downtime::Continue), ("pause", Downtime::Pause)];

/// Only the size, if nothing else is set.
fn memory(size: Value, memory: &MemoryConfig) -> Value {
    let mut table = Table::new();
    if let Some(page) = memory.hugepages {
        let page = match page {
            HugePageSize::Size2M => "2M",
            HugePageSize::Size1G => "1G",
        };
        table.insert("hugepages".to_owned(), text(page));
    }
    let host = memory.host;
    for (name, given) in [
        ("prealloc", host.prealloc),
        ("mergeable", host.mergeable),
        ("lock", host.lock),
    ] {
        if given {
            table.insert(name.to_owned(), Value::Boolean(true));
        }
    }
    if let Some(numa) = host.numa {
        table.insert("numa".to_owned(), text(&numa.to_string()));
    }
    if table.is_empty() {
        return size;
    }
    table.insert("size".to_owned(), size);
    Value::Table(table)
}

fn device(device: &DeviceConfig) -> Value {
    let own = device.values.iter().map(|(key, value)| {
        let value = match value {
            DeviceValue::Text(value) => text(value),
            DeviceValue::Number(value) => number(*value),
            DeviceValue::Size(value) => Value::Integer(i64::try_from(*value).unwrap_or(i64::MAX)),
            DeviceValue::Switch(value) => Value::Boolean(*value),
        };
        (*key, value)
    });
    let common = [
        (TYPE_KEY, text(device.of.row().name)),
        (ID_KEY, text(&device.id)),
        (SLOT_KEY, number(device.slot.into())),
    ];
    let pairs = common.into_iter().chain(own);
    Value::Table(pairs.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words
        .iter()
        .find(|(_, v)| *v == value)
        .map_or("", |(word, _)| word)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn path(path: &Path) -> Value {
    // Paths come from text: see the flags and the file.
    Value::String(path.to_string_lossy().into_owned())
}

fn number(number: u32) -> Value {
    Value::Integer(number.into())
}

fn sub<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Table(
        pairs
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect(),
    )
}

fn backend(backend: &CharBackend) -> Value {
    Value::String(backend.to_string())
}
