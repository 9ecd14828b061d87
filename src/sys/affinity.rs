//! Which CPUs of the host a thread may run on.

use std::io;
use std::ops::RangeInclusive;

use super::{Role, spawn};

/// 8192 CPUs: as many as the kernel can be built for (CONFIG_NR_CPUS on x86).
const WORDS: usize = 128;

type Set = [u64; WORDS];

/// Lets the calling thread run on `cpus` alone, as far as the process's cpuset has them.
///
/// # Errors
/// What the kernel reports: EINVAL if it may run on none of them.
pub(crate) fn pin(cpus: &RangeInclusive<u16>) -> io::Result<()> {
    let mut set: Set = [0; WORDS];
    for cpu in cpus.clone() {
        let word = set.get_mut(usize::from(cpu) / 64);
        *word.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))? |= 1 << (cpu % 64);
    }
    // SAFETY: the pointer and the length are of one array, which the kernel only reads; 0 is the calling
    // thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of::<Set>(), (&raw const set).cast()) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the calling thread may run on.
#[cfg(test)]
fn pinned() -> io::Result<Set> {
    let mut set: Set = [0; WORDS];
    // SAFETY: the pointer and the length are of one array, which the kernel fills at most; 0 is the calling
    // thread.
    let done = unsafe { libc::sched_getaffinity(0, size_of::<Set>(), (&raw mut set).cast()) };
    match done {
        0.. => Ok(set),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first of `cpus` on which no thread of this process can run: it does not exist, is offline, or is not
/// in the process's cpuset. A thread of its own tries: the kernel leaves out silently what cannot be had.
///
/// # Errors
/// If no thread can be had.
pub(crate) fn missing(cpus: Vec<RangeInclusive<u16>>) -> io::Result<Option<u16>> {
    let tried = spawn(Role::Affinity, move || {
        for cpu in cpus.into_iter().flatten() {
            if pin(&(cpu..=cpu)).is_err() {
                return Some(cpu);
            }
        }
        None
    })?;
    tried
        .join()
        .map_err(|_| io::Error::other("the thread has panicked"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_runs_where_it_was_pinned() {
        let allowed = pinned().unwrap();
        let first =
            (0..8192_u16).find(|cpu| allowed[usize::from(*cpu / 64)] & 1 << (cpu % 64) != 0);
        let first = first.unwrap();
        assert_eq!(missing(vec![first..=first]).unwrap(), None);
        thread::spawn(move || {
            pin(&(first..=first)).unwrap();
            let mut expected: Set = [0; WORDS];
            expected[usize::from(first / 64)] = 1 << (first % 64);
            assert_eq!(pinned().unwrap(), expected);
        })
        .join()
        .unwrap();
        assert_eq!(pinned().unwrap(), allowed);
    }

    #[test]
    fn cpus_that_are_not_there_are_found() {
        assert_eq!(missing(vec![8191..=8191]).unwrap(), Some(8191));
        assert_eq!(missing(vec![u16::MAX..=u16::MAX]).unwrap(), Some(u16::MAX));
        assert_eq!(missing(Vec::new()).unwrap(), None);
    }
}
