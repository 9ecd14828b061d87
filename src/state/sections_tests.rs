use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

const LIMIT: u64 = 1 << 20;

fn small() -> Sections {
    let mut sections = Sections::new();
    sections.push("config", 1, b"{}".to_vec());
    sections.push("vcpu/0", 2, vec![1, 2, 3, 4]);
    sections.push_optional("note", 1, Vec::new());
    sections.push("ram", 1, vec![7; 9]);
    sections
}

fn file(sections: &Sections) -> Vec<u8> {
    let mut bytes = Vec::new();
    sections.encode(&mut bytes).unwrap();
    bytes
}

/// Whether an error names a section of the small file.
fn names_a_section(error: &StateError) -> bool {
    let text = error.to_string();
    matches!(error, StateError::NotState | StateError::Format { .. })
        || ["manifest", "config", "vcpu/0", "note", "ram"]
            .iter()
            .any(|name| text.contains(name))
}

#[test]
fn what_was_written_is_read_in_order() {
    let sections = small();
    let mut read = Sections::decode(&file(&sections)[..], LIMIT).unwrap();
    assert_eq!(read, sections);
    assert!(read.writer().starts_with("hypernest "));
    assert_eq!(
        read.names().collect::<Vec<_>>(),
        ["config", "vcpu/0", "note", "ram"]
    );
    assert_eq!(read.take("ram").unwrap().body, [7; 9]);
    assert!(matches!(
        read.take("ram"),
        Err(StateError::Missing { section }) if section == "ram"
    ));
    assert!(read.take_optional("ram").is_none());
}

#[test]
fn leftovers_are_named_unless_they_may_be_ignored() {
    let mut sections = small();
    sections.take("ram").unwrap();
    let Err(StateError::Unknown { sections: left }) = sections.clone().finish() else {
        panic!("leftovers were ignored");
    };
    assert_eq!(left, ["config", "vcpu/0"]);
    sections.take("config").unwrap();
    sections.take("vcpu/0").unwrap();
    sections.finish().unwrap();
}

#[test]
fn every_truncation_is_an_error_that_names_the_section() {
    let bytes = file(&small());
    for length in 0..bytes.len() {
        let error = Sections::decode(&bytes[..length], LIMIT).unwrap_err();
        assert!(
            matches!(&error, StateError::Truncated { .. }) && names_a_section(&error),
            "{length}: {error}"
        );
    }
}

#[test]
fn every_flipped_bit_is_an_error_that_names_the_section() {
    let bytes = file(&small());
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = Sections::decode(&bytes[..], LIMIT).unwrap_err();
        assert!(names_a_section(&error), "{bit}: {error}");
    }
}

#[test]
fn bytes_after_the_last_section_are_refused() {
    let mut bytes = file(&small());
    bytes.push(0);
    assert!(matches!(
        Sections::decode(&bytes[..], LIMIT),
        Err(StateError::Trailing { section }) if section == "ram"
    ));
}

#[test]
fn the_limit_holds_for_the_whole_file() {
    let bytes = file(&small());
    Sections::decode(&bytes[..], bytes.len() as u64).unwrap();
    assert!(matches!(
        Sections::decode(&bytes[..], bytes.len() as u64 - 1),
        Err(StateError::TooLarge { section, .. }) if section == "ram"
    ));
}

/// A file with this manifest and a correct checksum.
fn with_manifest(manifest: Encoder) -> Vec<u8> {
    let manifest = manifest.into_body();
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend((manifest.len() as u64).to_le_bytes());
    bytes.extend(crc32c::crc32c(&manifest).to_le_bytes());
    bytes.extend(manifest);
    bytes
}

#[test]
fn a_hostile_manifest_gets_an_error_and_no_memory() {
    type Write = fn(&mut Encoder);
    let entry = |e: &mut Encoder, flags: u32, length: u64| {
        e.str("x");
        e.u32(1);
        e.u32(flags);
        e.u64(length);
        e.u32(0);
    };
    let cases: [(&str, Write); 2] = [
        ("elements do not fit", |e| e.u64(u64::MAX)),
        ("elements do not fit", |e| e.u64(1)),
    ];
    for (expected, write) in cases {
        let mut manifest = Encoder::new();
        manifest.str("someone");
        write(&mut manifest);
        let error = Sections::decode(&with_manifest(manifest)[..], LIMIT).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let sections: [(&[(u32, u64)], &str); 4] = [
        (&[(0, u64::MAX)], "limit"),
        (&[(0, LIMIT / 2)], "cut off"),
        (&[(0, 0), (0, 0)], "twice"),
        (&[(2, 0)], "unknown flags 0x2"),
    ];
    for (entries, expected) in sections {
        let mut manifest = Encoder::new();
        manifest.str("someone");
        manifest.u64(entries.len() as u64);
        for &(flags, length) in entries {
            entry(&mut manifest, flags, length);
        }
        let error = Sections::decode(&with_manifest(manifest)[..], LIMIT).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains('x'), "{error}");
    }
}

#[test]
fn the_current_and_the_previous_version_are_read() {
    let section = |version| Section {
        name: "vm".to_owned(),
        version,
        body: b"3".to_vec(),
    };
    let cases = [
        (0, 1, false),
        (1, 1, true),
        (2, 1, false),
        (1, 2, true),
        (1, 3, false),
        (2, 3, true),
        (4, 3, false),
        (u32::MAX, 1, false),
    ];
    for (version, current, read) in cases {
        let section = section(version);
        assert_eq!(
            section.decoder(current).is_ok(),
            read,
            "{version} {current}"
        );
        assert_eq!(section.json::<u8>(current).is_ok(), read);
    }
    let error = section(7).decoder(3).unwrap_err().to_string();
    assert!(error.contains("vm") && error.contains("version 7") && error.contains("2 and 3"));
}

#[test]
fn json_comes_back_and_its_errors_name_the_section() {
    let mut sections = Sections::new();
    sections.push_json("time", 1, &[1, 2]).unwrap();
    let section = sections.take("time").unwrap();
    assert_eq!(section.json::<[u8; 2]>(1).unwrap(), [1, 2]);
    let error = section.json::<String>(1).unwrap_err();
    assert!(error.to_string().contains("time"));
}

proptest! {
    #[test]
    fn any_sections_come_back(
        all in btree_map("[a-z/0-9]{1,12}", (any::<u32>(), any::<Vec<u8>>(), any::<bool>()), 0..8)
    ) {
        let mut sections = Sections::new();
        for (name, (version, body, optional)) in all {
            if optional {
                sections.push_optional(name, version, body);
            } else {
                sections.push(name, version, body);
            }
        }
        prop_assert_eq!(Sections::decode(&file(&sections)[..], LIMIT).unwrap(), sections);
    }

    #[test]
    fn arbitrary_bytes_are_refused(mut bytes: Vec<u8>, with_head: bool) {
        if with_head {
            let mut head = MAGIC.to_vec();
            head.extend(FORMAT_VERSION.to_le_bytes());
            bytes.splice(0..0, head);
        }
        prop_assert!(Sections::decode(&bytes[..], LIMIT).is_err());
    }
}
