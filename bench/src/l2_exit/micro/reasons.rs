//! Exits to the host by reason, counted by the kernel: a histogram trigger on the event `kvm_exit`, in a
//! tracing instance of our own (Documentation/trace/histogram.rst).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use crate::kvm_module::Vendor;

/// Port I/O, as the event names it: Intel SDM vol. 3, appendix C; AMD APM vol. 2, appendix C.
const IO_INSTRUCTION: u32 = 30;
const VMEXIT_IOIO: u32 = 0x7b;

/// Why exits cannot be counted by reason.
#[derive(Debug, Error)]
pub(crate) enum ReasonsError {
    #[error("host exits are not counted by reason: only root can read the kernel's trace events")]
    NotRoot,
    /// No tracefs.
    #[error("host exits are not counted by reason: cannot mount tracefs (CONFIG_FTRACE)")]
    Mount(#[source] io::Error),
    /// A file of tracefs could not be read or written.
    #[error("host exits are not counted by reason: {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("host exits are not counted by reason: the kernel's histogram cannot be read: {0:?}")]
    Histogram(String),
    /// The kernel's histogram overflowed.
    #[error("host exits are not counted by reason: the kernel's histogram lost {0}")]
    Dropped(u64),
}

/// A tracing instance. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Tracing {
    instance: PathBuf,
    /// The mount point, if tracefs was mounted for it.
    mounted: Option<tempfile::TempDir>,
}

impl Tracing {
    /// Creates an instance.
    pub(crate) fn new() -> Result<Self, ReasonsError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ReasonsError::NotRoot);
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let (root, mounted) = match tracefs(&mounts) {
            Some(root) => (root, None),
            None => {
                let directory = mount_tracefs().map_err(ReasonsError::Mount)?;
                (directory.path().to_owned(), Some(directory))
            }
        };
        let name = format!("hypernest-bench-{}", std::process::id());
        let tracing = Self {
            instance: root.join("instances").join(name),
            mounted,
        };
        fs::create_dir(&tracing.instance).map_err(file(&tracing.instance))?;
        let event = tracing.event();
        if !event.join("trigger").exists() || !event.join("hist").exists() {
            let missing = io::Error::other(
                "there is no such event with histograms (CONFIG_HIST_TRIGGERS, and KVM loaded)",
            );
            return Err(file(&event)(missing));
        }
        Ok(tracing)
    }

    fn event(&self) -> PathBuf {
        self.instance.join("events/kvm/kvm_exit")
    }

    /// Starts counting. This takes a moment, and slows down every exit of every VM until the result is
    /// dropped.
    pub(super) fn count(&self) -> Result<Counting, ReasonsError> {
        let counting = Counting {
            event: self.event(),
        };
        counting.write(TRIGGER)?;
        Ok(counting)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // If this fails, the directory does not exist.
        let _removed = fs::remove_dir(&self.instance);
        if let Some(directory) = &self.mounted {
            let _unmounted = umount2(directory.path(), MntFlags::MNT_DETACH);
        }
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ReasonsError {
    let path = path.to_owned();
    move |source| ReasonsError::File { path, source }
}

/// The mount point of tracefs, by the text of /proc/mounts.
fn tracefs(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "tracefs").then(|| place.into())
    })
}

/// Mounts tracefs in a private directory.
fn mount_tracefs() -> io::Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let none = None::<&str>;
    mount(
        Some("tracefs"),
        directory.path(),
        Some("tracefs"),
        MsFlags::empty(),
        none,
    )?;
    Ok(directory)
}

/// The kernel counts exits by thread and reason.
#[derive(Debug)]
pub(super) struct Counting {
    event: PathBuf,
}

/// Threads that have ended stay in the histogram; the size leaves room for many.
const TRIGGER: &str = "hist:keys=common_pid,exit_reason:size=8192";

impl Counting {
    /// A counter for one VM, on a CPU of `vendor`.
    pub(super) fn counter(&self, vendor: Vendor) -> Reasons {
        Reasons {
            hist: self.event.join("hist"),
            own: match vendor {
                Vendor::Intel => IO_INSTRUCTION,
                Vendor::Amd => VMEXIT_IOIO,
            },
            threads: Vec::new(),
            begin: BTreeMap::new(),
        }
    }

    fn write(&self, text: &str) -> Result<(), ReasonsError> {
        let path = self.event.join("trigger");
        // Opening it for truncation would remove all triggers.
        let opened = File::options().append(true).open(&path);
        opened
            .and_then(|mut out| out.write_all(text.as_bytes()))
            .map_err(file(&path))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Counts that could not be cleared are removed with the instance.
        let _cleared = self.write(&format!("!{TRIGGER}"));
    }
}

/// Counts the exits of one VM's vCPUs in an interval.
#[derive(Debug)]
pub(super) struct Reasons {
    hist: PathBuf,
    /// The reason of the exit that ends an interval.
    own: u32,
    threads: Vec<i32>,
    /// The counts at the begin of the interval.
    begin: BTreeMap<u32, u64>,
}

impl Reasons {
    /// Sets the threads whose exits count.
    pub(super) fn watch(&mut self, threads: Vec<i32>) {
        self.threads = threads;
    }

    /// Starts the interval.
    pub(super) fn begin(&mut self) -> Result<(), ReasonsError> {
        self.begin = self.read()?;
        Ok(())
    }

    /// Ends the interval and returns the counts by reason. The exit for port output that ends it is not
    /// counted.
    pub(super) fn end(&mut self) -> Result<BTreeMap<u32, u64>, ReasonsError> {
        let mut counts = self.read()?;
        for (reason, before) in std::mem::take(&mut self.begin) {
            if let Some(count) = counts.get_mut(&reason) {
                *count = count.saturating_sub(before);
            }
        }
        if let Some(own) = counts.get_mut(&self.own) {
            *own = own.saturating_sub(1);
        }
        counts.retain(|_, count| *count > 0);
        Ok(counts)
    }

    fn read(&self) -> Result<BTreeMap<u32, u64>, ReasonsError> {
        let text = fs::read_to_string(&self.hist).map_err(file(&self.hist))?;
        counts(&text, &self.threads)
    }
}

/// The counts of `threads` in the text of a `hist` file, by reason.
fn counts(text: &str, threads: &[i32]) -> Result<BTreeMap<u32, u64>, ReasonsError> {
    let mut counts = BTreeMap::new();
    let wrong = |line: &str| ReasonsError::Histogram(line.to_owned());
    for line in text.lines().map(str::trim) {
        if line.starts_with('{') {
            let (thread, reason, hits) = entry(line).ok_or_else(|| wrong(line))?;
            if threads.contains(&thread) {
                *counts.entry(reason).or_insert(0) += hits;
            }
        } else if let Some(dropped) = line.strip_prefix("Dropped:") {
            match dropped.trim().parse() {
                Ok(0) => {}
                Ok(dropped) => return Err(ReasonsError::Dropped(dropped)),
                Err(_) => return Err(wrong(line)),
            }
        }
    }
    Ok(counts)
}

/// `{ common_pid: THREAD, exit_reason: REASON } hitcount: HITS`.
fn entry(line: &str) -> Option<(i32, u32, u64)> {
    let (keys, hits) = line.strip_prefix('{')?.split_once('}')?;
    let (thread, reason) = keys.split_once(',')?;
    let value = |text: &'_ str, name: &str| -> Option<String> {
        let value = text.trim().strip_prefix(name)?.trim();
        Some(value.to_owned())
    };
    Some((
        value(thread, "common_pid:")?.parse().ok()?,
        value(reason, "exit_reason:")?.parse().ok()?,
        value(hits, "hitcount:")?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# event histogram\n#\n# trigger info: \
        hist:keys=common_pid,exit_reason:vals=hitcount:sort=hitcount:size=8192 [active]\n#\n\n{ \
        common_pid:          7, exit_reason:         30 } hitcount:          1\n{ common_pid:          7, \
        exit_reason:         23 } hitcount:         96\n{ common_pid:          9, exit_reason:         23 } \
        hitcount:          4\n{ common_pid:          8, exit_reason:         12 } hitcount:          \
        5\n\nTotals:\n    Hits: 106\n    Entries: 4\n    Dropped: 0\n";

    #[test]
    fn a_kernels_histogram_is_read() {
        assert_eq!(counts(TEXT, &[7, 9]).unwrap(), [(23, 100), (30, 1)].into());
        assert_eq!(counts(TEXT, &[1]).unwrap(), BTreeMap::new());
        let lost = TEXT.replace("Dropped: 0", "Dropped: 3");
        assert!(matches!(counts(&lost, &[]), Err(ReasonsError::Dropped(3))));
        let odd = TEXT.replace(" 30 }", " IO }");
        assert!(matches!(counts(&odd, &[]), Err(ReasonsError::Histogram(_))));
        assert_eq!(counts("", &[]).unwrap(), BTreeMap::new());
    }

    #[test]
    fn an_interval_is_what_came_in_between_but_for_its_own_end() {
        let directory = tempfile::tempdir().unwrap();
        let counting = Counting {
            event: directory.path().to_owned(),
        };
        let hist = directory.path().join("hist");
        let mut reasons = counting.counter(Vendor::Intel);
        reasons.watch(vec![7]);
        fs::write(&hist, TEXT).unwrap();
        reasons.begin().unwrap();
        let later = TEXT.replace("         96", "        126");
        fs::write(
            &hist,
            later.replace("hitcount:          1\n", "hitcount:          2\n"),
        )
        .unwrap();
        assert_eq!(reasons.end().unwrap(), [(23, 30)].into());
    }

    #[test]
    fn tracefs_is_found() {
        let mounts = "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n";
        assert_eq!(tracefs(mounts), Some("/sys/kernel/tracing".into()));
        assert_eq!(tracefs("proc /proc proc rw 0 0\n"), None);
    }
}
