//! Resolves a request and a host's support to the enlightenments that the guest gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::cpuid::{HypervisorIdentity, RECOMMENDATIONS};
use super::enlightenment::{
    Argument, CpuidBits, Enlightenment as E, EnlightenmentSet, Migration, Need,
};
use super::host::{HostHv, HvCap};
use super::outcome::{EnlightenmentProblem, MissingRequirement, Note};
use super::profile::{Otherwise, Profile};
use super::request::{EnlightenmentRequest, Value};
use crate::cpuid::CpuVendor;

/// The enlightenments of a VM: the result of [`fn@resolve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub(super) enabled: EnlightenmentSet,
    /// Rows whose MSRs a guest can access in KVM, announced or not.
    pub(super) reachable: EnlightenmentSet,
    pub(super) spin_count: Option<u32>,
    pub(super) identity: HypervisorIdentity,
    pub(super) coresharing_auto: bool,
    pub(super) evmcs_version: u16,
    pub(super) perf_global_ctrl: bool,
    pub(super) notes: Vec<Note>,
}

impl Resolved {
    /// No Hyper-V at all.
    pub fn none() -> Self {
        Self {
            enabled: EnlightenmentSet::default(),
            reachable: EnlightenmentSet::default(),
            spin_count: None,
            identity: HypervisorIdentity::default(),
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

    /// Whether Linux uses Hyper-V for its clock and for the frequencies of the TSC and the APIC timer: it
    /// checks for the VP index and the hypercall page first (`ms_hyperv_platform` in Linux), then for the
    /// frequencies and a clocksource (`ms_hyperv_init_platform`, which marks a TSC unstable that is not
    /// invariant).
    pub fn is_a_clock_for_linux(&self) -> bool {
        let clock = self.has(E::Time) || self.has(E::TscInvariant);
        self.has(E::VpIndex) && self.has(E::Frequencies) && clock
    }

    /// The enabled enlightenments.
    pub fn enabled(&self) -> EnlightenmentSet {
        self.enabled
    }

    /// Notes for the user about the result.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The enlightenments that prevent migration, with the reasons.
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

/// The requirement that `id` is missing on this host and in this VM (`nested`: the guest sees VMX or SVM);
/// `None` if it is available.
pub fn lack(id: E, host: &HostHv, nested: bool) -> Option<MissingRequirement> {
    let row = id.row();
    let (since, running) = (row.since, host.kernel);
    row.needs.iter().find_map(|need| match *need {
        Need::Cap(cap) => (!host.caps.contains(&cap)).then_some(MissingRequirement::Cap {
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
            (!bits.is_empty()).then_some(MissingRequirement::Bits {
                bits,
                since,
                running,
            })
        }
        Need::Intel => (host.vendor != CpuVendor::Intel).then_some(MissingRequirement::NotIntel {
            vendor: host.vendor,
        }),
        Need::Nested if !host.nested => Some(MissingRequirement::HostDoesNotNest {
            vendor: host.vendor,
        }),
        Need::Nested => (!nested).then_some(MissingRequirement::GuestDoesNotNest),
        Need::EvmcsVersion => (host.evmcs_version() == 0)
            .then_some(MissingRequirement::NoEvmcsVersion { since, running }),
        Need::ActiveApicv => (!host.apicv).then_some(MissingRequirement::NoApicv {
            vendor: host.vendor,
        }),
        Need::InvariantTsc => (!host.invariant_tsc).then_some(MissingRequirement::NoInvariantTsc),
        Need::NotYet => Some(MissingRequirement::NotYet),
    })
}

struct Candidate {
    value: Value,
    /// Its profile, unless it was requested by name or added.
    profile: Option<Profile>,
    otherwise: Otherwise,
}

impl Candidate {
    /// Whether the VM starts without it if it is missing `lack`.
    fn may_lack(&self, lack: &MissingRequirement) -> bool {
        self.otherwise == Otherwise::LeaveOut || self.profile.is_some() && lack.is_vendors()
    }

    /// Whether it is dropped with a requirement that the user removed or the host does not support.
    fn is_optional(&self) -> bool {
        self.profile.is_some() || self.otherwise == Otherwise::LeaveOut
    }

    /// Whether it was requested by name, as `=auto`.
    fn is_auto(&self) -> bool {
        self.profile.is_none() && self.otherwise == Otherwise::LeaveOut
    }
}

/// Resolves `request`. `nested`: the guest sees VMX or SVM.
///
/// # Errors
/// All problems that prevent the request, at once.
pub fn resolve(
    request: &EnlightenmentRequest,
    host: &HostHv,
    nested: bool,
) -> Result<Resolved, Vec<EnlightenmentProblem>> {
    let mut candidates = collect(request);
    let mut settled = Settled::default();
    let no_hyperv = !host.caps.contains(&HvCap::Hyperv);
    if no_hyperv && !candidates.values().all(Candidate::is_auto) {
        settled.problems.push(EnlightenmentProblem::NoHyperv {
            asked: candidates.keys().copied().collect(),
        });
    }
    leave_out(host, nested, &mut candidates, &mut settled);
    settle_requirements(request, host, nested, &mut candidates, &mut settled);
    let Settled {
        mut notes,
        mut problems,
        ..
    } = settled;
    for (id, candidate) in &candidates {
        let Some(lack) = lack_of(*id, candidate, host, nested) else {
            continue;
        };
        if !no_hyperv
            || matches!(
                lack,
                MissingRequirement::NotYet | MissingRequirement::GuestDoesNotNest
            )
        {
            problems.push(EnlightenmentProblem::Lacks {
                id: *id,
                lack,
                profile: candidate.profile,
            });
        }
    }
    for id in candidates.keys() {
        for other in id.row().conflicts {
            if id < other && candidates.contains_key(other) {
                problems.push(EnlightenmentProblem::Conflict {
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

/// The decisions besides the candidates themselves.
#[derive(Default)]
struct Settled {
    notes: Vec<Note>,
    problems: Vec<EnlightenmentProblem>,
    /// Candidates that the host does not support and the VM starts without.
    left_out: BTreeMap<E, MissingRequirement>,
}

/// The missing requirement of `candidate`.
fn lack_of(
    id: E,
    candidate: &Candidate,
    host: &HostHv,
    nested: bool,
) -> Option<MissingRequirement> {
    lack(id, host, nested).filter(|lack| {
        // Passthrough shows everything that KVM reports, whether it is useful on this host or not.
        let passthrough = id == E::Avic && candidate.profile == Some(Profile::Passthrough);
        !(passthrough && matches!(lack, MissingRequirement::NoApicv { .. }))
    })
}

/// Removes candidates that the host does not support and the VM may start without.
fn leave_out(
    host: &HostHv,
    nested: bool,
    candidates: &mut BTreeMap<E, Candidate>,
    settled: &mut Settled,
) {
    candidates.retain(|id, candidate| {
        let lack = lack_of(*id, candidate, host, nested).filter(|lack| candidate.may_lack(lack));
        let Some(lack) = lack else {
            return true;
        };
        settled.notes.push(Note::LeftOut {
            id: *id,
            lack: lack.clone(),
            expected: candidate.is_auto() || candidate.otherwise == Otherwise::Refuse,
        });
        settled.left_out.insert(*id, lack);
        false
    });
}

fn collect(request: &EnlightenmentRequest) -> BTreeMap<E, Candidate> {
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
        // For the enlightenment with `auto` as a value, `finish` decides.
        let auto = *value == Value::Auto && id.row().argument != Argument::OnOffAuto;
        let of_profile = candidates.get(id).map(|there| there.value.clone());
        candidates.insert(
            *id,
            Candidate {
                value: match of_profile {
                    Some(value) if auto => value,
                    _ if auto => Value::On,
                    _ => value.clone(),
                },
                profile: None,
                otherwise: if auto {
                    Otherwise::LeaveOut
                } else {
                    Otherwise::Refuse
                },
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

/// Adds harmless requirements, drops optional candidates whose requirement the user removed or the host
/// does not support, and reports the rest as problems.
fn settle_requirements(
    request: &EnlightenmentRequest,
    host: &HostHv,
    nested: bool,
    candidates: &mut BTreeMap<E, Candidate>,
    settled: &mut Settled,
) {
    let mut pending: Vec<E> = candidates.keys().copied().collect();
    let mut removed = BTreeSet::new();
    let mut refused = BTreeSet::new();
    while let Some(id) = pending.pop() {
        let Some(candidate) = candidates.get(&id) else {
            continue;
        };
        let optional = candidate.is_optional();
        let gone: BTreeSet<E> = settled.left_out.keys().chain(&removed).copied().collect();
        let missing =
            |requirement: E| request.removed.contains(requirement) || gone.contains(&requirement);
        let available = |requirement: E| {
            candidates.contains_key(&requirement)
                || !missing(requirement)
                    && requirement.row().harmless
                    && lack(requirement, host, nested).is_none()
        };
        if optional && let Some(without) = first_unavailable(id, host, &available) {
            candidates.remove(&id);
            removed.insert(id);
            settled.notes.push(Note::LeftOutWith { id, without });
            // Candidates that were valid as long as this one existed.
            pending.extend(candidates.keys().copied());
            continue;
        }
        for requirement in requirements(id, host) {
            if candidates.contains_key(&requirement) {
                continue;
            }
            let left_out = settled.left_out.get(&requirement);
            let problem = if let Some(lack) = left_out {
                EnlightenmentProblem::Lacks {
                    id: requirement,
                    lack: lack.clone(),
                    profile: None,
                }
            } else if request.removed.contains(requirement) || removed.contains(&requirement) {
                EnlightenmentProblem::RequirementRemoved { id, requirement }
            } else if !requirement.row().harmless {
                EnlightenmentProblem::RequirementUnasked { id, requirement }
            } else {
                settled.notes.push(Note::Added {
                    added: requirement,
                    by: id,
                });
                let added = Candidate {
                    value: Value::On,
                    profile: None,
                    otherwise: Otherwise::Refuse,
                };
                candidates.insert(requirement, added);
                pending.push(requirement);
                continue;
            };
            if refused.insert((id, requirement)) {
                settled.problems.push(problem);
            }
        }
    }
}

/// The first requirement of `id` that is not `available`, or that has such a requirement itself.
fn first_unavailable(id: E, host: &HostHv, available: &impl Fn(E) -> bool) -> Option<E> {
    requirements(id, host)
        .find(|r| !available(*r) || first_unavailable(*r, host, available).is_some())
}

fn finish(candidates: &BTreeMap<E, Candidate>, host: &HostHv, mut notes: Vec<Note>) -> Resolved {
    let mut enabled: EnlightenmentSet = candidates.keys().copied().collect();
    if enabled.is_empty() {
        return Resolved {
            notes,
            ..Resolved::none()
        };
    }
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
    notes.extend(unused(enabled));
    let mut identity = if passthrough {
        HypervisorIdentity::of_host(host)
    } else {
        HypervisorIdentity::default()
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

/// The enlightenments in `enabled` that no known guest uses, grouped by the missing ones.
fn unused(enabled: EnlightenmentSet) -> Vec<Note> {
    let mut groups: Vec<(&'static [E], Vec<E>)> = Vec::new();
    for id in enabled.iter() {
        let mut alternatives = id.row().used_with.iter().copied();
        let Some(missing) =
            alternatives.find(|any| !any.iter().any(|with| enabled.contains(*with)))
        else {
            continue;
        };
        match groups.iter_mut().find(|(without, _)| *without == missing) {
            Some((_, ids)) => ids.push(id),
            None => groups.push((missing, vec![id])),
        }
    }
    let notes = groups.into_iter();
    notes
        .map(|(without, ids)| Note::Unused { ids, without })
        .collect()
}

/// Whether a guest can access a row's MSRs in KVM: without hv-enforce-cpuid KVM provides all it has, except
/// those of the SynIC and its timers, which require an enabled SynIC (synic_set_msr, stimer_set_config).
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
mod tests;
