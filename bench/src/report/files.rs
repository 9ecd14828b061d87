//! A report as files: `l2-exit.json`, `l2-exit.hlog`, `l2-exit.html`, and a plot for each kind.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::groups::{Group, groups};
use super::markup::file_part;
use super::{Report, VERSION, interval_log, page, recommend, svg};

/// The maximum size of a report: one with every kind in every mode has a few megabytes.
const MOST_BYTES: u64 = 64 << 20;
/// The maximum number of results: kinds by modes are a few hundred, for each L1 and touch profile.
const MOST_RESULTS: usize = 10_000;

/// A report cannot be read or written.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Larger than any report.
    #[error("{} is longer than {} MiB, which no report of l2-exit is", path.display(), MOST_BYTES >> 20)]
    TooLong { path: PathBuf },
    /// More entries than there are kinds and modes.
    #[error("{} has more than {MOST_RESULTS} results, which no report of l2-exit has", path.display())]
    TooMany { path: PathBuf },
    #[error("{} is not a result of `hypernest-bench l2-exit` (l2-exit.json)", path.display())]
    NoReport {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is a result of `hypernest-bench tsc`, and an l2-exit.json is needed here", path.display())]
    OfTsc { path: PathBuf },
    #[error("{} is a report of version {found}; this program reads version {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
}

/// Reads `l2-exit.json`.
pub(crate) fn read(path: &Path) -> Result<Report, FileError> {
    let path = path.to_owned();
    let mut text = Vec::new();
    let read = File::open(&path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut text))
        .map(|read| read as u64);
    match read {
        Ok(read) if read > MOST_BYTES => return Err(FileError::TooLong { path }),
        Ok(_) => {}
        Err(source) => return Err(FileError::Read { path, source }),
    }
    match serde_json::from_slice::<Report>(&text) {
        Ok(report) if report.results.len() > MOST_RESULTS => Err(FileError::TooMany { path }),
        Ok(mut report) if report.version == VERSION => {
            // They are computed again: those in the file follow the rules of the version that wrote it.
            report.recommendations = recommend(&report);
            Ok(report)
        }
        Ok(report) => Err(FileError::Version {
            path,
            found: report.version,
        }),
        Err(_) if crate::tsc::is_ours(&path) => Err(FileError::OfTsc { path }),
        Err(source) => Err(FileError::NoReport { path, source }),
    }
}

/// Writes all files into `directory`, which is created; the result is their paths.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
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
    fill(&log, &|out| interval_log::write(report, out)).map_err(failed(&log))?;
    let html = directory.join("l2-exit.html");
    let page = page::page(report).map_err(io::Error::other);
    fs::write(&html, page.map_err(failed(&html))?).map_err(failed(&html))?;
    let mut written = vec![json, log, html];
    for (number, group) in groups(report).iter().enumerate() {
        for kind in group.kinds() {
            let name = plot_name(group, number, kind);
            let path = directory.join(name);
            let plot = svg::percentiles(report, group, kind).map_err(io::Error::other);
            let Some(plot) = plot.map_err(failed(&path))? else {
                continue;
            };
            fs::write(&path, plot).map_err(failed(&path))?;
            written.push(path);
        }
    }
    Ok(written)
}

/// A name such as `l2-exit.micro.cpuid.svg`; the names of groups after the first contain a number, since
/// groups may have equal names.
fn plot_name(group: &Group<'_>, number: usize, kind: &str) -> String {
    let number = match number {
        0 => String::new(),
        number => format!("-{}", number + 1),
    };
    let kind = file_part(kind);
    format!("l2-exit.{}{number}.{kind}.svg", group.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::report;
    use crate::report::{Details, table};

    #[test]
    fn files_hold_everything() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("new");
        let written = write(&report(), &below).unwrap();
        let names: Vec<_> = written
            .iter()
            .map(|path| path.strip_prefix(&below).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "l2-exit.json",
                "l2-exit.hlog",
                "l2-exit.html",
                "l2-exit.micro.cpuid.svg",
                "l2-exit.micro.hlt.svg",
                "l2-exit.micro.interrupt.svg",
                "l2-exit.linux-2.cpuid.svg",
            ]
        );
        // serde_json may change the last bit of a number.
        let back = read(&written[0]).unwrap();
        let mut kept = report();
        kept.recommendations = recommend(&kept);
        let details = Details {
            kind: Some("cpuid"),
            explain: true,
        };
        assert_eq!(table(&back, details), table(&kept, details));
        for path in written {
            assert!(fs::metadata(path).unwrap().len() > 500);
        }
    }

    #[test]
    fn a_kind_cannot_name_a_file_elsewhere() {
        let mut report = report();
        report.results.truncate(1);
        report.results[0].kind = "../../x".into();
        let directory = tempfile::tempdir().unwrap();
        let written = write(&report, directory.path()).unwrap();
        assert_eq!(
            written.last().unwrap(),
            &directory.path().join("l2-exit.micro.______x.svg")
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

    #[test]
    fn a_report_of_too_many_results_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let entry = crate::report::sample::failed(hypernest_nested::l2exit::Mode::Svm, "cpuid");
        let report = crate::report::sample::report_of(vec![entry; MOST_RESULTS + 1]);
        fs::write(&path, serde_json::to_vec(&report).unwrap()).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooMany { .. })));
    }

    #[test]
    fn a_file_without_end_is_not_read_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let file = File::create(&path).unwrap();
        file.set_len(MOST_BYTES + 1).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLong { .. })));
        let endless = read(Path::new("/dev/zero"));
        assert!(matches!(endless, Err(FileError::TooLong { .. })));
    }
}
