//! Guest memory as KVM's memory slots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::attachment::VmAttachment;
use super::{KvmError, ioctl_error};
use crate::memory::dirty::PageSet;
use crate::memory::slots::{AddressSpace, RamSlots, Slot, SlotId, SlotKind, Slots};
use crate::memory::{GuestRam, RamPiece};
use crate::sys::lock;

/// Adds all regions of `ram` to a VM that belongs to no machine, a slot each from 0. The VM must be dropped
/// before the last clone of `ram`.
///
/// # Errors
/// If KVM refuses: a region is too large for its slot, or regions overlap.
pub fn add_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, piece) in (0..).zip(ram.pieces()) {
        set_slot(vm, slot, piece, 0, "give the guest its RAM")?;
    }
    Ok(())
}

/// All memory slots of a machine, and their memory. They outlive the VMs in KVM.
#[derive(Clone, Debug)]
pub struct MemorySlots(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// Dropped before the memory.
    vm: Option<Arc<VmFd>>,
    slots: Slots,
    /// Keeps the memory of each slot mapped.
    memory: BTreeMap<SlotId, GuestRam>,
    /// Whether writes to RAM are logged.
    log: bool,
}

impl MemorySlots {
    /// Creates it without slots; at most `limit` in each address space (`KVM_CAP_NR_MEMSLOTS`).
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            vm: None,
            slots: Slots::new(limit),
            memory: BTreeMap::new(),
            log: false,
        })))
    }

    /// Adds all regions of `memory`, a slot each. Returns the slots.
    ///
    /// # Errors
    /// If no slot is free, the regions overlap other memory, or KVM refuses; then nothing is added.
    pub fn add(
        &self,
        kind: SlotKind,
        space: AddressSpace,
        memory: &GuestRam,
    ) -> Result<Vec<SlotId>, KvmError> {
        let mut inner = self.lock();
        let added = inner.slots.add(kind, space, memory.pieces())?;
        let ids: Vec<_> = added.iter().map(|slot| slot.id).collect();
        inner
            .memory
            .extend(ids.iter().map(|id| (*id, memory.clone())));
        for slot in &added {
            if let Err(e) = inner.set(slot, "add guest memory") {
                for id in &ids {
                    // KVM refuses slots that it does not have.
                    let _removed = inner.remove(*id);
                }
                return Err(e);
            }
        }
        Ok(ids)
    }

    /// Removes slots that [`Self::add`] added.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn remove(&self, ids: &[SlotId]) -> Result<(), KvmError> {
        let mut inner = self.lock();
        ids.iter().try_for_each(|id| inner.remove(*id))
    }

    /// The slot of each region of RAM.
    pub fn ram(&self) -> RamSlots {
        self.lock().slots.ram()
    }

    /// Starts or stops logging of writes to RAM, by the guest and by KVM, in this VM and later ones.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn log(&self, on: bool) -> Result<(), KvmError> {
        let mut inner = self.lock();
        inner.log = on;
        let mut ram = inner.ram();
        ram.try_for_each(|slot| inner.set(slot, "start or stop the dirty log"))
    }

    /// Adds the pages of RAM that were written since the last call, or since logging started, to `set`.
    ///
    /// # Errors
    /// If KVM refuses: nothing is logged.
    pub fn take_log(&self, set: &mut PageSet) -> Result<(), KvmError> {
        let inner = self.lock();
        let Some(vm) = &inner.vm else {
            return Ok(());
        };
        for slot in inner.ram() {
            let bytes = usize::try_from(slot.memory.len).expect("a mapped length fits usize");
            let bitmap = vm
                .get_dirty_log(slot.id.kvm(), bytes)
                .map_err(ioctl_error("KVM_GET_DIRTY_LOG", "read the dirty log"))?;
            set.insert_bitmap(slot.region, &bitmap);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Inner {
    fn ram(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.kind == SlotKind::Ram)
    }

    /// Sets a slot with its flags in the VM, if there is one.
    fn set(&self, slot: &Slot, doing: &'static str) -> Result<(), KvmError> {
        let flags = match slot.kind {
            SlotKind::Ram if self.log => KVM_MEM_LOG_DIRTY_PAGES,
            SlotKind::Rom => KVM_MEM_READONLY,
            SlotKind::Ram | SlotKind::Framebuffer | SlotKind::Smram | SlotKind::StandIn => 0,
        };
        let vm = self.vm.as_ref();
        vm.map_or(Ok(()), |vm| {
            set_slot(vm, slot.id.kvm(), slot.memory, flags, doing)
        })
    }

    fn remove(&mut self, id: SlotId) -> Result<(), KvmError> {
        let removed = match (self.slots.remove(id), &self.vm) {
            (Some(slot), Some(vm)) => {
                // KVM deletes a slot whose length is set to 0.
                let none = RamPiece {
                    len: 0,
                    ..slot.memory
                };
                set_slot(vm, id.kvm(), none, 0, "remove guest memory")
            }
            _ => Ok(()),
        };
        self.memory.remove(&id);
        removed
    }
}

impl VmAttachment for MemorySlots {
    fn attach(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        let mut inner = self.lock();
        inner.vm = Some(Arc::clone(vm));
        let mut slots = inner.slots.iter();
        slots.try_for_each(|slot| inner.set(slot, "give the guest its memory"))
    }

    fn detach(&self) {
        // The slots end with the VM.
        self.lock().vm = None;
    }
}

fn set_slot(
    vm: &VmFd,
    slot: u32,
    piece: RamPiece,
    flags: u32,
    doing: &'static str,
) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: piece.gpa.0,
        memory_size: piece.len,
        userspace_addr: piece.host,
    };
    // SAFETY: the region is a live mapping of that length, which Rust does not access as memory of its own.
    // If it is unmapped while the VM lives, the guest faults; KVM holds no reference to the pages past the
    // mapping.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION", doing))
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::{Kvm, VcpuFd};

    use super::*;
    use crate::kvm::exit::{self, Exit};
    use crate::memory::MemoryConfig;
    use crate::memory::dirty::PAGE;
    use crate::units::Gpa;

    /// Real mode: writes a byte to 0x20010 and one to 0x30010, and exits.
    const CODE: [u8; 19] = [
        0xb8, 0x00, 0x20, // mov ax, 0x2000
        0x8e, 0xd8, // mov ds, ax
        0x88, 0x26, 0x10, 0x00, // mov [0x10], ah
        0xb4, 0x30, // mov ah, 0x30
        0x8e, 0xd8, // mov ds, ax
        0x88, 0x26, 0x10, 0x00, // mov [0x10], ah
        0xee, // out dx, al
        0xf4, // hlt
    ];

    fn memory(ranges: &[(Gpa, u64)]) -> GuestRam {
        let config = MemoryConfig::of(0);
        GuestRam::new(&config, ranges).unwrap()
    }

    fn vcpu(vm: &VmFd) -> VcpuFd {
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu
    }

    /// Runs the program; returns the addresses of the writes that exited.
    fn exits(vcpu: &mut VcpuFd) -> Vec<u64> {
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags, regs.rdx) = (0x1000, 2, 0x80);
        vcpu.set_regs(&regs).unwrap();
        let mut found = Vec::new();
        loop {
            match exit::run(vcpu) {
                Exit::MmioWrite { addr, .. } => found.push(addr),
                Exit::PortOut { .. } => return found,
                other => panic!("{other:?}"),
            }
        }
    }

    fn written(slots: &MemorySlots, ram: &GuestRam) -> Vec<u64> {
        let mut set = PageSet::none(ram.pieces());
        slots.take_log(&mut set).unwrap();
        set.runs(1).map(|run| run.gpa.0 / PAGE).collect()
    }

    #[test]
    fn slots_of_each_kind_come_and_go_and_are_there_again_in_the_next_vm() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let slots = MemorySlots::new(64);
        // RAM is neither the first slot nor in the order of slots.
        let rom = memory(&[(Gpa(0x2_0000), PAGE)]);
        let ids = slots
            .add(SlotKind::Rom, AddressSpace::Normal, &rom)
            .unwrap();
        let ram = memory(&[(Gpa(0), 0x2000), (Gpa(0x3_0000), 0x1000)]);
        slots
            .add(SlotKind::Ram, AddressSpace::Normal, &ram)
            .unwrap();
        ram.write(Gpa(0x1000), &CODE).unwrap();
        rom.write(Gpa(0x2_0010), &[9]).unwrap();
        for _ in 0..2 {
            let vm = Arc::new(kvm.create_vm().unwrap());
            slots.attach(&vm).unwrap();
            slots.log(true).unwrap();
            let mut vcpu = vcpu(&vm);
            assert_eq!(exits(&mut vcpu), [0x2_0010]);
            assert_eq!(written(&slots, &ram), [0x30]);
            assert_eq!(written(&slots, &ram), [0_u64; 0]);
            let mut byte = [0];
            rom.read(Gpa(0x2_0010), &mut byte).unwrap();
            assert_eq!(byte, [9]);

            let twice = slots.add(SlotKind::Ram, AddressSpace::Normal, &ram);
            assert!(matches!(twice, Err(KvmError::Slot(_))));
            slots.detach();
            drop(vcpu);
            assert_eq!(Arc::strong_count(&vm), 1);
        }

        let vm = Arc::new(kvm.create_vm().unwrap());
        slots.attach(&vm).unwrap();
        let mut vcpu = vcpu(&vm);
        slots.remove(&ids).unwrap();
        // A hole also exits, and RAM in its place does not; the log is still on.
        assert_eq!(exits(&mut vcpu), [0x2_0010]);
        let more = slots.add(SlotKind::StandIn, AddressSpace::Normal, &rom);
        assert_eq!(more.unwrap(), ids);
        assert_eq!(exits(&mut vcpu), [0_u64; 0]);
        assert_eq!(written(&slots, &ram), [0x30]);
        slots.log(false).unwrap();
        assert!(slots.take_log(&mut PageSet::none(ram.pieces())).is_err());
    }
}
