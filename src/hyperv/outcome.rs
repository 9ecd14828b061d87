//! What [`resolve`](fn@super::resolve) has to say: notes, and problems with what would mend them.

use thiserror::Error;

use super::enlightenment::{CpuidBits, Enlightenment as E};
use super::host::{HvCap, KernelVersion};
use super::profile::Profile;
use crate::cpuid::CpuVendor;

/// Something that was decided on the user's behalf.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Note {
    /// A requirement was added.
    #[error("{added} is on as well: {by} needs it")]
    Added {
        /// What was added.
        added: E,
        /// What needs it.
        by: E,
    },
    /// A profile's member, or one asked for as `=auto`, was left out.
    #[error("{id} is left out: {lack}")]
    LeftOut {
        /// Which one.
        id: E,
        /// Why.
        lack: Lack,
        /// Whether the user expects it: it was named, or the profile is refused on other hosts without it.
        expected: bool,
    },
    /// One was left out together with what it needs.
    #[error("{id} is left out with {without}, which it needs")]
    LeftOutWith {
        /// Which member.
        id: E,
        /// What it needs.
        without: E,
    },
    /// Something is on that is of little use alone.
    #[error("{id} is of little use without {missing}")]
    LittleUse {
        /// What is on.
        id: E,
        /// What is not.
        missing: E,
    },
    /// What no known guest will use.
    #[error(
        "{} will have no effect: no known guest uses {} without {}; add {} to --hv",
        names(.ids, " and "), if .ids.len() == 1 { "it" } else { "them" }, names(.without, " or "), names(.without, " or ")
    )]
    Unused {
        /// Which ones.
        ids: Vec<E>,
        /// One of these would do.
        without: &'static [E],
    },
    /// `auto` came out as off.
    #[error(
        "{id}=auto is off here: KVM cannot rule out that vCPUs share a core (SMT is possible on this host)"
    )]
    AutoIsOff {
        /// Which one.
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

/// Why a request cannot be carried out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// The host's KVM has no Hyper-V.
    #[error(
        "this host's KVM has no Hyper-V support (KVM_CAP_HYPERV is 0), so {} cannot be had: \
         use a kernel built with CONFIG_KVM_HYPERV=y, or run without enlightenments: --hv none", names(.asked, " and ")
    )]
    NoHyperv {
        /// What was asked for.
        asked: Vec<E>,
    },
    /// An enlightenment lacks something.
    #[error("{id} cannot be had: {lack}{}", cure(.id, .profile))]
    Lacks {
        /// Which one.
        id: E,
        /// What it lacks.
        lack: Lack,
        /// The profile that holds it, if it was not asked for by name.
        profile: Option<Profile>,
    },
    /// It was asked for, and what it requires was removed.
    #[error("{id} needs {requirement}, which is removed (`-{requirement}`)")]
    RequirementRemoved {
        /// Which one.
        id: E,
        /// What it requires.
        requirement: E,
    },
    /// It requires something that is not added unasked, as it takes something away from the guest.
    #[error(
        "{id} needs {requirement}, which is not added by itself as it has a price (`hypernest enlightenments {requirement}`): name it too"
    )]
    RequirementUnasked {
        /// Which one.
        id: E,
        /// What it requires.
        requirement: E,
    },
    /// Two that cannot be on together.
    #[error("{id} and {other} cannot be on together")]
    Conflict {
        /// One.
        id: E,
        /// The other.
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

impl Problem {
    /// The enlightenment it is about, if it is about one.
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

/// What is missing, and what would give it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Lack {
    /// A KVM capability.
    #[error("KVM lacks {cap}{}", newer(.since, .running))]
    Cap {
        /// Which one.
        cap: HvCap,
        /// Since when Linux has it.
        since: KernelVersion,
        /// What runs here.
        running: Option<KernelVersion>,
    },
    /// Bits that KVM does not report.
    #[error("KVM_GET_SUPPORTED_HV_CPUID does not report {}{}", list(.bits), newer(.since, .running))]
    Bits {
        /// Which ones.
        bits: Vec<CpuidBits>,
        /// Since when Linux has them.
        since: KernelVersion,
        /// What runs here.
        running: Option<KernelVersion>,
    },
    /// It needs VMX, and the host is of another vendor.
    #[error(
        "it needs Intel's VMX, and this host's processor is {vendor}'s; nothing on this host gives it"
    )]
    NotIntel {
        /// Whose it is.
        vendor: CpuVendor,
    },
    /// The host does not nest.
    #[error("KVM does not nest here: load {} with nested=1, on a processor whose virtualization is switched on", .vendor.module())]
    HostDoesNotNest {
        /// Whose processor.
        vendor: CpuVendor,
    },
    /// The guest is not shown VMX or SVM.
    #[error("it serves hypervisors inside the guest only: add --nested")]
    GuestDoesNotNest,
    /// KVM has no enlightened VMCS.
    #[error("KVM reports no enlightened VMCS version in 0x4000000a.EAX{}", newer(.since, .running))]
    NoEvmcsVersion {
        /// Since when Linux has it.
        since: KernelVersion,
        /// What runs here.
        running: Option<KernelVersion>,
    },
    /// APICv or AVIC is not in use.
    #[error("KVM uses no virtual APIC of the processor's here: load {} with {}=1 on a processor that has it", .vendor.module(), if *.vendor == CpuVendor::Intel { "enable_apicv" } else { "avic" })]
    NoApicv {
        /// Whose processor.
        vendor: CpuVendor,
    },
    /// The host's TSC is not invariant.
    #[error(
        "the host's TSC is not invariant (CPUID 0x80000007.EDX[8] is 0); nothing on this host gives it"
    )]
    NoInvariantTsc,
    /// hypernest cannot do it so far.
    #[error("hypernest cannot do it yet")]
    NotYet,
}

impl Lack {
    /// Whether no host of this vendor can have it, whatever its kernel and settings.
    pub(super) fn is_vendors(&self) -> bool {
        matches!(self, Self::NotIntel { .. })
    }
}

fn newer(since: &KernelVersion, running: &Option<KernelVersion>) -> String {
    match running {
        Some(running) if running >= since => format!(
            " although this is Linux {running} and {since} has it: the kernel was built without it (CONFIG_KVM_HYPERV=y gives it)"
        ),
        Some(running) => format!(": Linux {since} has it, this is {running}"),
        None => format!(": Linux {since} has it"),
    }
}

fn list(bits: &[CpuidBits]) -> String {
    let names: Vec<String> = bits.iter().map(ToString::to_string).collect();
    names.join(", ")
}
