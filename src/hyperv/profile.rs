//! Profiles: named sets of enlightenments, with the reason for each member.

use std::fmt;

use super::enlightenment::{Enlightenment as E, Need};
use super::request::Value;
use super::table::TABLE;

/// A named set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// Empty: the guest sees no Hyper-V.
    None,
    /// The members with which a Windows guest performs best.
    Windows,
    /// `Windows`, and members for a hypervisor inside the guest (the Hyper-V role, WSL2, KVM).
    Nested,
    /// Everything that this host and this VM support.
    All,
    /// Everything that this host's KVM reports, with KVM's own values.
    Passthrough,
}

/// One member of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The enlightenment.
    pub id: E,
    /// The fallback if the host does not support it.
    pub otherwise: Otherwise,
    /// Its number, for those with one.
    pub number: Option<u32>,
    /// The reason for the membership.
    pub why: &'static str,
}

/// The fallback for a member that the host does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// The VM is refused: the profile's promise would be broken.
    Refuse,
    /// It is left out with a note: the guest is only slower.
    LeaveOut,
}

const fn must(id: E, why: &'static str) -> Member {
    Member {
        id,
        otherwise: Otherwise::Refuse,
        number: None,
        why,
    }
}

const fn may(id: E, why: &'static str) -> Member {
    Member {
        id,
        otherwise: Otherwise::LeaveOut,
        number: None,
        why,
    }
}

/// The usual spin count for Windows guests (8191).
const SPIN_COUNT: u32 = 0x1fff;

const WINDOWS: [Member; 16] = [
    must(E::Relaxed, "no watchdog bugcheck on a busy host"),
    must(E::Vapic, "end of interrupt without an exit"),
    Member {
        number: Some(SPIN_COUNT),
        ..must(
            E::Spinlocks,
            "a vCPU that waits for a lock yields to the one that holds it",
        )
    },
    must(
        E::VpIndex,
        "without it neither Windows nor Linux detects Hyper-V",
    ),
    must(E::Runtime, "Windows' scheduler accounts for stolen time"),
    must(E::Crash, "a bugcheck appears in the VM's log and status"),
    must(
        E::Time,
        "reading the clock costs nanoseconds instead of an exit",
    ),
    must(E::Frequencies, "no calibration at boot"),
    must(E::Synic, "hv-stimer requires it"),
    must(E::Stimer, "an idle Windows uses no CPU time"),
    must(
        E::StimerDirect,
        "timers without messages; the only kind that Hyper-V in the guest can use",
    ),
    must(
        E::TlbFlush,
        "a flush does not wait for vCPUs that are not running",
    ),
    must(E::Ipi, "one exit for many interrupts"),
    may(
        E::TlbFlushExt,
        "fewer hypercalls for large ranges; Linux 6.2",
    ),
    may(
        E::XmmInput,
        "hypercalls without a page of input; Linux 5.14",
    ),
    may(
        E::Avic,
        "keeps APICv or AVIC enabled; without effect on hosts that have neither",
    ),
];

const NESTED: [Member; 4] = [
    must(
        E::Evmcs,
        "a hypervisor in the guest reads and writes its VMCS without exits: the reason for this profile",
    ),
    must(
        E::Reenlightenment,
        "a hypervisor in the guest can be notified of a new TSC frequency, so that its own guests keep \
         time",
    ),
    may(
        E::EmsrBitmap,
        "some 700 cycles less for each exit of an L2; Linux 5.17",
    ),
    may(
        E::TlbFlushDirect,
        "L0 handles TLB flushes of an L2 without an entry to L1; Linux 6.2",
    ),
];

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Windows,
        Self::Nested,
        Self::All,
        Self::Passthrough,
    ];

    /// The default for a VM whose guest sees VMX or SVM (`nested`), or does not.
    pub fn default_for(nested: bool) -> Self {
        if nested { Self::Nested } else { Self::Windows }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Windows => "windows",
            Self::Nested => "nested",
            Self::All => "all",
            Self::Passthrough => "passthrough",
        }
    }

    /// A summary in one line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::None => {
                "Nothing: the guest sees no Hyper-V. (It sees KVM's own leaves instead, unless \
                 --kvm-leaves=false.)"
            }
            Self::Windows => "Recommended for Windows. The default without --nested.",
            Self::Nested => {
                "`windows`, and enlightenments for the Hyper-V role, WSL2 or another hypervisor in the \
                 guest. The default with --nested."
            }
            Self::All => {
                "Everything that this host and this VM support, except hv-no-nonarch-coresharing, which \
                 is a promise by the user, and debugging aids (hv-enforce-cpuid, hv-syndbg)."
            }
            Self::Passthrough => {
                "Everything that this host's KVM reports, with KVM's own vendor string, version and \
                 limits. For experiments; such a VM cannot be migrated."
            }
        }
    }

    /// Its members, in the table's order.
    pub fn members(self) -> Vec<Member> {
        let mut members = match self {
            Self::None => Vec::new(),
            Self::Windows => WINDOWS.to_vec(),
            Self::Nested => [WINDOWS.as_slice(), &NESTED].concat(),
            Self::All => TABLE
                .iter()
                .filter(|row| {
                    row.id == E::Spinlocks || (!row.bits.is_empty() && row.argument.is_flag())
                })
                .filter(|row| !row.needs.contains(&Need::NotYet))
                .map(|row| Member {
                    number: (row.id == E::Spinlocks).then_some(SPIN_COUNT),
                    ..may(row.id, "everything")
                })
                .collect(),
            Self::Passthrough => std::iter::once(must(E::Passthrough, "the profile's own row"))
                .chain(Self::All.members().into_iter().map(|m| Member {
                    number: None,
                    why: "KVM reports it",
                    ..m
                }))
                .collect(),
        };
        members.sort_by_key(|m| m.id);
        members
    }

    /// The value that a member brings along.
    pub(super) fn value(member: &Member) -> Value {
        member.number.map_or(Value::On, Value::Number)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperv::EnlightenmentSet;

    fn set(profile: Profile) -> EnlightenmentSet {
        profile.members().iter().map(|m| m.id).collect()
    }

    #[test]
    fn a_profile_holds_what_its_members_require() {
        for profile in Profile::ALL {
            let set = set(profile);
            for id in set.iter() {
                for requirement in id.row().requires {
                    assert!(
                        set.contains(requirement.id),
                        "{profile} holds {id} without {}",
                        requirement.id
                    );
                }
                for conflict in id.row().conflicts {
                    assert!(!set.contains(*conflict), "{profile}: {id}, {conflict}");
                }
            }
        }
    }

    #[test]
    fn nested_is_windows_and_more() {
        let nested = set(Profile::Nested);
        assert!(set(Profile::Windows).iter().all(|id| nested.contains(id)));
        assert!(nested.contains(E::Evmcs) && !set(Profile::Windows).contains(E::Evmcs));
        let all = set(Profile::All);
        assert!(nested.iter().all(|id| all.contains(id)));
    }

    #[test]
    fn no_profile_holds_what_is_no_enlightenment_or_a_promise() {
        for profile in Profile::ALL {
            for id in [
                E::Syndbg,
                E::EnforceCpuid,
                E::NoNonarchCoresharing,
                E::VendorId,
            ] {
                assert!(!set(profile).contains(id), "{profile}: {id}");
            }
        }
    }
}
