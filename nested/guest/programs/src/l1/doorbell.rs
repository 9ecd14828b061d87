//! The doorbell, by which the host learns when the samples are taken.

/// Its port.
pub(crate) const PORT: u16 = 0x404;
/// What the port reads as if somebody listens.
pub(crate) const PRESENT: u32 = 0x4C42_4E48;
/// L2 is about to take the samples that count.
pub(crate) const BEGIN: u32 = 1;
/// L2 has taken them.
pub(crate) const END: u32 = 2;
