extern crate std;

use std::collections::{HashMap, HashSet};
use std::string::ToString;
use std::vec::Vec;

use super::*;
use proptest::prelude::*;

#[test]
fn every_exit_has_a_name_and_only_these_have_no_class() {
    let other: Vec<_> = Exit::all()
        .filter(|exit| exit.class() == Class::Other)
        .map(|exit| exit.to_string())
        .collect();
    let expected = [
        "task-switch",
        "monitor-trap-flag",
        "bus-lock",
        "notify",
        "task-switch",
        "ferr-freeze",
        "hypervisor",
    ];
    assert_eq!(other, expected);
    assert!(Exit::all().all(|exit| exit.name().is_some()));
    let distinct: HashSet<_> = Exit::all().collect();
    assert_eq!(distinct.len(), Exit::all().count());
}

#[test]
fn what_both_vendors_call_the_same_is_of_one_class() {
    let vmx: HashMap<_, _> = Exit::all()
        .filter(|exit| matches!(exit, Exit::Vmx(_)))
        .map(|exit| (exit.name(), exit.class()))
        .collect();
    let mut shared = 0;
    for exit in Exit::all().filter(|exit| matches!(exit, Exit::Svm(_))) {
        if let Some(&class) = vmx.get(&exit.name()) {
            assert_eq!(exit.class(), class, "{exit}");
            shared += 1;
        }
    }
    assert!(shared >= 15, "{shared}");
}

#[test]
fn every_class_is_used_by_some_exit() {
    let used: HashSet<_> = Exit::all().map(Exit::class).collect();
    let names: HashSet<_> = Class::ALL.iter().map(|class| class.name()).collect();
    assert_eq!(used.len(), Class::ALL.len());
    assert_eq!(names.len(), Class::ALL.len());
}

#[test]
fn the_exits_that_a_nested_hypervisor_costs() {
    let table = [
        (Exit::vmx(23), "vmread", Class::NestedState),
        (Exit::vmx(24), "vmresume", Class::NestedEntry),
        (Exit::vmx(25), "vmwrite", Class::NestedState),
        (
            Exit::vmx(0x8000_0021),
            "invalid-guest-state",
            Class::Failure,
        ),
        (Exit::svm(0x80), "vmrun", Class::NestedEntry),
        (Exit::svm(0x82), "vmload", Class::NestedState),
        (Exit::svm(0x85), "clgi", Class::NestedControl),
        (Exit::svm(0x13), "cr-write", Class::Register),
        (Exit::svm(0x4E), "exception", Class::Exception),
        (Exit::svm(0x400), "nested-page-fault", Class::Memory),
        (Exit::svm(u64::MAX), "invalid-state", Class::Failure),
        (Exit::vmx(35), "vmx-exit-35", Class::Other),
        (Exit::svm(0x500), "svm-exit-0x500", Class::Other),
    ];
    for (exit, name, class) in table {
        assert_eq!((exit.to_string().as_str(), exit.class()), (name, class));
    }
}

#[test]
fn tracepoints() {
    assert_eq!(Exit::from_kvm_trace(1, 10), Some(Exit::Vmx(10)));
    assert_eq!(Exit::from_kvm_trace(2, 0x72), Some(Exit::Svm(0x72)));
    let invalid = Exit::from_kvm_trace(2, u32::MAX).expect("SVM");
    assert_eq!(
        (invalid.name(), invalid.class()),
        (Some("invalid-state"), Class::Failure)
    );
    assert_eq!(Exit::from_kvm_trace(3, 10), None);
}

proptest! {
    #[test]
    fn every_number_has_a_class_and_a_text(isa in 0..4_u32, reason: u32) {
        if let Some(exit) = Exit::from_kvm_trace(isa, reason) {
            prop_assert!(!exit.to_string().is_empty());
            // An exit without a name has no class.
            prop_assert!(exit.name().is_some() || exit.class() == Class::Other);
        }
    }
}
