//! Whether the process at the other end still lives, where that can be known: on the same host.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A process, so described that nobody else is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The kernel's random id of this boot.
    pub boot: String,
    /// The PID namespace, as its symbolic link reads.
    pub namespace: String,
    /// The process.
    pub pid: u32,
    /// When it started, in clock ticks since the boot: a number that is used again starts later.
    pub start: u64,
}

/// How often is looked.
const STEP: Duration = Duration::from_millis(5);

impl Process {
    /// This one; `None` if /proc does not say.
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

    /// Whether it can be seen from here.
    pub fn is_on_this_host(&self) -> bool {
        boot().as_ref() == Some(&self.boot) && namespace().as_ref() == Some(&self.namespace)
    }

    /// Whether it is known to have ended: none of its threads will ever run again.
    pub fn has_ended(&self) -> bool {
        if !self.is_on_this_host() {
            return false;
        }
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(text) => Stat::parse(&text).is_some_and(|stat| stat.is_over(self.start)),
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// Waits until it has ended; `false` if it has not within `patience`, or cannot be seen from here.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if self.has_ended() {
                return true;
            }
            if Instant::now() >= deadline || !self.is_on_this_host() {
                return false;
            }
            std::thread::sleep(STEP);
        }
    }
}

/// What matters of /proc/PID/stat (proc_pid_stat(5)).
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
        // The name in parentheses may hold anything, so what counts begins behind the last one. Field 3 comes first there.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            state: field(3)?.chars().next()?,
            threads: field(20)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
        })
    }

    /// Whether the process that started at `start` is over, which has this number now. A first thread that has ended waits as
    /// a zombie for the others.
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
    fn a_process_is_known_to_live_and_to_have_ended() {
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
        // A zombie counts, and so does one that is gone.
        assert!(process.wait_for_end(Duration::from_secs(60)));
        child.wait().unwrap();
        assert!(process.has_ended());
        assert!(!ours.has_ended());
        // Its number has been given to another.
        assert!(
            Process {
                start: ours.start + 1,
                ..ours
            }
            .has_ended()
        );
        // Elsewhere nothing is known.
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
