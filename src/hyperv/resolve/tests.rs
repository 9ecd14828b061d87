use proptest::prelude::*;

use super::*;
use crate::hyperv::KernelVersion;
use crate::hyperv::host::tests::{amd, intel, without_hyperv};

fn run(list: &str, host: &HostHv, nested: bool) -> Result<Resolved, Vec<EnlightenmentProblem>> {
    let request = EnlightenmentRequest::parse(list, Profile::default_for(nested)).unwrap();
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

const WINDOWS: &str = "hv-relaxed,hv-vapic,hv-spinlocks,hv-vpindex,hv-runtime,hv-crash,hv-time,\
                       hv-frequencies,hv-synic,hv-stimer,hv-stimer-direct,hv-tlbflush,\
                       hv-tlbflush-ext,hv-ipi,hv-xmm-input";

#[test]
fn profiles_on_a_host_that_has_everything() {
    assert_eq!(names("none", &intel(), false), "");
    assert_eq!(names("windows", &intel(), false), WINDOWS);
    assert_eq!(names("windows", &amd(), false), WINDOWS);
    assert_eq!(
        names("nested", &intel(), true),
        "hv-relaxed,hv-vapic,hv-spinlocks,hv-vpindex,hv-runtime,hv-crash,hv-time,hv-frequencies,\
         hv-reenlightenment,hv-synic,hv-stimer,hv-stimer-direct,hv-tlbflush,hv-tlbflush-ext,\
         hv-tlbflush-direct,hv-ipi,hv-xmm-input,hv-evmcs,hv-emsr-bitmap"
    );
    let all = run("all", &intel(), true).unwrap();
    assert!(all.has(E::Evmcs) && all.has(E::Reset) && all.has(E::TscInvariant));
    assert!(!all.has(E::Avic));
}

const NOT_ON_AMD: &str =
    "it needs Intel's VMX, and this host's processor is AMD's; nothing on this host gives it";

#[test]
fn nested_profile_on_amd_omits_only_evmcs_with_a_warning() {
    let resolved = run("nested", &amd(), true).unwrap();
    assert!(resolved.has(E::EmsrBitmap) && resolved.has(E::TlbFlushDirect));
    let warnings: Vec<String> = resolved
        .notes()
        .iter()
        .filter(|note| note.is_warning())
        .map(ToString::to_string)
        .collect();
    assert_eq!(warnings, [format!("hv-evmcs is left out: {NOT_ON_AMD}")]);
    let asked = run("nested,-evmcs", &amd(), true).unwrap();
    assert_eq!(asked.enabled(), resolved.enabled());
    assert!(!asked.notes().iter().any(Note::is_warning));
    // It is refused if requested by name.
    assert_eq!(
        problems("nested,evmcs", &amd(), true),
        [format!("hv-evmcs is not available: {NOT_ON_AMD}")]
    );
}

#[test]
fn nested_profile_is_refused_if_an_intel_host_lacks_a_member() {
    let mut host = intel();
    host.caps.remove(&HvCap::EnlightenedVmcs);
    let found = problems("nested", &host, true);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with(
            "hv-evmcs is not available: KVM does not support KVM_CAP_HYPERV_ENLIGHTENED_VMCS"
        ) && found[0].ends_with(". To go without it: --hv nested,-evmcs"),
        "{found:?}"
    );
    // Members that require it are omitted with it where allowed, and refused where requested by name.
    let resolved = run("nested,evmcs=auto", &host, true).unwrap();
    assert!(!resolved.has(E::Evmcs) && !resolved.has(E::EmsrBitmap));
    let named = problems("nested,evmcs=auto,emsr-bitmap", &host, true);
    assert!(
        named[0].starts_with("hv-evmcs is not available"),
        "{named:?}"
    );
}

#[test]
fn auto_enables_what_is_available_and_notes_the_rest() {
    for (list, host, nested, on, warned) in [
        (
            "vpindex,evmcs=auto",
            intel(),
            true,
            "hv-vapic,hv-vpindex,hv-evmcs",
            None,
        ),
        (
            "vpindex,evmcs=auto",
            amd(),
            true,
            "hv-vpindex",
            Some(format!("hv-evmcs is left out: {NOT_ON_AMD}")),
        ),
        (
            "vpindex,evmcs=auto",
            intel(),
            false,
            "hv-vpindex",
            Some(
                "hv-evmcs is left out: it serves hypervisors inside the guest only: add --nested"
                    .to_owned(),
            ),
        ),
        (
            "vpindex,spinlocks=AUTO",
            intel(),
            false,
            "hv-spinlocks,hv-vpindex",
            None,
        ),
        (
            "vpindex,syndbg=auto",
            intel(),
            false,
            "hv-vpindex",
            Some("hv-syndbg is left out: hypernest does not implement it yet".to_owned()),
        ),
        // Its requirement has a cost and was not requested.
        (
            "vpindex,emsr-bitmap=auto",
            intel(),
            true,
            "hv-vpindex",
            None,
        ),
        (
            "vpindex,emsr-bitmap=auto",
            amd(),
            true,
            "hv-vpindex,hv-emsr-bitmap",
            None,
        ),
        (
            "vpindex,stimer=auto,-time",
            intel(),
            true,
            "hv-vpindex",
            None,
        ),
        (
            "evmcs=auto",
            amd(),
            true,
            "",
            Some(format!("hv-evmcs is left out: {NOT_ON_AMD}")),
        ),
    ] {
        let resolved = run(list, &host, nested).unwrap();
        assert_eq!(resolved.to_string(), on, "{list}");
        let warning = resolved.notes().iter().find(|note| note.is_warning());
        assert_eq!(warning.map(ToString::to_string), warned, "{list}");
    }
    let auto = run("windows,spinlocks=auto", &intel(), false).unwrap();
    assert_eq!(auto.spin_count, Some(0x1fff), "the profile's value");
    // A KVM without Hyper-V lacks each of them.
    assert_eq!(names("evmcs=auto,time=auto", &without_hyperv(), false), "");
}

#[test]
fn unused_enlightenments_are_warned_about_with_a_remedy() {
    let alone =
        "will have no effect: no known guest uses it without hv-vpindex; add hv-vpindex to --hv";
    for (list, nested, warned) in [
        ("relaxed", false, vec![format!("hv-relaxed {alone}")]),
        ("vendor-id=Microsoft Hv", false, vec![format!("hv-vendor-id {alone}")]),
        (
            "evmcs",
            true,
            vec![
                "hv-vapic and hv-evmcs will have no effect: no known guest uses them without hv-vpindex; \
                 add hv-vpindex \
                 to --hv"
                    .to_owned(),
            ],
        ),
        (
            "vpindex,xmm-input",
            false,
            vec![
                "hv-xmm-input will have no effect: no known guest uses it without hv-tlbflush or hv-ipi; \
                 add hv-tlbflush \
                 or hv-ipi to --hv"
                    .to_owned(),
            ],
        ),
        ("none", false, vec![]),
        ("windows,-tlbflush,xmm-input", false, vec![]),
        ("vpindex,relaxed", false, vec![]),
        ("evmcs,vpindex", true, vec![]),
        ("synic", false, vec![]),
    ] {
        let resolved = run(list, &intel(), nested).unwrap();
        let warnings: Vec<String> = resolved
            .notes()
            .iter()
            .filter(|note| note.is_warning())
            .map(ToString::to_string)
            .collect();
        assert_eq!(warnings, warned, "{list}");
    }
    // No profile warns about itself.
    for profile in Profile::ALL {
        let resolved = run(profile.name(), &intel(), true).unwrap();
        assert!(!resolved.notes().iter().any(Note::is_warning), "{profile}");
    }
}

#[test]
fn members_that_require_evmcs_are_omitted_with_it_on_intel() {
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
fn requirement_with_a_cost_must_be_named() {
    assert_eq!(
        problems("emsr-bitmap", &intel(), true),
        [
            "hv-emsr-bitmap needs hv-evmcs, which is not added automatically because it has a cost \
             (`hypernest enlightenments \
          hv-evmcs`): name it too"
        ]
    );
    assert_eq!(names("emsr-bitmap", &amd(), true), "hv-emsr-bitmap");
}

#[test]
fn removing_a_requirement_conflicts_only_with_requests_by_name() {
    assert_eq!(
        problems("stimer,-time", &intel(), false),
        ["hv-stimer needs hv-time, which is removed (`-hv-time`)"]
    );
    let resolved = run("windows,-time", &intel(), false).unwrap();
    assert!(!resolved.has(E::Stimer) && !resolved.has(E::StimerDirect));
    assert!(resolved.has(E::Synic));
}

#[test]
fn all_problems_are_reported_at_once() {
    assert_eq!(
        problems("evmcs,avic,syndbg,emsr-bitmap,passthrough", &amd(), false),
        [
            "hv-avic is not available: KVM does not use the processor's virtual APIC on this host: load \
             kvm_amd with avic=1 on a \
             processor that has it",
            "hv-evmcs is not available: it needs Intel's VMX, and this host's processor is AMD's; nothing \
             on this host \
             gives it",
            "hv-emsr-bitmap is not available: it serves hypervisors inside the guest only: add --nested",
            "hv-syndbg is not available: hypernest does not implement it yet",
            "hv-passthrough and hv-syndbg cannot be on together",
        ]
    );
    assert_eq!(
        problems("evmcs", &intel(), false),
        ["hv-evmcs is not available: it serves hypervisors inside the guest only: add --nested"]
    );
}

#[test]
fn kvm_without_hyperv_is_reported_once() {
    let found = problems("windows", &without_hyperv(), false);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("CONFIG_KVM_HYPERV=y") && found[0].contains("--hv none"));
    assert_eq!(problems("all", &without_hyperv(), false).len(), 1);
    assert_eq!(problems("time,syndbg", &without_hyperv(), false).len(), 2);
    assert_eq!(names("none", &without_hyperv(), false), "");
    // A short list is printed in full.
    assert!(problems("time", &without_hyperv(), false)[0].contains("; not available: hv-time"));
}

#[test]
fn older_kernel_is_distinguished_from_one_built_without_hyperv() {
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
            "hv-tlbflush-ext is not available: KVM_GET_SUPPORTED_HV_CPUID does not report \
             0x40000003.EDX[14]: Linux 6.2 has \
          it, this is 6.1"
        ]
    );
    // Only performance: the profiles start without it.
    let resolved = run("nested", &old, true).unwrap();
    assert!(!resolved.has(E::TlbFlushExt) && !resolved.has(E::TlbFlushDirect));
    old.caps.remove(&HvCap::SendIpi);
    assert_eq!(
        problems("windows", &old, false),
        [
            "hv-ipi is not available: KVM does not support KVM_CAP_HYPERV_SEND_IPI although this is Linux \
             6.1 and 4.20 has it: the \
          kernel was built without it (CONFIG_KVM_HYPERV=y gives it). To go without it: --hv windows,-ipi"
        ]
    );
}

#[test]
fn host_without_nesting_gets_the_remedy() {
    let mut host = intel();
    host.nested = false;
    let found = problems("evmcs", &host, true);
    assert!(found[0].contains("kvm_intel with nested=1"), "{found:?}");
}

#[test]
fn auto_coresharing_follows_kvm_and_blocks_migration() {
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
fn passthrough_shows_what_kvm_reports() {
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
    fn resolved_sets_are_complete_and_possible(
        wanted in proptest::collection::btree_set(0..34usize, 0..10),
        removed in proptest::collection::btree_set(0..34usize, 0..5),
        profile in 0..Profile::ALL.len(),
        on_amd: bool,
        nested: bool,
    ) {
        let host = if on_amd { amd() } else { intel() };
        let all: Vec<E> = E::all().collect();
        let request = EnlightenmentRequest {
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
                    matches!(lack, None | Some(MissingRequirement::NoApicv { .. })),
                    "{id}: {lack:?}"
                );
            }
            for id in request.wanted.keys() {
                prop_assert!(resolved.has(*id), "{id} was dropped");
            }
        }
    }
}
