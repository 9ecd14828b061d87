//! What the host is asked to do with guest RAM: have it ready, keep it, merge it, take it from given NUMA
//! nodes.

#![allow(
    unsafe_code,
    reason = "advice about guest RAM, and its locks and nodes"
)]

use std::fs;
use std::io;
use std::ops::Range;
use std::ptr;
use std::thread;

use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;

use super::config::{HostMemory, Numa, NumaPolicy};
use crate::sys::{Role, spawn_scoped};

/// What one thread touches at least, so that small VMs start none for it.
const SHARE: usize = 64 << 20;
/// More threads wait for each other in the kernel's allocator.
const THREADS: usize = 16;
/// `MPOL_PREFERRED`, `MPOL_BIND`, `MPOL_INTERLEAVE` (include/uapi/linux/mempolicy.h).
const PREFERRED: u64 = 1;
const BIND: u64 = 2;
const INTERLEAVE: u64 = 3;
/// `MPOL_MF_MOVE`: pages that are there already move.
const MOVE: u64 = 1 << 1;

/// Why the host cannot do it.
#[derive(Debug, Error)]
pub enum HostMemoryError {
    /// MADV_MERGEABLE failed.
    #[error("cannot let the host merge guest RAM (mergeable): its kernel has no CONFIG_KSM")]
    Merge(#[source] io::Error),
    /// A node is not there.
    #[error("cannot take guest RAM from NUMA node {node}: this host has memory on \
        {}", .have.as_deref().unwrap_or("no NUMA node"))]
    NoNode {
        /// Its number.
        node: u32,
        /// Those that have memory, as the kernel lists them.
        have: Option<String>,
    },
    /// mbind failed.
    #[error("cannot take guest RAM from NUMA nodes {0}: does the process's cpuset have them?")]
    Bind(Numa, #[source] io::Error),
    /// It would not fit.
    #[error("cannot have {} MiB of guest RAM ready (prealloc): the host has {} MiB left, swap \
        included", .need >> 20, .have >> 20)]
    TooLittle {
        /// Bytes asked for.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// MADV_POPULATE_WRITE failed.
    #[error("cannot have all guest RAM ready (prealloc)")]
    Populate(#[source] io::Error),
    /// The kernel is too old.
    #[error("cannot have all guest RAM ready (prealloc): that takes Linux 5.14")]
    PopulateUnknown(#[source] io::Error),
    /// mlock failed.
    #[error("cannot lock {} MiB of guest RAM in memory: {}", .size >> 20, lock_limit(*.limit))]
    Lock {
        /// Bytes asked for.
        size: u64,
        /// RLIMIT_MEMLOCK in bytes.
        limit: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn lock_limit(limit: u64) -> String {
    format!(
        "RLIMIT_MEMLOCK is {} KiB; raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd \
         unit), or give CAP_IPC_LOCK",
        limit >> 10
    )
}

/// Has the host do what `host` says with `ranges` of this process: all of its guest RAM, whatever backs it.
/// Again is no harm.
///
/// # Errors
/// What it cannot do.
pub(super) fn settle(host: &HostMemory, ranges: &[Range<usize>]) -> Result<(), HostMemoryError> {
    if let Some(numa) = host.numa {
        are_there(numa, memory_nodes().as_deref())?;
    }
    for range in ranges {
        if host.mergeable {
            advise(range, libc::MADV_MERGEABLE).map_err(HostMemoryError::Merge)?;
        }
        if let Some(numa) = host.numa {
            bind(range, numa).map_err(|source| HostMemoryError::Bind(numa, source))?;
        }
    }
    if host.prealloc {
        populate(ranges)?;
    }
    if host.lock {
        lock(ranges)?;
    }
    Ok(())
}

fn advise(range: &Range<usize>, advice: i32) -> io::Result<()> {
    let at = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller's range is guest RAM, and none of the advices here changes what it contains.
    match unsafe { libc::madvise(at, range.len(), advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The nodes that have memory, as a list like `0-1,3`.
fn memory_nodes() -> Option<String> {
    let text = fs::read_to_string("/sys/devices/system/node/has_memory").ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn are_there(numa: Numa, have: Option<&str>) -> Result<(), HostMemoryError> {
    let is_there = |node: u32| {
        let parts = have.unwrap_or_default().split(',');
        parts.into_iter().any(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<u32>(), last.parse::<u32>()) {
                (Ok(first), Ok(last)) => (first..=last).contains(&node),
                _ => false,
            }
        })
    };
    match numa.nodes.iter().find(|node| !is_there(*node)) {
        Some(node) => Err(HostMemoryError::NoNode {
            node,
            have: have.map(str::to_owned),
        }),
        None => Ok(()),
    }
}

fn bind(range: &Range<usize>, numa: Numa) -> io::Result<()> {
    let mode = match numa.policy {
        NumaPolicy::Bind => BIND,
        NumaPolicy::Preferred => PREFERRED,
        NumaPolicy::Interleave => INTERLEAVE,
    };
    let mask = numa.nodes.bits();
    // One more than there are bits: `get_nodes` in mm/mempolicy.c takes one away.
    let bits = u64::from(u64::BITS) + 1;
    // SAFETY: mbind(start, len, mode, nodemask, maxnode, flags) reads 64 bits at `mask`, which lives here,
    // and moves no address.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start,
            range.len(),
            mode,
            &raw const mask,
            bits,
            MOVE,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every page its memory, without changing what it contains.
fn populate(ranges: &[Range<usize>]) -> Result<(), HostMemoryError> {
    let all = total(ranges);
    if let Some(have) = available().filter(|have| *have < missing(ranges, all)) {
        return Err(HostMemoryError::TooLittle { need: all, have });
    }
    let most = thread::available_parallelism().map_or(1, usize::from);
    let share = usize::try_from(all).map_or(SHARE, |all| all.div_ceil(most.min(THREADS)));
    let share = share.next_multiple_of(super::anonymous::HUGE).max(SHARE);
    let parts: Vec<_> = ranges
        .iter()
        .flat_map(|range| split(range, share))
        .collect();
    let done: Vec<io::Result<()>> = thread::scope(|scope| {
        let touch = |part: Range<usize>| move || advise(&part, libc::MADV_POPULATE_WRITE);
        let (first, others) = match parts.split_first() {
            Some((first, others)) => (first, others),
            None => return Vec::new(),
        };
        let started: Vec<_> = others
            .iter()
            .map(|part| spawn_scoped(scope, Role::Populate, touch(part.clone())))
            .collect();
        let first = touch(first.clone())();
        let rest = started.into_iter().map(|thread| {
            let failed = |_| Err(io::Error::other("a thread has panicked"));
            thread.and_then(|thread| thread.join().unwrap_or_else(failed))
        });
        std::iter::once(first).chain(rest).collect()
    });
    match done.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Err(HostMemoryError::PopulateUnknown(e))
        }
        Some(e) => Err(HostMemoryError::Populate(e)),
    }
}

fn split(range: &Range<usize>, share: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    (range.start..end)
        .step_by(share)
        .map(move |start| start..end.min(start.saturating_add(share)))
}

fn total(ranges: &[Range<usize>]) -> u64 {
    ranges.iter().map(|range| range.len() as u64).sum()
}

/// What of `all` has no memory yet. Reserved huge pages are set aside.
fn missing(ranges: &[Range<usize>], all: u64) -> u64 {
    let usage = super::usage::Usage::of(ranges).unwrap_or_default();
    match usage.reserved {
        true => 0,
        false => all.saturating_sub(usage.resident + usage.swapped),
    }
}

/// MemAvailable and SwapFree of /proc/meminfo. The kernel would give what it does not have, and end a process
/// for it.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) << 10)
}

fn lock(ranges: &[Range<usize>]) -> Result<(), HostMemoryError> {
    for range in ranges {
        let at = ptr::with_exposed_provenance(range.start);
        // SAFETY: the caller's range is guest RAM; locking it changes neither content nor addresses.
        if unsafe { libc::mlock(at, range.len()) } != 0 {
            let source = io::Error::last_os_error();
            return Err(HostMemoryError::Lock {
                size: total(ranges),
                limit: getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft),
                source,
            });
        }
    }
    Ok(())
}

/// Takes the lock away, without which the kernel does not take pages back (`can_madv_lru_vma`).
pub(super) fn unlock(range: &Range<usize>) {
    let at = ptr::with_exposed_provenance(range.start);
    // SAFETY: as for locking. Nothing to unlock is no error.
    unsafe { libc::munlock(at, range.len()) };
}

/// Writes the first byte.
#[cfg(test)]
pub(super) fn touch(mapping: &super::anonymous::Mapping) {
    // SAFETY: the mapping is writable.
    unsafe { mapping.pointer().write_volatile(7) };
}

#[cfg(test)]
mod tests {
    use super::super::anonymous::{HUGE, Mapping};
    use super::super::config::NodeSet;
    use super::super::usage::Usage;
    use super::*;
    use crate::units::Gpa;

    fn numa(nodes: u64) -> Numa {
        Numa {
            policy: NumaPolicy::Bind,
            nodes: NodeSet::new(nodes),
        }
    }

    #[test]
    fn ready_memory_is_resident_and_keeps_its_content() {
        let mapping = Mapping::new(Gpa(0), 3 * HUGE + 0x3000).unwrap();
        touch(&mapping);
        let host = HostMemory {
            prealloc: true,
            ..HostMemory::default()
        };
        for _ in 0..2 {
            match settle(&host, &[mapping.range()]) {
                // Linux before 5.14.
                Err(HostMemoryError::PopulateUnknown(_)) => return,
                settled => settled.unwrap(),
            }
            let usage = Usage::of(&[mapping.range()]).unwrap();
            assert_eq!(usage.resident, mapping.range().len() as u64);
        }
        // SAFETY: the mapping is readable.
        assert_eq!(unsafe { mapping.pointer().read_volatile() }, 7);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let mapping = Mapping::new(Gpa(0), 1 << 45).unwrap();
        let host = HostMemory {
            prealloc: true,
            ..HostMemory::default()
        };
        let refused = settle(&host, &[mapping.range()]).unwrap_err().to_string();
        assert!(refused.contains("33554432 MiB"), "{refused}");
        assert_eq!(Usage::of(&[mapping.range()]).unwrap().resident, 0);
    }

    #[test]
    fn a_range_is_split_without_gaps() {
        let parts: Vec<_> = split(&(100..350), 100).collect();
        assert_eq!(parts, [100..200, 200..300, 300..350]);
        assert_eq!(split(&(100..100), 100).count(), 0);
    }

    #[test]
    fn nodes_without_memory_are_named() {
        are_there(numa(0b1011), Some("0-1,3")).unwrap();
        let says = |nodes, have| are_there(numa(nodes), have).unwrap_err().to_string();
        assert!(says(0b0100, Some("0-1,3")).contains("node 2: this host has memory on 0-1,3"));
        assert!(says(1, None).contains("no NUMA node"));
    }

    #[test]
    fn memory_comes_from_the_nodes_that_there_are() {
        let mapping = Mapping::new(Gpa(0), HUGE).unwrap();
        let host = |nodes| HostMemory {
            numa: Some(numa(nodes)),
            ..HostMemory::default()
        };
        let far = settle(&host(1 << 63), &[mapping.range()]).unwrap_err();
        assert!(matches!(far, HostMemoryError::NoNode { node: 63, .. }));
        if memory_nodes().is_some_and(|nodes| nodes.starts_with('0')) {
            settle(&host(1), &[mapping.range()]).unwrap();
            let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
            let line = format!("{:x} bind:0", mapping.range().start);
            assert!(maps.contains(&line), "no {line}");
        }
    }

    #[test]
    fn the_limit_on_locks_is_named() {
        let refused = HostMemoryError::Lock {
            size: 64 << 20,
            limit: 8 << 20,
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        };
        let text = refused.to_string();
        assert!(text.contains("64 MiB") && text.contains("RLIMIT_MEMLOCK is 8192 KiB"));
    }
}
