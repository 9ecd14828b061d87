//! Exits to the host by reason, counted by the kernel: a histogram trigger on the event `kvm_exit`, in a tracing instance of
//! our own (Documentation/trace/histogram.rst).

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
    /// Not root.
    #[error("host exits are not counted by reason: only root can read the kernel's trace events")]
    NotRoot,
    /// No tracefs.
    #[error("host exits are not counted by reason: cannot mount tracefs (CONFIG_FTRACE)")]
    Mount(#[source] io::Error),
    /// A file of it.
    #[error("host exits are not counted by reason: {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content.
    #[error("host exits are not counted by reason: the kernel's histogram cannot be read: {0:?}")]
    Histogram(String),
    /// The kernel lost some.
    #[error("host exits are not counted by reason: the kernel's histogram lost {0}")]
    Dropped(u64),
}

/// A tracing instance. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct Tracing {
    instance: PathBuf,
    /// Where tracefs was mounted for it.
    mounted: Option<tempfile::TempDir>,
}

impl Tracing {
    /// Makes an instance.
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

    /// A counter for one VM, on a CPU of `vendor`.
    pub(crate) fn counter(&self, vendor: Vendor) -> Reasons {
        Reasons {
            event: self.event(),
            own: match vendor {
                Vendor::Intel => IO_INSTRUCTION,
                Vendor::Amd => VMEXIT_IOIO,
            },
            trigger: None,
            threads: Vec::new(),
        }
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // Without the directory there is nothing to take away.
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

/// Where tracefs is, by the text of /proc/mounts.
fn tracefs(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "tracefs").then(|| place.into())
    })
}

/// Mounts it where nobody else looks.
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

/// Counts the exits of one VM's vCPUs in an interval.
#[derive(Debug)]
pub(crate) struct Reasons {
    event: PathBuf,
    /// The reason of the exit that ends an interval.
    own: u32,
    /// The trigger that is set.
    trigger: Option<String>,
    threads: Vec<i32>,
}

impl Reasons {
    /// Exits of these threads count.
    pub(super) fn watch(&mut self, threads: Vec<i32>) {
        self.threads = threads;
    }

    /// The interval begins.
    pub(super) fn begin(&mut self) -> Result<(), ReasonsError> {
        self.clear()?;
        let trigger = trigger(&self.threads);
        self.write(&trigger)?;
        self.trigger = Some(trigger);
        Ok(())
    }

    /// The interval has ended with an exit for port output, which does not count itself: by reason, how many.
    pub(super) fn end(&mut self) -> Result<BTreeMap<u32, u64>, ReasonsError> {
        let path = self.event.join("hist");
        let text = fs::read_to_string(&path).map_err(file(&path))?;
        self.clear()?;
        let mut counts = counts(&text)?;
        if let Some(own) = counts.get_mut(&self.own) {
            *own = own.saturating_sub(1);
        }
        counts.retain(|_, count| *count > 0);
        Ok(counts)
    }

    fn clear(&mut self) -> Result<(), ReasonsError> {
        match self.trigger.take() {
            Some(trigger) => self.write(&format!("!{trigger}")),
            None => Ok(()),
        }
    }

    fn write(&self, text: &str) -> Result<(), ReasonsError> {
        let path = self.event.join("trigger");
        // Opening it for truncation would take all triggers away.
        let mut out = File::options()
            .append(true)
            .open(&path)
            .map_err(file(&path))?;
        out.write_all(text.as_bytes()).map_err(file(&path))
    }
}

impl Drop for Reasons {
    fn drop(&mut self) {
        // What could not be cleared goes with the instance.
        let _cleared = self.clear();
    }
}

fn trigger(threads: &[i32]) -> String {
    let ours: Vec<_> = threads
        .iter()
        .map(|thread| format!("common_pid == {thread}"))
        .collect();
    format!("hist:keys=exit_reason if {}", ours.join(" || "))
}

/// The counts in the text of a `hist` file.
fn counts(text: &str) -> Result<BTreeMap<u32, u64>, ReasonsError> {
    let mut counts = BTreeMap::new();
    let wrong = |line: &str| ReasonsError::Histogram(line.to_owned());
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("{ exit_reason:") {
            let numbers = rest.split_once("} hitcount:").and_then(|(reason, hits)| {
                Some((reason.trim().parse().ok()?, hits.trim().parse().ok()?))
            });
            let (reason, hits): (u32, u64) = numbers.ok_or_else(|| wrong(line))?;
            counts.insert(reason, hits);
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

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# event histogram\n#\n# trigger info: hist:keys=exit_reason:vals=hitcount:sort=hitcount:size=2048 if common_pid == 7 [active]\n#\n\n{ exit_reason:         30 } hitcount:          1\n{ exit_reason:         23 } hitcount:         96\n\nTotals:\n    Hits: 97\n    Entries: 2\n    Dropped: 0\n";

    #[test]
    fn a_kernels_histogram_is_read() {
        assert_eq!(counts(TEXT).unwrap(), [(23, 96), (30, 1)].into());
        let lost = TEXT.replace("Dropped: 0", "Dropped: 3");
        assert!(matches!(counts(&lost), Err(ReasonsError::Dropped(3))));
        let odd = TEXT.replace(" 30 }", " IO }");
        assert!(matches!(counts(&odd), Err(ReasonsError::Histogram(_))));
        assert_eq!(counts("").unwrap(), BTreeMap::new());
    }

    #[test]
    fn only_the_vcpus_count() {
        assert_eq!(
            trigger(&[7, 9]),
            "hist:keys=exit_reason if common_pid == 7 || common_pid == 9"
        );
    }

    #[test]
    fn tracefs_is_found() {
        let mounts = "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n";
        assert_eq!(tracefs(mounts), Some("/sys/kernel/tracing".into()));
        assert_eq!(tracefs("proc /proc proc rw 0 0\n"), None);
    }
}
