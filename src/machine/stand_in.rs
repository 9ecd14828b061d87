//! Stand-ins for the enlightened VMCSs of an L1 that was saved while it, and not its L2, ran.
//!
//! When KVM maps such a page again it clears its clean bits, since the VMCS with which it will run L2 is
//! empty, and L1's next entry must load all of it (`nested_vmx_handle_enlightened_vmptrld`). But L1 runs
//! before that entry. Linux's KVM marks all fields as clean after an exit from L2 (`vmx_vcpu_run`); if it was
//! saved between its exit and that, it reverts KVM's change, L2's segments are not loaded, and the entry
//! fails (Linux 6.12). This is not rare: a vCPU that is stopped while KVM carries out an exit to L1 stops
//! exactly there.
//!
//! So KVM maps another page, with the same content, that L1 does not use. At L1's next entry it then detects
//! that L1 has changed to a new page, and reads all of it. Until then KVM uses the stand-in, and another save
//! reads that: [`StandIns::refresh`] updates it.

use std::mem::offset_of;

use hypernest_nested::assist::{PAGE, VpAssist};
use hypernest_nested::evmcs::{Evmcs, clean};
use hypernest_nested::nested_state::{NestedState, Vmx};
use tracing::warn;

use super::cycle::PowerCycle;
use super::transfer::TransferError;
use crate::hyperv::msr;
use crate::kvm::state::VcpuState;
use crate::kvm::{KvmError, requests};
use crate::memory::MemoryConfig;
use crate::memory::slots::{AddressSpace, SlotKind};
use crate::memory::{GuestRam, NoRam};
use crate::units::{Gpa, VpIndex};
use crate::vcpu::platform::VcpuPlatform;

/// VP_ASSIST_PAGE: the page is in use; 63:12 are its address.
const ENABLED: u64 = 1;
const FRAME: u64 = !0xfff;
/// KVM_MP_STATE_RUNNABLE. A halted L1 is long past its exit, and KVM does nothing for it before it wakes.
const RUNNABLE: u32 = 0;
/// A page above all RAM that the guest may have, and above the hole for devices.
const ABOVE_4_GIB: u64 = 1 << 32;

/// A vCPU whose L1 will enter by an enlightened VMCS again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    vp: VpIndex,
    assist: Gpa,
}

impl Wanted {
    /// Whether the vCPU requires a stand-in: its L1 runs, and uses an enlightened VMCS.
    pub(super) fn by(vp: VpIndex, state: &VcpuState) -> Option<Self> {
        let Ok(NestedState::Vmx(Vmx::On(on))) = NestedState::parse(&state.nested) else {
            return None;
        };
        let enlightened = on.current.is_some_and(|current| current.address.is_none());
        let mut msrs = state.hyperv_msrs.iter();
        let assist = msrs.find(|(msr, _)| *msr == msr::VP_ASSIST_PAGE)?.1;
        let wanted = enlightened
            && !on.guest_mode
            && state.mp_state.mp_state == RUNNABLE
            && assist & ENABLED != 0;
        wanted.then_some(Self {
            vp,
            assist: Gpa(assist & FRAME),
        })
    }
}

/// One stand-in.
#[derive(Clone, Copy, Debug)]
struct StandIn {
    /// L1's page.
    original: Gpa,
    /// The stand-in.
    copy: Gpa,
}

/// All stand-ins of a VM. They are in use until their vCPUs enter L2, which is not reported, so they are kept
/// as long as the VM.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    pages: Option<GuestRam>,
    each: Vec<StandIn>,
}

impl StandIns {
    /// Makes KVM map a stand-in on each of these vCPUs, which have all of their state and have not run.
    pub(super) fn put(
        cycle: &PowerCycle,
        platform: &VcpuPlatform,
        wanted: &[Wanted],
    ) -> Result<Self, TransferError> {
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let ram = &platform.ram;
        let end = ram.pieces().map(|piece| piece.gpa.0 + piece.len).max();
        let first = end.unwrap_or(0).max(ABOVE_4_GIB);
        let config = MemoryConfig::of(0);
        let len = (wanted.len() * PAGE) as u64;
        let pages = GuestRam::new(&config, &[(Gpa(first), len)])?;
        let slots = &platform.slots;
        let added = slots.add(SlotKind::StandIn, AddressSpace::Normal, &pages)?;
        let copies = (first..).step_by(PAGE).map(Gpa);
        let each: Result<Vec<_>, _> = wanted
            .iter()
            .zip(copies)
            .map(|(wanted, copy)| put(cycle, ram, &pages, *wanted, copy))
            .collect();
        // KVM holds the pages that it has mapped, not their guest addresses, where no vCPU may find them.
        slots.remove(&added)?;
        Ok(Self {
            pages: Some(pages),
            each: each?.into_iter().flatten().collect(),
        })
    }

    /// Updates the stand-ins from L1's pages, before KVM's nested state is read.
    pub(super) fn refresh(&self, ram: &GuestRam) -> Result<(), NoRam> {
        let Some(pages) = &self.pages else {
            return Ok(());
        };
        for stand_in in &self.each {
            copy(ram, stand_in.original, pages, stand_in.copy)?;
        }
        Ok(())
    }
}

/// For one vCPU; `None` if L1 has no enlightened VMCS that KVM would map.
fn put(
    cycle: &PowerCycle,
    ram: &GuestRam,
    pages: &GuestRam,
    wanted: Wanted,
    stand_in: Gpa,
) -> Result<Option<StandIn>, TransferError> {
    let switch = Gpa(wanted.assist.0 + offset_of!(VpAssist, enlighten_vm_entry) as u64);
    let pointer = Gpa(wanted.assist.0 + offset_of!(VpAssist, current_nested_vmcs) as u64);
    let mut on = [0];
    let mut current = [0; 8];
    // The guest may have written anything there.
    if ram.read(switch, &mut on).is_err() || ram.read(pointer, &mut current).is_err() || on == [0] {
        return Ok(None);
    }
    let original = Gpa(u64::from_le_bytes(current) & FRAME);
    if copy(ram, original, pages, stand_in).is_err() {
        return Ok(None);
    }
    // KVM clears these bits when it maps the page, which shows that it did.
    let clean_fields = Gpa(stand_in.0 + offset_of!(Evmcs, hv_clean_fields) as u64);
    pages.write(clean_fields, &clean::ALL.to_le_bytes())?;
    ram.write(pointer, &stand_in.0.to_le_bytes())?;
    let processed: Result<bool, KvmError> = cycle.vcpus().on_vcpu(wanted.vp, requests::process)?;
    ram.write(pointer, &current)?;
    processed?;
    let mut bits = [0; 4];
    pages.read(clean_fields, &mut bits)?;
    if u32::from_le_bytes(bits) & clean::ALL != 0 {
        warn!(
            "vCPU {}: KVM has not mapped the enlightened VMCS yet: the next entry into L2 may fail",
            wanted.vp
        );
        return Ok(None);
    }
    // KVM has updated the page: exits that it had carried out when the VM was saved are in it.
    copy(pages, stand_in, ram, original)?;
    Ok(Some(StandIn {
        original,
        copy: stand_in,
    }))
}

fn copy(from: &GuestRam, at: Gpa, to: &GuestRam, there: Gpa) -> Result<(), NoRam> {
    let mut page = [0; PAGE];
    from.read(at, &mut page)?;
    to.write(there, &page)
}
