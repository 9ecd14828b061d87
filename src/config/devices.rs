//! `--device TYPE[,id=ID][,slot=N]`: which devices a VM has, and where.

use super::build::{Build, known};
use super::parse::{self, Wrong};
use super::problem::Origin;
use super::setting::{Entry, Scalar};
use crate::devices::table::{DEVICE_SLOTS, DEVICE_TYPES, DeviceConfig, DeviceType};

const KEY: &str = "device";

/// A device as it was asked for.
struct Asked {
    of: DeviceType,
    id: Option<String>,
    slot: Option<u8>,
    origin: Origin,
}

impl<'a> Build<'a> {
    /// All devices, in the order in which they were given.
    pub(super) fn devices(&mut self) -> Vec<DeviceConfig> {
        let mut asked: Vec<Asked> = Vec::new();
        let entries = self.draft.get(known(KEY));
        if let Some(entry) = entries.get(DEVICE_SLOTS.count()) {
            let what = format!(
                "there are slots for no more than {} devices",
                DEVICE_SLOTS.count()
            );
            self.push(KEY, &entry.origin, Wrong::new(what, "fewer devices"));
            return Vec::new();
        }
        for entry in entries {
            let Some(device) = self.device(entry) else {
                continue;
            };
            if let Some(id) = &device.id
                && asked.iter().any(|other| other.id.as_ref() == Some(id))
            {
                let what = format!("two devices have the id {id}");
                self.push(KEY, &device.origin, Wrong::new(what, "another id"));
            }
            if let Some(slot) = device.slot
                && asked.iter().any(|other| other.slot == Some(slot))
            {
                let what = format!("two devices have slot {slot}");
                self.push(KEY, &device.origin, Wrong::new(what, "another slot"));
            }
            asked.push(device);
        }
        place(asked)
    }

    fn device(&mut self, entry: &'a Entry) -> Option<Asked> {
        let parts = self.parts(KEY, &entry.parts);
        let Some(part) = parts.get("type") else {
            let wrong = Wrong::new("the device has no type", "a type of device");
            self.push(KEY, &entry.origin, wrong);
            return None;
        };
        let of = self.parsed(KEY, part, device_type);
        let get = |name: &str| parts.get(name).copied();
        let (id, slot) = (get("id"), get("slot"));
        let id = id.map(|part| self.parsed(KEY, part, parse::name));
        let slot = slot.map(|part| self.parsed(KEY, part, self::slot));
        Some(Asked {
            of: of?,
            id: id.flatten(),
            slot: slot.flatten(),
            origin: entry.origin.clone(),
        })
    }
}

fn device_type(value: &Scalar) -> Result<DeviceType, Wrong> {
    let names = DEVICE_TYPES.iter().flat_map(|row| {
        let names = std::iter::once(&row.name).chain(row.aliases);
        names.map(|name| (*name, row.of))
    });
    parse::choice(value, &names.collect::<Vec<_>>())
}

fn slot(value: &Scalar) -> Result<u8, Wrong> {
    let (first, last) = (DEVICE_SLOTS.start(), DEVICE_SLOTS.end());
    let expected = format!("a slot from {first} to {last}");
    match u8::try_from(parse::number(value, &expected)?) {
        Ok(slot) if DEVICE_SLOTS.contains(&slot) => Ok(slot),
        _ => Err(Wrong::new(format!("{value} is out of range"), expected)),
    }
}

/// Those without an id are called by their type and a number; those without a slot get the first that is
/// free.
fn place(asked: Vec<Asked>) -> Vec<DeviceConfig> {
    let mut ids: Vec<_> = asked.iter().filter_map(|d| d.id.clone()).collect();
    let mut slots: Vec<_> = asked.iter().filter_map(|d| d.slot).collect();
    let placed = asked.into_iter().filter_map(|device| {
        let of = device.of;
        let id = device.id.or_else(|| {
            let id = (0..)
                .map(|n| format!("{of}{n}"))
                .find(|id| !ids.contains(id))?;
            ids.push(id.clone());
            Some(id)
        });
        let slot = device.slot.or_else(|| {
            let slot = DEVICE_SLOTS.clone().find(|slot| !slots.contains(slot))?;
            slots.push(slot);
            Some(slot)
        });
        // There are as many ids as wanted, and no more devices than slots.
        Some(DeviceConfig {
            of,
            id: id?,
            slot: slot?,
        })
    });
    placed.collect()
}
