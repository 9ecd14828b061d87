//! The dirty ring: KVM records each page that a vCPU dirties in a ring of that vCPU, instead of setting a bit
//! in a bitmap of all RAM (Documentation/virt/kvm/api.rst, 8.29). Collecting dirty pages then takes time in
//! proportion to their number, not to the size of RAM.
//!
//! KVM records only while a slot logs its writes. A ring that is nearly full stops its vCPU, before it enters
//! the guest again, until it has been [harvested](DirtyRing::harvest) and [`reset`]. KVM reserves entries for
//! the pages that a vCPU can still dirty until then, which are few if the processor runs the guest. A KVM
//! that interprets the guest's code records more, and overwrites older entries; so rings are [not
//! used](supported_on_host) there, and a ring that is full to the last entry counts as one that [has lost
//! some](Harvest).

use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::{VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::host::Cpu;
use super::{KvmError, cap, ioctl, ioctl_error};
use crate::memory::dirty::WrittenPages;
use crate::memory::slots::RamSlots;

/// KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET: the owner of an entry.
const DIRTY: u32 = 1 << 0;
const RESET: u32 = 1 << 1;
/// Bytes of an entry.
const ENTRY: u32 = 16;
const HOST_PAGE: i64 = 4096;

/// `kvm_dirty_gfn`. KVM writes entries while this process reads them, so all of it is atomic; the flags
/// determine the owner of the other fields.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    page: AtomicU64,
}

const _: () = {
    assert!(size_of::<Entry>() == ENTRY as usize);
    assert!(size_of::<Entry>() == size_of::<kvm_dirty_gfn>());
    assert!(offset_of!(Entry, slot) == offset_of!(kvm_dirty_gfn, slot));
    assert!(offset_of!(Entry, page) == offset_of!(kvm_dirty_gfn, offset));
};

/// Whether the host's processor has VMX or SVM, and so runs guest code itself.
pub fn supported_on_host(cpu: &Cpu) -> bool {
    cpu.vmx || cpu.svm
}

/// The largest ring of this KVM, in entries; 0 if it has none.
pub fn max_entries(vm: &VmFd) -> u32 {
    let bytes = vm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into());
    u32::try_from(bytes).map_or(0, |bytes| bytes / ENTRY)
}

/// Enables a ring of `entries`, a power of two, on all vCPUs that are created later. From then on the VM has
/// no dirty bitmaps.
///
/// # Errors
/// If KVM refuses.
pub fn enable(vm: &VmFd, entries: u32) -> Result<(), KvmError> {
    cap::dirty_ring(vm, u64::from(entries) * u64::from(ENTRY))
}

/// Returns the harvested entries of all rings to KVM, which then records further writes to these
/// pages.
///
/// # Errors
/// If KVM refuses.
pub fn reset(vm: &VmFd) -> Result<(), KvmError> {
    // SAFETY: the descriptor is a VM's; there is no argument.
    unsafe { ioctl::reset_dirty_rings(vm.as_raw_fd()) }
        .map(drop)
        .map_err(|e| ioctl_error("KVM_RESET_DIRTY_RINGS", "log which pages the guest writes")(e))
}

/// The result of a harvest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harvest {
    /// This many entries, each once.
    All(usize),
    /// No entry was free: KVM may have overwritten some.
    Overflowed,
}

/// One vCPU's ring.
#[derive(Debug)]
pub struct DirtyRing {
    entries: NonNull<Entry>,
    /// A power of two.
    len: NonZeroUsize,
    /// The entry that KVM fills next, or has filled.
    next: usize,
}

// SAFETY: this object alone owns the mapping in this process, and any thread may access it.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// The ring of `vcpu`, which was created after [`enable`] with this number of entries.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn map(vcpu: &VcpuFd, entries: u32) -> Result<Self, KvmError> {
        let failed = |e: nix::Error| ioctl_error("mmap", "map the dirty ring")(e);
        let len = usize::try_from(entries).ok().and_then(NonZeroUsize::new);
        let len = len.ok_or(nix::Error::EINVAL).map_err(failed)?;
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * HOST_PAGE;
        // SAFETY: a fresh shared mapping of kernel-owned pages at an address that the kernel chooses.
        let mapped = unsafe {
            mmap(
                None,
                bytes(len),
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                offset,
            )
        };
        Ok(Self {
            entries: mapped.map_err(failed)?.cast(),
            len,
            next: 0,
        })
    }

    /// Marks the pages that KVM has recorded since the last call in `written`, in the regions of `slots`. The
    /// vCPU must be out of the guest, or some are still in its processor (page-modification logging).
    pub fn harvest(&mut self, slots: &RamSlots, written: &WrittenPages) -> Harvest {
        // SAFETY: this many entries are mapped as long as `self` lives, and they consist of atomics.
        let entries = unsafe { std::slice::from_raw_parts(self.entries.as_ptr(), self.len.get()) };
        // Once around at most: KVM continues to fill entries meanwhile, but none that it does not own.
        for found in 0..entries.len() {
            let entry = &entries[self.next];
            if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                return Harvest::All(found);
            }
            let slot = entry.slot.load(Ordering::Relaxed);
            let page = entry.page.load(Ordering::Relaxed);
            if let Some(region) = slots.region(slot) {
                written.mark_page(region, page);
            }
            entry.flags.store(RESET, Ordering::Release);
            self.next = (self.next + 1) % entries.len();
        }
        Harvest::Overflowed
    }
}

/// The size of this many entries.
fn bytes(entries: NonZeroUsize) -> NonZeroUsize {
    entries.saturating_mul(NonZeroUsize::new(size_of::<Entry>()).unwrap_or(NonZeroUsize::MIN))
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; no reference into it outlives a call of `harvest`.
        let unmapped = unsafe { munmap(self.entries.cast::<c_void>(), bytes(self.len).get()) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kvm::attachment::VmAttachment;
    use crate::kvm::exit::{self, Exit};
    use crate::kvm::memory::MemorySlots;
    use crate::memory::GuestRam;
    use crate::memory::MemoryConfig;
    use crate::memory::dirty::{PAGE, PageSet};
    use crate::memory::slots::{AddressSpace, SlotKind};
    use crate::units::Gpa;

    /// The smallest size that KVM accepts, including its reserved entries.
    const ENTRIES: u32 = 1024;
    const PAGES: u64 = 4096;

    /// Real mode: writes a byte to each of 16 pages from 0x10000 on, and exits by port I/O.
    const CODE: [u8; 19] = [
        0xb8, 0x00, 0x10, // mov ax, 0x1000
        0x8e, 0xd8, // 1: mov ds, ax
        0xc6, 0x06, 0x00, 0x00, 0x07, // mov byte [0], 7
        0x80, 0xc4, 0x01, // add ah, 1
        0x80, 0xfc, 0x20, // cmp ah, 0x20
        0x75, 0xf1, // jne 1b
        0xee, // out dx, al
    ];

    #[test]
    fn what_a_vcpu_writes_is_in_its_ring_until_it_is_harvested() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        if max_entries(&vm) < ENTRIES {
            return eprintln!("skipped: KVM has no dirty ring");
        }
        enable(&vm, ENTRIES).unwrap();
        let config = MemoryConfig::of(0);
        let ram = GuestRam::new(&config, &[(Gpa(0), PAGES * PAGE)]).unwrap();
        ram.write(Gpa(0x1000), &CODE).unwrap();
        let slots = MemorySlots::new(64);
        slots
            .add(SlotKind::Ram, AddressSpace::Normal, &ram)
            .unwrap();
        slots.attach(&vm).unwrap();
        slots.log(true).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut ring = DirtyRing::map(&vcpu, ENTRIES).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut collected = PageSet::none(ram.pieces());
        for _ in 0..2 {
            let mut regs = vcpu.get_regs().unwrap();
            (regs.rip, regs.rflags, regs.rdx) = (0x1000, 2, 0x80);
            vcpu.set_regs(&regs).unwrap();
            assert!(matches!(exit::run(&mut vcpu), Exit::PortOut { .. }));
            collected.clear();
            let found = ring.harvest(&slots.ram(), ram.written());
            reset(&vm).unwrap();
            ram.written().collect(&mut collected);
            let pages: Vec<_> = collected
                .runs(PAGES)
                .map(|run| (run.gpa, run.pages))
                .collect();
            assert_eq!(found, Harvest::All(16));
            assert_eq!(pages, [(Gpa(0x1_0000), 16)]);
            assert_eq!(ring.harvest(&slots.ram(), ram.written()), Harvest::All(0));
        }
    }
}
