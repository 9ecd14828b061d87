//! The content of the battery-backed RAM that firmware leaves for operating systems.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The guest's RAM, for the RAM's size bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySizes {
    /// Bytes below the 32-bit PCI hole.
    pub below_4g: u64,
    /// Bytes from 4 GiB on.
    pub above_4g: u64,
}

/// The initial content; clock registers are left zero.
pub(super) fn initial(memory: MemorySizes, vcpus: u32) -> [u8; 128] {
    let mut ram = [0; 128];
    let mut put = |index: usize, value: u64, bytes: usize| {
        // Saturates at the field's maximum.
        let value = value.min((1 << (8 * bytes)) - 1).to_le_bytes();
        ram[index..index + bytes].copy_from_slice(&value[..bytes]);
    };
    // Equipment: a numeric coprocessor.
    put(0x14, 0x02, 1);
    // Conventional memory, in KiB.
    put(0x15, 640, 2);
    // Above 1 MiB, in KiB; twice, as configured and as found.
    let extended = memory.below_4g.saturating_sub(MIB) / KIB;
    put(0x17, extended, 2);
    put(0x30, extended, 2);
    // Above 16 MiB, below the hole, in 64 KiB.
    put(
        0x34,
        memory.below_4g.saturating_sub(16 * MIB) / (64 * KIB),
        2,
    );
    // Above 4 GiB, in 64 KiB.
    put(0x5b, memory.above_4g / (64 * KIB), 3);
    // Processors besides the first one.
    put(0x5f, u64::from(vcpus.saturating_sub(1)), 1);
    // The checksum of 0x10..=0x2d, most significant byte first.
    let sum: u16 = ram[0x10..=0x2d].iter().copied().map(u16::from).sum();
    ram[0x2e..=0x2f].copy_from_slice(&sum.to_be_bytes());
    ram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_saturate_at_what_their_fields_can_say() {
        const GIB: u64 = 1 << 30;
        for (below, above, extended, above_16m, high) in [
            (8 * MIB, 0, 7168_u16, 0_u16, 0_u32),
            (64 * MIB, 0, 64_512, 768, 0),
            (GIB, 0, 0xffff, 16_128, 0),
            (3 * GIB, 5 * GIB, 0xffff, 48_896, 81_920),
            (3 * GIB, 1 << 50, 0xffff, 48_896, 0xff_ffff),
            (0, 0, 0, 0, 0),
        ] {
            let ram = initial(
                MemorySizes {
                    below_4g: below,
                    above_4g: above,
                },
                4,
            );
            let word = |i: usize| u16::from_le_bytes([ram[i], ram[i + 1]]);
            assert_eq!(word(0x15), 640);
            assert_eq!(word(0x17), extended);
            assert_eq!(word(0x30), extended);
            assert_eq!(word(0x34), above_16m);
            assert_eq!(
                u32::from_le_bytes([ram[0x5b], ram[0x5c], ram[0x5d], 0]),
                high
            );
            assert_eq!(ram[0x5f], 3);
        }
    }
}
