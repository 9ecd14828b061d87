//! The devices that a VM is given by `--device`: one row for each type. The flag and its help, the file, the
//! checks, `hypernest config`, what a saved VM may open and the wiring go by this table; a test checks the
//! documentation against it. A new type is a module of its own and a row here.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use super::char::{CharBackend, CharError};
use super::io_thread::{SharedChar, Waker};
use super::{balloon, console, disk, net};
use crate::block::raw::RawError;
use crate::irq::{Doorbells, NoVector};
use crate::life::GuestEvents;
use crate::pci::{DevFn, Requester, Slot};
use crate::virtio::device::VirtioDevice;
use crate::virtio::rng::Rng;
use crate::virtio::transport::pci::{self, TransportError};

/// A type of device.
#[derive(Debug)]
pub struct DeviceRow {
    /// What it is called here.
    pub name: &'static str,
    /// What it is called in QEMU.
    pub aliases: &'static [&'static str],
    /// What it is, for the help and the documentation.
    pub about: &'static str,
    /// Its keys beside [`COMMON_KEYS`].
    pub keys: &'static [DeviceKey],
    /// Checks one as a whole.
    pub check: Check,
    /// Makes one.
    pub build: Build,
    /// It gives the guest's RAM back to the host page by page.
    pub releases_memory: bool,
    /// What firmware calls it when it is to boot from it, by its slot: its part of a path in Open Firmware's
    /// form, as QEMU writes it.
    pub boot_path: Option<fn(u8) -> String>,
}

/// Checks a device's keys together, and sets those that depend on others. It has the VM's name, and whether
/// what the keys name of the host has to be there.
pub type Check = fn(&mut DeviceConfig, &str, bool) -> Vec<Fault>;

/// What is wrong with a device's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The problem.
    pub what: String,
    /// What would be right.
    pub expected: String,
}

/// Keys that do not depend on each other.
fn independent(_config: &mut DeviceConfig, _vm: &str, _here: bool) -> Vec<Fault> {
    Vec::new()
}

/// Makes a device of a type as it is configured.
pub type Build = fn(&DeviceConfig, &Site<'_>) -> Result<Slot, BuildError>;

/// Every type.
pub static DEVICE_TYPES: &[DeviceRow] = &[
    DeviceRow {
        name: "virtio-balloon",
        aliases: &["virtio-balloon-pci"],
        about: "a balloon: memory that the guest gives back",
        keys: balloon::VIRTIO_BALLOON_KEYS,
        check: independent,
        build: balloon::virtio_balloon,
        releases_memory: true,
        boot_path: None,
    },
    DeviceRow {
        name: "virtio-blk",
        aliases: &["virtio-blk-pci"],
        about: "a disk",
        keys: disk::VIRTIO_BLK_KEYS,
        check: disk::check,
        build: disk::virtio_blk,
        releases_memory: false,
        boot_path: Some(|slot| format!("scsi@{slot:x}/disk@0,0")),
    },
    DeviceRow {
        name: "virtio-console",
        aliases: &["virtconsole", "virtserialport"],
        about: "a console, or a port with a name",
        keys: console::VIRTIO_CONSOLE_KEYS,
        check: independent,
        build: console::virtio_console,
        releases_memory: false,
        boot_path: None,
    },
    DeviceRow {
        name: "virtio-net",
        aliases: &["virtio-net-pci"],
        about: "a network card",
        keys: net::VIRTIO_NET_KEYS,
        check: net::check,
        build: net::virtio_net,
        releases_memory: false,
        boot_path: Some(|slot| format!("ethernet@{slot:x}/ethernet-phy@0")),
    },
    DeviceRow {
        name: "virtio-rng",
        aliases: &["virtio-rng-pci"],
        about: "random bytes of the host",
        keys: &[PACKED],
        check: independent,
        build: |config, site| site.virtio(config, Box::<Rng>::default()),
        releases_memory: false,
        boot_path: None,
    },
];

/// The key with the type, which comes first and needs no name.
pub const TYPE_KEY: &str = "type";

/// The key with the device's id.
pub const ID_KEY: &str = "id";

/// The key with the device's slot.
pub const SLOT_KEY: &str = "slot";

/// The slots of bus 0 that devices may have: 0 is the host bridge's, and 31 is where a PC has its chipset.
pub const DEVICE_SLOTS: std::ops::RangeInclusive<u8> = 1..=30;

/// The keys that devices of all types have, beside [`TYPE_KEY`].
pub static COMMON_KEYS: &[DeviceKey] = &[
    DeviceKey {
        about: "what the device is called in messages",
        default: "the type and a number",
        ..DeviceKey::of(ID_KEY)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "slot",
            first: *DEVICE_SLOTS.start() as u32,
            last: *DEVICE_SLOTS.end() as u32,
        },
        about: "its slot on PCI bus 0, from 1 to 30",
        default: "the first that is free",
        ..DeviceKey::of(SLOT_KEY)
    },
];

const PACKED_KEY: &str = "packed";

/// The key of all virtio devices with the form of their rings.
pub const PACKED: DeviceKey = DeviceKey {
    takes: Takes::Switch,
    about: "the driver may use packed rings instead of split ones",
    default: "`off`",
    ..DeviceKey::of(PACKED_KEY)
};

/// A key of a device.
#[derive(Debug)]
pub struct DeviceKey {
    /// As in `slot=3`.
    pub name: &'static str,
    /// What its value looks like.
    pub takes: Takes,
    /// What it sets, for the documentation.
    pub about: &'static str,
    /// What holds without it, for the documentation.
    pub default: &'static str,
    /// Whether it must be given.
    pub required: bool,
    /// Whether it names something of the host. It is then removed from a saved VM, as only the host's user
    /// decides what is opened here.
    pub local: bool,
    /// Whether a saved VM may continue with another value, as the guest does not notice.
    pub adjustable: bool,
    /// Whether it may be given several times: its value is the words of all.
    pub repeats: bool,
}

impl DeviceKey {
    /// A key with a name as its value, which may be left out and is the guest's.
    pub const fn of(name: &'static str) -> Self {
        Self {
            name,
            takes: Takes::Name,
            about: "",
            default: "",
            required: false,
            local: false,
            adjustable: false,
            repeats: false,
        }
    }
}

/// What a key's value looks like.
#[derive(Debug)]
pub enum Takes {
    /// A name that can be part of a path.
    Name,
    /// A number.
    Number {
        /// What it counts, for messages.
        what: &'static str,
        /// The smallest.
        first: u32,
        /// The largest.
        last: u32,
    },
    /// A number of bytes, also as in `50M`; at most what TOML can show.
    Size,
    /// One of these words.
    Words(&'static [&'static str]),
    /// True or false; true if only the key is given.
    Switch,
    /// Printable ASCII.
    Text {
        /// The most bytes.
        max: usize,
    },
    /// A file or a block device of the host, which must be there.
    Path,
    /// The path of a socket, which need not be there.
    Socket,
    /// A character back end, as those of serial ports.
    Backend,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceValue {
    /// A name, a word, a text or a path.
    Text(String),
    /// True or false.
    Switch(bool),
    /// A number.
    Number(u32),
    /// A number of bytes.
    Size(u64),
}

impl fmt::Display for DeviceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Switch(on) => on.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Size(bytes) => bytes.fmt(f),
        }
    }
}

/// A type by its row.
#[derive(Clone, Copy)]
pub struct DeviceType(&'static DeviceRow);

impl DeviceType {
    /// The type of `row`.
    pub fn new(row: &'static DeviceRow) -> Self {
        Self(row)
    }

    /// The type called `name`, here or in QEMU.
    pub fn find(name: &str) -> Option<Self> {
        let mut rows = DEVICE_TYPES.iter();
        rows.find(|row| row.name == name || row.aliases.contains(&name))
            .map(Self)
    }

    /// Its row.
    pub fn row(self) -> &'static DeviceRow {
        self.0
    }
}

impl PartialEq for DeviceType {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for DeviceType {}

impl fmt::Debug for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
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
    /// What is set of its type's keys.
    pub values: BTreeMap<&'static str, DeviceValue>,
}

impl DeviceConfig {
    /// The text of a key, if it is set.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key) {
            Some(DeviceValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The number or the size of a key; 0 if it is not set.
    pub fn number(&self, key: &str) -> u64 {
        match self.values.get(key) {
            Some(DeviceValue::Number(number)) => (*number).into(),
            Some(DeviceValue::Size(bytes)) => *bytes,
            _ => 0,
        }
    }

    /// Whether a key is set to true.
    pub fn switch(&self, key: &str) -> bool {
        self.values.get(key) == Some(&DeviceValue::Switch(true))
    }

    /// The character back end of a key, if it is set.
    pub fn backend(&self, key: &str) -> Option<CharBackend> {
        self.text(key).and_then(CharBackend::of)
    }

    /// Removes what is of the host, other than what the process has in any case: its terminal.
    pub fn remove_local(&mut self) -> Vec<(&'static str, DeviceValue)> {
        let local = self.of.row().keys.iter().filter(|key| key.local);
        let has = |key: &DeviceKey| {
            matches!(key.takes, Takes::Backend)
                && matches!(
                    self.backend(key.name),
                    Some(CharBackend::None | CharBackend::Stdio)
                )
        };
        let names: Vec<_> = local.filter(|key| !has(key)).map(|key| key.name).collect();
        let names = names.into_iter();
        names
            .filter_map(|name| self.values.remove_entry(name))
            .collect()
    }
}

/// What a device is made with.
pub struct Site<'a> {
    /// Where its function is.
    pub place: DevFn,
    /// Bytes of the guest's RAM.
    pub ram: u64,
    /// Doorbells for its driver.
    pub doorbells: &'a Doorbells,
    /// Gives its function access to memory, its interrupt pin, and so many vectors.
    pub requester: &'a dyn Fn(u16) -> Result<Requester, NoVector>,
    /// Receives the panics of its threads.
    pub events: &'a GuestEvents,
    /// Wakes the I/O thread, if the back end leads anywhere.
    pub waker: &'a dyn Fn(&CharBackend) -> Option<Waker>,
    /// Connects a line to a back end.
    pub connect: &'a dyn Fn(&CharBackend, SharedChar) -> Result<(), CharError>,
}

impl Site<'_> {
    /// Puts a virtio device that is configured so behind a PCI function.
    ///
    /// # Errors
    /// If there are not enough vectors, or the host has no descriptors or threads left.
    pub fn virtio(
        &self,
        config: &DeviceConfig,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Slot, BuildError> {
        let requester = (self.requester)(pci::vectors(&*device))?;
        let packed = config.switch(PACKED_KEY);
        let (doorbells, events) = (self.doorbells, self.events);
        let slot = pci::slot(self.place, device, packed, requester, doorbells, events)?;
        Ok(slot)
    }
}

impl fmt::Debug for Site<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum BuildError {
    /// More interrupts than KVM delivers.
    #[error(transparent)]
    NoVector(#[from] NoVector),
    /// Its transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its image.
    #[error(transparent)]
    Image(#[from] RawError),
    /// Its network.
    #[error(transparent)]
    Network(std::io::Error),
    /// The line to its back end.
    #[error(transparent)]
    Line(std::io::Error),
    /// Its back end.
    #[error(transparent)]
    Console(#[from] CharError),
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
            for name in row.aliases.iter().chain([&row.name]) {
                assert_eq!(DeviceType::find(name), Some(DeviceType::new(row)));
            }
            let keys = COMMON_KEYS.iter().chain(row.keys).map(|key| key.name);
            let mut keys: Vec<_> = keys.chain([TYPE_KEY]).collect();
            let count = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count, "{}", row.name);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(DeviceType::find("virtio"), None);
    }

    /// docs/configuration.md has a line for each type and each key, and no others.
    #[test]
    fn the_documentation_has_the_types_and_their_keys() {
        const PAGE: &str = include_str!("../../docs/configuration.md");
        let section = PAGE.split("\n### `device`\n").nth(1).unwrap();
        let section = section.split("\n### ").next().unwrap();
        let found: Vec<_> = section.lines().filter(|l| l.starts_with("| `")).collect();
        let types = DEVICE_TYPES.iter().map(|row| {
            let aliases: Vec<_> = row.aliases.iter().map(|a| format!("`{a}`")).collect();
            format!(
                "| `{}` | {} | {} |",
                row.name,
                aliases.join(", "),
                row.about
            )
        });
        let the_type = "| `type` | the type; it comes first and needs no name | |".to_owned();
        let key = |key: &DeviceKey, about: String| {
            format!("| `{}` | {about} | {} |", key.name, key.default)
        };
        let common = COMMON_KEYS.iter().map(|k| key(k, k.about.to_owned()));
        let own = DEVICE_TYPES.iter().flat_map(|row| {
            let keys = row.keys.iter();
            keys.map(move |k| key(k, format!("{}: {}", row.name, k.about)))
        });
        let expected = types.chain([the_type]).chain(common).chain(own);
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
