//! Results of measurements from untrusted sources.

use std::fs;
use std::path::Path;

use hypernest_bench::untrusted;
use l2probe::document::Document;

/// Conditions of `hypernest-bench compare --fail-if`.
pub(crate) fn fail_condition(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(untrusted::fail_condition)
}

/// The report of fio in a guest of `hypernest-bench devices`.
pub(crate) fn fio_report(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(untrusted::fio_report)
}

/// Histograms in reports.
pub(crate) fn histogram(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(untrusted::histogram)
}

/// The output of `l2probe`, alone or among other lines of a console.
pub(crate) fn l2probe_document(bytes: &[u8]) -> bool {
    let document = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| Document::read(text).ok());
    let Some(document) = document else {
        return false;
    };
    let line = document.line().expect("a document has a JSON form");
    assert!(Document::read(&line).is_ok(), "{line}");
    true
}

/// `l2-exit.json`.
pub(crate) fn report(bytes: &[u8]) -> bool {
    with_file(bytes, untrusted::report)
}

/// `tsc.json`.
pub(crate) fn tsc_report(bytes: &[u8]) -> bool {
    with_file(bytes, untrusted::tsc_report)
}

fn with_file(bytes: &[u8], read: impl FnOnce(&Path) -> bool) -> bool {
    let Ok(file) = tempfile::NamedTempFile::new() else {
        return false;
    };
    fs::write(file.path(), bytes).is_ok() && read(file.path())
}
