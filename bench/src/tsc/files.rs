//! A result as files: `tsc.json`, `tsc.hlog`, `tsc.svg`, `tsc.html`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use thiserror::Error;

use super::model::{Report, VERSION};
use super::{page, plot};
use crate::histogram;
use crate::report::file_part;

/// The maximum size; ten thousand moves need less.
const MOST_BYTES: u64 = 64 << 20;

/// A result cannot be read or written.
#[derive(Debug, Error)]
pub(crate) enum TscFileError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no result of tsc", path.display())]
    NoResult {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is a result of version {found}; this program reads version {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
}

/// Whether a file is a result of `tsc`: no other file has the fields that [`read`] requires.
pub(crate) fn is_ours(path: &Path) -> bool {
    read(path).is_ok()
}

/// Reads `tsc.json`.
pub(crate) fn read(path: &Path) -> Result<Report, TscFileError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text))
        .map_err(|source| TscFileError::Read {
            path: path.to_owned(),
            source,
        })?;
    let report: Report =
        serde_json::from_slice(&text).map_err(|source| TscFileError::NoResult {
            path: path.to_owned(),
            source,
        })?;
    if report.version == VERSION {
        Ok(report)
    } else {
        Err(TscFileError::Version {
            path: path.to_owned(),
            found: report.version,
        })
    }
}

/// Writes all files into `directory`, which is created; the result is their paths.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<Vec<PathBuf>, TscFileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TscFileError::Write { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let mut written = Vec::new();
    let mut fill = |name: &str, write: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
        let path = directory.join(name);
        let filled = File::create(&path).and_then(|file| {
            let mut out = BufWriter::new(file);
            write(&mut out)?;
            out.flush()
        });
        filled.map_err(failed(&path))?;
        written.push(path);
        Ok(())
    };
    fill("tsc.json", &|out| {
        serde_json::to_writer_pretty(&mut *out, report)?;
        out.write_all(b"\n")
    })?;
    fill("tsc.hlog", &|out| log(report, out))?;
    fill("tsc.html", &|out| {
        out.write_all(page::page(report).as_bytes())
    })?;
    if let Some(plot) = plot::plot(report) {
        fill("tsc.svg", &|out| out.write_all(plot.as_bytes()))?;
    }
    Ok(written)
}

/// The largest steps forward of each clock, one clock per line, in the clock's unit.
fn log(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut out = out;
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(
            "[largest step forward of a clock in each report, in the clock's own unit; moves are \
            left out]",
        )
        .with_max_value_divisor(1.0)
        .begin_log_with(&mut out, &mut serializer)?;
    for result in &report.clocks {
        let Some(figures) = &result.measured else {
            continue;
        };
        let histogram = histogram::decode(&figures.quiet_gaps).map_err(io::Error::other)?;
        let tag = format!("{}.quiet-gap", file_part(&result.clock));
        log.write_histogram(&histogram, Duration::ZERO, Duration::ZERO, Tag::new(&tag))
            .map_err(|error| match error {
                IntervalLogWriterError::IoError(error) => error,
                IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
            })?;
    }
    Ok(())
}
