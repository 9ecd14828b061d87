//! Sections whose checksums are right and whose bodies are anything: configuration, promise, time, vCPUs, devices.
//!
//! The input chooses a section of a saved VM and gives it another body: all of it, or some bytes of it.
#![no_main]

use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use hypernest::inspect::{Ram, Report, render};
use hypernest::state::Sections;
use hypernest::state::snapshot::{RAM_SECTION, RamIndex};
use libfuzzer_sys::fuzz_target;

const GOLDEN: [&[u8]; 2] = [
    include_bytes!("../../tests/golden/svm-l2-1.state.gz"),
    include_bytes!("../../tests/golden/split-1.state.gz"),
];

/// The sections of two saved VMs.
fn golden() -> &'static [Sections; 2] {
    static SECTIONS: OnceLock<[Sections; 2]> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        GOLDEN.map(|packed| {
            let mut state = Vec::new();
            GzDecoder::new(packed)
                .read_to_end(&mut state)
                .expect("the golden file unpacks");
            Sections::decode(&state[..], 1 << 20).expect("the golden file is whole")
        })
    })
}

fuzz_target!(|input: (bool, u8, u32, Option<u16>, &[u8])| {
    let (which, section, version, at, bytes) = input;
    let whole = &golden()[usize::from(which)];
    let count = whole.iter().count();
    let mut sections = Sections::new();
    for (index, section_there) in whole.iter().enumerate() {
        let mut body = section_there.body.clone();
        let mut its_version = section_there.version;
        if index == usize::from(section) % count {
            its_version = its_version.wrapping_add(version % 3);
            match at {
                None => body = bytes.to_vec(),
                Some(at) => {
                    let at = usize::from(at).min(body.len());
                    for (byte, new) in body[at..].iter_mut().zip(bytes) {
                        *byte = *new;
                    }
                }
            }
        }
        sections.push(section_there.name.clone(), its_version, body);
    }
    if let Some(section) = sections.take_optional(RAM_SECTION) {
        let _ = RamIndex::load(&section);
    }
    let ram = Ram {
        size: 0,
        data: 0,
        pieces: Vec::new(),
        checked: false,
    };
    if let Ok(report) = Report::of(sections, |_| Ok(ram)) {
        let text = render(&report);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
});
