//! Detects whether the peer's process has ended, which is possible on the same host only.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Identifies a process uniquely, even if its PID is reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The kernel's random id of this boot.
    pub boot: String,
    /// The PID namespace, as its symbolic link reads.
    pub namespace: String,
    /// The process.
    pub pid: u32,
    /// Its start time, in clock ticks since boot: a reused PID starts later.
    pub start: u64,
}

/// The poll interval.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Process {
    /// Returns this process; `None` if /proc cannot be read.
    pub fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// The process numbered `pid` on this host.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self {
            boot: boot()?,
            namespace: namespace()?,
            pid,
            start: Stat::of(pid)?.start,
        })
    }

    /// Whether this process can observe it: same boot, same PID namespace.
    pub fn is_on_this_host(&self) -> bool {
        boot().as_ref() == Some(&self.boot) && namespace().as_ref() == Some(&self.namespace)
    }

    /// Whether it is known to have ended: none of its threads will run again.
    pub fn has_ended(&self) -> bool {
        if !self.is_on_this_host() {
            return false;
        }
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(text) => Stat::parse(&text).is_some_and(|stat| stat.is_over(self.start)),
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// Waits until the process has ended; returns `false` after `timeout`, or if it cannot be observed from
    /// here.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.has_ended() {
                return true;
            }
            if Instant::now() >= deadline || !self.is_on_this_host() {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The fields of /proc/PID/stat that are used (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u64,
    start: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may contain anything, so fields count from after the last one; the first
        // there is field 3.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            state: field(3)?.chars().next()?,
            threads: field(20)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
        })
    }

    /// Whether the process that started at `start` has ended, given the current stat of its PID. A main
    /// thread that has ended stays a zombie until the other threads end.
    fn is_over(&self, start: u64) -> bool {
        self.start != start || (matches!(self.state, 'Z' | 'X') && self.threads <= 1)
    }
}

fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

fn namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn live_and_ended_processes_are_distinguished() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ours = Process::current().unwrap();
        let process = Process {
            pid: child.id(),
            start: Stat::of(child.id()).unwrap().start,
            ..ours.clone()
        };
        assert!(!process.has_ended());
        assert!(!process.wait_for_end(Duration::ZERO));
        child.kill().unwrap();
        // A zombie counts as ended, and so does a reaped process.
        assert!(process.wait_for_end(Duration::from_secs(60)));
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(!ours.has_ended());
        // Its PID has been reused.
        assert!(
            Process {
                start: ours.start + 1,
                ..ours
            }
            .has_ended()
        );
        // Nothing is known about a process of another host.
        let elsewhere = Process {
            boot: "other".to_owned(),
            ..process
        };
        assert!(!elsewhere.has_ended());
        assert!(!elsewhere.wait_for_end(Duration::from_secs(60)));
    }

    #[test]
    fn names_cannot_confuse() {
        let text = "7 (a) Z 1 (x) ) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 5 0 4321 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.threads, stat.start), ('S', 5, 4321));
        let zombie = text.replace(" S ", " Z ");
        assert!(!Stat::parse(&zombie).unwrap().is_over(4321));
        assert!(
            Stat::parse(&zombie.replace(" 5 0 4321", " 1 0 4321"))
                .unwrap()
                .is_over(4321)
        );
        assert_eq!(Stat::parse("7 (a) Z"), None);
    }
}
