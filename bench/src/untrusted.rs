//! This program's parsers of untrusted files, for the fuzz targets. Each returns whether the input was valid.

use std::path::Path;

use crate::compare::Expression;
use crate::devices::fio;
use crate::{histogram as histograms, report as reports, tsc};

/// A condition of `compare --fail-if`; the printed form parses to the same condition.
pub fn fail_condition(text: &str) -> bool {
    let Ok(condition) = text.parse::<Expression>() else {
        return false;
    };
    assert_eq!(condition.to_string().parse(), Ok(condition));
    true
}

/// fio's report, as it comes over a console, or unpacked.
pub fn fio_report(text: &str) -> bool {
    let json = fio::unpack(text).unwrap_or_else(|_| text.to_owned());
    fio::parse(&json, true).is_ok() || fio::parse(&json, false).is_ok()
}

/// A histogram in a report.
pub fn histogram(text: &str) -> bool {
    let Ok(one) = histograms::decode(text) else {
        return false;
    };
    let _sum = histograms::sum([&one, &one]);
    true
}

/// Reads `l2-exit.json` and shows it as a table and as a page.
pub fn report(file: &Path) -> bool {
    let Ok(report) = reports::read(file) else {
        return false;
    };
    let _table = reports::table(&report, reports::Details::default());
    let _page = reports::page(&report);
    true
}

/// Reads `tsc.json` and shows it as a table.
pub fn tsc_report(file: &Path) -> bool {
    let Ok(report) = tsc::read(file) else {
        return false;
    };
    let _table = tsc::table(&report);
    true
}
