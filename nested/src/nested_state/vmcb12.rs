//! The VMCB in a nested-state blob: its control area is L2's, its save area L1's (`svm_get_nested_state`).

use core::fmt;
use core::mem::offset_of;

use super::{PAGE, word};
use crate::svm::{Control, Save, Vmcb};

const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const RFLAGS_VM: u64 = 1 << 17;

/// The page of a VMCB in a nested-state blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vmcb12<'a>(pub(super) &'a [u8; PAGE]);

impl<'a> Vmcb12<'a> {
    /// The page itself.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8; PAGE] {
        self.0
    }

    /// L2's address-space identifier.
    #[must_use]
    pub fn asid(self) -> u32 {
        u32::from_le_bytes(word(self.0, offset_of!(Control, asid)))
    }

    /// One word of L2's intercepts.
    #[must_use]
    pub fn intercepts(self) -> [u32; 6] {
        core::array::from_fn(|i| {
            let offset = offset_of!(Control, intercepts) + 4 * i;
            u32::from_le_bytes(word(self.0, offset))
        })
    }

    /// Whether L2 has nested page tables of L1.
    #[must_use]
    pub fn has_nested_paging(self) -> bool {
        self.u64_at(offset_of!(Control, nested_control)) & crate::svm::NESTED_PAGING != 0
    }

    /// L1's RIP after the VMRUN.
    #[must_use]
    pub fn l1_rip(self) -> u64 {
        self.u64_at(offset_of!(Vmcb, save) + offset_of!(Save, rip))
    }

    /// Whether L1 runs protected, with paging, and not in virtual-8086 mode, as it must to execute VMRUN.
    #[must_use]
    pub fn l1_can_run(self) -> bool {
        let save = offset_of!(Vmcb, save);
        let cr0 = self.u64_at(save + offset_of!(Save, cr0));
        let rflags = self.u64_at(save + offset_of!(Save, rflags));
        cr0 & (CR0_PE | CR0_PG) == CR0_PE | CR0_PG && rflags & RFLAGS_VM == 0
    }

    fn u64_at(self, offset: usize) -> u64 {
        u64::from_le_bytes(word(self.0, offset))
    }
}

impl fmt::Debug for Vmcb12<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vmcb12(ASID {})", self.asid())
    }
}
