//! Diagnoses whether nested Hyper-V works on this host, and which remedies a user has.
//!
//! Pure functions over the host's facts: [`diagnose`] turns them into checks, the state of every
//! enlightenment and a verdict for every profile; [`text`] renders the result for users, and serde
//! as JSON.

mod clock;
mod device;
mod hyperv;
mod machine;
mod nesting;
pub mod text;
mod verdict;

use serde::Serialize;

use crate::hyperv::Profile;
use crate::kvm::host::{HostCaps, HostError, KvmFacts, System};

pub use verdict::{EnlightenmentState, Verdict};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As required.
    Ok,
    /// Information only.
    Info,
    /// A feature is slower or missing.
    Warn,
    /// Nested Hyper-V does not work.
    Fail,
}

/// The subject of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// `/dev/kvm` and the modules behind it.
    Kvm,
    /// A hypervisor inside the guest.
    Nesting,
    /// Hyper-V's interface in KVM.
    Hyperv,
    /// TSC and clocks.
    Time,
    /// Memory and processors.
    Machine,
}

impl Group {
    /// All groups, in display order.
    pub const ALL: [Self; 5] = [
        Self::Kvm,
        Self::Nesting,
        Self::Hyperv,
        Self::Time,
        Self::Machine,
    ];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Nesting => "A hypervisor inside the guest",
            Self::Hyperv => "Hyper-V in KVM",
            Self::Time => "Time",
            Self::Machine => "Memory and processors",
        }
    }
}

/// One check with its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable identifier.
    pub id: &'static str,
    /// Its group.
    pub group: Group,
    /// A title for display.
    pub title: &'static str,
    /// Its result.
    pub status: CheckStatus,
    /// The finding.
    pub found: String,
    /// The consequence.
    pub means: Option<String>,
    /// The remedy.
    pub cure: Option<String>,
}

impl Check {
    fn new(
        id: &'static str,
        group: Group,
        title: &'static str,
        status: CheckStatus,
        found: impl Into<String>,
    ) -> Self {
        Self {
            id,
            group,
            title,
            status,
            found: found.into(),
            means: None,
            cure: None,
        }
    }

    fn means(mut self, means: impl Into<String>) -> Self {
        self.means = Some(means.into());
        self
    }

    fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

/// The diagnosis of a host.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The profile that was requested.
    pub profile: &'static str,
    /// Whether that profile works here.
    pub works: bool,
    /// All checks.
    pub checks: Vec<Check>,
    /// Every enlightenment, in the table's order; empty if KVM cannot be used.
    pub enlightenments: Vec<EnlightenmentState>,
    /// Every profile.
    pub profiles: Vec<Verdict>,
}

/// Diagnoses a host from `system` and KVM's facts, or the error in place of them.
pub fn diagnose(
    system: &System,
    kvm: Result<&KvmFacts, &HostError>,
    profile: Profile,
) -> Diagnosis {
    let mut checks = device::checks(system, kvm);
    let (enlightenments, profiles) = match kvm {
        Ok(kvm) => {
            checks.extend(nesting::checks(system, kvm));
            checks.extend(hyperv::checks(system, kvm));
            checks.extend(clock::checks(system, kvm));
            checks.extend(machine::checks(system, Some(kvm)));
            let host = HostCaps {
                system: system.clone(),
                kvm: kvm.clone(),
            };
            (verdict::enlightenments(&host), verdict::profiles(&host))
        }
        Err(error) => {
            checks.extend(machine::checks(system, None));
            (Vec::new(), verdict::without_kvm(error))
        }
    };
    let works = profiles
        .iter()
        .any(|verdict| verdict.profile == profile.name() && verdict.works);
    Diagnosis {
        profile: profile.name(),
        works,
        checks,
        enlightenments,
        profiles,
    }
}

#[cfg(test)]
mod tests;
