use std::collections::BTreeMap;

use super::*;

#[test]
fn rows_are_in_the_order_of_the_enum() {
    for (index, row) in TABLE.iter().enumerate() {
        assert_eq!(row.id as usize, index, "{}", row.name);
    }
}

#[test]
fn names_are_unique_and_in_normal_form() {
    let mut seen = BTreeMap::new();
    for row in &TABLE {
        assert!(row.name.starts_with("hv-"), "{}", row.name);
        for spelling in row.spellings() {
            assert_eq!(crate::hyperv::enlightenment::normalize(spelling), spelling);
            assert_eq!(seen.insert(spelling, row.name), None, "{spelling}");
        }
    }
}

#[test]
fn every_row_has_a_line_that_ends_like_a_sentence() {
    for row in &TABLE {
        assert!(row.summary.ends_with('.'), "{}", row.name);
        assert!(row.summary.len() <= 120, "{}", row.name);
        assert!(
            row.detail.is_empty() || row.detail.ends_with('.'),
            "{}",
            row.name
        );
    }
}

#[test]
fn a_row_that_asks_kvm_for_bits_names_bits() {
    for row in &TABLE {
        assert_eq!(
            row.needs.contains(&Need::Bits),
            row.bits.iter().any(|b| b.reported) && row.id != E::Syndbg,
            "{}",
            row.name
        );
    }
}

#[test]
fn no_msr_has_two_owners() {
    let mut owners = BTreeMap::new();
    for row in &TABLE {
        for range in row.msrs {
            assert!(range.first <= range.last, "{}", row.name);
            for number in range.first.0..=range.last.0 {
                assert_eq!(
                    owners.insert(number, row.name),
                    None,
                    "{number:#x} of {}",
                    row.name
                );
            }
        }
    }
}

#[test]
fn conflicts_are_mutual_and_requirements_have_no_cycle() {
    for row in &TABLE {
        for other in row.conflicts {
            assert!(other.row().conflicts.contains(&row.id), "{}", row.name);
        }
        let mut reached: Vec<E> = row.requires.iter().map(|r| r.id).collect();
        let mut at = 0;
        while let Some(id) = reached.get(at).copied() {
            assert_ne!(id, row.id, "{} requires itself", row.name);
            reached.extend(id.row().requires.iter().map(|r| r.id));
            at += 1;
        }
    }
}

#[test]
fn names_are_found_however_they_are_spelled() {
    for spelling in [
        "hv-stimer-direct",
        "hv_stimer_direct",
        "stimer-direct",
        "STIMER_Direct",
        " stimer_direct ",
    ] {
        assert_eq!(E::by_name(spelling), Some(E::StimerDirect), "{spelling}");
    }
    assert_eq!(E::by_name("apicv"), Some(E::Avic));
    assert_eq!(E::by_name("hv-hv-time"), None);
    assert_eq!(E::by_name(""), None);
}
