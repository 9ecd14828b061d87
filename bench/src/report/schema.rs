//! Reports conform to bench/schema/l2-exit.schema.json. The checker below supports the keywords that the
//! schema uses, and refuses others.

use serde_json::{Map, Value};

use hypernest_nested::l2exit::Mode;

use super::sample::{left_out, report, report_of};
use super::{Outcome, Report, StoppedBy, recommend};

const SCHEMA: &str = include_str!("../../schema/l2-exit.schema.json");

/// Keywords without constraints, or with constraints that are not checked here.
const NOTES: [&str; 7] = [
    "$schema",
    "$id",
    "$defs",
    "title",
    "description",
    "format",
    "contentEncoding",
];

type Checked = Result<(), String>;

/// Checks `value` against a schema within `root`.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Checked {
    let schema = schema
        .as_object()
        .ok_or_else(|| format!("{at}: no schema"))?;
    for (word, argument) in schema {
        let right = match word.as_str() {
            note if NOTES.contains(&note) => true,
            "$ref" => {
                let path = argument.as_str().and_then(|path| path.strip_prefix('#'));
                let target = path.and_then(|path| root.pointer(path));
                let target = target.ok_or_else(|| format!("{at}: {argument} leads nowhere"))?;
                check(root, target, value, at)?;
                true
            }
            "type" => match argument {
                Value::Array(types) => types.iter().any(|name| is(name, value)),
                name => is(name, value),
            },
            "const" => argument == value,
            "enum" => list(argument).contains(value),
            "minimum" => value.as_f64().is_none_or(|v| v >= number(argument)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|v| v > number(argument)),
            "minItems" => value
                .as_array()
                .is_none_or(|v| v.len() as f64 >= number(argument)),
            "maxItems" => value
                .as_array()
                .is_none_or(|v| v.len() as f64 <= number(argument)),
            "items" => {
                for (index, item) in list(value).iter().enumerate() {
                    check(root, argument, item, &format!("{at}[{index}]"))?;
                }
                true
            }
            "required" => {
                let has = |name: &Value| name.as_str().is_some_and(|n| value.get(n).is_some());
                list(argument).iter().all(has)
            }
            "properties" => {
                for (name, schema) in object(argument) {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in object(value) {
                    let named = schema.get("properties").and_then(|p| p.get(name));
                    match argument {
                        _ if named.is_some() => {}
                        Value::Bool(false) => return Err(format!("{at}: {name} is not known")),
                        schema => check(root, schema, value, &format!("{at}.{name}"))?,
                    }
                }
                true
            }
            "unevaluatedProperties" => {
                let fitting = list(&schema["oneOf"]).iter();
                let fitting = fitting.filter(|branch| check(root, branch, value, at).is_ok());
                let mut parts: Vec<_> = fitting.map(|branch| &branch["properties"]).collect();
                parts.push(&schema["properties"]);
                let known = |name: &str| parts.iter().any(|part| part.get(name).is_some());
                object(value).keys().all(|name| known(name))
            }
            "oneOf" | "anyOf" => {
                let tried = list(argument).iter();
                let errors: Vec<_> = tried
                    .filter_map(|branch| check(root, branch, value, at).err())
                    .collect();
                let fitting = list(argument).len() - errors.len();
                if fitting == 0 {
                    return Err(errors.join("; "));
                }
                word == "anyOf" || fitting == 1
            }
            other => return Err(format!("{at}: what does {other} mean?")),
        };
        if !right {
            return Err(format!("{at}: {value:.60} is not {word} {argument}"));
        }
    }
    Ok(())
}

fn is(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        other => panic!("no type: {other:?}"),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn object(value: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&EMPTY)
}

/// Whether `value` conforms to the schema in `text`; the error has the place where it does not.
pub(crate) fn matches_schema(text: &str, value: &Value) -> Checked {
    let schema = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check(&schema, &schema, value, "report")
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn valid(value: &Value) -> Checked {
    matches_schema(SCHEMA, value)
}

fn full() -> Value {
    let mut report = report();
    report.stopped_by = Some(StoppedBy::MaxCycles);
    report.recommendations = recommend(&report);
    assert!(!report.recommendations.is_empty());
    serde_json::to_value(&report).unwrap()
}

#[test]
fn reports_are_what_the_schema_says() {
    assert_eq!(valid(&full()), Ok(()));
    let empty = serde_json::to_value(report_of(Vec::new())).unwrap();
    assert_eq!(valid(&empty), Ok(()));
    for stopped_by in [StoppedBy::Precision, StoppedBy::TimeLimit] {
        let mut report = report();
        report.stopped_by = Some(stopped_by);
        assert_eq!(valid(&serde_json::to_value(report).unwrap()), Ok(()));
    }
}

/// A change that fails here breaks readers of existing files: it needs a new version.
#[test]
fn a_report_that_was_kept_is_still_read() {
    const KEPT: &str = include_str!("../../../tests/golden/l2-exit-2.json");
    assert_eq!(valid(&serde_json::from_str(KEPT).unwrap()), Ok(()));
    let report: Report = serde_json::from_str(KEPT).unwrap();
    assert_eq!(report.version, super::VERSION);
    assert!(report.results.len() > 10);
}

#[test]
fn every_mode_is_in_it() {
    let entries = Mode::ALL.iter().map(|mode| left_out(*mode, "cpuid"));
    let value = serde_json::to_value(report_of(entries.collect())).unwrap();
    assert_eq!(valid(&value), Ok(()));
    assert_eq!(
        list(&schema()["$defs"]["mode"]["enum"]).len(),
        Mode::ALL.len()
    );
}

#[test]
fn what_is_missing_or_not_declared_is_found() {
    for (place, name, new) in [
        ("", "version", Some(Value::from(3))),
        ("", "warnings", None),
        ("", "more", Some(Value::from(1))),
        ("/environment", "smt", Some(Value::from(1))),
        (
            "/environment/modules/kvm_intel",
            "nested",
            Some(true.into()),
        ),
        ("/unit", "ticks", Some(Value::from(0.0))),
        ("/results/0", "mode", Some(Value::from("classic-shadow"))),
        ("/results/0", "parts", None),
        ("/results/0", "surprise", Some(Value::from(1))),
        ("/results/0/parts", "l1", Some(Value::from("x"))),
        ("/results/0/parts/round_trip/summary", "p99_9", None),
        (
            "/results/0/parts/round_trip",
            "p50_ci",
            Some(vec![1.0].into()),
        ),
        ("/results/6", "why", None),
        ("/results/7/partial", "facts", None),
        ("/results/8", "console", Some(Value::from(""))),
        ("/recommendations/0", "rule", None),
    ] {
        let mut value = full();
        let object = value.pointer_mut(place).and_then(Value::as_object_mut);
        let object = object.unwrap_or_else(|| panic!("no {place}"));
        match new {
            Some(new) => object.insert(name.to_owned(), new),
            None => object.remove(name),
        };
        assert!(valid(&value).is_err(), "{place}/{name}");
    }
}

#[test]
fn the_outcomes_are_told_apart() {
    let report = report();
    let is_failed = |index: usize| matches!(report.results[index].outcome, Outcome::Failed { .. });
    assert!(is_failed(6) && is_failed(7) && !is_failed(8));
    let mut value = full();
    value["results"][0]["outcome"] = "failed".into();
    assert!(valid(&value).is_err());
}
