//! Writes statistics: FILE as JSON, FILE.hlog as an HDR histogram log. docs/exit-statistics.md describes
//! both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use serde::Serialize;
use thiserror::Error;

use super::snapshot::{CountersSnapshot, Summary};
use super::{ExitReason, bucket};
use crate::sys::private::{self, Existing};

/// Why statistics cannot be recorded or written.
#[derive(Debug, Error)]
pub enum ExitStatsError {
    /// There is no memory for the counters.
    #[error("no memory for the exit statistics")]
    NoMemory,
    /// A file cannot be written.
    #[error("cannot write the exit statistics to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The statistics of a VM.
#[derive(Clone, Debug)]
pub struct StatsReport<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// When it started.
    pub started: SystemTime,
    /// How long ago that was.
    pub uptime: Duration,
    /// By VP index.
    pub vcpus: Vec<CountersSnapshot>,
}

#[derive(Serialize)]
struct Json<'a> {
    format: &'static str,
    version: u32,
    hypernest: &'static str,
    vm: &'a str,
    uptime_ns: u64,
    unit: &'static str,
    significant_digits: u8,
    max_in_range: u64,
    all: BTreeMap<&'static str, Summary>,
    vcpus: Vec<JsonVcpu>,
}

#[derive(Serialize)]
struct JsonVcpu {
    vcpu: usize,
    exits: BTreeMap<&'static str, Summary>,
}

impl StatsReport<'_> {
    /// Writes both files, each complete or not at all: it is written under another name and renamed. A target
    /// that is no regular file, such as a pipe or a terminal, is written directly.
    ///
    /// # Errors
    /// If one of them cannot be written; a previous file of that name then still exists.
    pub fn write(&self, path: &Path) -> Result<(), ExitStatsError> {
        let mut log = OsString::from(path);
        log.push(".hlog");
        let log = PathBuf::from(log);
        replace(path, |out| self.write_json(out))?;
        replace(&log, |out| self.write_log(out))
    }

    /// All vCPUs together.
    fn all(&self) -> CountersSnapshot {
        let mut all = CountersSnapshot::default();
        for vcpu in &self.vcpus {
            all.add(vcpu);
        }
        all
    }

    /// The figures as JSON.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let json = Json {
            format: "hypernest-exits",
            version: 1,
            hypernest: env!("CARGO_PKG_VERSION"),
            vm: self.vm,
            uptime_ns: u64::try_from(self.uptime.as_nanos()).unwrap_or(u64::MAX),
            unit: "ns",
            significant_digits: bucket::DIGITS,
            max_in_range: bucket::MAX,
            all: summaries(&self.all()),
            vcpus: self
                .vcpus
                .iter()
                .enumerate()
                .map(|(vcpu, snapshot)| JsonVcpu {
                    vcpu,
                    exits: summaries(snapshot),
                })
                .collect(),
        };
        serde_json::to_writer_pretty(&mut *out, &json)?;
        out.write_all(b"\n")
    }

    /// The histograms as an HDR histogram log: one line per vCPU and reason, tagged `vcpuN.REASON`, and
    /// `all.REASON`.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_log(&self, out: &mut dyn Write) -> io::Result<()> {
        // The writer's type requires a sized writer.
        let mut out = out;
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("[exits of the VM {}; unit: ns]", self.vm))
            .with_start_time(self.started)
            .with_base_time(self.started)
            .with_max_value_divisor(1.0)
            .begin_log_with(&mut out, &mut serializer)?;
        let all = self.all();
        let vcpus = self.vcpus.iter().enumerate();
        let lines = vcpus
            .map(|(vcpu, snapshot)| (format!("vcpu{vcpu}"), snapshot))
            .chain([("all".to_owned(), &all)]);
        for (who, snapshot) in lines {
            for (reason, counts) in &snapshot.reasons {
                let tag = format!("{who}.{}", reason.name());
                log.write_histogram(
                    &counts.histogram(),
                    Duration::ZERO,
                    self.uptime,
                    Tag::new(&tag),
                )
                .map_err(|e| match e {
                    IntervalLogWriterError::IoError(e) => e,
                    IntervalLogWriterError::SerializeError(e) => io::Error::other(e),
                })?;
            }
        }
        Ok(())
    }
}

fn summaries(snapshot: &CountersSnapshot) -> BTreeMap<&'static str, Summary> {
    snapshot
        .reasons
        .iter()
        .map(|(reason, counts): (&ExitReason, _)| (reason.name(), counts.summary()))
        .collect()
}

/// Replaces the file at `path` by the output of `write`, as a whole.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ExitStatsError> {
    let failed = |source| ExitStatsError::Write {
        path: path.to_owned(),
        source,
    };
    // A symbolic link stays one: the file that it names is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&target).is_ok_and(|m| !m.is_file()) {
        let out = OpenOptions::new().write(true).open(&target);
        return out.and_then(|out| fill(out, write)).map_err(failed);
    }
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = target.with_file_name(name);
    // A file left behind by a process with this id may have another mode.
    let _none = fs::remove_file(&temporary);
    private::create(&temporary, Existing::Truncate)
        .and_then(|out| fill(out, write))
        .and_then(|()| fs::rename(&temporary, &target))
        .map_err(|e| {
            // The original error is the cause; a second one adds nothing.
            let _left_over = fs::remove_file(&temporary);
            failed(e)
        })
}

fn fill(out: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    write(&mut out)?;
    out.flush()?;
    // Some file systems report a full disk only at this point.
    match out.get_ref().sync_data() {
        // A pipe or a terminal has nothing to sync.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced,
    }
}
