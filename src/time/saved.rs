//! A VM's time at one instant, as saved in a snapshot and sent by a migration.

use serde::{Deserialize, Serialize};

use super::page;
use crate::units::{TscKhz, VpIndex};

/// How the guest's clocks treat the time during which a saved VM does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Downtime {
    /// The guest's clocks have advanced, as a wall clock would.
    #[default]
    Continue,
    /// The guest's clocks stop meanwhile, as if no time had passed.
    Pause,
}

/// A VM's time at one instant, with all vCPUs stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTime {
    /// The frequency reported to the guest, which is also its real one where the host can provide it.
    pub khz: TscKhz,
    /// The boot vCPU's TSC.
    pub tsc: u64,
    /// How far each further vCPU's TSC is ahead of that; empty if all are equal, as long as the guest
    /// itself does not write one.
    pub ahead: Vec<u64>,
    /// The time on the reference TSC page, in units of 100 ns, if the guest enabled it.
    pub reference: Option<u64>,
    /// KVM's clock of the VM, in nanoseconds: kvmclock, and the source of reference time where there is no
    /// page.
    pub clock_ns: u64,
    /// The guest reads kvmclock by itself.
    pub kvmclock: bool,
    /// The host's wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The clocks above were read at one instant; otherwise in sequence, since this host's KVM had no
    /// master clock.
    pub exact: bool,
    /// Whether and how the guest has requested notification of a new frequency.
    pub guest: GuestTime,
}

/// The guest's settings for its TSC, and what it was promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestTime {
    /// REENLIGHTENMENT_CONTROL.enabled: an interrupt notifies it.
    pub notify: bool,
    /// TSC_EMULATION_CONTROL: it keeps its old frequency until it reports that it has adapted.
    pub emulate: bool,
    /// TSC_EMULATION_STATUS: it still has its old frequency from an earlier move.
    pub emulating: bool,
    /// TSC_INVARIANT_CONTROL: it relies on a TSC that never changes its rate.
    pub invariant: bool,
}

impl SavedTime {
    /// How far the vCPU's TSC is ahead of the boot vCPU's.
    pub fn ahead_of_boot(&self, vp: VpIndex) -> u64 {
        let further = vp.0.checked_sub(1).and_then(|n| usize::try_from(n).ok());
        let by = further.and_then(|n| self.ahead.get(n));
        by.copied().unwrap_or(0)
    }

    /// The value for KVM's clock with which reference time and kvmclock continue; neither may step back.
    ///
    /// Reference time decides, as its page is always slightly off KVM's clock (see [`page`]); for a guest
    /// that reads both, the later of the two.
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

    /// A guest that ran for a minute at 2.45 GHz, without reenlightenment.
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
    fn tscs_that_the_guest_set_apart_stay_apart() {
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
