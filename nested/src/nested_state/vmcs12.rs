//! The VMCS that KVM keeps for L1: `struct vmcs12` (arch/x86/kvm/vmx/vmcs12.h), whose layout never changes.

use core::fmt;

use super::{PAGE, word};
use crate::vmx::controls::{primary, secondary};
use crate::vmx::{Field, Width};

/// The first word of the page, except for its highest bit: KVM's VMCS12_REVISION.
pub const REVISION: u32 = 0x11E5_7ED0;

/// The page of a VMCS in a nested-state blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vmcs12<'a>(pub(super) &'a [u8; PAGE]);

impl<'a> Vmcs12<'a> {
    /// The page itself.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8; PAGE] {
        self.0
    }

    /// The revision of its layout.
    #[must_use]
    pub fn revision(self) -> u32 {
        self.u32_at(0) & 0x7FFF_FFFF
    }

    /// Whether it is marked as a shadow VMCS.
    #[must_use]
    pub fn is_shadow(self) -> bool {
        self.u32_at(0) >> 31 == 1
    }

    /// Whether L1 launched it. No meaning for an enlightened VMCS.
    #[must_use]
    pub fn is_launched(self) -> bool {
        self.u32_at(8) != 0
    }

    /// A field of the guest's state; `None` for other fields.
    #[must_use]
    pub fn read(self, field: Field) -> Option<u64> {
        let offset = match field {
            Field::MSR_BITMAP => 56,
            Field::EPT_POINTER => 120,
            Field::VMCS_LINK_POINTER => 176,
            Field::GUEST_EFER => 200,
            Field::EXIT_QUALIFICATION => 408,
            Field::GUEST_CR0 => 424,
            Field::GUEST_CR3 => 432,
            Field::GUEST_CR4 => 440,
            Field::GUEST_RSP => 536,
            Field::GUEST_RIP => 544,
            Field::GUEST_RFLAGS => 552,
            Field::HOST_RIP => 672,
            Field::PIN_CONTROLS => 744,
            Field::PRIMARY_CONTROLS => 748,
            Field::EXIT_CONTROLS => 768,
            Field::ENTRY_CONTROLS => 780,
            Field::SECONDARY_CONTROLS => 804,
            Field::EXIT_REASON => 812,
            _ => return None,
        };
        Some(match field.width() {
            Width::Bits32 => self.u32_at(offset).into(),
            _ => u64::from_le_bytes(word(self.0, offset)),
        })
    }

    /// Whether the shadow VMCS that it links to belongs to a guest's state (`nested_cpu_has_shadow_vmcs` and
    /// a link pointer).
    #[must_use]
    pub fn links_to_shadow(self) -> bool {
        let bit = |field, bit: u32| {
            self.read(field)
                .is_some_and(|controls| controls & u64::from(bit) != 0)
        };
        bit(Field::PRIMARY_CONTROLS, primary::SECONDARY_CONTROLS)
            && bit(Field::SECONDARY_CONTROLS, secondary::VMCS_SHADOWING)
            && self.read(Field::VMCS_LINK_POINTER) != Some(u64::MAX)
    }

    fn u32_at(self, offset: usize) -> u32 {
        u32::from_le_bytes(word(self.0, offset))
    }
}

impl fmt::Debug for Vmcs12<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vmcs12(revision {:#x})", self.revision())
    }
}
