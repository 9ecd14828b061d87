//! The results of [`resolve`](fn@super::resolve) besides the set: notes, and problems with their remedies.

use thiserror::Error;

use super::enlightenment::{CpuidBits, Enlightenment as E};
use super::host::{HvCap, KernelVersion};
use super::profile::Profile;
use crate::cpuid::CpuVendor;

/// A decision made on the user's behalf.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Note {
    /// A requirement was added.
    #[error("{added} is on as well: {by} needs it")]
    Added {
        /// The added enlightenment.
        added: E,
        /// The enlightenment that requires it.
        by: E,
    },
    /// A profile's member, or one requested as `=auto`, was left out.
    #[error("{id} is left out: {lack}")]
    LeftOut {
        /// The omitted enlightenment.
        id: E,
        /// The reason.
        lack: MissingRequirement,
        /// Whether the user expects it: it was named, or the profile is refused on other hosts without it.
        expected: bool,
    },
    /// An enlightenment was left out together with its requirement.
    #[error("{id} is left out with {without}, which it needs")]
    LeftOutWith {
        /// The omitted enlightenment.
        id: E,
        /// Its requirement.
        without: E,
    },
    /// An enlightenment is on that has little effect alone.
    #[error("{id} is of little use without {missing}")]
    LittleUse {
        /// The enabled enlightenment.
        id: E,
        /// The missing enlightenment.
        missing: E,
    },
    /// Enlightenments that no known guest will use.
    #[error(
        "{} will have no effect: no known guest uses {} without {}; add {} to --hv",
        names(.ids, " and "), if .ids.len() == 1 { "it" } else { "them" }, names(.without, " or \
            "), names(.without, " or ")
    )]
    Unused {
        /// The enlightenments without effect.
        ids: Vec<E>,
        /// One of these is required.
        without: &'static [E],
    },
    /// `auto` resolved to off.
    #[error(
        "{id}=auto is off here: KVM cannot rule out that vCPUs share a core (SMT is possible on this host)"
    )]
    AutoIsOff {
        /// The enlightenment.
        id: E,
    },
}

impl Note {
    /// Whether the guest gets less than the user may expect.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::LeftOut { expected, .. } => *expected,
            Self::Unused { .. } => true,
            Self::Added { .. }
            | Self::LeftOutWith { .. }
            | Self::LittleUse { .. }
            | Self::AutoIsOff { .. } => false,
        }
    }
}

fn names(ids: &[E], last: &str) -> String {
    let names: Vec<&str> = ids.iter().map(|id| id.name()).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., end] => format!("{}{last}{end}", most.join(", ")),
    }
}

/// Why a request cannot be fulfilled.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EnlightenmentProblem {
    /// The host's KVM has no Hyper-V.
    #[error(
        "this host's KVM has no Hyper-V support (KVM_CAP_HYPERV is 0): run without enlightenments (--hv \
         none), or use a kernel built with CONFIG_KVM_HYPERV=y; not available: {}",
        names(.asked, " and ")
    )]
    NoHyperv {
        /// The requested enlightenments.
        asked: Vec<E>,
    },
    /// A requirement of an enlightenment is missing.
    #[error("{id} is not available: {lack}{}", cure(.id, .profile))]
    Lacks {
        /// The enlightenment.
        id: E,
        /// The missing requirement.
        lack: MissingRequirement,
        /// The profile that contains it, if it was not requested by name.
        profile: Option<Profile>,
    },
    /// It was requested, and its requirement was removed.
    #[error("{id} needs {requirement}, which is removed (`-{requirement}`)")]
    RequirementRemoved {
        /// The requested enlightenment.
        id: E,
        /// Its requirement.
        requirement: E,
    },
    /// It requires an enlightenment that is not added automatically, because it has a cost for the guest.
    #[error(
        "{id} needs {requirement}, which is not added automatically because it has a cost (`hypernest \
         enlightenments {requirement}`): name it too"
    )]
    RequirementUnasked {
        /// The requested enlightenment.
        id: E,
        /// Its requirement.
        requirement: E,
    },
    /// Two enlightenments exclude each other.
    #[error("{id} and {other} cannot be on together")]
    Conflict {
        /// The first.
        id: E,
        /// The second.
        other: E,
    },
}

fn cure(id: &E, profile: &Option<Profile>) -> String {
    profile.map_or_else(String::new, |p| {
        format!(
            ". To go without it: --hv {p},-{}",
            &id.name()["hv-".len()..]
        )
    })
}

impl EnlightenmentProblem {
    /// The enlightenment that the problem concerns, if it concerns one.
    pub fn enlightenment(&self) -> Option<E> {
        match self {
            Self::NoHyperv { .. } => None,
            Self::Lacks { id, .. }
            | Self::RequirementRemoved { id, .. }
            | Self::RequirementUnasked { id, .. }
            | Self::Conflict { id, .. } => Some(*id),
        }
    }
}

/// A missing requirement and its remedy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MissingRequirement {
    /// A KVM capability.
    #[error("KVM does not support {cap}{}", newer(.since, .running))]
    Cap {
        /// The capability.
        cap: HvCap,
        /// The first Linux version with it.
        since: KernelVersion,
        /// The running version.
        running: Option<KernelVersion>,
    },
    /// Bits that KVM does not report.
    #[error("KVM_GET_SUPPORTED_HV_CPUID does not report {}{}", list(.bits), newer(.since, .running))]
    Bits {
        /// The CPUID bits.
        bits: Vec<CpuidBits>,
        /// The first Linux version with them.
        since: KernelVersion,
        /// The running version.
        running: Option<KernelVersion>,
    },
    /// It requires VMX, and the processor is of another vendor.
    #[error(
        "it needs Intel's VMX, and this host's processor is {vendor}'s; nothing on this host gives it"
    )]
    NotIntel {
        /// The processor's vendor.
        vendor: CpuVendor,
    },
    /// The host does not nest.
    #[error("KVM does not support nesting on this host: load {} with nested=1, on a processor with \
        virtualization enabled", .vendor.module())]
    HostDoesNotNest {
        /// The processor's vendor.
        vendor: CpuVendor,
    },
    /// The guest is not shown VMX or SVM.
    #[error("it serves hypervisors inside the guest only: add --nested")]
    GuestDoesNotNest,
    /// KVM has no enlightened VMCS.
    #[error("KVM reports no enlightened VMCS version in 0x4000000a.EAX{}", newer(.since, .running))]
    NoEvmcsVersion {
        /// The first Linux version with it.
        since: KernelVersion,
        /// The running version.
        running: Option<KernelVersion>,
    },
    /// APICv or AVIC is not in use.
    #[error("KVM does not use the processor's virtual APIC on this host: load {} with {}=1 on a processor \
        that has it", .vendor.module(), if *.vendor == CpuVendor::Intel { "enable_apicv" } else { "avic" })]
    NoApicv {
        /// The processor's vendor.
        vendor: CpuVendor,
    },
    /// The host's TSC is not invariant.
    #[error(
        "the host's TSC is not invariant (CPUID 0x80000007.EDX[8] is 0); nothing on this host gives it"
    )]
    NoInvariantTsc,
    /// hypernest does not implement it yet.
    #[error("hypernest does not implement it yet")]
    NotYet,
}

impl MissingRequirement {
    /// Whether no host of this vendor can have it, regardless of its kernel and settings.
    pub(super) fn is_vendors(&self) -> bool {
        matches!(self, Self::NotIntel { .. })
    }
}

fn newer(since: &KernelVersion, running: &Option<KernelVersion>) -> String {
    match running {
        Some(running) if running >= since => format!(
            " although this is Linux {running} and {since} has it: the kernel was built without it \
             (CONFIG_KVM_HYPERV=y gives it)"
        ),
        Some(running) => format!(": Linux {since} has it, this is {running}"),
        None => format!(": Linux {since} has it"),
    }
}

fn list(bits: &[CpuidBits]) -> String {
    let names: Vec<String> = bits.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A profile has so many members that what follows their names is not read.
    #[test]
    fn the_remedy_comes_before_the_names() {
        let asked = vec![E::Time, E::Relaxed];
        let text = EnlightenmentProblem::NoHyperv { asked }.to_string();
        let remedy = text.find("--hv none").unwrap();
        assert!(remedy < text.find("hv-time").unwrap(), "{text}");
    }
}
