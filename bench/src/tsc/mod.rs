//! `hypernest-bench tsc`: how stable a guest's clocks are, while it runs and across moves.
//!
//! The `hypernest` command performs all actions on the guest. [`record`] decodes the guest's output,
//! [`mod@analyse`] interprets it, and [`mod@table`] and [`files`] show the result.

mod analyse;
mod args;
mod by_hand;
mod check;
mod drive;
mod files;
mod fit;
mod linux;
mod model;
mod page;
mod plot;
mod record;
mod table;
mod vm;

use std::io;
use std::time::SystemTime;

use hypernest::kvm::host::{HostCaps, HostError};
use thiserror::Error;

pub(crate) use args::Args;
pub(crate) use files::{TscFileError, is_ours, read, write};
pub(crate) use table::table;

use analyse::analyse;
use drive::measure;
use model::{Guest, Report, VERSION};
use vm::VmError;

use crate::environment;
use crate::histogram::HistogramError;
use crate::usage::Usage;
use crate::{FAILED, HOST, WRONG_USE};

/// Errors of `hypernest-bench tsc`.
#[derive(Debug, Error)]
pub(crate) enum TscError {
    #[error(transparent)]
    Host(#[from] HostError),
    /// A frequency is relative to the host's, which is unknown.
    #[error("KVM does not report this host's TSC frequency: give --tsc-khz in kHz")]
    NoFrequency,
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A file operation failed.
    #[error("{what}")]
    File {
        /// The operation.
        what: String,
        source: io::Error,
    },
    #[error(transparent)]
    Histogram(#[from] HistogramError),
    #[error(transparent)]
    Results(#[from] TscFileError),
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

impl TscError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => WRONG_USE,
            Self::Host(_) | Self::NoFrequency => HOST,
            // hypernest's exit codes have the same meaning.
            Self::Vm(error) => match error.code() {
                Some(2) => WRONG_USE,
                Some(3) => HOST,
                _ => FAILED,
            },
            _ => FAILED,
        }
    }
}

fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> TscError {
    let what = what.into();
    move |source| TscError::File { what, source }
}

/// The nearest whole number; 0 for negative values and NaN, the maximum for values above it.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and that is what is wanted"
)]
fn round(value: f64) -> u64 {
    value.round() as u64
}

/// Measures and shows the result, which is whether all checks passed.
pub(crate) fn run(args: &Args) -> Result<bool, TscError> {
    args.check()?;
    let host = HostCaps::probe()?;
    if let Some(directory) = &args.by_hand {
        let text = by_hand::commands(args, directory)?;
        return crate::print(&text).map(|()| true).map_err(TscError::Stdout);
    }
    let started = environment::rfc3339(SystemTime::now());
    let frequencies = frequencies(args, host.kvm.tsc_khz)?;
    let measured = match args.captured.as_slice() {
        [] => measure(args, &host.kvm, &frequencies)?,
        files => by_hand::captured(files, frequencies.first().copied().or(host.kvm.tsc_khz))?,
    };
    let environment = environment::read(&host, &[]);
    let mut warnings = environment::warnings(&environment);
    let meaning = analyse(&measured.record, &measured.doings)?;
    warnings.extend(meaning.warnings);
    if !args.captured.is_empty() {
        warnings.push(by_hand::NO_TIMES.to_owned());
    }
    let report = Report {
        version: VERSION,
        made_by: format!("hypernest-bench {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started,
        environment,
        guest: Guest {
            kind: args.guest,
            vcpus: u32::try_from(measured.record.vcpus()).unwrap_or(u32::MAX),
            tsc_khz: meaning.tsc_khz,
            moved_by: (!meaning.moves.is_empty()).then_some(args.by),
            reenlightenment: meaning.reenlightenment,
        },
        warnings,
        bounds: meaning.bounds,
        failures: meaning.failures,
        clocks: meaning.clocks,
        moves: meaning.moves,
        segments: meaning.segments,
        offsets: meaning.offsets,
    };
    let mut text = if args.json {
        serde_json::to_string_pretty(&report).map_err(|e| TscError::Stdout(e.into()))? + "\n"
    } else {
        table(&report)
    };
    if let Some(directory) = args.directory() {
        for path in write(&report, &directory)? {
            if !args.json {
                text.push_str(&format!("written: {}\n", path.display()));
            }
        }
    }
    crate::print(&text).map_err(TscError::Stdout)?;
    Ok(report.failures.is_empty())
}

/// The frequencies in kHz; empty if none was requested.
fn frequencies(args: &Args, host: Option<u32>) -> Result<Vec<u32>, TscError> {
    let khz = args.tsc_khz.iter().map(|frequency| frequency.khz(host));
    khz.collect::<Option<_>>().ok_or(TscError::NoFrequency)
}

#[cfg(test)]
mod tests;
