extern crate std;

use std::string::ToString;

use super::*;
use proptest::prelude::*;

#[test]
fn modes_and_kinds_are_called_what_they_are_called() {
    let modes = "classic classic+shadow offered offered+shadow evmcs evmcs+emsr evmcs+direct-flush svm \
        svm+emsr \
                 svm+direct-flush";
    assert!(
        modes
            .split_whitespace()
            .eq(Mode::ALL.iter().map(|mode| mode.name()))
    );
    let kinds = "cpuid hypercall rdmsr wrmsr rdmsr-direct wrmsr-direct bitmap-same bitmap-changed pio-out \
        pio-in hlt \
                 interrupt ipi second-level-fault mmio cr-write page-fault xsetbv pause timer \
                 preemption-timer \
                 flush-hypercall";
    assert!(
        kinds
            .split_whitespace()
            .eq(Kind::ALL.iter().map(|kind| kind.name()))
    );
}

#[test]
fn what_is_shown_is_read_back() {
    for &mode in Mode::ALL {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    for (index, &kind) in (0..).zip(Kind::ALL) {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!((kind.index(), Kind::from_index(index)), (index, Some(kind)));
    }
    for &touch in Touch::ALL {
        assert_eq!(touch.to_string().parse(), Ok(touch));
    }
}

#[test]
fn what_is_none_is_refused_with_what_there_is() {
    assert_eq!("svm+shadow".parse::<Mode>(), Err(NotAMode));
    assert!(
        NotAMode.to_string().contains(" classic, classic+shadow, "),
        "{NotAMode}"
    );
    assert_eq!("CPUID".parse::<Kind>(), Err(NotAKind));
    assert_eq!(Kind::from_index(Kind::ALL.len() as u64), None);
    assert_eq!(Kind::from_index(u64::MAX), None);
}

#[test]
fn modes_use_what_their_names_say() {
    for &mode in Mode::ALL {
        let name = mode.name();
        assert_eq!(mode.is_svm(), name.starts_with("svm"));
        assert_eq!(mode.uses_evmcs(), name.starts_with("evmcs"));
        assert_eq!(
            mode.offers_evmcs(),
            name.starts_with("evmcs") || name.starts_with("offered")
        );
        assert_eq!(mode.uses_emsr_bitmap(), name.ends_with("+emsr"));
        assert_eq!(mode.uses_direct_flush(), name.ends_with("+direct-flush"));
        assert_eq!(mode.shadow_vmcs() == Some(true), name.ends_with("+shadow"));
    }
}

#[test]
fn l1_takes_no_part_in_what_it_does_not_intercept() {
    assert!(!Kind::RdmsrDirect.has_l1_part(Mode::Classic));
    assert!(!Kind::FlushHypercall.has_l1_part(Mode::SvmDirectFlush));
    assert!(Kind::FlushHypercall.has_l1_part(Mode::Evmcs));
    assert!(Kind::Cpuid.has_l1_part(Mode::EvmcsDirectFlush));
    assert_eq!((Kind::Ipi.cpus(), Kind::Cpuid.cpus()), (2, 1));
}

#[test]
fn touches_by_number() {
    let fields = |reads, writes| Some(Touch::Fields { reads, writes });
    let table = [
        ("reads=3,writes=2", fields(3, 2)),
        ("writes=2,reads=3", fields(3, 2)),
        ("reads=0", fields(0, 0)),
        ("writes=1000", fields(0, 1000)),
        ("writes=1001", None),
        ("reads=", None),
        ("reads=+1", None),
        ("reads=-1", None),
        ("reads=1,reads=1", None),
        ("reads=4294967296", None),
        ("reads=1,", None),
        ("minimal,reads=1", None),
        ("", None),
    ];
    for (text, touch) in table {
        assert_eq!(Touch::parse(text), touch, "{text}");
    }
    assert_eq!(Touch::default(), Touch::KvmLike);
}

proptest! {
    #[test]
    fn touches_by_number_are_read_back(reads in 0..=Touch::MOST_FIELDS, writes in 0..=Touch::MOST_FIELDS) {
        let touch = Touch::Fields { reads, writes };
        prop_assert_eq!(touch.to_string().parse(), Ok(touch));
    }

    #[test]
    fn no_text_panics(text in "[a-z=,0-9+-]{0,24}") {
        let _ = (Mode::parse(&text), Kind::parse(&text));
        if let Some(touch) = Touch::parse(&text) {
            prop_assert_eq!(touch.to_string().parse(), Ok(touch));
        }
    }
}
