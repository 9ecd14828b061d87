//! The I/O and MSR permission maps of L2.

use hypernest_nested::probe::DOORBELL_PORT;
use hypernest_nested::svm::{IO_MAP_LEN, MSR_MAP_LEN, msr_map_bit};

use super::super::kinds::KERNEL_GS_BASE;
use super::super::vcpu::Intercepts;
use crate::pages;

/// A register that no L2 here uses.
const TSC_AUX: u32 = 0xC000_0103;

/// The two maps.
#[derive(Debug)]
pub(super) struct Permissions {
    io: &'static mut [u64],
    msr: &'static mut [u64],
}

impl Permissions {
    /// Maps that intercept nothing.
    pub(super) fn new() -> Self {
        Self {
            io: pages::array(IO_MAP_LEN / 8),
            msr: pages::array(MSR_MAP_LEN / 8),
        }
    }

    pub(super) fn io(&mut self) -> u64 {
        self.io.as_mut_ptr().expose_provenance() as u64
    }

    pub(super) fn msr(&mut self) -> u64 {
        self.msr.as_mut_ptr().expose_provenance() as u64
    }

    /// Sets the intercepts of a kind.
    pub(super) fn set(&mut self, intercepts: &Intercepts) {
        self.io.fill(if intercepts.ports { u64::MAX } else { 0 });
        // The doorbell's four ports are in one word.
        const { assert!(DOORBELL_PORT % 64 <= 60) }
        let doorbell = usize::from(DOORBELL_PORT);
        self.io[doorbell / 64] &= !(0xF << (doorbell % 64));

        self.msr.fill(0);
        if intercepts.msrs {
            let (word, bits) = const { msr_bits(KERNEL_GS_BASE) };
            self.msr[word] |= bits;
        }
    }

    /// Changes bits that nothing depends on.
    #[inline(always)]
    pub(super) fn change(&mut self) {
        let (word, bits) = const { msr_bits(TSC_AUX) };
        self.msr[word] ^= bits;
    }
}

/// The word with the two bits of `register`, and the bits.
const fn msr_bits(register: u32) -> (usize, u64) {
    let Some((byte, read)) = msr_map_bit(register) else {
        panic!("the map covers the register")
    };
    (byte / 8, (read as u64 * 0b11) << (byte % 8 * 8))
}
