//! What the device offers, by key.

use std::collections::BTreeMap;

/// The text "QEMU": how guests find the device.
const SIGNATURE: u16 = 0x00;
/// Which interfaces there are: bit 0, the ports; bit 1, DMA.
const ID: u16 = 0x01;
const ID_PORTS: u32 = 1 << 0;
/// Bytes of RAM.
const RAM_SIZE: u16 = 0x03;
/// Whether there is no display.
const NOGRAPHIC: u16 = 0x04;
/// Processors at power-on.
const NB_CPUS: u16 = 0x05;
/// On x86: the highest APIC id that there may be, plus one.
const MAX_CPUS: u16 = 0x0f;

/// The items of a machine. Numbers are little endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items(BTreeMap<u16, Vec<u8>>);

impl Items {
    /// The items of a machine without a display that has `ram` bytes of RAM and `cpus` processors with APIC
    /// ids below `apic_id_limit`.
    pub fn of_machine(ram: u64, cpus: u16, apic_id_limit: u16) -> Self {
        Self(BTreeMap::from([
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, ID_PORTS.to_le_bytes().to_vec()),
            (RAM_SIZE, ram.to_le_bytes().to_vec()),
            (NOGRAPHIC, 1_u16.to_le_bytes().to_vec()),
            (NB_CPUS, cpus.to_le_bytes().to_vec()),
            (MAX_CPUS, apic_id_limit.to_le_bytes().to_vec()),
        ]))
    }

    /// The bytes of the item with this key; none if there is no such item.
    pub(super) fn get(&self, key: u16) -> &[u8] {
        self.0.get(&key).map_or(&[], Vec::as_slice)
    }
}
