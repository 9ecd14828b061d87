//! From what was asked for and what the host has, to what the guest gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use super::cpuid::{Identity, RECOMMENDATIONS};
use super::enlightenment::{CpuidBits, Enlightenment as E, EnlightenmentSet, Migration, Need};
use super::host::{CpuVendor, HostHv, HvCap, KernelVersion};
use super::profile::{Otherwise, Profile};
use super::request::{Request, Value};

/// What a VM gets: the outcome of [`resolve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub(super) enabled: EnlightenmentSet,
    /// Rows whose MSRs a guest can reach in KVM, announced or not.
    pub(super) reachable: EnlightenmentSet,
    pub(super) spin_count: Option<u32>,
    pub(super) identity: Identity,
    pub(super) coresharing_auto: bool,
    pub(super) evmcs_version: u16,
    pub(super) perf_global_ctrl: bool,
    notes: Vec<Note>,
}

impl Resolved {
    /// No Hyper-V at all.
    pub fn none() -> Self {
        Self {
            enabled: EnlightenmentSet::default(),
            reachable: EnlightenmentSet::default(),
            spin_count: None,
            identity: Identity::default(),
            coresharing_auto: false,
            evmcs_version: 0,
            perf_global_ctrl: false,
            notes: Vec::new(),
        }
    }

    /// Whether the guest sees Hyper-V.
    pub fn is_on(&self) -> bool {
        !self.enabled.is_empty()
    }

    /// Whether `id` is on.
    pub fn has(&self, id: E) -> bool {
        self.enabled.contains(id)
    }

    /// What is on.
    pub fn enabled(&self) -> EnlightenmentSet {
        self.enabled
    }

    /// What a user should know about how it came out.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Which enlightenments keep this VM from being migrated, and why.
    pub fn migration_blockers(&self) -> Vec<(E, &'static str)> {
        self.enabled
            .iter()
            .filter_map(|id| match id.row().migration {
                Migration::Blocked(why) => Some((id, why)),
                Migration::BlockedIfAuto(why) if self.coresharing_auto => Some((id, why)),
                _ => None,
            })
            .collect()
    }
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.enabled.iter().map(E::name).collect();
        f.write_str(&names.join(","))
    }
}

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
    /// A profile's member was left out, as the profile says it may be.
    #[error("{id} is left out of the profile: {lack}")]
    LeftOut {
        /// Which member.
        id: E,
        /// Why.
        lack: Lack,
    },
    /// A profile's member was left out together with what it needs.
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
    /// `auto` came out as off.
    #[error(
        "{id}=auto is off here: KVM cannot rule out that vCPUs share a core (SMT is possible on this host)"
    )]
    AutoIsOff {
        /// Which one.
        id: E,
    },
}

/// Why a request cannot be carried out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// The host's KVM knows nothing of Hyper-V.
    #[error(
        "this host's KVM does no Hyper-V (KVM_CAP_HYPERV is 0), so none of the {asked} enlightenments asked for can be had: \
         use a kernel built with CONFIG_KVM_HYPERV=y, or run without them: --hv none"
    )]
    NoHyperv {
        /// How many were asked for.
        asked: usize,
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

/// What `id` lacks on this host and in this VM (`nested`: the guest is shown VMX or SVM); `None` if it can be had.
pub fn lack(id: E, host: &HostHv, nested: bool) -> Option<Lack> {
    let row = id.row();
    let (since, running) = (row.since, host.kernel);
    row.needs.iter().find_map(|need| match *need {
        Need::Cap(cap) => (!host.caps.contains(&cap)).then_some(Lack::Cap {
            cap,
            since,
            running,
        }),
        Need::Bits => {
            let bits: Vec<CpuidBits> = row
                .bits
                .iter()
                .filter(|b| b.reported && host.leaf(b.leaf).reg(b.reg) & b.mask() == 0)
                .copied()
                .collect();
            (!bits.is_empty()).then_some(Lack::Bits {
                bits,
                since,
                running,
            })
        }
        Need::Intel => (host.vendor != CpuVendor::Intel).then_some(Lack::NotIntel {
            vendor: host.vendor,
        }),
        Need::Nested if !host.nested => Some(Lack::HostDoesNotNest {
            vendor: host.vendor,
        }),
        Need::Nested => (!nested).then_some(Lack::GuestDoesNotNest),
        Need::EvmcsVersion => {
            (host.evmcs_version() == 0).then_some(Lack::NoEvmcsVersion { since, running })
        }
        Need::ActiveApicv => (!host.apicv).then_some(Lack::NoApicv {
            vendor: host.vendor,
        }),
        Need::InvariantTsc => (!host.invariant_tsc).then_some(Lack::NoInvariantTsc),
        Need::NotYet => Some(Lack::NotYet),
    })
}

struct Candidate {
    value: Value,
    /// The profile it comes from, unless it was asked for by name or added.
    profile: Option<Profile>,
    otherwise: Otherwise,
}

/// Decides what the guest gets. `nested`: the guest is shown VMX or SVM.
///
/// # Errors
/// Everything that keeps the request from being carried out, at once.
pub fn resolve(request: &Request, host: &HostHv, nested: bool) -> Result<Resolved, Vec<Problem>> {
    let mut candidates = collect(request);
    if candidates.is_empty() {
        return Ok(Resolved::none());
    }
    let mut notes = Vec::new();
    let mut problems = Vec::new();
    let no_hyperv = !host.caps.contains(&HvCap::Hyperv);
    if no_hyperv {
        problems.push(Problem::NoHyperv {
            asked: candidates.len(),
        });
    }
    settle_requirements(request, host, &mut candidates, &mut notes, &mut problems);
    let mut left_out = BTreeSet::new();
    for (id, candidate) in &candidates {
        let passthrough = *id == E::Avic && candidate.profile == Some(Profile::Passthrough);
        let Some(lack) = lack(*id, host, nested) else {
            continue;
        };
        // What KVM reports is passed through whether or not it is of use here.
        if passthrough && matches!(lack, Lack::NoApicv { .. }) {
            continue;
        }
        if candidate.otherwise == Otherwise::LeaveOut {
            left_out.insert(*id);
            notes.push(Note::LeftOut { id: *id, lack });
        } else if !no_hyperv || matches!(lack, Lack::NotYet | Lack::GuestDoesNotNest) {
            problems.push(Problem::Lacks {
                id: *id,
                lack,
                profile: candidate.profile,
            });
        }
    }
    drop_dependents(host, &mut candidates, left_out, &mut notes);
    for id in candidates.keys() {
        for other in id.row().conflicts {
            if id < other && candidates.contains_key(other) {
                problems.push(Problem::Conflict {
                    id: *id,
                    other: *other,
                });
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    for id in candidates.keys() {
        for missing in id.row().recommends {
            if !candidates.contains_key(missing) && !request.removed.contains(*missing) {
                notes.push(Note::LittleUse {
                    id: *id,
                    missing: *missing,
                });
            }
        }
    }
    Ok(finish(&candidates, host, notes))
}

fn collect(request: &Request) -> BTreeMap<E, Candidate> {
    let mut candidates: BTreeMap<E, Candidate> = BTreeMap::new();
    for profile in &request.profiles {
        for member in profile.members() {
            if request.removed.contains(member.id) {
                continue;
            }
            let strict = member.otherwise == Otherwise::Refuse;
            let passthrough = *profile == Profile::Passthrough;
            match candidates.get_mut(&member.id) {
                Some(_) if !strict && !passthrough => {}
                Some(there) => {
                    there.value = Profile::value(&member);
                    if strict {
                        there.otherwise = Otherwise::Refuse;
                        there.profile = Some(*profile);
                    }
                }
                None => {
                    candidates.insert(
                        member.id,
                        Candidate {
                            value: Profile::value(&member),
                            profile: Some(*profile),
                            otherwise: member.otherwise,
                        },
                    );
                }
            }
        }
    }
    for (id, value) in &request.wanted {
        candidates.insert(
            *id,
            Candidate {
                value: value.clone(),
                profile: None,
                otherwise: Otherwise::Refuse,
            },
        );
    }
    candidates
}

fn requirements(id: E, host: &HostHv) -> impl Iterator<Item = E> {
    let vendor = host.vendor;
    id.row()
        .requires
        .iter()
        .filter(move |r| r.only.is_none_or(|v| v == vendor))
        .map(|r| r.id)
}

/// Adds what is required and harmless, drops members of profiles whose requirement the user removed, and finds what can
/// be neither.
fn settle_requirements(
    request: &Request,
    host: &HostHv,
    candidates: &mut BTreeMap<E, Candidate>,
    notes: &mut Vec<Note>,
    problems: &mut Vec<Problem>,
) {
    let mut pending: Vec<E> = candidates.keys().copied().collect();
    let mut removed = BTreeSet::new();
    while let Some(id) = pending.pop() {
        for requirement in requirements(id, host) {
            let Some(candidate) = candidates.get(&id) else {
                break;
            };
            if candidates.contains_key(&requirement) || problems.iter().any(|p| {
                matches!(p, Problem::RequirementRemoved { id: i, requirement: r } | Problem::RequirementUnasked { id: i, requirement: r } if *i == id && *r == requirement)
            }) {
                continue;
            }
            if request.removed.contains(requirement) || removed.contains(&requirement) {
                if candidate.profile.is_some() {
                    candidates.remove(&id);
                    removed.insert(id);
                    notes.push(Note::LeftOutWith {
                        id,
                        without: requirement,
                    });
                    // Those that were fine as long as this one was there.
                    pending.extend(candidates.keys().copied());
                } else {
                    problems.push(Problem::RequirementRemoved { id, requirement });
                }
            } else if requirement.row().harmless {
                notes.push(Note::Added {
                    added: requirement,
                    by: id,
                });
                let added = Candidate {
                    value: Value::On,
                    profile: None,
                    otherwise: candidate.otherwise,
                };
                candidates.insert(requirement, added);
                pending.push(requirement);
            } else {
                problems.push(Problem::RequirementUnasked { id, requirement });
            }
        }
    }
}

/// Takes out what the host cannot have, and what needs it.
fn drop_dependents(
    host: &HostHv,
    candidates: &mut BTreeMap<E, Candidate>,
    mut left_out: BTreeSet<E>,
    notes: &mut Vec<Note>,
) {
    candidates.retain(|id, _| !left_out.contains(id));
    // Those that are not to be left out have already been refused for what their requirement lacks.
    while let Some((id, without)) = candidates.keys().find_map(|id| {
        requirements(*id, host)
            .find(|r| left_out.contains(r))
            .map(|r| (*id, r))
    }) {
        candidates.remove(&id);
        left_out.insert(id);
        notes.push(Note::LeftOutWith { id, without });
    }
}

fn finish(candidates: &BTreeMap<E, Candidate>, host: &HostHv, mut notes: Vec<Note>) -> Resolved {
    let mut enabled: EnlightenmentSet = candidates.keys().copied().collect();
    let passthrough = enabled.contains(E::Passthrough);
    let value = |id: E| candidates.get(&id).map(|c| &c.value);

    let coresharing_auto = value(E::NoNonarchCoresharing) == Some(&Value::Auto);
    let kvm_rules_it_out = host.leaf(RECOMMENDATIONS).eax & (1 << 18) != 0;
    if coresharing_auto && !kvm_rules_it_out {
        enabled.remove(E::NoNonarchCoresharing);
        notes.push(Note::AutoIsOff {
            id: E::NoNonarchCoresharing,
        });
    }
    let spin_count = match value(E::Spinlocks) {
        Some(Value::Number(count)) => Some(*count),
        Some(_) => Some(host.leaf(RECOMMENDATIONS).ebx),
        None => None,
    };
    let mut identity = if passthrough {
        Identity::of_host(host)
    } else {
        Identity::default()
    };
    for (id, candidate) in candidates {
        identity.set(*id, &candidate.value);
    }
    let evmcs = enabled.contains(E::Evmcs);
    let reachable = if enabled.contains(E::EnforceCpuid) {
        enabled
    } else {
        E::all()
            .filter(|id| !id.row().msrs.is_empty() && kvm_has_msrs(*id, host, enabled))
            .collect()
    };
    Resolved {
        enabled,
        reachable,
        spin_count,
        identity,
        coresharing_auto,
        evmcs_version: if evmcs { host.evmcs_version() } else { 0 },
        perf_global_ctrl: evmcs && host.leaf(super::cpuid::NESTED_FEATURES).ebx & 1 != 0,
        notes,
    }
}

/// Whether a guest can reach a row's MSRs in KVM: without hv-enforce-cpuid KVM serves all it has, but for those of the
/// SynIC and its timers, which need the SynIC switched on (synic_set_msr, stimer_set_config).
fn kvm_has_msrs(id: E, host: &HostHv, enabled: EnlightenmentSet) -> bool {
    let reported = id
        .row()
        .bits
        .iter()
        .all(|b| !b.reported || host.leaf(b.leaf).reg(b.reg) & b.mask() != 0);
    match id {
        E::Synic | E::Stimer => enabled.contains(E::Synic),
        E::Syndbg => false,
        _ => reported,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::host::tests::{amd, intel, without_hyperv};
    use super::*;

    fn run(list: &str, host: &HostHv, nested: bool) -> Result<Resolved, Vec<Problem>> {
        let request = Request::parse(list, Profile::default_for(nested)).unwrap();
        resolve(&request, host, nested)
    }

    fn names(list: &str, host: &HostHv, nested: bool) -> String {
        run(list, host, nested).unwrap().to_string()
    }

    fn notes(list: &str, host: &HostHv, nested: bool) -> Vec<String> {
        let resolved = run(list, host, nested).unwrap();
        resolved.notes().iter().map(ToString::to_string).collect()
    }

    fn problems(list: &str, host: &HostHv, nested: bool) -> Vec<String> {
        run(list, host, nested)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    const WINDOWS: &str = "hv-relaxed,hv-vapic,hv-spinlocks,hv-vpindex,hv-runtime,hv-crash,hv-time,hv-frequencies,\
                           hv-synic,hv-stimer,hv-stimer-direct,hv-tlbflush,hv-tlbflush-ext,hv-ipi,hv-xmm-input";

    #[test]
    fn profiles_on_a_host_that_has_everything() {
        assert_eq!(names("none", &intel(), false), "");
        assert_eq!(names("windows", &intel(), false), WINDOWS);
        assert_eq!(names("windows", &amd(), false), WINDOWS);
        assert_eq!(
            names("nested", &intel(), true),
            "hv-relaxed,hv-vapic,hv-spinlocks,hv-vpindex,hv-runtime,hv-crash,hv-time,hv-frequencies,hv-reenlightenment,\
             hv-synic,hv-stimer,hv-stimer-direct,hv-tlbflush,hv-tlbflush-ext,hv-tlbflush-direct,hv-ipi,hv-xmm-input,\
             hv-evmcs,hv-emsr-bitmap"
        );
        let all = run("all", &intel(), true).unwrap();
        assert!(all.has(E::Evmcs) && all.has(E::Reset) && all.has(E::TscInvariant));
        assert!(!all.has(E::Avic));
    }

    #[test]
    fn on_amd_the_nested_profile_lacks_evmcs_alone_and_says_how_to_go_without() {
        assert_eq!(
            problems("nested", &amd(), true),
            [
                "hv-evmcs cannot be had: it needs Intel's VMX, and this host's processor is AMD's; nothing on this host \
              gives it. To go without it: --hv nested,-evmcs"
            ]
        );
        let without = run("nested,-evmcs", &amd(), true).unwrap();
        assert!(without.has(E::EmsrBitmap) && without.has(E::TlbFlushDirect));
    }

    #[test]
    fn on_intel_what_needs_evmcs_goes_with_it() {
        let without = run("nested,-evmcs", &intel(), true).unwrap();
        assert!(!without.has(E::EmsrBitmap) && !without.has(E::TlbFlushDirect));
        let notes = notes("nested,-evmcs", &intel(), true);
        for name in ["hv-emsr-bitmap", "hv-tlbflush-direct"] {
            let note = format!("{name} is left out with hv-evmcs, which it needs");
            assert!(notes.contains(&note), "{notes:?}");
        }
    }

    #[test]
    fn harmless_requirements_are_added_with_a_note() {
        assert_eq!(
            names("stimer-direct", &intel(), false),
            "hv-vpindex,hv-time,hv-synic,hv-stimer,hv-stimer-direct"
        );
        assert_eq!(
            notes("stimer-direct", &intel(), false),
            [
                "hv-stimer is on as well: hv-stimer-direct needs it",
                "hv-synic is on as well: hv-stimer needs it",
                "hv-time is on as well: hv-stimer needs it",
                "hv-vpindex is on as well: hv-synic needs it",
            ]
        );
        assert_eq!(names("evmcs", &intel(), true), "hv-vapic,hv-evmcs");
    }

    #[test]
    fn a_requirement_with_a_price_must_be_named() {
        assert_eq!(
            problems("emsr-bitmap", &intel(), true),
            [
                "hv-emsr-bitmap needs hv-evmcs, which is not added by itself as it has a price (`hypernest enlightenments \
              hv-evmcs`): name it too"
            ]
        );
        assert_eq!(names("emsr-bitmap", &amd(), true), "hv-emsr-bitmap");
    }

    #[test]
    fn removing_a_requirement_is_a_conflict_only_with_what_was_asked_for_by_name() {
        assert_eq!(
            problems("stimer,-time", &intel(), false),
            ["hv-stimer needs hv-time, which is removed (`-hv-time`)"]
        );
        let resolved = run("windows,-time", &intel(), false).unwrap();
        assert!(!resolved.has(E::Stimer) && !resolved.has(E::StimerDirect));
        assert!(resolved.has(E::Synic));
    }

    #[test]
    fn everything_impossible_is_named_at_once() {
        assert_eq!(
            problems("evmcs,avic,syndbg,emsr-bitmap,passthrough", &amd(), false),
            [
                "hv-avic cannot be had: KVM uses no virtual APIC of the processor's here: load kvm_amd with avic=1 on a \
                 processor that has it",
                "hv-evmcs cannot be had: it needs Intel's VMX, and this host's processor is AMD's; nothing on this host \
                 gives it",
                "hv-emsr-bitmap cannot be had: it serves hypervisors inside the guest only: add --nested",
                "hv-syndbg cannot be had: hypernest cannot do it yet",
                "hv-passthrough and hv-syndbg cannot be on together",
            ]
        );
        assert_eq!(
            problems("evmcs", &intel(), false),
            ["hv-evmcs cannot be had: it serves hypervisors inside the guest only: add --nested"]
        );
    }

    #[test]
    fn a_kvm_without_hyperv_is_named_once() {
        let found = problems("windows", &without_hyperv(), false);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("CONFIG_KVM_HYPERV=y") && found[0].contains("--hv none"));
        assert_eq!(problems("all", &without_hyperv(), false).len(), 1);
        assert_eq!(problems("time,syndbg", &without_hyperv(), false).len(), 2);
        assert_eq!(names("none", &without_hyperv(), false), "");
    }

    #[test]
    fn an_older_kernel_is_told_apart_from_one_built_without() {
        let mut old = intel();
        old.kernel = Some(KernelVersion::new(6, 1));
        for leaf in &mut old.hv_cpuid {
            match leaf.function {
                0x4000_0003 => leaf.edx &= !(1 << 14),
                0x4000_000a => leaf.eax &= !(1 << 17),
                _ => {}
            }
        }
        assert_eq!(
            problems("tlbflush-ext", &old, false),
            [
                "hv-tlbflush-ext cannot be had: KVM_GET_SUPPORTED_HV_CPUID does not report 0x40000003.EDX[14]: Linux 6.2 has \
              it, this is 6.1"
            ]
        );
        // Mere speed: the profiles do without.
        let resolved = run("nested", &old, true).unwrap();
        assert!(!resolved.has(E::TlbFlushExt) && !resolved.has(E::TlbFlushDirect));
        old.caps.remove(&HvCap::SendIpi);
        assert_eq!(
            problems("windows", &old, false),
            [
                "hv-ipi cannot be had: KVM lacks KVM_CAP_HYPERV_SEND_IPI although this is Linux 6.1 and 4.20 has it: the \
              kernel was built without it (CONFIG_KVM_HYPERV=y gives it). To go without it: --hv windows,-ipi"
            ]
        );
    }

    #[test]
    fn a_host_that_does_not_nest_is_told_how() {
        let mut host = intel();
        host.nested = false;
        let found = problems("evmcs", &host, true);
        assert!(found[0].contains("kvm_intel with nested=1"), "{found:?}");
    }

    #[test]
    fn auto_coresharing_takes_kvms_word_and_keeps_the_vm_here() {
        let mut host = intel();
        let resolved = run("no-nonarch-coresharing=auto", &host, false).unwrap();
        assert!(!resolved.has(E::NoNonarchCoresharing));
        assert!(
            run("no-nonarch-coresharing=on", &host, false)
                .unwrap()
                .has(E::NoNonarchCoresharing)
        );
        for leaf in &mut host.hv_cpuid {
            if leaf.function == RECOMMENDATIONS {
                leaf.eax |= 1 << 18;
            }
        }
        let resolved = run("relaxed,no-nonarch-coresharing=auto", &host, false).unwrap();
        assert_eq!(resolved.migration_blockers().len(), 1);
        let resolved = run("relaxed,no-nonarch-coresharing", &host, false).unwrap();
        assert!(resolved.migration_blockers().is_empty());
    }

    #[test]
    fn passthrough_is_what_kvm_reports() {
        let resolved = run("passthrough", &intel(), true).unwrap();
        assert!(resolved.has(E::Avic) && resolved.has(E::Evmcs));
        assert_eq!(resolved.spin_count, Some(0xfff));
        assert_eq!(&resolved.identity.vendor, b"Linux KVM Hv");
        assert_eq!(resolved.migration_blockers().len(), 1);
        let named = run(
            "passthrough,vendor-id=Microsoft Hv,spinlocks=5",
            &intel(),
            true,
        )
        .unwrap();
        assert_eq!(&named.identity.vendor, b"Microsoft Hv");
        assert_eq!(named.spin_count, Some(5));
        assert!(!run("passthrough", &intel(), false).unwrap().has(E::Evmcs));
    }

    proptest! {
        #[test]
        fn what_resolves_is_complete_and_possible(
            wanted in proptest::collection::btree_set(0..34usize, 0..10),
            removed in proptest::collection::btree_set(0..34usize, 0..5),
            profile in 0..Profile::ALL.len(),
            on_amd: bool,
            nested: bool,
        ) {
            let host = if on_amd { amd() } else { intel() };
            let all: Vec<E> = E::all().collect();
            let request = Request {
                profiles: vec![Profile::ALL[profile]],
                wanted: wanted.difference(&removed).map(|i| (all[*i], Value::On)).collect(),
                removed: removed.iter().map(|i| all[*i]).collect(),
            };
            if let Ok(resolved) = resolve(&request, &host, nested) {
                for id in resolved.enabled().iter() {
                    prop_assert!(!request.removed.contains(id));
                    prop_assert!(requirements(id, &host).all(|r| resolved.has(r)), "{id}");
                    let lack = lack(id, &host, nested);
                    prop_assert!(
                        matches!(lack, None | Some(Lack::NoApicv { .. })),
                        "{id}: {lack:?}"
                    );
                }
                for id in request.wanted.keys() {
                    prop_assert!(resolved.has(*id), "{id} was dropped");
                }
            }
        }
    }
}
