//! `--disk FILE[,KEY=VALUE]...`, `--net KIND[,KEY=VALUE]...` and `--console BACKEND[,KEY=VALUE]...`: devices
//! of the types for disks, network cards and consoles; and what those of a saved VM are connected to on this
//! host.

use super::build::{Build, known};
use super::parse::Wrong;
use super::problem::{Origin, Problem};
use crate::devices::console::CONSOLE_KEY;
use crate::devices::disk::FILE_KEY;
use crate::devices::net::NET_KEY;
use crate::devices::table::{COMMON_KEYS, DeviceConfig, DeviceKey, ID_KEY};

/// The setting of disks.
pub(super) const DISK: &str = "disk";

/// The setting of network cards.
pub(super) const NET: &str = "net";

/// The setting of consoles.
pub(super) const CONSOLE: &str = "console";

/// A setting that stands for a type of device.
pub(super) struct Shorthand {
    /// Its name.
    pub(super) setting: &'static str,
    /// The type.
    pub(super) of: &'static str,
    /// The key with what the device is connected to, which comes first and needs no name.
    pub(super) key: &'static str,
    /// For messages: one device, several, and what one is connected to.
    one: &'static str,
    many: &'static str,
    connected: &'static str,
    /// A saved VM does not continue without it.
    pub(super) required: bool,
}

/// All of them.
pub(super) static SHORTHANDS: [Shorthand; 3] = [
    Shorthand {
        setting: DISK,
        of: "virtio-blk",
        key: FILE_KEY,
        one: "disk",
        many: "disks",
        connected: "an image",
        required: true,
    },
    Shorthand {
        setting: NET,
        of: "virtio-net",
        key: NET_KEY,
        one: "network card",
        many: "network cards",
        connected: "a network",
        required: false,
    },
    Shorthand {
        setting: CONSOLE,
        of: "virtio-console",
        key: CONSOLE_KEY,
        one: "console",
        many: "consoles",
        connected: "a back end",
        required: false,
    },
];

impl Shorthand {
    /// That of the setting.
    pub(super) fn find(setting: &str) -> Option<&'static Self> {
        SHORTHANDS.iter().find(|short| short.setting == setting)
    }

    /// That of the device, if it is connected to something of the host.
    pub(super) fn of_device(device: &DeviceConfig) -> Option<&'static Self> {
        let keys = device.of.row().keys;
        let has = |name| keys.iter().any(|key| key.name == name);
        SHORTHANDS.iter().find(|short| has(short.key))
    }
}

/// The keys with which a saved device may continue.
fn keys_of(device: &DeviceConfig) -> impl Iterator<Item = &'static DeviceKey> + use<> {
    let keys = device.of.row().keys.iter();
    keys.filter(|key| key.local || key.adjustable)
}

impl Build<'_> {
    /// Connects the devices of a saved VM to what `--disk`, `--net` and `--console` name: by id, or in their
    /// order.
    pub(super) fn saved_devices(&mut self, devices: &mut [DeviceConfig]) {
        for short in &SHORTHANDS {
            self.saved(short, devices);
        }
    }

    fn saved(&mut self, short: &'static Shorthand, devices: &mut [DeviceConfig]) {
        let &Shorthand {
            setting,
            key: first,
            one,
            ..
        } = short;
        let is = |device: &&mut DeviceConfig| {
            Shorthand::of_device(device).is_some_and(|of| of.setting == setting)
        };
        let mut devices: Vec<_> = devices.iter_mut().filter(is).collect();
        let ids: Vec<_> = devices.iter().map(|device| device.id.clone()).collect();
        let has = match ids.as_slice() {
            [] => format!("the saved VM has no {one}"),
            [id] => format!("the saved VM has the {one} {id}"),
            ids => format!("the saved VM has the {} {}", short.many, ids.join(", ")),
        };
        let mut given = vec![false; devices.len()];
        for entry in self.draft.get(known(setting)) {
            let names = devices.iter().flat_map(|device| keys_of(device));
            let mut names: Vec<_> = names.map(|key| key.name).collect();
            names.sort_unstable();
            names.dedup();
            names.retain(|name| *name != first);
            let names: Vec<_> = [first, ID_KEY].into_iter().chain(names).collect();
            let parts = Self::joined(&entry.parts);
            let parts = self.named_parts(setting, &parts, &names);
            let id_key = COMMON_KEYS.iter().find(|key| key.name == ID_KEY);
            let id = id_key.zip(parts.get(ID_KEY));
            let id = id.and_then(|(key, part)| self.value(setting, key, part));
            let id = id.map(|id| id.to_string());
            let index = match &id {
                Some(id) => ids.iter().position(|of| of == id),
                None => given.iter().position(|given| !given),
            };
            let Some(index) = index.filter(|index| !given[*index]) else {
                let what = match id {
                    Some(id) if ids.contains(&id) => format!("the {one} {id} is given twice"),
                    Some(id) => format!("there is no {one} {id}: {has}"),
                    None => format!("there is one more than {}: {has}", short.many),
                };
                let expected = format!("{} for each {one} of the saved VM", short.connected);
                self.push(setting, &entry.origin, Wrong::new(what, expected));
                continue;
            };
            given[index] = true;
            let device = &mut devices[index];
            for key in keys_of(device) {
                let part = parts.get(key.name);
                if let Some(value) = part.and_then(|part| self.value(setting, key, part)) {
                    device.values.insert(key.name, value);
                }
            }
        }
        for (device, given) in devices.iter().zip(given) {
            if !given && short.required {
                self.problem(Problem {
                    origin: Origin::Flag(setting),
                    what: format!("the {one} {} of the saved VM has no image here", device.id),
                    help: Some(format!(
                        "give the image that it was saved with: --{setting} FILE,id={}",
                        device.id
                    )),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::table::DeviceType;

    #[test]
    fn each_setting_stands_for_a_type_with_its_key() {
        for short in &SHORTHANDS {
            let row = DeviceType::find(short.of).unwrap().row();
            let key = row.keys.iter().find(|key| key.name == short.key);
            assert!(key.is_some_and(|key| key.local && key.required == short.required));
            known(short.setting);
        }
    }
}
