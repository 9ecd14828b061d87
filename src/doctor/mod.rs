//! Why nested Hyper-V will or will not work on this host, in words a user can act on.
//!
//! Pure functions over the host's facts: [`diagnose`] turns them into checks, the state of every
//! enlightenment and a verdict for every profile; [`text`] says it to humans, and JSON to programs.

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

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Neither good nor bad.
    Info,
    /// It works, but something is slower or missing.
    Warn,
    /// It keeps nested Hyper-V from working.
    Fail,
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// /dev/kvm and what is behind it.
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
    /// All groups, in the order in which they are shown.
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

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A name that does not change between versions.
    pub id: &'static str,
    /// What it is about.
    pub group: Group,
    /// The same for humans.
    pub title: &'static str,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What follows from it.
    pub means: Option<String>,
    /// What to do about it.
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

/// Everything that the doctor says about a host.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The profile asked about.
    pub profile: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
    /// Every enlightenment, in the table's order; empty if KVM cannot be used.
    pub enlightenments: Vec<EnlightenmentState>,
    /// Every profile.
    pub profiles: Vec<Verdict>,
}

/// Judges a host: `system`, and what its KVM says or why it says nothing.
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
