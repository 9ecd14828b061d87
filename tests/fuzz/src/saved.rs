//! Saved VMs from untrusted sources.

use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use hypernest::config::VmConfig;
use hypernest::inspect::{InspectReport, Ram, render};
use hypernest::kvm::host::{HostCaps, KvmCaps, KvmFacts, System};
use hypernest::machine::promise::Promise;
use hypernest::state::Sections;
use hypernest::state::snapshot::{RAM_SECTION, RamIndex};

use crate::Input;

/// The maximum length of a state that a target reads.
const LIMIT: u64 = 1 << 20;

/// A state file unchanged, and with its checksums corrected, so that mutations also reach the data behind
/// them.
pub(crate) fn state_file(bytes: &[u8]) -> bool {
    let whole = read_state(bytes);
    let mut mended = bytes.to_vec();
    mend_state(&mut mended);
    let mended = read_state(&mended);
    whole || mended
}

fn read_state(bytes: &[u8]) -> bool {
    let Ok(sections) = Sections::decode(bytes, LIMIT) else {
        return false;
    };
    let mut again = Vec::new();
    sections
        .encode(&mut again)
        .expect("a vector can be written to");
    assert_eq!(again, bytes, "encoding again gives other bytes");
    if let Some(section) = sections.get(RAM_SECTION)
        && let Ok(index) = RamIndex::load(section)
    {
        assert!(index.len() < 1 << 63);
    }
    true
}

/// Magic, format, and the length and checksum of the manifest.
const HEAD: usize = 12 + 4 + 8 + 4;

/// Writes the correct checksums of the sections into the manifest, and the manifest's into the head, as far
/// as these exist.
fn mend_state(bytes: &mut [u8]) {
    let Some(&[.., l0, l1, l2, l3, l4, l5, l6, l7, _, _, _, _]) = bytes.first_chunk::<HEAD>()
    else {
        return;
    };
    let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (head, rest) = bytes.split_at_mut(HEAD);
    let Some((manifest, mut bodies)) = rest.split_at_mut_checked(length) else {
        return;
    };
    mend_manifest(manifest, &mut bodies);
    head[HEAD - 4..].copy_from_slice(&crc32c::crc32c(manifest).to_le_bytes());
}

/// The manifest: the writer's name, the number of sections, and for each its name, version, flags, length and
/// checksum.
fn mend_manifest(manifest: &mut [u8], bodies: &mut &mut [u8]) -> Option<()> {
    let number = |at: usize| -> Option<usize> {
        let bytes = manifest.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let after_text = |at: usize| at.checked_add(8)?.checked_add(number(at)?);
    let mut at = after_text(0)?;
    let count = number(at)?;
    at += 8;
    let mut sums = Vec::new();
    let mut rest: &[u8] = bodies;
    for _ in 0..count {
        let length_at = after_text(at)?.checked_add(8)?;
        let (body, behind) = rest.split_at_checked(number(length_at)?)?;
        sums.push((length_at + 8, crc32c::crc32c(body)));
        rest = behind;
        at = length_at + 12;
    }
    for (at, sum) in sums {
        manifest
            .get_mut(at..at + 4)?
            .copy_from_slice(&sum.to_le_bytes());
    }
    Some(())
}

const GOLDEN: [&[u8]; 2] = [
    include_bytes!("../../golden/svm-l2-1.state.gz"),
    include_bytes!("../../golden/split-1.state.gz"),
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
            Sections::decode(&state[..], LIMIT).expect("the golden file is complete")
        })
    })
}

/// Sections with correct checksums and arbitrary bodies: configuration, promise, time, vCPUs, devices.
///
/// `which VM, section, version`, all u8, and `position u16`: the bytes that follow replace the section's from
/// that position, or, if the position is 0xffff, are the section.
pub(crate) fn sections(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let whole = &golden()[usize::from(input.u8() & 1)];
    let (section, version, position) = (input.u8(), input.u8(), input.u16());
    let bytes = input.rest();
    let count = whole.iter().count();
    let mut sections = Sections::new();
    for (index, section_there) in whole.iter().enumerate() {
        let mut body = section_there.body.clone();
        let mut its_version = section_there.version;
        if index == usize::from(section) % count {
            its_version = its_version.wrapping_add(u32::from(version % 3));
            if position == u16::MAX {
                body = bytes.to_vec();
            } else {
                let at = usize::from(position).min(body.len());
                for (byte, new) in body[at..].iter_mut().zip(bytes) {
                    *byte = *new;
                }
            }
        }
        sections.push(section_there.name.clone(), its_version, body);
    }
    if let Some(section) = sections.take_optional(RAM_SECTION) {
        let _index = RamIndex::load(&section);
    }
    let ram = Ram {
        size: 0,
        data: 0,
        pieces: Vec::new(),
        checked: false,
    };
    let Ok(report) = InspectReport::of(sections, |_| Ok(ram)) else {
        return false;
    };
    let text = render(&report);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    true
}

const CONFIG: &str =
    "name = \"fuzz\"\nmemory = \"64M\"\nkernel = \"/nowhere\"\nnested = true\nhv = \"none\"\n";

fn vm_and_host() -> &'static (VmConfig, HostCaps) {
    static PARTS: OnceLock<(VmConfig, HostCaps)> = OnceLock::new();
    PARTS.get_or_init(|| {
        let config = VmConfig::from_saved(CONFIG.to_owned()).expect("a configuration");
        let caps = KvmCaps {
            hyperv: true,
            pit2: true,
            nested_state: 8320,
            ..KvmCaps::default()
        };
        let kvm = KvmFacts {
            caps,
            ..KvmFacts::default()
        };
        let system = System::default();
        (config, HostCaps { system, kvm })
    })
}

/// Promises from a file or a migration's source, checked against some host.
pub(crate) fn promise(json: &[u8]) -> bool {
    let Ok(promise) = serde_json::from_slice::<Promise>(json) else {
        return false;
    };
    let (config, host) = vm_and_host();
    match promise.check(config, host) {
        Ok(plan) => {
            plan.cpuid.for_vcpu(0);
            plan.address_width();
        }
        Err(mismatches) => assert!(mismatches.iter().all(|m| !m.to_string().is_empty())),
    }
    true
}
