use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::state::{Encoder, StateError};

#[path = "../../tests/golden/unpack.rs"]
mod unpack;

use unpack::{Golden, SPLIT, SVM_L2};

fn read(golden: &Golden) -> InspectReport {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    golden.unpack(&dir).unwrap();
    InspectReport::read(Snapshot::open(&dir).unwrap(), true).unwrap()
}

#[test]
fn an_l2_under_svm_is_seen() {
    let report = read(&SVM_L2);
    assert_eq!(report.name, "svm");
    assert_eq!(report.cpu.vendor, "AMD");
    assert!(report.cpu.features.contains(&"svm"));
    assert!(report.hv.contains(&"hv-spinlocks=0x1fff".to_owned()));
    let [vcpu] = &report.vcpus[..] else {
        panic!("{:?}", report.vcpus)
    };
    assert_eq!((vcpu.mode, &*vcpu.state), ("64-bit", "runnable"));
    let nested = vcpu.nested.as_ref().unwrap();
    assert_eq!(
        (nested.by, nested.evmcs, nested.l2_running),
        ("SVM", false, true)
    );
    assert_eq!((report.ram.size, report.ram.checked), (16 << 20, true));
    let text = render(&report);
    for expected in ["L2 running", "all checked", "TSC", "acpi-pm"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn what_a_guest_has_set_of_hyper_v_is_seen_by_name() {
    let report = read(&SPLIT);
    assert_eq!(report.vcpus.len(), 2);
    let value = |name: &str| {
        let register = report.hyperv.iter().find(|r| r.name == name);
        register.map(|r| r.value.0.as_str())
    };
    assert_eq!(value("REENLIGHTENMENT_CONTROL"), Some("0x100ee"));
    assert_eq!(value("TSC_EMULATION_CONTROL"), Some("0x1"));
    assert!(value("REFERENCE_TSC").is_some());
    assert_eq!(value("CRASH_P0"), None, "it is 0");
    assert!(report.time.guest.notify && report.time.guest.emulate);
    assert!(report.devices.iter().any(|device| device.name == "ioapic"));
    assert_eq!(report.config["irqchip"], "split");
}

#[test]
fn the_json_form_is_what_its_schema_says() {
    let schema: Value =
        serde_json::from_str(include_str!("../../docs/schema/inspect.schema.json")).unwrap();
    for golden in [&SVM_L2, &SPLIT] {
        let json = serde_json::to_value(read(golden)).unwrap();
        check(&schema, &schema, &json, "report");
    }
}

/// Checks `value` against the JSON Schema keywords that this schema uses.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) {
    for (word, argument) in schema.as_object().unwrap() {
        match word.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => {}
            "$ref" => {
                let path = argument.as_str().unwrap().strip_prefix('#').unwrap();
                check(root, root.pointer(path).unwrap(), value, at);
            }
            "type" => {
                let is = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "null" => value.is_null(),
                    other => panic!("{at}: type {other}"),
                };
                let right = match argument {
                    Value::Array(names) => names.iter().any(is),
                    name => is(name),
                };
                assert!(right, "{at}: {value} is no {argument}");
            }
            "const" => assert_eq!(argument, value, "{at}"),
            "enum" => assert!(
                argument.as_array().unwrap().contains(value),
                "{at}: {value}"
            ),
            "minimum" => assert!(value.as_u64() >= argument.as_u64(), "{at}: {value}"),
            "oneOf" if value.is_null() => {}
            "oneOf" => check(root, &argument[1], value, at),
            "items" => {
                for item in value.as_array().unwrap() {
                    check(root, argument, item, at);
                }
            }
            "required" => {
                for name in argument.as_array().unwrap() {
                    assert!(
                        value.get(name.as_str().unwrap()).is_some(),
                        "{at}: no {name}"
                    );
                }
            }
            "properties" => {
                for (name, schema) in argument.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}.{name}"));
                    }
                }
            }
            "additionalProperties" if argument == &Value::Bool(false) => {
                for name in value.as_object().unwrap().keys() {
                    assert!(schema["properties"].get(name).is_some(), "{at}: {name}");
                }
            }
            "additionalProperties" => {}
            other => panic!("{at}: the schema uses {other}"),
        }
    }
}

/// The error for the golden file after `change`.
fn refusal(change: impl FnOnce(&mut Sections)) -> String {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    SVM_L2.unpack(&dir).unwrap();
    let (mut sections, image) = Snapshot::open(&dir).unwrap().into_parts();
    change(&mut sections);
    let error = InspectReport::of(sections, |config| ram(config, &image, false)).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[test]
fn every_section_is_needed_and_none_may_be_longer() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("saved");
    SVM_L2.unpack(&dir).unwrap();
    let (sections, _image) = Snapshot::open(&dir).unwrap().into_parts();
    for name in sections.names() {
        let text = refusal(|sections| drop(sections.take(name).unwrap()));
        assert!(
            text.contains(name) && text.contains("missing"),
            "{name}: {text}"
        );
        let text = refusal(|sections| {
            let mut section = sections.take(name).unwrap();
            section.body.push(0);
            sections.push(section.name, section.version, section.body);
        });
        assert!(text.contains(name), "{name}: {text}");
        let text = refusal(|sections| {
            let section = sections.take(name).unwrap();
            sections.push(section.name, section.version + 1, section.body);
        });
        assert!(
            text.contains(name) && text.contains("version"),
            "{name}: {text}"
        );
    }
    let text = refusal(|sections| sections.push("device/toaster", 1, Vec::new()));
    assert!(text.contains("device/toaster"), "{text}");
}

/// The sections of both golden files.
fn golden_sections() -> &'static [Sections; 2] {
    static SECTIONS: OnceLock<[Sections; 2]> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        [&SVM_L2, &SPLIT].map(|golden| {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("saved");
            golden.unpack(&dir).unwrap();
            Snapshot::open(&dir).unwrap().into_parts().0
        })
    })
}

proptest! {
    #[test]
    fn any_body_of_any_section_is_read_or_refused(
        which in 0..2_usize,
        chosen: proptest::sample::Index,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..16),
        cut: Option<proptest::sample::Index>,
        bytes: Option<Vec<u8>>,
    ) {
        let whole = &golden_sections()[which];
        let chosen = chosen.index(whole.iter().count());
        let mut sections = Sections::new();
        for (index, section) in whole.iter().enumerate() {
            let mut body = section.body.clone();
            if index == chosen && !body.is_empty() {
                for (at, value) in &changes {
                    let at = at.index(body.len());
                    body[at] = *value;
                }
                if let Some(cut) = cut {
                    body.truncate(cut.index(body.len()));
                }
                body = bytes.clone().unwrap_or(body);
            }
            sections.push(section.name.clone(), section.version, body);
        }
        let ram = Ram { size: 0, data: 0, pieces: Vec::new(), checked: false };
        match InspectReport::of(sections, |_| Ok(ram)) {
            Ok(report) => {
                let shown = render(&report);
                prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn ram_of_another_vm_is_refused() {
    let text = refusal(|sections| {
        let mut config = sections.take("config").unwrap();
        let mut d = config.decoder(1).unwrap();
        let larger = d.str("config").unwrap().replace("16M", "32M");
        let mut e = Encoder::new();
        e.str(&larger);
        config.body = e.into_body();
        sections.push(config.name, config.version, config.body);
    });
    assert!(text.contains("regions of RAM"), "{text}");
}

#[test]
fn what_is_not_there_is_told_with_its_path() {
    let error = Snapshot::open(Path::new("/nowhere/saved")).map_err(InspectError::from);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("/nowhere/saved"), "{text}");
    let error: InspectError = StateError::NotState.into();
    assert!(error.to_string().contains("signature"));
}
