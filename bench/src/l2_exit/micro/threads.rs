//! The vCPUs' threads: their ids and the host CPUs on which they run.

use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The kernel's ids of this process's vCPU threads, by vCPU.
pub(super) fn of_vcpus() -> Vec<i32> {
    let entries = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let mut threads: Vec<(u32, i32)> = entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            // The VMM gives its threads this name.
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let vcpu = name.trim().strip_prefix("vcpu")?.parse().ok()?;
            Some((vcpu, id))
        })
        .collect();
    threads.sort_unstable();
    threads.into_iter().map(|(_, id)| id).collect()
}

/// Binds each thread to the CPU at the same index.
pub(super) fn pin(threads: &[i32], cpus: &[u32]) -> io::Result<()> {
    for (&thread, &cpu) in threads.iter().zip(cpus) {
        let mut set = CpuSet::new();
        set.set(usize::try_from(cpu).map_err(io::Error::other)?)?;
        sched_setaffinity(Pid::from_raw(thread), &set)?;
    }
    Ok(())
}

/// Binds this thread, and those that it starts from now on, to a CPU.
pub(in crate::l2_exit) fn bind(cpu: u32) -> io::Result<()> {
    // The kernel takes 0 as the calling thread.
    pin(&[0], &[cpu])
}

/// Binds a process that has just been started, and its later threads, to all of `cpus`; to any CPU if there
/// are none.
pub(super) fn bind_process(id: u32, cpus: &[u32]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(usize::try_from(cpu).map_err(io::Error::other)?)?;
    }
    let id = i32::try_from(id).map_err(io::Error::other)?;
    Ok(sched_setaffinity(Pid::from_raw(id), &set)?)
}

/// CPUs for `count` vCPUs: the last that this process may use, since the first ones get most interrupts; some
/// twice if there are not enough. Empty if the kernel does not report them.
pub(in crate::l2_exit) fn choose(count: usize) -> Vec<u32> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    let allowed = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true));
    choice(
        allowed.filter_map(|cpu| u32::try_from(cpu).ok()).collect(),
        count,
    )
}

fn choice(mut allowed: Vec<u32>, count: usize) -> Vec<u32> {
    allowed.reverse();
    allowed.into_iter().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpus_are_taken_and_few_are_shared() {
        assert_eq!(choice(vec![0, 1, 2, 5], 2), [5, 2]);
        assert_eq!(choice(vec![3], 2), [3, 3]);
        assert_eq!(choice(vec![], 2), [0; 0]);
    }

    #[test]
    fn threads_are_found_by_their_names_and_bound() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("vcpu1".into());
        let thread = thread.spawn(move || {
            ready.send(()).unwrap();
            let _ended = ended.recv();
        });
        wait.recv().unwrap();
        let found = of_vcpus();
        assert_eq!(found.len(), 1);
        let cpu = choose(1);
        pin(&found, &cpu).unwrap();
        let set = sched_getaffinity(Pid::from_raw(found[0])).unwrap();
        assert!(set.is_set(cpu[0] as usize).unwrap());
        drop(end);
        thread.unwrap().join().unwrap();
    }
}
