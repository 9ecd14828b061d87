//! The machine types: what a VM is as a board. It never changes for a VM, as its guest has seen it.

use std::fmt;

use super::AddressMap;

/// What a VM is as a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MachineType {
    /// Compatible to Intel's Q35 chipset, as far as software made for QEMU's `q35` looks.
    Pc1,
    /// The board of VMs that were saved before there were machine types: no chipset but a host bridge
    /// without registers.
    Direct1,
}

impl MachineType {
    /// All of them with their names, which are `--machine`'s and a saved VM's.
    pub const NAMES: [(&str, Self); 2] = [("pc-1", Self::Pc1), ("direct-1", Self::Direct1)];

    /// Where everything lies.
    pub fn map(self) -> &'static AddressMap {
        match self {
            Self::Pc1 => &AddressMap::PC_1,
            Self::Direct1 => &AddressMap::DIRECT_1,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pc1 => "pc-1",
            Self::Direct1 => "direct-1",
        }
    }
}

impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_belong_together() {
        for (name, machine) in MachineType::NAMES {
            assert_eq!(machine.to_string(), name);
        }
        assert_ne!(MachineType::Pc1.map(), MachineType::Direct1.map());
    }
}
