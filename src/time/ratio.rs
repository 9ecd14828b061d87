//! KVM's scaling of the TSC, exactly as KVM and the CPU round it (`set_tsc_khz` and `kvm_scale_tsc` in
//! arch/x86/kvm/x86.c).

use serde::{Deserialize, Serialize};

use crate::kvm::tsc::within_tolerance;
use crate::units::TscKhz;

/// How a CPU scales a guest's TSC: by a fixed-point multiplier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scaling {
    /// VMX: 48 fractional bits (SDM vol. 3, "TSC multiplier").
    Vmx,
    /// SVM: 32 fractional bits, 8 integer bits (APM vol. 2, "TSC Ratio MSR").
    Svm,
}

impl Scaling {
    /// The number of fractional bits of the multiplier.
    pub fn fractional_bits(self) -> u32 {
        match self {
            Self::Vmx => 48,
            Self::Svm => 32,
        }
    }

    /// KVM takes multipliers below this (`max_tsc_scaling_ratio`).
    fn limit(self) -> u64 {
        match self {
            Self::Vmx => u64::MAX,
            Self::Svm => 0xff_ffff_ffff,
        }
    }
}

/// KVM keeps frequencies within a signed 32-bit integer (`max_guest_tsc_khz`).
const MAX_KHZ: u64 = 0x7fff_ffff;

/// Guest TSC ticks per host TSC tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    multiplier: u64,
    bits: u32,
}

impl Ratio {
    /// The guest's TSC runs as fast as the host's.
    pub const ONE: Self = Self {
        multiplier: 1,
        bits: 0,
    };

    /// The ratio that KVM uses after `KVM_SET_TSC_KHZ(guest)` on a host with `host`; `None` if it cannot:
    /// without `scaling`, or if the multiplier does not fit.
    pub fn new(guest: TscKhz, host: TscKhz, scaling: Option<Scaling>) -> Option<Self> {
        if guest.0 == 0 || host.0 == 0 {
            return None;
        }
        if within_tolerance(guest, host) {
            return Some(Self::ONE);
        }
        let scaling = scaling?;
        let bits = scaling.fractional_bits();
        let multiplier = (u128::from(guest.0) << bits) / u128::from(host.0);
        let multiplier = u64::try_from(multiplier).ok()?;
        let fastest = mul_shift(scaling.limit(), host.0.into(), bits).min(MAX_KHZ);
        (multiplier > 0 && multiplier < scaling.limit() && u64::from(guest.0) < fastest)
            .then_some(Self { multiplier, bits })
    }

    /// Whether the CPU multiplies at all.
    pub fn is_one(self) -> bool {
        self == Self::ONE
    }

    /// Converts host ticks to guest ticks, before the offset. Wraps as the hardware does.
    pub fn scale(self, host_tsc: u64) -> u64 {
        mul_shift(host_tsc, self.multiplier, self.bits)
    }

    /// The offset with which the guest reads `guest_tsc` when the host reads `host_tsc`; two's complement.
    pub fn offset(self, guest_tsc: u64, host_tsc: u64) -> u64 {
        guest_tsc.wrapping_sub(self.scale(host_tsc))
    }

    /// The value that the guest reads when the host reads `host_tsc`.
    pub fn guest_tsc(self, host_tsc: u64, offset: u64) -> u64 {
        self.scale(host_tsc).wrapping_add(offset)
    }
}

/// `(a * b) >> bits`, the low 64 bits.
#[allow(
    clippy::cast_possible_truncation,
    reason = "KVM's mul_u64_u64_shr keeps the low 64 bits, and so does the CPU"
)]
pub(super) fn mul_shift(a: u64, b: u64, bits: u32) -> u64 {
    ((u128::from(a) * u128::from(b)) >> bits) as u64
}

/// The guest's ticks in `ns` nanoseconds at `khz`, rounded down; saturates after centuries.
pub fn ticks(ns: u64, khz: TscKhz) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(khz.0) / 1_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A host with a frequency that is not a round number.
    const HOST: TscKhz = TscKhz(3_499_912);
    const VMX: Option<Scaling> = Some(Scaling::Vmx);
    const SVM: Option<Scaling> = Some(Scaling::Svm);

    #[test]
    fn kvm_does_not_scale_within_its_tolerance() {
        for (guest, one) in [
            (3_499_912, true),
            // 3,499,912 less and plus 250 ppm, both rounded down.
            (3_499_037, true),
            (3_499_036, false),
            (3_500_786, true),
            (3_500_787, false),
        ] {
            let guest = TscKhz(guest);
            assert_eq!(within_tolerance(guest, HOST), one, "{guest}");
            assert_eq!(Ratio::new(guest, HOST, VMX).unwrap().is_one(), one);
            assert_eq!(Ratio::new(guest, HOST, None).is_some(), one, "{guest}");
        }
    }

    #[test]
    fn the_multiplier_is_rounded_down() {
        for (guest, scaling, multiplier) in [
            (2_449_938, VMX, 197_032_451_528_081),
            (4_199_894, VMX, 337_769_939_883_409),
            (2_449_938, SVM, 3_006_476_616),
            (6_999_824, VMX, 2 << 48),
            (6_999_824, SVM, 2 << 32),
        ] {
            let ratio = Ratio::new(TscKhz(guest), HOST, scaling).unwrap();
            let bits = scaling.unwrap().fractional_bits();
            assert_eq!(ratio, Ratio { multiplier, bits }, "{guest} {scaling:?}");
        }
    }

    #[test]
    fn frequency_that_kvm_refuses_has_no_ratio() {
        for (guest, host, scaling) in [
            (2_449_938, HOST.0, None),
            (0, HOST.0, VMX),
            (HOST.0, 0, VMX),
            // SVM multiplies by less than 256.
            (256_000, 1000, SVM),
            // KVM accepts at most a signed 32-bit integer.
            (0x7fff_ffff, HOST.0, VMX),
            (u32::MAX, HOST.0, VMX),
        ] {
            let ratio = Ratio::new(TscKhz(guest), TscKhz(host), scaling);
            assert_eq!(ratio, None, "{guest} on {host} with {scaling:?}");
        }
        assert!(Ratio::new(TscKhz(254_000), TscKhz(1000), SVM).is_some());
    }

    #[test]
    fn ticks_of_long_times() {
        assert_eq!(ticks(1_000_000_000, HOST), 3_499_912_000);
        assert_eq!(ticks(1, HOST), 3);
        assert_eq!(ticks(u64::MAX, TscKhz(u32::MAX)), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_scaled_tsc_never_steps_back(
            guest in 500_000u32..6_000_000, host in 500_000u32..6_000_000, tsc in 0u64..1 << 60,
                more in 0u64..1 << 40,
            vmx: bool,
        ) {
            let scaling = if vmx { Scaling::Vmx } else { Scaling::Svm };
            let ratio = Ratio::new(TscKhz(guest), TscKhz(host), Some(scaling)).unwrap();
            prop_assert!(ratio.scale(tsc) <= ratio.scale(tsc + more));
        }

        #[test]
        fn a_scaled_tsc_is_slow_by_less_than_the_last_bit(
            guest in 500_000u32..6_000_000, host in 500_000u32..6_000_000, tsc in 0u64..1 << 60, vmx: bool,
        ) {
            let scaling = if vmx { Scaling::Vmx } else { Scaling::Svm };
            let (guest, host) = (TscKhz(guest), TscKhz(host));
            let ratio = Ratio::new(guest, host, Some(scaling)).unwrap();
            let exact = if ratio.is_one() {
                u128::from(tsc)
            } else {
                u128::from(tsc) * u128::from(guest.0) / u128::from(host.0)
            };
            let scaled = u128::from(ratio.scale(tsc));
            prop_assert!(scaled <= exact);
            prop_assert!(exact - scaled <= 1 + (u128::from(tsc) >> scaling.fractional_bits()));
        }

        #[test]
        fn offset_continues_the_tsc_of_the_guest(
            guest in 500_000u32..6_000_000, host in 500_000u32..6_000_000, at: u64, host_tsc: u64,
        ) {
            let ratio = Ratio::new(TscKhz(guest), TscKhz(host), VMX).unwrap();
            prop_assert_eq!(ratio.guest_tsc(host_tsc, ratio.offset(at, host_tsc)), at);
        }

        #[test]
        fn no_frequency_panics(guest: u32, host: u32, tsc: u64, vmx: bool) {
            let scaling = if vmx { Scaling::Vmx } else { Scaling::Svm };
            if let Some(ratio) = Ratio::new(TscKhz(guest), TscKhz(host), Some(scaling)) {
                ratio.scale(tsc);
            }
        }
    }
}
