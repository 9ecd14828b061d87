//! What a VMM's process costs the host: its CPU time (proc_pid_stat(5)), and its VM's exits
//! (Documentation/virt/kvm: `exits` below /sys/kernel/debug/kvm).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::figures::{Figure, Values};

/// The kernel's unit of time in /proc (USER_HZ, include/asm-generic/param.h).
const TICK: Duration = Duration::from_millis(10);

/// Counters of a process at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// In user mode, in the kernel and in the guest, of all threads that there were.
    cpu: Duration,
    /// Its share of the threads that run vCPUs, if the kernel tells it.
    vcpus: Option<Duration>,
    /// How often vCPUs left the guest, if this user may know.
    exits: Option<u64>,
}

/// The difference of two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    pub(super) cpu_us: f64,
    /// Of all threads but those that run vCPUs.
    pub(super) beside_vcpus_us: Option<f64>,
    pub(super) exits: Option<f64>,
}

impl Sample {
    /// The counters of the process `pid`.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Self::below(Path::new("/"), pid)
    }

    fn below(root: &Path, pid: u32) -> io::Result<Self> {
        let process = root.join(format!("proc/{pid}"));
        let stat = fs::read_to_string(process.join("stat"))?;
        let cpu = cpu(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let mut threads = Vec::new();
        let mut vcpus = None;
        for entry in fs::read_dir(process.join("task"))?.flatten() {
            // A thread may end at any time.
            let text = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            threads.push(entry.file_name().to_string_lossy().into_owned());
            if runs_a_vcpu(text("comm").trim_end())
                && let Some(time) = on_cpu(&text("schedstat"))
            {
                *vcpus.get_or_insert(Duration::ZERO) += time;
            }
        }
        let exits = exits(&root.join("sys/kernel/debug/kvm"), &threads);
        Ok(Self { cpu, vcpus, exits })
    }

    /// What was spent since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Cost {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let vcpus = self.vcpus.zip(earlier.vcpus);
        let beside = vcpus.map(|(now, then)| cpu.saturating_sub(now.saturating_sub(then)));
        let exits = self.exits.zip(earlier.exits);
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Cost {
            cpu_us: us(cpu),
            beside_vcpus_us: beside.map(us),
            // Far below 2^53.
            exits: exits.map(|(now, then)| now.saturating_sub(then) as f64),
        }
    }
}

/// How the cost of a load is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) cpu: Figure,
    pub(super) beside_vcpus: Figure,
    pub(super) exits: Figure,
}

impl Cost {
    /// CPU time divided by `cpu_per`, and exits divided by `exits_per`.
    pub(super) fn values(self, shown: Shown, cpu_per: f64, exits_per: f64) -> Values {
        let mut values = vec![(shown.cpu, self.cpu_us / cpu_per)];
        let beside = self.beside_vcpus_us.map(|us| us / cpu_per);
        let exits = self.exits.map(|exits| exits / exits_per);
        values.extend(beside.map(|value| (shown.beside_vcpus, value)));
        values.extend(exits.map(|value| (shown.exits, value)));
        values
    }
}

/// utime and stime: the 14th and 15th field. The second is a name in parentheses, with any character in it.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    TICK.checked_mul(ticks()?.checked_add(ticks()?)?)
}

/// The first field of schedstat (Documentation/scheduler/sched-stats.rst).
fn on_cpu(schedstat: &str) -> Option<Duration> {
    let nanoseconds = schedstat.split_ascii_whitespace().next()?;
    nanoseconds.parse().ok().map(Duration::from_nanos)
}

/// By the names that hypernest and QEMU give them: `vcpu0`, `CPU 0/KVM`.
fn runs_a_vcpu(name: &str) -> bool {
    let number = |prefix| {
        let rest: Option<&str> = name.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    number("vcpu") || number("CPU ")
}

/// KVM names a VM's directory by the thread that made it and the file descriptor.
fn exits(kvm: &Path, threads: &[String]) -> Option<u64> {
    let entries = fs::read_dir(kvm).ok()?.flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let thread = name.to_str().and_then(|name| name.split_once('-'));
        thread.is_some_and(|(thread, _)| threads.iter().any(|own| own == thread))
    });
    let mut all = None;
    for vm in ours {
        let count = fs::read_to_string(vm.path().join("exits")).ok()?;
        *all.get_or_insert(0) += count.trim().parse::<u64>().ok()?;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A process with a thread for a vCPU and one for a disk.
    fn process(root: &Path, ticks: u32, vcpu_ns: u64, exits: u64) -> Sample {
        let stat =
            format!("71 (a )b) S 1 71 71 0 -1 4194560 9 0 0 0 {ticks} 20 0 0 20 0 3 0 5 6 7");
        write(root, "proc/71/stat", &stat);
        for (thread, name, time) in [
            (71, "hypernest", 5),
            (72, "vcpu0", vcpu_ns),
            (73, "disk", 9),
        ] {
            let task = format!("proc/71/task/{thread}");
            write(root, &format!("{task}/comm"), &format!("{name}\n"));
            write(root, &format!("{task}/schedstat"), &format!("{time} 1 2\n"));
        }
        write(root, "sys/kernel/debug/kvm/72-9/exits", &exits.to_string());
        write(root, "sys/kernel/debug/kvm/99-9/exits", "1000000\n");
        write(root, "sys/kernel/debug/kvm/exits", "2000000\n");
        Sample::below(root, 71).unwrap()
    }

    #[test]
    fn a_cost_is_the_difference_of_two_samples() {
        let root = tempfile::tempdir().unwrap();
        let before = process(root.path(), 100, 1_000_000_000, 500);
        assert_eq!(before.cpu, Duration::from_millis(1200));
        let after = process(root.path(), 300, 2_500_000_000, 700);
        let cost = after.since(before);
        assert!((cost.cpu_us - 2e6).abs() < 1.0, "{cost:?}");
        assert!(
            (cost.beside_vcpus_us.unwrap() - 5e5).abs() < 1.0,
            "{cost:?}"
        );
        assert_eq!(cost.exits, Some(200.0));
    }

    #[test]
    fn a_cost_is_divided_by_what_was_done() {
        const SHOWN: Shown = Shown {
            cpu: Figure::new("CPU", "us", 0),
            beside_vcpus: Figure::new("beside", "us", 0),
            exits: Figure::new("exits", "exits", 0),
        };
        let cost = Cost {
            cpu_us: 100.0,
            beside_vcpus_us: None,
            exits: Some(60.0),
        };
        let values = cost.values(SHOWN, 10.0, 20.0);
        assert_eq!(values, [(SHOWN.cpu, 10.0), (SHOWN.exits, 3.0)]);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "proc/5/stat",
            "5 (x) R 1 5 5 0 -1 0 0 0 0 0 7 8 0",
        );
        write(root.path(), "proc/5/task/5/comm", "x\n");
        let sample = Sample::below(root.path(), 5).unwrap();
        assert_eq!((sample.vcpus, sample.exits), (None, None));
        assert_eq!(sample.since(sample).beside_vcpus_us, None);
        assert!(Sample::below(root.path(), 6).is_err());
        write(root.path(), "proc/5/stat", "5 x R");
        assert!(Sample::below(root.path(), 5).is_err());
    }

    #[test]
    fn threads_of_vcpus() {
        for name in ["vcpu0", "vcpu12", "CPU 0/KVM"] {
            assert!(runs_a_vcpu(name), "{name}");
        }
        for name in ["hypernest", "vcpus", "CPU", "IO io", "disk virtio"] {
            assert!(!runs_a_vcpu(name), "{name}");
        }
    }

    #[test]
    fn this_process_has_used_its_cpu() {
        assert!(Sample::of(std::process::id()).is_ok());
    }
}
