//! The width of physical addresses that the guest sees.

use super::{CpuVendor, CpuidEntry};
use crate::layout::AddressWidth;

/// The width in `leaves`, and the width that OVMF derives from it (`PlatformAddressWidthFromCpuid` in
/// OvmfPkg/Library/PlatformInitLib/MemDetect.c).
pub fn address_width(leaves: &[CpuidEntry], vendor: CpuVendor) -> AddressWidth {
    /// CPUID 0x80000001.EDX: 1 GiB pages.
    const PAGES_1G: u32 = 1 << 26;
    /// With four levels of paging; with five it is more, which firmware uses only above 1 TiB of RAM.
    const MOST: u8 = 46;
    const MOST_WITHOUT_PAGES_1G: u8 = 40;

    let find = |function| leaves.iter().find(|leaf| leaf.function == function);
    let [bits, _, guest_bits, _] = find(0x8000_0008).map_or([36, 0, 0, 0], |l| l.eax.to_le_bytes());
    // QEMU showed 40 bits on every host for a long time, so firmware trusts only the following values.
    let trusted = guest_bits != 0
        || bits >= 41
        || match vendor {
            CpuVendor::Intel => matches!(bits, 36 | 39),
            CpuVendor::Amd => bits == 40,
            CpuVendor::Other => false,
        };
    let mut used = bits.min(MOST);
    if guest_bits != 0 {
        used = used.min(guest_bits);
    }
    if find(0x8000_0001).is_none_or(|leaf| leaf.edx & PAGES_1G == 0) {
        used = used.min(MOST_WITHOUT_PAGES_1G);
    }
    AddressWidth {
        bits,
        firmware: trusted.then_some(used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_trusts_some_widths_and_limits_all() {
        use CpuVendor::{Amd, Intel, Other};
        // (vendor, EAX of leaf 0x80000008, 1 GiB pages, bits, bits that firmware uses)
        for (vendor, eax, pages_1g, bits, firmware) in [
            (Intel, None, true, 36, Some(36)),
            (Amd, None, true, 36, None),
            (Intel, Some(0x3027), true, 39, Some(39)),
            (Amd, Some(0x3027), true, 39, None),
            (Amd, Some(0x3028), false, 40, Some(40)),
            (Intel, Some(0x3028), true, 40, None),
            (Other, Some(0x3028), true, 40, None),
            (Other, Some(0x3029), true, 41, Some(41)),
            (Amd, Some(0x3030), true, 48, Some(46)),
            (Amd, Some(0x3030), false, 48, Some(40)),
            (Intel, Some(0x392e), true, 46, Some(46)),
            // GuestPhysBits.
            (Intel, Some(0x0028_3028), true, 40, Some(40)),
            (Amd, Some(0x002a_3034), true, 52, Some(42)),
        ] {
            let leaf = |function, eax, edx| CpuidEntry {
                function,
                eax,
                edx,
                ..CpuidEntry::default()
            };
            let mut leaves = vec![leaf(0x8000_0001, 0, u32::from(pages_1g) << 26)];
            leaves.extend(eax.map(|eax| leaf(0x8000_0008, eax, 0)));
            let found = address_width(&leaves, vendor);
            assert_eq!(
                found,
                AddressWidth { bits, firmware },
                "{vendor:?} {eax:x?}"
            );
        }
    }
}
