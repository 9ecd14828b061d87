//! Which memory slots a VM has: their numbers, kinds and places. Pure; `kvm::memory` gives them to KVM.

use std::collections::BTreeMap;

use thiserror::Error;

use super::RamPiece;
use super::dirty::PAGE;
use crate::units::Gpa;

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Guest RAM. Writes are logged while somebody subscribes to them.
    Ram,
    /// Read-only: a write exits as MMIO (flash, expansion ROMs).
    Rom,
    /// A display's memory.
    Framebuffer,
    /// Memory of System Management Mode.
    Smram,
    /// Pages of ours that KVM maps while it restores a nested guest, and that are no part of the machine.
    StandIn,
}

/// What a vCPU sees: KVM's address spaces on x86 (`kvm_arch_vcpu_memslots_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressSpace {
    /// Outside System Management Mode.
    Normal = 0,
    /// In it.
    Smm = 1,
}

/// A slot's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId {
    space: AddressSpace,
    number: u16,
}

impl SlotId {
    /// As KVM numbers slots: the address space is in the upper half.
    pub fn kvm(self) -> u32 {
        (self.space as u32) << 16 | u32::from(self.number)
    }
}

/// A memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// What it is for.
    pub kind: SlotKind,
    /// Where it is.
    pub memory: RamPiece,
    /// Which of the regions that it was added with it is: the number that [`PageSet`](super::dirty::PageSet)
    /// counts RAM by.
    pub region: usize,
}

/// Why memory cannot have a slot.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// All numbers are in use.
    #[error("no memory slot is free: KVM has {limit} of them (KVM_CAP_NR_MEMSLOTS)")]
    Exhausted {
        /// How many there are in an address space.
        limit: u32,
    },
    /// Other memory is there.
    #[error("{len:#x} bytes of memory at {gpa} overlap memory at {other}")]
    Overlaps {
        /// First address.
        gpa: Gpa,
        /// Bytes.
        len: u64,
        /// Where the other begins.
        other: Gpa,
    },
    /// Slots are of whole pages.
    #[error("{len:#x} bytes of memory at {gpa} are not whole pages of the guest's address space")]
    NotPages {
        /// First address.
        gpa: Gpa,
        /// Bytes.
        len: u64,
    },
}

/// The slots of a machine.
#[derive(Debug)]
pub struct Slots {
    slots: BTreeMap<SlotId, Slot>,
    limit: u32,
}

impl Slots {
    /// None, of at most `limit` in each address space.
    pub fn new(limit: u32) -> Self {
        Self {
            slots: BTreeMap::new(),
            limit,
        }
    }

    /// Adds `regions`, a slot each, with the lowest free numbers.
    ///
    /// # Errors
    /// If one does not fit; none is added then.
    pub fn add(
        &mut self,
        kind: SlotKind,
        space: AddressSpace,
        regions: impl IntoIterator<Item = RamPiece>,
    ) -> Result<Vec<Slot>, SlotError> {
        let mut added = Vec::new();
        for (region, memory) in regions.into_iter().enumerate() {
            match self.add_one(kind, space, memory, region) {
                Ok(slot) => added.push(slot),
                Err(e) => {
                    for slot in added {
                        self.remove(slot.id);
                    }
                    return Err(e);
                }
            }
        }
        Ok(added)
    }

    fn add_one(
        &mut self,
        kind: SlotKind,
        space: AddressSpace,
        memory: RamPiece,
        region: usize,
    ) -> Result<Slot, SlotError> {
        let RamPiece { gpa, len, .. } = memory;
        let end = gpa.0.checked_add(len);
        let aligned = gpa.0.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        let end = end
            .filter(|_| aligned)
            .ok_or(SlotError::NotPages { gpa, len })?;
        let there = self.slots.values().filter(|slot| slot.id.space == space);
        for slot in there.clone() {
            let other = slot.memory;
            // Slots that exist do not wrap.
            if gpa < Gpa(other.gpa.0 + other.len) && other.gpa < Gpa(end) {
                let other = other.gpa;
                return Err(SlotError::Overlaps { gpa, len, other });
            }
        }
        // They come in ascending order.
        let mut number = 0;
        for slot in there {
            if slot.id.number > number {
                break;
            }
            number = slot.id.number.saturating_add(1);
        }
        let limit = self.limit;
        if u32::from(number) >= limit.min(u16::MAX.into()) {
            return Err(SlotError::Exhausted { limit });
        }
        let slot = Slot {
            id: SlotId { space, number },
            kind,
            memory,
            region,
        };
        self.slots.insert(slot.id, slot);
        Ok(slot)
    }

    /// Removes a slot.
    pub fn remove(&mut self, id: SlotId) -> Option<Slot> {
        self.slots.remove(&id)
    }

    /// All slots, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Which region of RAM each slot is.
    pub fn ram(&self) -> RamSlots {
        let ram = self.iter().filter(|slot| slot.kind == SlotKind::Ram);
        RamSlots(ram.map(|slot| (slot.id.kvm(), slot.region)).collect())
    }
}

/// Which region of RAM KVM's slot numbers stand for, for who reads dirty rings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamSlots(Vec<(u32, usize)>);

impl RamSlots {
    /// The region's number; `None` for a slot that is not RAM.
    pub fn region(&self, kvm: u32) -> Option<usize> {
        // Few, and the first one in nearly all cases.
        let found = self.0.iter().find(|(slot, _)| *slot == kvm);
        found.map(|(_, region)| *region)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use AddressSpace::{Normal, Smm};

    fn piece(page: u64, pages: u64) -> RamPiece {
        RamPiece {
            gpa: Gpa(page * PAGE),
            len: pages * PAGE,
            host: 0,
        }
    }

    fn numbers(slots: &[Slot]) -> Vec<u32> {
        slots.iter().map(|slot| slot.id.kvm()).collect()
    }

    #[test]
    fn address_spaces_have_numbers_and_places_of_their_own() {
        let mut slots = Slots::new(8);
        let rom = slots
            .add(SlotKind::Rom, Normal, [piece(0x1000, 4)])
            .unwrap();
        let ram = slots
            .add(SlotKind::Ram, Normal, [piece(0, 160), piece(256, 16)])
            .unwrap();
        let smram = slots.add(SlotKind::Smram, Smm, [piece(0xa0, 32)]).unwrap();
        let seen = slots
            .add(SlotKind::Ram, Smm, [piece(0, 160), piece(256, 16)])
            .unwrap();
        assert_eq!(numbers(&rom), [0]);
        assert_eq!(numbers(&ram), [1, 2]);
        assert_eq!(numbers(&smram), [0x1_0000]);
        assert_eq!(numbers(&seen), [0x1_0001, 0x1_0002]);
        let regions = slots.ram();
        let found = [0, 1, 2, 3, 0x1_0000, 0x1_0002].map(|kvm| regions.region(kvm));
        assert_eq!(found, [None, Some(0), Some(1), None, None, Some(1)]);
        slots.remove(rom[0].id).unwrap();
        let window = slots.add(SlotKind::Framebuffer, Normal, [piece(0x2000, 1)]);
        assert_eq!(numbers(&window.unwrap()), [0]);
    }

    #[test]
    fn a_refused_list_leaves_nothing_behind() {
        let mut slots = Slots::new(3);
        slots.add(SlotKind::Ram, Normal, [piece(0, 16)]).unwrap();
        let list = [piece(32, 1), piece(15, 2)];
        assert_eq!(
            slots.add(SlotKind::Rom, Normal, list),
            Err(SlotError::Overlaps {
                gpa: Gpa(15 * PAGE),
                len: 2 * PAGE,
                other: Gpa(0)
            })
        );
        let list = [32, 33, 34].map(|page| piece(page, 1));
        let error = slots.add(SlotKind::Rom, Normal, list).unwrap_err();
        assert_eq!(error, SlotError::Exhausted { limit: 3 });
        assert!(error.to_string().contains('3'));
        for (gpa, len) in [
            (0x10_0001, PAGE),
            (0x10_0000, 1),
            (0x10_0000, 0),
            (!0xfff, PAGE),
        ] {
            let memory = RamPiece {
                gpa: Gpa(gpa),
                len,
                host: 0,
            };
            assert_eq!(
                slots.add(SlotKind::Rom, Normal, [memory]),
                Err(SlotError::NotPages { gpa: Gpa(gpa), len })
            );
        }
        assert_eq!(slots.iter().count(), 1);
    }

    proptest! {
        /// Against a list: whatever is there does not overlap, and each has the lowest number that was free.
        #[test]
        fn slots_do_not_overlap(
            ops in proptest::collection::vec((any::<bool>(), 0_u64..60, 1_u64..12, 0_u16..8), 0..100)
        ) {
            let mut slots = Slots::new(6);
            let mut model: Vec<(u16, u64, u64)> = Vec::new();
            for (add, page, pages, number) in ops {
                if !add {
                    let there = model.iter().any(|(n, ..)| *n == number);
                    let id = SlotId { space: Normal, number };
                    prop_assert_eq!(slots.remove(id).is_some(), there);
                    model.retain(|(n, ..)| *n != number);
                    continue;
                }
                let free = (0..6).find(|n| model.iter().all(|(used, ..)| used != n));
                let clear = model.iter().all(|(_, p, n)| page + pages <= *p || p + n <= page);
                let added = slots.add(SlotKind::Rom, Normal, [piece(page, pages)]);
                match (clear, free) {
                    (true, Some(number)) => {
                        prop_assert_eq!(added.unwrap()[0].id, SlotId { space: Normal, number });
                        model.push((number, page, pages));
                    }
                    (false, _) => {
                        let overlaps = matches!(added, Err(SlotError::Overlaps { .. }));
                        prop_assert!(overlaps);
                    }
                    (true, None) => prop_assert_eq!(added, Err(SlotError::Exhausted { limit: 6 })),
                }
                prop_assert_eq!(slots.iter().count(), model.len());
            }
        }
    }
}
