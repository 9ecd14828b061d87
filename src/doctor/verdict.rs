//! Availability of each enlightenment, and a verdict for each profile.

use serde::Serialize;

use crate::hyperv::resolve::lack;
use crate::hyperv::{
    Enlightenment, EnlightenmentProblem, EnlightenmentRequest, EnlightenmentSet, HostHv, Profile,
    Resolved, resolve,
};
use crate::kvm::host::{HostCaps, HostError};

/// Whether an enlightenment is available.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnlightenmentState {
    /// Its name.
    pub name: &'static str,
    /// Whether it is available here.
    pub available: bool,
    /// Its purpose.
    pub summary: &'static str,
    /// The missing requirement and its remedy.
    pub lack: Option<String>,
}

/// Whether a profile works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Its name.
    pub profile: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// The enlightenments that are missing for it.
    pub missing: Vec<&'static str>,
    /// All problems that keep it from working.
    pub problems: Vec<String>,
    /// The nearest `--hv` value that works, if there is one.
    pub instead: Option<String>,
    /// The parts that it leaves out here.
    pub notes: Vec<String>,
}

const NO_HYPERV: &str = "KVM has no Hyper-V here (CONFIG_KVM_HYPERV)";
const NO_NESTING: &str =
    "no hypervisor can run inside the guest: KVM shows guests neither VMX nor SVM";

/// Every enlightenment, for a guest that is shown the host's virtualization.
pub(super) fn enlightenments(host: &HostCaps) -> Vec<EnlightenmentState> {
    let hyperv = HostHv::from(host);
    Enlightenment::all()
        .map(|id| {
            let lack = if host.kvm.caps.any_hyperv() {
                lack(id, &hyperv, true).map(|lack| lack.to_string())
            } else {
                Some(NO_HYPERV.to_owned())
            };
            EnlightenmentState {
                name: id.name(),
                available: lack.is_none(),
                summary: id.row().summary,
                lack,
            }
        })
        .collect()
}

/// Every profile. `nested` is for guests that run guests, so it also requires virtualization.
pub(super) fn profiles(host: &HostCaps) -> Vec<Verdict> {
    let hyperv = HostHv::from(host);
    Profile::ALL
        .into_iter()
        .map(|profile| of_profile(profile, &hyperv))
        .collect()
}

fn of_profile(profile: Profile, host: &HostHv) -> Verdict {
    let nested = match profile {
        Profile::None | Profile::Windows => false,
        Profile::Nested => true,
        Profile::All | Profile::Passthrough => host.nested,
    };
    let judged = |without| {
        let request = EnlightenmentRequest {
            removed: without,
            ..EnlightenmentRequest::profile(profile)
        };
        resolve(&request, host, nested)
    };
    let (problems, notes) = match judged(EnlightenmentSet::default()) {
        Ok(resolved) => (Vec::new(), notes(&resolved)),
        Err(problems) => (problems, Vec::new()),
    };
    let missing: EnlightenmentSet = problems
        .iter()
        .filter_map(EnlightenmentProblem::enlightenment)
        .collect();
    let mut texts: Vec<_> = problems.iter().map(problem).collect();
    if nested && !host.nested {
        texts.push(NO_NESTING.to_owned());
    }
    let instead = (!missing.is_empty() && host.nested >= nested && judged(missing).is_ok())
        .then(|| without(profile, missing));
    Verdict {
        profile: profile.name(),
        works: texts.is_empty(),
        missing: missing.iter().map(Enlightenment::name).collect(),
        problems: texts,
        instead,
        notes,
    }
}

/// A problem without its advice: [`Verdict::instead`] covers all of them.
fn problem(problem: &EnlightenmentProblem) -> String {
    match problem {
        EnlightenmentProblem::Lacks { id, lack, .. } => format!("{id} is missing: {lack}"),
        EnlightenmentProblem::NoHyperv { .. } => NO_HYPERV.to_owned(),
        other => other.to_string(),
    }
}

fn notes(resolved: &Resolved) -> Vec<String> {
    resolved.notes().iter().map(ToString::to_string).collect()
}

fn without(profile: Profile, missing: EnlightenmentSet) -> String {
    let mut flag = format!("--hv {profile}");
    for id in missing.iter() {
        flag.push_str(",-");
        flag.push_str(id.name().trim_start_matches("hv-"));
    }
    flag
}

/// Verdicts for a host where KVM cannot be used: nothing works.
pub(super) fn without_kvm(error: &HostError) -> Vec<Verdict> {
    Profile::ALL
        .into_iter()
        .map(|profile| Verdict {
            profile: profile.name(),
            works: false,
            missing: Vec::new(),
            problems: vec![error.to_string()],
            instead: None,
            notes: Vec::new(),
        })
        .collect()
}
