//! Hyper-V's reference TSC page (TLFS, "Partition Reference Time Enlightenment"): reference time, in units of
//! 100 ns, from the TSC without leaving the guest.
//!
//! KVM computes the page from the VM's clock and from the guest's frequency in whole kilohertz, rounded
//! down twice where the TSC is scaled (`kvm_guest_time_update`, `compute_tsc_page_parameters`). A scaled
//! VM's page therefore runs fast by up to one kilohertz, without limit, and is ahead of KVM's clock by the
//! accumulated difference. Before KVM rewrites the page, KVM's clock must be set to the time of the page,
//! or reference time steps back.

use super::ratio::mul_shift;

/// The page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferencePage {
    /// 0: the page is invalid. Changes whenever another field does.
    pub sequence: u32,
    /// Units of reference time per TSC tick, times 2^64.
    pub scale: u64,
    /// Reference time when the TSC was 0; two's complement.
    pub offset: u64,
}

impl ReferencePage {
    /// The number of bytes of the page that have a meaning.
    pub const BYTES: usize = 24;

    /// From guest memory.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let u64_at = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        Self {
            sequence: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            scale: u64_at(8),
            offset: u64_at(16),
        }
    }

    /// The reference time at `guest_tsc`; `None` if the page is invalid.
    pub fn time(&self, guest_tsc: u64) -> Option<u64> {
        (self.sequence != 0).then(|| mul_shift(guest_tsc, self.scale, 64).wrapping_add(self.offset))
    }
}

/// Nanoseconds per unit of reference time.
pub const UNIT_NS: u64 = 100;

/// The value for KVM's clock with which reference time continues from `reference`: the last nanosecond of
/// that unit, since KVM rounds down when it computes reference time. `None` after 584 years.
pub fn clock_ns(reference: u64) -> Option<u64> {
    reference.checked_mul(UNIT_NS)?.checked_add(UNIT_NS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_is_parsed_by_the_layout_of_the_tlfs() {
        let mut bytes = [0u8; ReferencePage::BYTES];
        bytes[0..4].copy_from_slice(&7u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&[0xff; 4]);
        bytes[8..16].copy_from_slice(&(1u64 << 63).to_le_bytes());
        bytes[16..24].copy_from_slice(&(-5i64).to_le_bytes());
        let page = ReferencePage::parse(&bytes);
        assert_eq!((page.sequence, page.scale), (7, 1 << 63));
        assert_eq!(page.time(1000), Some(495));
        let silent = ReferencePage {
            sequence: 0,
            ..page
        };
        assert_eq!(silent.time(1000), None);
    }

    #[test]
    fn the_clock_is_set_to_the_end_of_the_unit() {
        assert_eq!(clock_ns(0), Some(99));
        assert_eq!(clock_ns(12_345), Some(1_234_599));
        assert_eq!(clock_ns(u64::MAX / 100), None);
    }

    proptest! {
        /// Any bytes: a guest can write the page.
        #[test]
        fn no_page_panics(bytes: [u8; ReferencePage::BYTES], tsc: u64) {
            ReferencePage::parse(&bytes).time(tsc);
        }

        #[test]
        fn reference_time_never_steps_back_while_the_page_stays(
            khz in 500_000u64..6_000_000, tsc in 0u64..1 << 60, more in 0u64..1 << 40,
                offset in 0u64..1 << 60,
        ) {
            let scale = u64::try_from((10_000u128 << 64) / u128::from(khz) ).unwrap();
            let page = ReferencePage { sequence: 1, scale, offset };
            prop_assert!(page.time(tsc) <= page.time(tsc + more));
        }

        #[test]
        fn clock_set_from_the_page_gives_the_same_unit(reference in 0u64..1 << 56) {
            prop_assert_eq!(clock_ns(reference).unwrap() / UNIT_NS, reference);
        }
    }
}
