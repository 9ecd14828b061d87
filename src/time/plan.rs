//! Decides how a VM's TSC continues on another host: one pure function.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ratio::{Ratio, Scaling, ticks};
use super::saved::{Downtime, SavedTime};
use crate::kvm::clock::HostInstant;
use crate::kvm::tsc::within_tolerance;
use crate::units::TscKhz;

/// The user's policy for a changed TSC frequency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Keeps the guest's clocks right: no action if the frequency is the same, the guest's own adaptation
    /// if it enabled that, scaling otherwise.
    #[default]
    Auto,
    /// The guest keeps its frequency, permanently.
    Scale,
    /// The guest takes this host's frequency; it must have enabled reenlightenment.
    Reenlighten,
    /// Only the guest's own frequency is accepted, and without scaling.
    Refuse,
}

/// The capabilities of this host's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTsc {
    /// The host's own frequency; `None` if its kernel marked the TSC unstable.
    pub native: Option<TscKhz>,
    /// The frequency for a moved VM, if it is not the host's own; lets one host simulate two.
    pub instead: Option<TscKhz>,
    /// How guests' TSCs are scaled, if they can be.
    pub scaling: Option<Scaling>,
    /// Guests read the host's TSC directly: KVM does not offset it.
    pub fixed: bool,
}

impl HostTsc {
    /// The frequency of a VM that takes this host's.
    pub fn target(&self) -> Option<TscKhz> {
        self.instead.or(self.native)
    }

    /// The ratio at which KVM runs a guest at `khz` here; `None` if it cannot.
    pub fn ratio(&self, khz: TscKhz) -> Option<Ratio> {
        Ratio::new(khz, self.native?, self.scaling)
    }

    /// Checks that KVM can run a guest at `khz` here.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub fn runs_at(&self, guest: TscKhz) -> Result<(), TscRefusal> {
        let host = self.native.ok_or(TscRefusal::NoFrequency)?;
        match (self.ratio(guest), self.scaling) {
            (Some(_), _) => Ok(()),
            (None, Some(_)) => Err(TscRefusal::OutOfReach { guest, host }),
            (None, None) => Err(TscRefusal::NoScaling { guest, host }),
        }
    }
}

impl HostTsc {
    /// Checks that a VM's clocks support `downtime` while it is away.
    ///
    /// # Errors
    /// If they do not.
    pub fn can(&self, downtime: Downtime) -> Result<(), TscRefusal> {
        match downtime {
            Downtime::Pause if self.fixed => Err(TscRefusal::CannotPause),
            Downtime::Pause | Downtime::Continue => Ok(()),
        }
    }

    /// Checks that the TSC of a VM saved as `saved` can continue from there `now`.
    ///
    /// # Errors
    /// If it would jump.
    pub fn continues(
        &self,
        saved: &SavedTime,
        downtime: Downtime,
        now: HostInstant,
    ) -> Result<(), TscRefusal> {
        self.can(downtime)?;
        if !self.fixed {
            return Ok(());
        }
        let away_ns = now.realtime_ns.saturating_sub(saved.realtime_ns);
        let expected = saved.tsc.wrapping_add(ticks(away_ns, saved.khz));
        // Two's complement: a TSC that was reset is behind.
        let off = now.tsc.wrapping_sub(expected).cast_signed();
        let by_ms = off / i64::from(saved.khz.0.max(1));
        // In the boot of the host that the VM was saved in, the guest's TSC is right regardless of the wall
        // clock. So this check only has to distinguish that from another host or boot: a second for the
        // time between two readings and for steps of the wall clock, and 500 ppm for its slewing and the
        // frequency's error.
        let bound_ms = 1_000 + i64::try_from(away_ns / 1_000_000 / 2_000).unwrap_or(i64::MAX);
        if by_ms.abs() > bound_ms {
            Err(TscRefusal::Jumps { by_ms })
        } else {
            Ok(())
        }
    }
}

/// How a VM's TSC continues on another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePlan {
    /// The guest keeps its frequency, which equals this host's.
    Same,
    /// The guest keeps its frequency, which differs from this host's, permanently by TSC scaling.
    Scale,
    /// The guest is notified of the move and keeps its frequency by TSC scaling until it reports that it
    /// has adapted.
    Reenlighten,
    /// The guest has this host's frequency at once, and is notified.
    ReenlightenAtOnce,
    /// The move is impossible, or the policy refuses it.
    Refuse(TscRefusal),
}

/// Why a VM's TSC cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TscRefusal {
    /// KVM reports no frequency.
    #[error(
        "the frequency of this host's TSC is unknown, because the kernel marked it unstable: see the kernel \
         log"
    )]
    NoFrequency,
    /// The policy is to refuse.
    #[error(
        "the guest's TSC runs at {guest}, this host's at {host}, and `--on-tsc-change refuse` allows no \
         change: without it, hypernest scales the TSC or notifies the guest"
    )]
    Unwanted {
        /// The guest's.
        guest: TscKhz,
        /// The host's.
        host: TscKhz,
    },
    /// Scaling is needed and the CPU has none.
    #[error(
        "the guest's TSC must run at {guest}, this host's runs at {host}, and its CPU or KVM cannot scale \
         (no KVM_CAP_TSC_CONTROL): `hypernest doctor` shows whether a host can"
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
    /// The policy is reenlightenment, but the guest has not enabled it.
    #[error(
        "the guest has not enabled notification of a new TSC frequency (hv-reenlightenment; hypervisors do, \
         Linux when its KVM is loaded), so it cannot take {host}: `--on-tsc-change scale` keeps its own"
    )]
    NotAsked {
        /// The host's.
        host: TscKhz,
    },
    /// The guest's TSC would have to stand still and cannot.
    #[error(
        "`--clock pause` is not possible: guests read this host's TSC directly (KVM does not offset it), so \
         it keeps counting while the VM is saved; use `--clock continue`"
    )]
    CannotPause,
    /// The guest's TSC would jump.
    #[error(
        "guests read this host's TSC directly (KVM does not offset it), and the guest's TSC would jump by \
         {by_ms} ms: it can continue only on the host that it was saved on, until that host reboots"
    )]
    Jumps {
        /// The jump, in milliseconds.
        by_ms: i64,
    },
    /// The guest was promised a constant rate.
    #[error(
        "the guest relies on a TSC that never changes its rate (hv-tsc-invariant), so it cannot take \
         {host}: `--on-tsc-change scale` keeps its own"
    )]
    Invariant {
        /// The host's.
        host: TscKhz,
    },
}

/// Decides how the TSC of a VM saved with `saved` continues on `host`.
pub fn plan(saved: &SavedTime, host: &HostTsc, policy: Policy) -> TimePlan {
    match decide(saved, host, policy) {
        Ok(plan) => plan,
        Err(why) => TimePlan::Refuse(why),
    }
}

fn decide(saved: &SavedTime, host: &HostTsc, policy: Policy) -> Result<TimePlan, TscRefusal> {
    let target = host
        .native
        .and(host.target())
        .ok_or(TscRefusal::NoFrequency)?;
    // A host that cannot run at a frequency cannot simulate a host that does.
    host.runs_at(target)?;
    let keep = |plan| host.runs_at(saved.khz).map(|()| plan);
    let may_change = if !saved.guest.notify {
        Err(TscRefusal::NotAsked { host: target })
    } else if saved.guest.invariant {
        Err(TscRefusal::Invariant { host: target })
    } else {
        Ok(())
    };
    let reenlighten = || {
        may_change?;
        if !saved.guest.emulate {
            return Ok(TimePlan::ReenlightenAtOnce);
        }
        keep(TimePlan::Reenlighten)
    };
    let same = within_tolerance(saved.khz, target);
    match policy {
        Policy::Reenlighten if saved.khz == target => keep(TimePlan::Same),
        // A difference of a few ppm matters only if the user requests reenlightenment.
        Policy::Reenlighten => reenlighten(),
        _ if same => keep(TimePlan::Same),
        Policy::Refuse => Err(TscRefusal::Unwanted {
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
    /// A host that simulates one with the other frequency.
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
        let no_scaling = TimePlan::Refuse(TscRefusal::NoScaling {
            guest: OTHER,
            host: KHZ,
        });
        let not_asked = TimePlan::Refuse(TscRefusal::NotAsked { host: KHZ });
        let invariant = TimePlan::Refuse(TscRefusal::Invariant { host: KHZ });
        let unwanted = |guest, host| TimePlan::Refuse(TscRefusal::Unwanted { guest, host });
        for (khz, guest, host, policy, expected) in [
            // The same frequency is always the same.
            (KHZ, "", SCALES, Auto, TimePlan::Same),
            (KHZ, "ne", SCALES, Auto, TimePlan::Same),
            (KHZ, "ne", RIGID, Scale, TimePlan::Same),
            (KHZ, "ne", RIGID, Reenlighten, TimePlan::Same),
            (KHZ, "", RIGID, Reenlighten, TimePlan::Same),
            (KHZ, "", RIGID, Refuse, TimePlan::Same),
            // A difference within KVM's tolerance is not scaled, unless reenlightenment is requested.
            (NEAR, "ne", RIGID, Auto, TimePlan::Same),
            (NEAR, "", RIGID, Refuse, TimePlan::Same),
            (NEAR, "ne", RIGID, Reenlighten, TimePlan::Reenlighten),
            // Another frequency, a guest without reenlightenment.
            (OTHER, "", SCALES, Auto, TimePlan::Scale),
            (OTHER, "i", SCALES, Auto, TimePlan::Scale),
            (OTHER, "e", SCALES, Auto, TimePlan::Scale),
            (OTHER, "", SCALES, Scale, TimePlan::Scale),
            (OTHER, "", SCALES, Reenlighten, not_asked),
            (OTHER, "", SCALES, Refuse, unwanted(OTHER, KHZ)),
            (OTHER, "", RIGID, Auto, no_scaling),
            (OTHER, "", RIGID, Scale, no_scaling),
            (OTHER, "", RIGID, Refuse, unwanted(OTHER, KHZ)),
            // A guest that enabled it.
            (OTHER, "ne", SCALES, Auto, TimePlan::Reenlighten),
            (OTHER, "nes", SCALES, Auto, TimePlan::Reenlighten),
            (OTHER, "ne", SCALES, Reenlighten, TimePlan::Reenlighten),
            (OTHER, "ne", SCALES, Scale, TimePlan::Scale),
            (OTHER, "ne", SCALES, Refuse, unwanted(OTHER, KHZ)),
            (OTHER, "ne", RIGID, Auto, no_scaling),
            (OTHER, "ne", RIGID, Reenlighten, no_scaling),
            // A guest that enabled only the interrupt: scaling is not needed.
            (OTHER, "n", SCALES, Auto, TimePlan::ReenlightenAtOnce),
            (OTHER, "n", RIGID, Auto, TimePlan::ReenlightenAtOnce),
            (OTHER, "n", RIGID, Scale, no_scaling),
            // A guest that was promised a constant rate, and enabled it as well.
            (OTHER, "nei", SCALES, Auto, TimePlan::Scale),
            (OTHER, "nei", SCALES, Reenlighten, invariant),
            (OTHER, "nei", RIGID, Auto, no_scaling),
            // Hosts that simulate others.
            (OTHER, "", PLAYS, Auto, TimePlan::Same),
            (OTHER, "", PLAYS, Refuse, TimePlan::Same),
            (KHZ, "ne", PLAYS, Auto, TimePlan::Reenlighten),
            (KHZ, "ne", PLAYS, Refuse, unwanted(KHZ, OTHER)),
            (OTHER, "", RIGID_PLAYS, Auto, no_scaling),
            (KHZ, "ne", RIGID_PLAYS, Auto, no_scaling),
            (KHZ, "n", RIGID_PLAYS, Auto, no_scaling),
            // The guest could keep its frequency, but the host simulates none without scaling.
            (KHZ, "", RIGID_PLAYS, Auto, no_scaling),
            (KHZ, "", RIGID_PLAYS, Scale, no_scaling),
            (KHZ, "", RIGID_PLAYS, Refuse, no_scaling),
            (KHZ, "ne", RIGID_PLAYS, Reenlighten, no_scaling),
            // A host with unknown frequency, a guest without any.
            (
                KHZ,
                "",
                UNKNOWN,
                Auto,
                TimePlan::Refuse(TscRefusal::NoFrequency),
            ),
            (
                TscKhz(0),
                "",
                SCALES,
                Auto,
                TimePlan::Refuse(TscRefusal::OutOfReach {
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
    fn guest_starts_at_the_frequency_of_the_plan() {
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
    fn host_without_tsc_offsets_accepts_only_its_own_vms_and_no_pause() {
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
        assert_eq!(
            goes_on(later(500, 1_500)),
            Err(TscRefusal::Jumps { by_ms: 1_500 })
        );
        assert_eq!(
            goes_on(later(500, -1_500)),
            Err(TscRefusal::Jumps { by_ms: -1_500 })
        );
        let booted_again = HostInstant {
            tsc: 0,
            ..later(500, 0)
        };
        assert!(
            matches!(goes_on(booted_again), Err(TscRefusal::Jumps { by_ms }) if by_ms < -40_000)
        );
        let pause = Err(TscRefusal::CannotPause);
        assert_eq!(FIXED.can(Downtime::Pause), pause);
        assert_eq!(FIXED.continues(&saved, Downtime::Pause, later(0, 0)), pause);
        assert_eq!(FIXED.can(Downtime::Continue), Ok(()));
        for downtime in [Downtime::Pause, Downtime::Continue] {
            assert_eq!(RIGID.continues(&saved, downtime, booted_again), Ok(()));
        }
    }

    proptest! {
        /// Every accepted plan can be run, and every refusal has a reason.
        #[test]
        fn a_plan_can_be_carried_out(
            khz: u32, native: Option<u32>, instead: Option<u32>, scaling in 0u8..3, guest in 0u8..16,
                policy in 0u8..4,
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
            let policy = [Policy::Auto, Policy::Scale, Policy::Reenlighten,
                Policy::Refuse][usize::from(policy)];
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
