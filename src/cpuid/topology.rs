//! Groups vCPUs into packages, cores and threads, and describes the groups in CPUID.

use super::CpuidEntry;
use super::feature as f;
use crate::cpuid::CpuVendor;
use crate::cpuid::Topology;

pub(super) const DATA_CACHE: u32 = 1;
pub(super) const INSTRUCTION_CACHE: u32 = 2;
pub(super) const UNIFIED_CACHE: u32 = 3;

/// The number of bits for `count` different ids.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// The number of APIC id bits below the package: (threads, threads and cores).
fn shifts(topology: Topology) -> (u32, u32) {
    let thread = bits(topology.threads);
    (thread, thread + bits(topology.cores))
}

/// The (x2)APIC id of vCPU `index`: package, core and thread each in its own bit field, so that ids have
/// gaps unless the counts are powers of two.
pub fn apic_id(topology: Topology, index: u32) -> u32 {
    let threads = topology.threads.max(1);
    let cores = topology.cores.max(1);
    let (core_shift, package_shift) = shifts(topology);
    let thread = index % threads;
    let core = index / threads % cores;
    let package = index / threads / cores;
    package << package_shift | core << core_shift | thread
}

/// Writes the topology into the leaves that describe it.
pub(super) fn apply(
    entries: &mut Vec<CpuidEntry>,
    topology: Topology,
    vendor: CpuVendor,
    index: u32,
) {
    let id = apic_id(topology, index);
    let (core_shift, package_shift) = shifts(topology);
    let logical = topology.cores * topology.threads;
    let several = logical > 1;
    let amd = vendor == CpuVendor::Amd;
    f::HTT.set(entries, several);
    // AMD: that HTT means cores. Intel has no such bit.
    f::CMP_LEGACY.set(entries, amd && several);
    for entry in entries.iter_mut() {
        match entry.function {
            // EBX: initial APIC id, ids per package (a power of two); CLFLUSH size and brand stay.
            1 => {
                let ids = (1u32 << package_shift).min(0xff);
                entry.ebx = entry.ebx & 0xffff | (id & 0xff) << 24 | ids << 16;
            }
            4 if entry.eax & 0x1f != 0 => {
                // EAX: ids of cores in the package, and ids of threads sharing the cache, each less 1.
                let sharing = if cache_level(entry) < 3 {
                    1 << core_shift
                } else {
                    1u32 << package_shift
                };
                let cores = 1u32 << (package_shift - core_shift);
                entry.eax = entry.eax & 0x3fff
                    | (sharing - 1).min(0xfff) << 14
                    | (cores - 1).min(0x3f) << 26;
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if cache_level(entry) < 3 {
                    topology.threads
                } else {
                    logical
                };
                entry.eax = entry.eax & 0x3fff | (sharing - 1).min(0xfff) << 14;
            }
            // ECX: the width of the id within a package, and its number of threads minus 1.
            0x8000_0008 => {
                entry.ecx = if amd {
                    package_shift << 12 | (logical - 1).min(0xff)
                } else {
                    0
                };
            }
            0x8000_001e if amd => {
                entry.eax = id;
                entry.ebx = (topology.threads - 1) << 8 | (id >> core_shift) & 0xff;
                // One node per package.
                entry.ecx = (id >> package_shift) & 0xff;
            }
            _ => {}
        }
    }
    for function in [0xb, 0x1f] {
        extended_topology(entries, function, topology, id);
    }
}

fn cache_level(entry: &CpuidEntry) -> u32 {
    entry.eax >> 5 & 7
}

/// Leaves 0xB and 0x1F: threads, cores, and an end mark; only where the highest basic leaf includes them.
fn extended_topology(entries: &mut Vec<CpuidEntry>, function: u32, topology: Topology, id: u32) {
    entries.retain(|e| e.function != function);
    if !entries.iter().any(|e| e.function == 0 && e.eax >= function) {
        return;
    }
    let (core_shift, package_shift) = shifts(topology);
    let logical = topology.cores * topology.threads;
    // (shift to the next level, logical processors at this level, kind: 1 thread, 2 core)
    let levels = [
        (core_shift, topology.threads, 1),
        (package_shift, logical, 2),
        (0, 0, 0),
    ];
    entries.extend(
        (0u32..)
            .zip(levels)
            .map(|(index, (shift, count, kind))| CpuidEntry {
                function,
                index,
                indexed: true,
                eax: shift,
                ebx: count,
                ecx: kind << 8 | index,
                edx: id,
            }),
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn topology(sockets: u32, cores: u32, threads: u32) -> Topology {
        Topology {
            sockets,
            cores,
            threads,
        }
    }

    #[test]
    fn ids_have_a_field_for_each_level() {
        for (t, ids) in [
            (topology(1, 4, 1), vec![0, 1, 2, 3]),
            (topology(1, 2, 2), vec![0, 1, 2, 3]),
            (topology(2, 3, 1), vec![0, 1, 2, 4, 5, 6]),
            (topology(2, 1, 1), vec![0, 1]),
            (topology(1, 3, 2), vec![0, 1, 2, 3, 4, 5]),
            (
                topology(2, 3, 2),
                vec![0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13],
            ),
        ] {
            let count = t.sockets * t.cores * t.threads;
            let got: Vec<u32> = (0..count).map(|i| apic_id(t, i)).collect();
            assert_eq!(got, ids, "{t:?}");
        }
    }

    #[test]
    fn ids_go_past_254() {
        // 85 packages of three: each takes four ids.
        assert_eq!(apic_id(topology(85, 3, 1), 254), 84 << 2 | 2);
        let mut entries = vec![CpuidEntry {
            eax: 0xb,
            ..CpuidEntry::default()
        }];
        apply(&mut entries, topology(85, 3, 1), CpuVendor::Intel, 254);
        assert!(
            entries
                .iter()
                .filter(|e| e.function == 0xb)
                .all(|e| e.edx == 338)
        );
    }

    proptest! {
        #[test]
        fn ids_are_unique_and_rise(sockets in 1u32..9, cores in 1u32..9, threads in 1u32..3) {
            let t = topology(sockets, cores, threads);
            let ids: Vec<u32> = (0..sockets * cores * threads).map(|i| apic_id(t, i)).collect();
            prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
            prop_assert!(ids.is_sorted());
        }
    }
}
