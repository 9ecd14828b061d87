//! No report makes a reader panic, whatever its content.

use proptest::prelude::*;
use serde_json::Value;

use super::groups::groups;
use super::sample::report;
use super::{Details, Report, interval_log, page, recommend, svg, table};

/// Replacements for a value.
fn replacement() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::from(0.0)),
        Just(Value::from(-1.0)),
        Just(Value::from(f64::MAX)),
        Just(Value::from(f64::MIN_POSITIVE)),
        ".{0,20}".prop_map(Value::from),
        Just(Value::from(vec![f64::MAX, 0.0])),
    ]
}

/// Collects the JSON pointers of a value's leaves.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                leaves(member, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                leaves(item, &format!("{at}/{index}"), found);
            }
        }
        _ => found.push(at.to_owned()),
    }
}

/// All uses of a report that was read.
fn use_it(mut report: Report) {
    report.recommendations = recommend(&report);
    let details = Details {
        kind: Some("cpuid"),
        explain: true,
    };
    let _text = table(&report, details);
    let _log = interval_log::write(&report, &mut Vec::new());
    let _page = page::page(&report);
    for group in groups(&report) {
        for kind in group.kinds() {
            let _plot = svg::percentiles(&report, &group, kind);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_report_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), replacement()),
        1..6)) {
        let mut small = report();
        small.results.truncate(2);
        let mut value = serde_json::to_value(small).unwrap();
        let mut places = Vec::new();
        leaves(&value, "", &mut places);
        for (place, new) in changes {
            let place: &String = place.get(places.as_slice());
            *value.pointer_mut(place).unwrap() = new;
        }
        if let Ok(report) = serde_json::from_value::<Report>(value) {
            use_it(report);
        }
    }

    #[test]
    fn no_unit_panics(ticks in any::<f64>(), p50 in any::<f64>(), low in any::<f64>(), high in any::<f64>()) {
        let mut report = report();
        report.results.truncate(2);
        report.unit.ticks = ticks;
        for entry in &mut report.results {
            if let super::Outcome::Measured(figures) = &mut entry.outcome {
                figures.parts.round_trip.summary.p50 = p50;
                figures.parts.round_trip.p50_ci = Some([low, high]);
                figures.host_exits_per_l2_exit = Some(high);
            }
        }
        use_it(report);
    }
}
