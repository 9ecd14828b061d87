//! Host settings of a VM: the handling of its RAM, and the CPUs of its vCPUs. They are not saved with the VM.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use super::build::{Build, known};
use super::draft::Draft;
use super::parse::{Wrong, boolean};
use super::problem::Problem;
use super::setting::{Part, Scalar};
use crate::memory::{HostMemory, HugePageSize, NodeSet, Numa, NumaPolicy};
use crate::text::nearest;

/// The parts of `memory` that are the guest's; the others are the host's.
const OF_GUEST: [&str; 2] = ["size", "hugepages"];
/// The maximum number of CPUs that Linux can be built for (CONFIG_NR_CPUS on x86).
const MAX_HOST_CPUS: u16 = 8192;

/// The CPUs of the host that each vCPU runs on; vCPUs without an entry run on any.
pub type Pins = BTreeMap<u32, RangeInclusive<u16>>;

impl Build<'_> {
    /// The host's part of `memory`.
    pub(super) fn host_memory(
        &mut self,
        parts: &HashMap<&'static str, &Part>,
        hugepages: Option<HugePageSize>,
    ) -> HostMemory {
        let mut switch = |name: &str| {
            let part = parts.get(name)?;
            self.parsed("memory", part, boolean)
        };
        let (prealloc, mergeable) = (switch("prealloc"), switch("mergeable"));
        let lock = switch("lock");
        if let (Some(true), Some(_), Some(part)) = (mergeable, hugepages, parts.get("mergeable")) {
            let wrong = Wrong::new(
                "the kernel merges no reserved huge pages",
                "mergeable or hugepages",
            );
            self.push("memory", &part.origin, wrong);
        }
        let numa = parts.get("numa");
        HostMemory {
            prealloc: prealloc.unwrap_or(false),
            mergeable: mergeable.unwrap_or(false),
            lock: lock.unwrap_or(false),
            numa: numa.and_then(|part| self.parsed("memory", part, numa_nodes)),
        }
    }

    /// The CPUs for the vCPUs; `vcpus` is their number, if it is known.
    pub(super) fn pins(&mut self, vcpus: Option<u32>) -> Pins {
        let Some(part) = self.part("pin") else {
            return Pins::new();
        };
        let parse = |value: &Scalar| pins(value, vcpus);
        self.parsed("pin", part, parse).unwrap_or_default()
    }
}

/// A saved VM's memory, with this host's settings for it from `local`.
pub(super) fn with_saved_memory(saved: &Draft, local: &mut Draft) {
    let setting = known("memory");
    let mut problems = Vec::new();
    for entry in local.get_mut(setting) {
        let (guests, hosts): (Vec<_>, _) = std::mem::take(&mut entry.parts)
            .into_iter()
            .partition(is_of_guest);
        problems.extend(guests.iter().map(|part| Problem {
            origin: part.origin.clone(),
            what: format!(
                "the size and the kind of a saved VM's memory stay: {}",
                part.value
            ),
            help: Some("leave it out, as in --memory prealloc,lock".to_owned()),
        }));
        let saved = saved.get(setting).last();
        entry.parts = saved.map_or_else(Vec::new, |saved| saved.parts.clone());
        entry.parts.extend(hosts);
    }
    local.problems.extend(problems);
}

/// Whether any use of `memory` in `draft` sets a property of the guest.
pub(super) fn names_guest_memory(draft: &Draft) -> bool {
    let entries = draft.get(known("memory"));
    entries
        .iter()
        .flat_map(|entry| &entry.parts)
        .any(is_of_guest)
}

fn is_of_guest(part: &Part) -> bool {
    let name = part.name.as_deref();
    name.is_none_or(|name| OF_GUEST.contains(&name))
}

/// `0`, `0-1+3`, `preferred:0`.
fn numa_nodes(value: &Scalar) -> Result<Numa, Wrong> {
    const EXPECTED: &str = "nodes like 0 or 0-1+3, perhaps after preferred: or interleave:";
    let wrong = |what: String| Wrong::new(what, EXPECTED);
    let text = text(value).ok_or_else(|| wrong(format!("{value} is no NUMA node")))?;
    let (policy, nodes) = match text.split_once(':') {
        None => (NumaPolicy::Bind, text.as_str()),
        Some((word, nodes)) => {
            let mut words = NumaPolicy::WORDS.iter();
            match words.find(|(name, _)| *name == word) {
                Some((_, policy)) => (*policy, nodes),
                None => {
                    let mut what = format!("{:?} is no policy", word);
                    let names = NumaPolicy::WORDS.map(|(name, _)| name);
                    if let Some(meant) = nearest(word, names) {
                        what.push_str(&format!(" (did you mean {meant}?)"));
                    }
                    return Err(wrong(what));
                }
            }
        }
    };
    let mut bits = 0;
    for part in nodes.split('+') {
        let range = range(part).filter(|range| u32::from(*range.end()) <= NodeSet::LAST);
        let range = range.ok_or_else(|| {
            wrong(format!(
                "{part:?} is no NUMA node from 0 to {}",
                NodeSet::LAST
            ))
        })?;
        for node in range {
            bits |= 1 << node;
        }
    }
    let nodes = NodeSet::new(bits);
    if policy == NumaPolicy::Preferred && nodes.iter().count() > 1 {
        return Err(wrong(format!("{value}: only one node can be preferred")));
    }
    Ok(Numa { policy, nodes })
}

/// `2-5` or `2,4`: a CPU for each vCPU; or `0=2,1=4-5`.
fn pins(value: &Scalar, vcpus: Option<u32>) -> Result<Pins, Wrong> {
    const EXPECTED: &str =
        "a CPU for each vCPU, like 2-5 or 2,4, or VCPU=CPU for some, like 0=2,1=4-5";
    let wrong = |what: String| Wrong::new(what, EXPECTED);
    let text = text(value).ok_or_else(|| wrong(format!("{value} is no list of CPUs")))?;
    let cpus = |text: &str| {
        let range = range(text).filter(|range| *range.end() < MAX_HOST_CPUS);
        range.ok_or_else(|| {
            let last = MAX_HOST_CPUS - 1;
            wrong(format!("{text:?} is no CPU from 0 to {last}"))
        })
    };
    let mut pins = Pins::new();
    if text.contains('=') {
        for part in text.split(',') {
            let (vcpu, on) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("{part:?} names no vCPU, as others do")))?;
            let vcpu = range(vcpu)
                .filter(|range| range.start() == range.end())
                .map(|range| u32::from(*range.start()))
                .ok_or_else(|| wrong(format!("{vcpu:?} is no vCPU")))?;
            if let Some(count) = vcpus.filter(|count| vcpu >= *count) {
                return Err(wrong(format!(
                    "there is no vCPU {vcpu}: the VM has {count}"
                )));
            }
            if pins.insert(vcpu, cpus(on)?).is_some() {
                return Err(wrong(format!("vCPU {vcpu} is named twice")));
            }
        }
        return Ok(pins);
    }
    let mut each = Vec::new();
    for part in text.split(',') {
        each.extend(cpus(part)?);
    }
    if let Some(count) = vcpus.filter(|count| each.len() < *count as usize) {
        let cpus = each.len();
        return Err(wrong(format!("{value} has {cpus} CPUs for {count} vCPUs")));
    }
    let needed = vcpus.map_or(each.len(), |count| count as usize);
    let each = each.into_iter().take(needed);
    Ok((0..).zip(each.map(|cpu| cpu..=cpu)).collect())
}

/// In the notation of `pin`.
pub(super) fn show_pins(pins: &Pins) -> String {
    let each = pins
        .iter()
        .map(|(vcpu, cpus)| match cpus.start() == cpus.end() {
            true => format!("{vcpu}={}", cpus.start()),
            false => format!("{vcpu}={}-{}", cpus.start(), cpus.end()),
        });
    each.collect::<Vec<_>>().join(",")
}

/// A number in the file, or text.
fn text(value: &Scalar) -> Option<String> {
    match value {
        Scalar::Text(text) => Some(text.clone()),
        Scalar::Integer(number) => Some(number.to_string()),
        Scalar::Boolean(_) => None,
    }
}

/// `4` or `4-7`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // from_str would accept a sign.
        true => text.parse::<u16>().ok(),
        false => None,
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn t(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }

    #[test]
    fn nodes() {
        for (given, shown) in [
            ("0", "0"),
            ("bind:0-1", "0-1"),
            ("0-1+3", "0-1+3"),
            ("preferred:2", "preferred:2"),
            ("interleave:0+1", "interleave:0-1"),
        ] {
            assert_eq!(numa_nodes(&t(given)).unwrap().to_string(), shown);
        }
        assert_eq!(numa_nodes(&Scalar::Integer(1)).unwrap().to_string(), "1");
        for (given, says) in [
            ("", "no NUMA node"),
            ("64", "no NUMA node from 0 to 63"),
            ("1-0", "no NUMA node"),
            ("+1", "no NUMA node"),
            ("prefered:0", "did you mean preferred?"),
            ("preferred:0-1", "only one node"),
        ] {
            let wrong = numa_nodes(&t(given)).unwrap_err();
            assert!(wrong.what.contains(says), "{given}: {wrong:?}");
        }
        assert!(numa_nodes(&Scalar::Boolean(true)).is_err());
        assert!(numa_nodes(&Scalar::Integer(-1)).is_err());
    }

    #[test]
    fn cpus_of_vcpus() {
        for (given, vcpus, shown) in [
            ("2-5", 4, "0=2,1=3,2=4,3=5"),
            ("2-5", 2, "0=2,1=3"),
            ("7,1", 2, "0=7,1=1"),
            ("3", 1, "0=3"),
            ("1=4-5", 2, "1=4-5"),
        ] {
            assert_eq!(show_pins(&pins(&t(given), Some(vcpus)).unwrap()), shown);
        }
        assert_eq!(
            show_pins(&pins(&Scalar::Integer(3), Some(1)).unwrap()),
            "0=3"
        );
        for (given, says) in [
            ("", "no CPU"),
            ("2", "1 CPUs for 2 vCPUs"),
            ("0-8192", "no CPU from 0 to 8191"),
            ("5-2", "no CPU"),
            ("0=1,2", "names no vCPU"),
            ("0=1,0=2", "named twice"),
            ("2=1", "there is no vCPU 2"),
            ("0-1=1", "is no vCPU"),
            ("a", "no CPU"),
        ] {
            let wrong = pins(&t(given), Some(2)).unwrap_err();
            assert!(wrong.what.contains(says), "{given}: {wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in "[0-9=,+a-z:-]{0,12}", vcpus in 1_u32..256) {
            if let Ok(pins) = pins(&t(&text), Some(vcpus)) {
                let shown = show_pins(&pins);
                prop_assert_eq!(super::pins(&t(&shown), Some(vcpus)).unwrap(), pins);
            }
            if let Ok(numa) = numa_nodes(&t(&text)) {
                prop_assert_eq!(numa_nodes(&t(&numa.to_string())).unwrap(), numa);
            }
        }
    }
}
