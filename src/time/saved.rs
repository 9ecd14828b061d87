//! A VM's time at one instant: what a snapshot and a migration carry.

use serde::{Deserialize, Serialize};

use super::page;
use crate::units::{TscKhz, VpIndex};

/// What becomes of the time during which a saved VM does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Downtime {
    /// The guest's clocks have gone on, as a wall clock would.
    #[default]
    Continue,
    /// The guest's clocks have stood still, as if it had not been away.
    Pause,
}

/// A VM's time at one instant, with all vCPUs stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTime {
    /// The frequency that the guest was told of and, where the host could, had.
    pub khz: TscKhz,
    /// The boot vCPU's TSC.
    pub tsc: u64,
    /// By how much each further vCPU's TSC is ahead of that; empty if none is, as long as the guest itself does not write to one.
    pub ahead: Vec<u64>,
    /// What the reference TSC page said then, in units of 100 ns, if the guest had one.
    pub reference: Option<u64>,
    /// KVM's clock of the VM, in nanoseconds: kvmclock, and the source of reference time where there is no page.
    pub clock_ns: u64,
    /// The guest reads kvmclock by itself.
    pub kvmclock: bool,
    /// The host's wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The clocks above were read at one instant; else one after the other, as this host's KVM had no master clock.
    pub exact: bool,
    /// Whether and how the guest wants to be told of another frequency.
    pub guest: GuestTime,
}

/// What the guest has said and been promised about its TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestTime {
    /// REENLIGHTENMENT_CONTROL.enabled: it wants an interrupt.
    pub notify: bool,
    /// TSC_EMULATION_CONTROL: it wants its old frequency until it says otherwise.
    pub emulate: bool,
    /// TSC_EMULATION_STATUS: it still has its old frequency from an earlier move.
    pub emulating: bool,
    /// TSC_INVARIANT_CONTROL: it relies on a TSC that never changes its rate.
    pub invariant: bool,
}

impl SavedTime {
    /// By how much the vCPU's TSC is ahead of the boot vCPU's.
    pub fn ahead_of_boot(&self, vp: VpIndex) -> u64 {
        let further = vp.0.checked_sub(1).and_then(|n| usize::try_from(n).ok());
        let by = further.and_then(|n| self.ahead.get(n));
        by.copied().unwrap_or(0)
    }

    /// What KVM's clock is set to for reference time and kvmclock to go on: neither may step back.
    ///
    /// Reference time wins, as its page is always a little off KVM's clock (see [`page`]); where the guest reads both, the
    /// later of the two.
    pub fn clock_to_set(&self) -> u64 {
        match self.reference.and_then(page::clock_ns) {
            None => self.clock_ns,
            Some(of_page) if self.kvmclock => of_page.max(self.clock_ns),
            Some(of_page) => of_page,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A guest that ran a minute at 2.45 GHz and knows nothing of reenlightenment.
    pub(in crate::time) const PLAIN: SavedTime = SavedTime {
        khz: TscKhz(2_449_938),
        tsc: 146_996_280_000,
        ahead: Vec::new(),
        reference: Some(600_000_244),
        clock_ns: 60_000_000_000,
        kvmclock: false,
        realtime_ns: 1_700_000_000_000_000_000,
        exact: true,
        guest: GuestTime {
            notify: false,
            emulate: false,
            emulating: false,
            invariant: false,
        },
    };

    #[test]
    fn the_clock_is_set_from_the_page() {
        assert_eq!(PLAIN.clock_to_set(), 60_000_024_499);
        let without_page = SavedTime {
            reference: None,
            ..PLAIN
        };
        assert_eq!(without_page.clock_to_set(), 60_000_000_000);
        let behind = SavedTime {
            reference: Some(599_999_000),
            ..PLAIN
        };
        assert_eq!(behind.clock_to_set(), 59_999_900_099);
        let both = SavedTime {
            kvmclock: true,
            ..behind
        };
        assert_eq!(both.clock_to_set(), 60_000_000_000);
        let absurd = SavedTime {
            reference: Some(u64::MAX),
            ..PLAIN
        };
        assert_eq!(absurd.clock_to_set(), 60_000_000_000);
    }

    #[test]
    fn a_guest_that_set_its_tscs_apart_keeps_them_so() {
        let apart = SavedTime {
            ahead: vec![0, u64::MAX],
            ..PLAIN
        };
        for (vp, by) in [(0, 0), (1, 0), (2, u64::MAX), (3, 0)] {
            assert_eq!(apart.ahead_of_boot(VpIndex(vp)), by, "{vp}");
        }
    }

    #[test]
    fn it_survives_json() {
        let text = serde_json::to_string(&PLAIN).unwrap();
        assert_eq!(serde_json::from_str::<SavedTime>(&text).unwrap(), PLAIN);
    }
}
