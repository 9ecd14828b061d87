//! The devices that a VM is given by `--device`: one row for each type. The flag, the file, the checks,
//! `hypernest config` and the wiring go by this table.

use std::fmt;

/// A type of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// A virtio entropy source.
    VirtioRng,
}

/// What there is to know about a type.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRow {
    /// The type.
    pub of: DeviceType,
    /// What it is called here.
    pub name: &'static str,
    /// What it is called in QEMU.
    pub aliases: &'static [&'static str],
    /// What it is, for the documentation.
    pub about: &'static str,
}

/// Every type.
pub static DEVICE_TYPES: &[DeviceRow] = &[DeviceRow {
    of: DeviceType::VirtioRng,
    name: "virtio-rng",
    aliases: &["virtio-rng-pci"],
    about: "random bytes of the host, as /dev/hwrng in Linux",
}];

/// The keys of a device; the type comes first and needs no name.
pub const DEVICE_KEYS: &[&str] = &["type", "id", "slot"];

/// The slots of bus 0 that devices may have: 0 is the host bridge's, and 31 is where a PC has its chipset.
pub const DEVICE_SLOTS: std::ops::RangeInclusive<u8> = 1..=30;

impl DeviceType {
    /// The type called `name`, here or in QEMU.
    pub fn find(name: &str) -> Option<Self> {
        let mut rows = DEVICE_TYPES.iter();
        rows.find(|row| row.name == name || row.aliases.contains(&name))
            .map(|row| row.of)
    }

    /// Its row.
    ///
    /// # Panics
    /// Never: the test below goes through all types.
    pub fn row(self) -> &'static DeviceRow {
        let mut rows = DEVICE_TYPES.iter();
        rows.find(|row| row.of == self)
            .expect("a row for each type")
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A device of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// What it is.
    pub of: DeviceType,
    /// What it is called in messages; no two have one.
    pub id: String,
    /// Its slot on bus 0.
    pub slot: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_to_their_rows() {
        let mut names: Vec<_> = DEVICE_TYPES
            .iter()
            .flat_map(|row| row.aliases.iter().chain([&row.name]))
            .collect();
        for row in DEVICE_TYPES {
            assert_eq!(row.of.row().name, row.name);
            for name in row.aliases.iter().chain([&row.name]) {
                assert_eq!(DeviceType::find(name), Some(row.of));
            }
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 2);
        assert_eq!(DeviceType::find("virtio"), None);
    }
}
