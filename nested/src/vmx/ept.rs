//! Extended page tables (SDM volume 3, 30.3) and the capabilities in IA32_VMX_EPT_VPID_CAP (A.10).

/// Entry: may be read.
pub const READ: u64 = 1 << 0;
/// Entry: may be written.
pub const WRITE: u64 = 1 << 1;
/// Entry: may be executed.
pub const EXECUTE: u64 = 1 << 2;
/// Entry: everything is allowed.
pub const ALL_ACCESSES: u64 = READ | WRITE | EXECUTE;
/// Entry that maps memory: write-back, in bits 5:3.
pub const WRITE_BACK: u64 = 6 << 3;
/// Entry that maps memory: the guest's PAT is ignored.
pub const IGNORE_PAT: u64 = 1 << 6;
/// Entry above the lowest level: maps a large page.
pub const LARGE: u64 = 1 << 7;
/// Entry: accessed.
pub const ACCESSED: u64 = 1 << 8;
/// Entry that maps memory: dirty.
pub const DIRTY: u64 = 1 << 9;
/// Entry: no virtualization exception.
pub const SUPPRESS_EXCEPTION: u64 = 1 << 63;
/// An entry that is misconfigured on every processor, as it may be written but not read.
pub const MISCONFIGURED: u64 = WRITE | EXECUTE;

/// Pointer: the tables are accessed write-back.
pub const POINTER_WRITE_BACK: u64 = 6;
/// Pointer: accessed and dirty bits are set.
pub const POINTER_ACCESSED_DIRTY: u64 = 1 << 6;

/// The EPT pointer to four levels of tables whose root is at `root`, accessed write-back.
#[must_use]
pub const fn pointer(root: u64) -> u64 {
    // 5:3 levels less one.
    (root & !0xFFF) | (3 << 3) | POINTER_WRITE_BACK
}

/// Capability: an entry may allow execution only.
pub const CAN_EXECUTE_ONLY: u64 = 1 << 0;
/// Capability: four levels.
pub const CAN_WALK_4: u64 = 1 << 6;
/// Capability: five levels.
pub const CAN_WALK_5: u64 = 1 << 7;
/// Capability: tables accessed uncached.
pub const CAN_UNCACHED: u64 = 1 << 8;
/// Capability: tables accessed write-back.
pub const CAN_WRITE_BACK: u64 = 1 << 14;
/// Capability: 2 MiB pages.
pub const CAN_2MIB: u64 = 1 << 16;
/// Capability: 1 GiB pages.
pub const CAN_1GIB: u64 = 1 << 17;
/// Capability: INVEPT.
pub const CAN_INVEPT: u64 = 1 << 20;
/// Capability: accessed and dirty bits.
pub const CAN_ACCESSED_DIRTY: u64 = 1 << 21;
/// Capability: INVEPT of one EPT pointer.
pub const CAN_INVEPT_SINGLE: u64 = 1 << 25;
/// Capability: INVEPT of all.
pub const CAN_INVEPT_ALL: u64 = 1 << 26;
/// Capability: INVVPID.
pub const CAN_INVVPID: u64 = 1 << 32;
/// Capability: INVVPID of one VPID.
pub const CAN_INVVPID_SINGLE: u64 = 1 << 41;
/// Capability: INVVPID of all.
pub const CAN_INVVPID_ALL: u64 = 1 << 42;

/// INVEPT type: one EPT pointer.
pub const INVEPT_SINGLE: u64 = 1;
/// INVEPT type: all.
pub const INVEPT_ALL: u64 = 2;
/// INVVPID type: one VPID.
pub const INVVPID_SINGLE: u64 = 1;
/// INVVPID type: all.
pub const INVVPID_ALL: u64 = 2;
