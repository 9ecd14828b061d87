//! A report as files: `l2-exit.json` and `l2-exit.hlog`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use thiserror::Error;

use super::{Report, VERSION};
use crate::histogram::{self, HistogramError};

/// A report cannot be read or written.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    /// Writing.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a report.
    #[error("{} is no report of l2-exit", path.display())]
    NoReport {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another version.
    #[error("{} is a report of version {found}; this program knows version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Reads `l2-exit.json`.
pub(crate) fn read(path: &Path) -> Result<Report, FileError> {
    let path = path.to_owned();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(FileError::Read { path, source }),
    };
    match serde_json::from_str::<Report>(&text) {
        Ok(report) if report.version == VERSION => Ok(report),
        Ok(report) => Err(FileError::Version {
            path,
            found: report.version,
        }),
        Err(source) => Err(FileError::NoReport { path, source }),
    }
}

/// Writes both files into `directory`, which is made; the result is where they are.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<[PathBuf; 2], FileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Write { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let json = directory.join("l2-exit.json");
    let log = directory.join("l2-exit.hlog");
    let fill = |path: &Path, write: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
        let mut out = BufWriter::new(File::create(path)?);
        write(&mut out)?;
        out.flush()
    };
    fill(&json, &|out| {
        serde_json::to_writer_pretty(&mut *out, report)?;
        out.write_all(b"\n")
    })
    .map_err(failed(&json))?;
    fill(&log, &|out| write_log(report, out)).map_err(failed(&log))?;
    Ok([json, log])
}

/// An HDR histogram log with a line per round, tagged `L1.MODE.KIND.PART`. It has no time axis: rounds stand in their order.
fn write_log(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    // The writer's type wants a sized one.
    let mut out = out;
    let mut serializer = V2DeflateSerializer::new();
    let unit = &report.unit;
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!(
            "[round trips of L2 exits in TSC ticks; {} ticks are 1 of: {}]",
            unit.ticks, unit.name
        ))
        .with_max_value_divisor(1.0)
        .begin_log_with(&mut out, &mut serializer)?;
    let decode =
        |text: &str| histogram::decode(text).map_err(|e: HistogramError| io::Error::other(e));
    for entry in &report.results {
        let Some(measured) = entry.measured() else {
            continue;
        };
        let parts = &measured.parts;
        for (what, part) in [
            ("round-trip", Some(&parts.round_trip)),
            ("l2-to-l1", parts.l2_to_l1.as_ref()),
            ("l1", parts.l1.as_ref()),
            ("l1-to-l2", parts.l1_to_l2.as_ref()),
            ("empty", measured.empty.as_ref()),
        ] {
            let (l1, mode, kind) = (entry.l1.name(), entry.mode, &entry.kind);
            let tag = format!("{l1}.{mode}.{kind}.{what}");
            for text in part.into_iter().flat_map(|part| &part.rounds) {
                log.write_histogram(
                    &decode(text)?,
                    Duration::ZERO,
                    Duration::ZERO,
                    Tag::new(&tag),
                )
                .map_err(|e| match e {
                    IntervalLogWriterError::IoError(e) => e,
                    IntervalLogWriterError::SerializeError(e) => io::Error::other(e),
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn files_hold_everything() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("new");
        let [json, log] = write(&report(), &below).unwrap();
        assert_eq!(read(&json).unwrap(), report());
        let bytes = fs::read(log).unwrap();
        let tags: Vec<_> = IntervalLogIterator::new(&bytes)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => {
                    let histogram = histogram::decode(interval.encoded_histogram()).unwrap();
                    Some((interval.tag().unwrap().as_str().to_owned(), histogram.len()))
                }
                _ => None,
            })
            .collect();
        let tag = |name: &str, samples| (name.to_owned(), samples);
        assert_eq!(
            tags,
            [
                tag("linux.evmcs.cpuid.round-trip", 2),
                tag("linux.evmcs.cpuid.round-trip", 2),
                tag("linux.evmcs.cpuid.empty", 1),
                tag("linux.classic.cpuid.round-trip", 2),
                tag("linux.classic.cpuid.empty", 1),
                tag("micro.classic.cpuid.round-trip", 2),
                tag("micro.classic.cpuid.round-trip", 1),
                tag("micro.classic.cpuid.l2-to-l1", 2),
                tag("micro.classic.cpuid.l2-to-l1", 1),
                tag("micro.classic.cpuid.l1", 2),
                tag("micro.classic.cpuid.l1", 1),
                tag("micro.classic.cpuid.l1-to-l2", 2),
                tag("micro.classic.cpuid.l1-to-l2", 1),
                tag("micro.classic.cpuid.empty", 1),
            ]
        );
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        fs::write(&path, "{}").unwrap();
        assert!(matches!(read(&path), Err(FileError::NoReport { .. })));
        let other = Report {
            version: 1,
            ..report()
        };
        fs::write(&path, serde_json::to_string(&other).unwrap()).unwrap();
        assert!(matches!(
            read(&path),
            Err(FileError::Version { found: 1, .. })
        ));
    }
}
