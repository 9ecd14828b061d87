//! `--device TYPE[,id=ID][,slot=N]`: which devices a VM has, and where. The types and their keys are those of
//! the table of devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use super::build::{Build, Files, known};
use super::parse::{self, Wrong};
use super::problem::Origin;
use super::saved_devices::{CONSOLE, DISK, NET, Shorthand};
use super::setting::{Entry, Part, Scalar};
use crate::devices::disk::{FILE_KEY, READ_ONLY_KEY};
use crate::devices::table::{
    COMMON_KEYS, DEVICE_SLOTS, DeviceConfig, DeviceKey, DeviceRow, DeviceType, DeviceValue, ID_KEY,
    SLOT_KEY, TYPE_KEY, Takes,
};
use crate::text::nearest;

const KEY: &str = "device";

/// The most bytes of a socket's path (unix(7)).
const MAX_SOCKET: usize = 107;

/// A device as it was asked for.
struct Asked {
    /// None if it is unknown.
    of: Option<DeviceType>,
    id: Option<String>,
    slot: Option<u8>,
    values: BTreeMap<&'static str, DeviceValue>,
    origin: Origin,
}

impl Asked {
    /// The type and the position, counted from 1.
    fn kind(&self, n: usize) -> String {
        match self.of {
            Some(of) => format!("{of} (device {n})"),
            None => format!("device {n}"),
        }
    }

    /// The image of a disk without symbolic links, and whether it is only read.
    fn image(&self) -> Option<(PathBuf, bool)> {
        let Some(DeviceValue::Text(file)) = self.values.get(FILE_KEY) else {
            return None;
        };
        let read_only = self.values.get(READ_ONLY_KEY) == Some(&DeviceValue::Switch(true));
        Some((fs::canonicalize(file).ok()?, read_only))
    }

    /// The id, or what else there is.
    fn shown(&self, n: usize) -> String {
        self.id.clone().unwrap_or_else(|| self.kind(n))
    }
}

impl<'a> Build<'a> {
    /// All devices of the VM called `vm`, in the order in which they were given.
    pub(super) fn devices(&mut self, vm: &str) -> Vec<(Origin, DeviceConfig)> {
        let draft = self.draft;
        let of = |key| draft.get(known(key)).iter().map(move |entry| (key, entry));
        let entries: Vec<_> = [DISK, NET, CONSOLE, KEY].into_iter().flat_map(of).collect();
        let slots = DEVICE_SLOTS.count();
        if let Some((key, entry)) = entries.get(slots) {
            let what = format!("there are slots for no more than {slots} devices");
            self.push(key, &entry.origin, Wrong::new(what, "fewer devices"));
        }
        let asked = entries
            .into_iter()
            .map(|(key, entry)| match Shorthand::find(key) {
                Some(short) => self.shorthand(short, entry),
                None => self.device(entry),
            });
        let asked: Vec<_> = asked.collect();
        for (i, device) in asked.iter().enumerate() {
            let before = || asked[..i].iter().zip(1..);
            let this = device.shown(i + 1);
            if let Some(id) = &device.id
                && let Some((other, n)) = before().find(|(other, _)| other.id.as_ref() == Some(id))
            {
                let (this, other) = (device.kind(i + 1), other.kind(n));
                let what = format!("two devices have the id {id}: {other} and {this}");
                self.push(KEY, &device.origin, Wrong::new(what, "another id"));
            }
            if let Some(slot) = device.slot
                && let Some((other, n)) = before().find(|(other, _)| other.slot == Some(slot))
            {
                let what = format!(
                    "two devices have slot {slot}: {} and {this}",
                    other.shown(n)
                );
                self.push(KEY, &device.origin, Wrong::new(what, "another slot"));
            }
        }
        let must_be_there = self.files == Files::MustBeThere;
        for (i, device) in asked.iter().enumerate() {
            let Some((path, read_only)) = device.image().filter(|_| must_be_there) else {
                continue;
            };
            let shares = |other: &Asked| {
                let image = other.image();
                image.is_some_and(|(other, reads)| other == path && !(read_only && reads))
            };
            if asked[..i].iter().any(shares) {
                let what = format!("two disks have the image {}", path.display());
                let wrong = Wrong::new(what, "another image, or readonly for both");
                self.push(DISK, &device.origin, wrong);
            }
        }
        let mut devices = Vec::new();
        for (origin, mut device) in place(asked) {
            for fault in (device.of.row().check)(&mut device, vm, must_be_there) {
                let setting = match &origin {
                    Origin::Flag(setting) => setting,
                    Origin::File { .. } => KEY,
                };
                self.push(setting, &origin, Wrong::new(fault.what, fault.expected));
            }
            devices.push((origin, device));
        }
        devices
    }

    /// A device by what it is connected to.
    fn shorthand(&mut self, short: &'static Shorthand, entry: &'a Entry) -> Asked {
        let of = DeviceType::find(short.of).expect("a test finds it");
        let names = COMMON_KEYS.iter().chain(of.row().keys).map(|key| key.name);
        let names = names.filter(|name| *name != short.key);
        let names: Vec<_> = [short.key].into_iter().chain(names).collect();
        self.asked(short.setting, Some(of), entry, &names)
    }

    fn device(&mut self, entry: &'a Entry) -> Asked {
        let types = self.types;
        let mut parts = entry.parts.iter().enumerate();
        let part = parts.find(|(i, part)| match &part.name {
            Some(name) => name == TYPE_KEY,
            None => *i == 0,
        });
        let of = match part {
            Some((_, part)) => self.parsed(KEY, part, |value| device_type(value, types)),
            // A misspelt key is reported as such.
            None if entry.parts.iter().any(is_misspelt_type) => None,
            None => {
                let wrong = Wrong::new("the device has no type", "a type of device");
                self.push(KEY, &entry.origin, wrong);
                None
            }
        };
        let own = of.map_or(&[][..], |of| of.row().keys);
        // A device of an unknown type may have any type's keys: only the type is wrong then.
        let others = types.iter().filter(|_| of.is_none());
        let names = [COMMON_KEYS, own].into_iter();
        let names = names.chain(others.map(|row| row.keys)).flatten();
        let names: Vec<_> = [TYPE_KEY]
            .into_iter()
            .chain(names.map(|k| k.name))
            .collect();
        self.asked(KEY, of, entry, &names)
    }

    /// The device of `entry`, whose parts may have these `names`.
    fn asked(
        &mut self,
        setting: &'static str,
        of: Option<DeviceType>,
        entry: &'a Entry,
        names: &[&'static str],
    ) -> Asked {
        let own = of.map_or(&[][..], |of| of.row().keys);
        let parts = Self::joined(&entry.parts);
        let parts = self.named_parts(setting, &parts, names);
        let mut values = BTreeMap::new();
        for key in COMMON_KEYS.iter().chain(own) {
            match parts.get(key.name) {
                Some(part) => {
                    if let Some(value) = self.value(setting, key, part) {
                        values.insert(key.name, value);
                    }
                }
                None if key.required && self.files == Files::MustBeThere => {
                    let wrong = Wrong::new(format!("the device has no {}", key.name), key.name);
                    self.push(setting, &entry.origin, wrong);
                }
                None => {}
            }
        }
        let id = values.remove(ID_KEY).map(|id| id.to_string());
        let slot = match values.remove(SLOT_KEY) {
            Some(DeviceValue::Number(slot)) => u8::try_from(slot).ok(),
            _ => None,
        };
        Asked {
            of,
            id,
            slot,
            values,
            origin: entry.origin.clone(),
        }
    }

    /// The value of a device's key.
    pub(super) fn value(
        &mut self,
        setting: &'static str,
        key: &DeviceKey,
        part: &Part,
    ) -> Option<DeviceValue> {
        if let Takes::Path = key.takes {
            let path = self.path_of(setting, part)?;
            let expected = "a file or a block device";
            // What a saved VM names is on another host, and is not looked at on this one.
            let checked = match self.files {
                Files::MustBeThere => parse::disk(&path),
                Files::MayLack => Ok(()),
            };
            let wrong = match (checked, path.to_str()) {
                (Ok(()), Some(text)) => return Some(DeviceValue::Text(text.to_owned())),
                (Ok(()), None) => format!("the path {} is not UTF-8", path.display()),
                (Err(wrong), _) => wrong,
            };
            self.push(setting, &part.origin, Wrong::new(wrong, expected));
            return None;
        }
        if let Takes::Backend = key.takes {
            let backend = self.backend_of(setting, part)?.to_string();
            return Some(DeviceValue::Text(backend));
        }
        if let Takes::Socket = key.takes {
            let path = self.path_of(setting, part)?;
            let text = path.to_str().filter(|path| path.len() <= MAX_SOCKET);
            if let Some(text) = text {
                return Some(DeviceValue::Text(text.to_owned()));
            }
            let what = format!("{} cannot be the path of a socket", path.display());
            let expected = format!("up to {MAX_SOCKET} bytes of UTF-8");
            self.push(setting, &part.origin, Wrong::new(what, expected));
            return None;
        }
        self.parsed(setting, part, |value| match &key.takes {
            Takes::Socket | Takes::Path | Takes::Backend => unreachable!("see above"),
            Takes::Switch => parse::boolean(value).map(DeviceValue::Switch),
            Takes::Text { max } => {
                let expected = format!("up to {max} printable ASCII characters");
                let text = parse::text(value, &expected)?;
                let fits = text.len() <= *max && text.bytes().all(|b| (b' '..=b'~').contains(&b));
                match fits {
                    true => Ok(DeviceValue::Text(text)),
                    false => Err(Wrong::new(format!("{value} cannot be used"), expected)),
                }
            }
            Takes::Name => {
                let what = match key.name {
                    ID_KEY => "a device".to_owned(),
                    name => format!("a device's {name}"),
                };
                parse::name_of(value, &what).map(DeviceValue::Text)
            }
            Takes::Words(words) => {
                let words: Vec<_> = words.iter().map(|word| (*word, *word)).collect();
                parse::choice(value, &words).map(|word| DeviceValue::Text(word.to_owned()))
            }
            Takes::Size => match parse::size(value)? {
                bytes if i64::try_from(bytes).is_ok() => Ok(DeviceValue::Size(bytes)),
                _ => Err(Wrong::new(
                    format!("{value} is out of range"),
                    "a smaller size",
                )),
            },
            Takes::Number { what, first, last } => {
                let expected = format!("a {what} from {first} to {last}");
                match u32::try_from(parse::number(value, &expected)?) {
                    Ok(number) if (*first..=*last).contains(&number) => {
                        Ok(DeviceValue::Number(number))
                    }
                    _ => Err(Wrong::new(format!("{value} is out of range"), expected)),
                }
            }
        })
    }
}

fn is_misspelt_type(part: &Part) -> bool {
    let keys = [TYPE_KEY].into_iter();
    let keys = keys.chain(COMMON_KEYS.iter().map(|key| key.name));
    let name = part.name.as_deref().unwrap_or_default();
    nearest(name, keys) == Some(TYPE_KEY)
}

fn device_type(value: &Scalar, types: &'static [DeviceRow]) -> Result<DeviceType, Wrong> {
    let names = types.iter().flat_map(|row| {
        let names = std::iter::once(&row.name).chain(row.aliases);
        names.map(|name| (*name, DeviceType::new(row)))
    });
    parse::choice(value, &names.collect::<Vec<_>>())
}

/// Those without an id are called by their type and a number; those without a slot get the first that is
/// free.
fn place(asked: Vec<Asked>) -> Vec<(Origin, DeviceConfig)> {
    let mut ids: BTreeSet<_> = asked.iter().filter_map(|d| d.id.clone()).collect();
    let mut slots: BTreeSet<_> = asked.iter().filter_map(|d| d.slot).collect();
    // No more than there are slots: there is a problem with the others.
    let placed = asked.into_iter().take(DEVICE_SLOTS.count());
    let placed = placed.filter_map(|device| {
        let of = device.of?;
        let id = device.id.or_else(|| {
            let id = (0..)
                .map(|n| format!("{of}{n}"))
                .find(|id| !ids.contains(id))?;
            ids.insert(id.clone());
            Some(id)
        });
        let slot = device.slot.or_else(|| {
            let slot = DEVICE_SLOTS.clone().find(|slot| !slots.contains(slot))?;
            slots.insert(slot);
            Some(slot)
        });
        let placed = DeviceConfig {
            of,
            id: id?,
            slot: slot?,
            values: device.values,
        };
        Some((device.origin, placed))
    });
    placed.collect()
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
