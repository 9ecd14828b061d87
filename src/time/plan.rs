//! What becomes of a VM's TSC on another host: one pure function.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ratio::{Ratio, Scaling, ticks};
use super::saved::{Downtime, SavedTime};
use crate::kvm::clock::HostInstant;
use crate::kvm::tsc::within_tolerance;
use crate::units::TscKhz;

/// What the user wants done about another frequency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Whatever keeps the guest's clocks right: nothing if there is nothing to do, the guest's own adaptation if it asked for
    /// that, scaling else.
    #[default]
    Auto,
    /// The guest keeps its frequency, for good.
    Scale,
    /// The guest takes this host's frequency; it must have asked to be told.
    Reenlighten,
    /// Nothing but the guest's own frequency will do, and without scaling.
    Refuse,
}

/// What this host's TSC can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTsc {
    /// The host's own frequency; `None` where its kernel takes the TSC for unstable.
    pub native: Option<TscKhz>,
    /// The frequency that a VM is moved to, if it is not the host's own: so that one host can play two.
    pub instead: Option<TscKhz>,
    /// How guests' TSCs are scaled, if they can be.
    pub scaling: Option<Scaling>,
    /// Guests read the host's TSC as it is: KVM does not offset it.
    pub fixed: bool,
}

impl HostTsc {
    /// The frequency that a VM takes which takes this host's.
    pub fn target(&self) -> Option<TscKhz> {
        self.instead.or(self.native)
    }

    /// How KVM runs a guest at `khz` here; `None` if it cannot.
    pub fn ratio(&self, khz: TscKhz) -> Option<Ratio> {
        Ratio::new(khz, self.native?, self.scaling)
    }

    /// Whether KVM can run a guest at `khz` here.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn runs_at(&self, guest: TscKhz) -> Result<(), Why> {
        let host = self.native.ok_or(Why::NoFrequency)?;
        match (self.ratio(guest), self.scaling) {
            (Some(_), _) => Ok(()),
            (None, Some(_)) => Err(Why::OutOfReach { guest, host }),
            (None, None) => Err(Why::NoScaling { guest, host }),
        }
    }
}

impl HostTsc {
    /// Whether a VM's clocks can do this while it is away.
    ///
    /// # Errors
    /// If not.
    pub fn can(&self, downtime: Downtime) -> Result<(), Why> {
        match downtime {
            Downtime::Pause if self.fixed => Err(Why::CannotPause),
            Downtime::Pause | Downtime::Continue => Ok(()),
        }
    }

    /// Whether the TSC of a VM that was saved as `saved` can go on from there `now`.
    ///
    /// # Errors
    /// If it would be another one.
    pub fn continues(
        &self,
        saved: &SavedTime,
        downtime: Downtime,
        now: HostInstant,
    ) -> Result<(), Why> {
        self.can(downtime)?;
        if !self.fixed {
            return Ok(());
        }
        let away_ns = now.realtime_ns.saturating_sub(saved.realtime_ns);
        let expected = saved.tsc.wrapping_add(ticks(away_ns, saved.khz));
        // Two's complement: a TSC that was reset is behind.
        let off = now.tsc.wrapping_sub(expected).cast_signed();
        let by_ms = off / i64::from(saved.khz.0.max(1));
        // On the host that the VM was saved on, and in the same boot, the guest's TSC is right whatever the wall clock says. So
        // this need only tell that from another host or boot: a second for what came between two readings and for steps of the
        // wall clock, and 500 ppm for its slewing and the frequency's error.
        let bound_ms = 1_000 + i64::try_from(away_ns / 1_000_000 / 2_000).unwrap_or(i64::MAX);
        if by_ms.abs() > bound_ms {
            Err(Why::Jumps { by_ms })
        } else {
            Ok(())
        }
    }
}

/// What becomes of a VM's TSC on another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePlan {
    /// The guest keeps its frequency, which is this host's.
    Same,
    /// The guest keeps its frequency, which is not this host's, by TSC scaling and for good.
    Scale,
    /// The guest keeps its frequency by TSC scaling until it says that it has adapted; it is told of the move.
    Reenlighten,
    /// The guest has this host's frequency at once, and is told so.
    ReenlightenAtOnce,
    /// It cannot be, or is not wanted.
    Refuse(Why),
}

/// Why a VM's TSC cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Why {
    /// KVM does not know the frequency.
    #[error(
        "this host's TSC has no known frequency, as its kernel takes it for unstable: its log says why"
    )]
    NoFrequency,
    /// The policy is to refuse.
    #[error(
        "the guest's TSC runs at {guest}, this host's at {host}, and `--on-tsc-change refuse` allows no change: without it, hypernest does what it can"
    )]
    Unwanted {
        /// The guest's.
        guest: TscKhz,
        /// The host's.
        host: TscKhz,
    },
    /// Scaling is needed and the CPU has none.
    #[error(
        "the guest's TSC must run at {guest}, this host's runs at {host}, and its CPU or KVM cannot scale (no KVM_CAP_TSC_CONTROL): `hypernest doctor` tells which hosts can"
    )]
    NoScaling {
        /// The guest's.
        guest: TscKhz,
        /// The host's.
        host: TscKhz,
    },
    /// Scaling does not reach so far.
    #[error("a TSC of {host} cannot be scaled to {guest}")]
    OutOfReach {
        /// The guest's.
        guest: TscKhz,
        /// The host's.
        host: TscKhz,
    },
    /// Reenlightenment is wanted, but not by the guest.
    #[error(
        "the guest has not asked to be told of a new TSC frequency (hv-reenlightenment; a hypervisor in it does, Linux when its KVM is loaded), so it cannot take {host}: `--on-tsc-change scale` keeps its own"
    )]
    NotAsked {
        /// The host's.
        host: TscKhz,
    },
    /// The guest's TSC would have to stand still and cannot.
    #[error(
        "`--clock pause` cannot be had: guests read this host's TSC as it is (KVM does not offset it), so it goes on while the VM is saved; `--clock continue` can"
    )]
    CannotPause,
    /// The guest's TSC would jump.
    #[error(
        "guests read this host's TSC as it is (KVM does not offset it), and the guest's TSC would jump by {by_ms} ms: it can go on only on the host that it was saved on, until that is booted again"
    )]
    Jumps {
        /// How far, in ms.
        by_ms: i64,
    },
    /// The guest was promised that nothing changes.
    #[error(
        "the guest relies on a TSC that never changes its rate (hv-tsc-invariant), so it cannot take {host}: `--on-tsc-change scale` keeps its own"
    )]
    Invariant {
        /// The host's.
        host: TscKhz,
    },
}

/// What becomes of the TSC of a VM that was saved with `saved` on a host with `host`.
pub fn plan(saved: &SavedTime, host: &HostTsc, policy: Policy) -> TimePlan {
    match decide(saved, host, policy) {
        Ok(plan) => plan,
        Err(why) => TimePlan::Refuse(why),
    }
}

fn decide(saved: &SavedTime, host: &HostTsc, policy: Policy) -> Result<TimePlan, Why> {
    let target = host.native.and(host.target()).ok_or(Why::NoFrequency)?;
    let keep = |plan| host.runs_at(saved.khz).map(|()| plan);
    let may_change = if !saved.guest.notify {
        Err(Why::NotAsked { host: target })
    } else if saved.guest.invariant {
        Err(Why::Invariant { host: target })
    } else {
        Ok(())
    };
    let reenlighten = || {
        may_change?;
        host.runs_at(target)?;
        if !saved.guest.emulate {
            return Ok(TimePlan::ReenlightenAtOnce);
        }
        keep(TimePlan::Reenlighten)
    };
    let same = within_tolerance(saved.khz, target);
    match policy {
        Policy::Reenlighten if saved.khz == target => keep(TimePlan::Same),
        // A few ppm are worth a change only to who asks for it.
        Policy::Reenlighten => reenlighten(),
        _ if same => keep(TimePlan::Same),
        Policy::Refuse => Err(Why::Unwanted {
            guest: saved.khz,
            host: target,
        }),
        Policy::Scale => keep(TimePlan::Scale),
        Policy::Auto if may_change.is_ok() => reenlighten(),
        Policy::Auto => keep(TimePlan::Scale),
    }
}

impl TimePlan {
    /// The frequency at which the guest starts under this plan.
    pub fn khz(&self, saved: &SavedTime, host: &HostTsc) -> TscKhz {
        match self {
            Self::ReenlightenAtOnce => host.target().unwrap_or(saved.khz),
            Self::Same | Self::Scale | Self::Reenlighten | Self::Refuse(_) => saved.khz,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::saved::{GuestTime, tests::PLAIN};
    use super::*;

    const KHZ: TscKhz = TscKhz(3_499_912);
    const OTHER: TscKhz = TscKhz(2_449_938);
    const SCALES: HostTsc = HostTsc {
        native: Some(KHZ),
        instead: None,
        scaling: Some(Scaling::Vmx),
        fixed: false,
    };
    const RIGID: HostTsc = HostTsc {
        scaling: None,
        ..SCALES
    };
    const UNKNOWN: HostTsc = HostTsc {
        native: None,
        ..SCALES
    };
    /// It plays a host of the other frequency.
    const PLAYS: HostTsc = HostTsc {
        instead: Some(OTHER),
        ..SCALES
    };
    const RIGID_PLAYS: HostTsc = HostTsc {
        instead: Some(OTHER),
        ..RIGID
    };

    fn saved(khz: TscKhz, guest: &str) -> SavedTime {
        SavedTime {
            khz,
            guest: GuestTime {
                notify: guest.contains('n'),
                emulate: guest.contains('e'),
                emulating: guest.contains('s'),
                invariant: guest.contains('i'),
            },
            ..PLAIN
        }
    }

    #[test]
    fn the_table() {
        use Policy::{Auto, Reenlighten, Refuse, Scale};
        const NEAR: TscKhz = TscKhz(3_500_100);
        let no_scaling = TimePlan::Refuse(Why::NoScaling {
            guest: OTHER,
            host: KHZ,
        });
        let not_asked = TimePlan::Refuse(Why::NotAsked { host: KHZ });
        let invariant = TimePlan::Refuse(Why::Invariant { host: KHZ });
        let unwanted = |guest, host| TimePlan::Refuse(Why::Unwanted { guest, host });
        for (khz, guest, host, policy, expected) in [
            // The same frequency is always the same.
            (KHZ, "", SCALES, Auto, TimePlan::Same),
            (KHZ, "ne", SCALES, Auto, TimePlan::Same),
            (KHZ, "ne", RIGID, Scale, TimePlan::Same),
            (KHZ, "ne", RIGID, Reenlighten, TimePlan::Same),
            (KHZ, "", RIGID, Reenlighten, TimePlan::Same),
            (KHZ, "", RIGID, Refuse, TimePlan::Same),
            // So is what KVM does not scale, but for who asks.
            (NEAR, "ne", RIGID, Auto, TimePlan::Same),
            (NEAR, "", RIGID, Refuse, TimePlan::Same),
            (NEAR, "ne", RIGID, Reenlighten, TimePlan::Reenlighten),
            // Another frequency, a guest that knows nothing.
            (OTHER, "", SCALES, Auto, TimePlan::Scale),
            (OTHER, "i", SCALES, Auto, TimePlan::Scale),
            (OTHER, "e", SCALES, Auto, TimePlan::Scale),
            (OTHER, "", SCALES, Scale, TimePlan::Scale),
            (OTHER, "", SCALES, Reenlighten, not_asked),
            (OTHER, "", SCALES, Refuse, unwanted(OTHER, KHZ)),
            (OTHER, "", RIGID, Auto, no_scaling),
            (OTHER, "", RIGID, Scale, no_scaling),
            (OTHER, "", RIGID, Refuse, unwanted(OTHER, KHZ)),
            // A guest that asked.
            (OTHER, "ne", SCALES, Auto, TimePlan::Reenlighten),
            (OTHER, "nes", SCALES, Auto, TimePlan::Reenlighten),
            (OTHER, "ne", SCALES, Reenlighten, TimePlan::Reenlighten),
            (OTHER, "ne", SCALES, Scale, TimePlan::Scale),
            (OTHER, "ne", SCALES, Refuse, unwanted(OTHER, KHZ)),
            (OTHER, "ne", RIGID, Auto, no_scaling),
            (OTHER, "ne", RIGID, Reenlighten, no_scaling),
            // A guest that asked for the interrupt alone: no need of scaling.
            (OTHER, "n", SCALES, Auto, TimePlan::ReenlightenAtOnce),
            (OTHER, "n", RIGID, Auto, TimePlan::ReenlightenAtOnce),
            (OTHER, "n", RIGID, Scale, no_scaling),
            // A guest that was promised a constant rate, and asked all the same.
            (OTHER, "nei", SCALES, Auto, TimePlan::Scale),
            (OTHER, "nei", SCALES, Reenlighten, invariant),
            (OTHER, "nei", RIGID, Auto, no_scaling),
            // Hosts that play others.
            (OTHER, "", PLAYS, Auto, TimePlan::Same),
            (OTHER, "", PLAYS, Refuse, TimePlan::Same),
            (KHZ, "ne", PLAYS, Auto, TimePlan::Reenlighten),
            (KHZ, "ne", PLAYS, Refuse, unwanted(KHZ, OTHER)),
            (OTHER, "", RIGID_PLAYS, Auto, no_scaling),
            (KHZ, "ne", RIGID_PLAYS, Auto, no_scaling),
            (KHZ, "n", RIGID_PLAYS, Auto, no_scaling),
            // A host that does not know its frequency, a guest that has none.
            (KHZ, "", UNKNOWN, Auto, TimePlan::Refuse(Why::NoFrequency)),
            (
                TscKhz(0),
                "",
                SCALES,
                Auto,
                TimePlan::Refuse(Why::OutOfReach {
                    guest: TscKhz(0),
                    host: KHZ,
                }),
            ),
        ] {
            assert_eq!(
                plan(&saved(khz, guest), &host, policy),
                expected,
                "{khz} {guest:?} {host:?} {policy:?}"
            );
        }
    }

    #[test]
    fn the_guest_starts_at_the_frequency_of_the_plan() {
        let saved = saved(OTHER, "n");
        for (plan, khz) in [
            (TimePlan::Same, OTHER),
            (TimePlan::Scale, OTHER),
            (TimePlan::Reenlighten, OTHER),
            (TimePlan::ReenlightenAtOnce, KHZ),
        ] {
            assert_eq!(plan.khz(&saved, &SCALES), khz, "{plan:?}");
        }
    }

    #[test]
    fn a_host_without_tsc_offsets_takes_only_its_own_vms_and_pauses_none() {
        const FIXED: HostTsc = HostTsc {
            fixed: true,
            ..RIGID
        };
        let saved = saved(KHZ, "");
        let later = |ms: u64, off: i64| HostInstant {
            tsc: (saved.tsc + ms * u64::from(KHZ.0)).wrapping_add_signed(off * i64::from(KHZ.0)),
            realtime_ns: saved.realtime_ns + ms * 1_000_000,
        };
        let goes_on = |now| FIXED.continues(&saved, Downtime::Continue, now);
        assert_eq!(goes_on(later(500, 0)), Ok(()));
        assert_eq!(goes_on(later(500, -900)), Ok(()));
        // 500 ppm of an hour are 1.8 s.
        assert_eq!(goes_on(later(3_600_000, 2_700)), Ok(()));
        assert_eq!(goes_on(later(500, 1_500)), Err(Why::Jumps { by_ms: 1_500 }));
        assert_eq!(
            goes_on(later(500, -1_500)),
            Err(Why::Jumps { by_ms: -1_500 })
        );
        let booted_again = HostInstant {
            tsc: 0,
            ..later(500, 0)
        };
        assert!(matches!(goes_on(booted_again), Err(Why::Jumps { by_ms }) if by_ms < -40_000));
        let pause = Err(Why::CannotPause);
        assert_eq!(FIXED.can(Downtime::Pause), pause);
        assert_eq!(FIXED.continues(&saved, Downtime::Pause, later(0, 0)), pause);
        assert_eq!(FIXED.can(Downtime::Continue), Ok(()));
        for downtime in [Downtime::Pause, Downtime::Continue] {
            assert_eq!(RIGID.continues(&saved, downtime, booted_again), Ok(()));
        }
    }

    proptest! {
        /// Whatever is not refused can be run, and a refusal has its reason in a sentence.
        #[test]
        fn a_plan_can_be_carried_out(
            khz: u32, native: Option<u32>, instead: Option<u32>, scaling in 0u8..3, guest in 0u8..16, policy in 0u8..4,
        ) {
            let host = HostTsc {
                native: native.map(TscKhz),
                instead: instead.map(TscKhz),
                scaling: [None, Some(Scaling::Vmx), Some(Scaling::Svm)][usize::from(scaling)],
                fixed: false,
            };
            let saved = SavedTime {
                khz: TscKhz(khz),
                guest: GuestTime {
                    notify: guest & 1 != 0,
                    emulate: guest & 2 != 0,
                    emulating: guest & 4 != 0,
                    invariant: guest & 8 != 0,
                },
                ..PLAIN
            };
            let policy = [Policy::Auto, Policy::Scale, Policy::Reenlighten, Policy::Refuse][usize::from(policy)];
            let plan = plan(&saved, &host, policy);
            match plan {
                TimePlan::Refuse(why) => prop_assert!(why.to_string().contains("TSC")),
                TimePlan::Reenlighten | TimePlan::ReenlightenAtOnce => {
                    prop_assert!(host.ratio(host.target().unwrap()).is_some());
                    prop_assert!(saved.guest.notify && !saved.guest.invariant);
                }
                TimePlan::Same => prop_assert!(within_tolerance(saved.khz, host.target().unwrap())),
                TimePlan::Scale => prop_assert!(policy != Policy::Refuse),
            }
            if !matches!(plan, TimePlan::Refuse(_)) {
                prop_assert!(host.ratio(plan.khz(&saved, &host)).is_some());
            }
        }
    }
}
