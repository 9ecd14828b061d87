//! `l2probe`: measures from inside any Linux what its hypervisors cost it. Needs no root and no network.

mod init;
mod instructions;
mod kinds;
mod place;
mod table;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use l2probe::counts::Counts;
use l2probe::document::{Document, FORMAT, Measurement, Outcome, VERSION};
use nix::sys::termios::{self, SetArg};
use thiserror::Error;

use kinds::{Kind, Plan};

/// Measures from inside a Linux what its hypervisors cost it: exits, timers, wake-ups, clocks.
///
/// Needs neither root nor a network. What is missing is said and left out. `hypernest-bench l2-exit --l1 manual` merges
/// the results of several runs.
#[derive(Debug, Parser)]
#[command(name = "l2probe", version)]
struct Arguments {
    /// Where to write the result
    #[arg(long, value_name = "FILE", default_value = "l2probe.json")]
    out: PathBuf,
    /// Write the result as one line to a serial port instead
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = "/dev/ttyS1", conflicts_with = "out")]
    serial: Option<PathBuf>,
    /// What to measure [default: everything]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = Kind::parse)]
    kinds: Vec<Kind>,
    /// Rounds; in each everything is measured once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Samples a round of what is short
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: u32,
    /// Samples a round of what waits for a timer or another CPU
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    waits: u32,
    /// Turns before the first sample of a round
    #[arg(long, default_value_t = 50)]
    warmup: u32,
    /// The longest one measurement may take in a round, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    limit: u64,
}

#[derive(Debug, Error)]
enum ProbeError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProbeError {
    let what = what.into();
    move |source| ProbeError::Io { what, source }
}

fn main() -> ExitCode {
    if !init::is_init() {
        return exit(run(&Arguments::parse()));
    }
    match init::start() {
        Ok(words) => {
            let words = std::iter::once("l2probe".to_owned()).chain(words);
            match Arguments::try_parse_from(words) {
                Ok(arguments) => _ = exit(run(&arguments)),
                Err(error) => eprintln!("{error}"),
            }
        }
        Err(error) => eprintln!("l2probe: cannot start as init: {error}"),
    }
    eprintln!("l2probe: cannot power off: {}", init::power_off());
    ExitCode::FAILURE
}

fn exit(result: Result<(), ProbeError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("l2probe: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), ProbeError> {
    // Before minutes of work are lost.
    let to_file = arguments.serial.is_none() && arguments.out != Path::new("-");
    let file = to_file
        .then(|| File::create(&arguments.out))
        .transpose()
        .map_err(io_error(format!(
            "cannot create {}",
            arguments.out.display()
        )))?;
    let document = measure(arguments);
    match (&arguments.serial, file) {
        (Some(port), _) => to_port(port, &document.line()?)?,
        (None, Some(mut file)) => {
            let name = arguments.out.display().to_string();
            file.write_all(document.line()?.as_bytes())
                .map_err(io_error(format!("cannot write {name}")))?;
            print(&format!("{}written: {name}\n", table::table(&document)))?;
        }
        (None, None) => return print(&document.line()?),
    }
    if arguments.serial.is_some() {
        print(&table::table(&document))?;
    }
    Ok(())
}

/// To stdout, without a panic when it is closed.
fn print(text: &str) -> Result<(), ProbeError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(io_error("cannot write to stdout"))
}

fn to_port(port: &Path, line: &str) -> Result<(), ProbeError> {
    let name = port.display().to_string();
    let mut file = File::options()
        .write(true)
        .open(port)
        .map_err(io_error(format!("cannot open {name}")))?;
    // As it is, without a carriage return before each line's end. What is no terminal needs nothing.
    if let Ok(mut attributes) = termios::tcgetattr(&file) {
        termios::cfmakeraw(&mut attributes);
        termios::tcsetattr(&file, SetArg::TCSANOW, &attributes)
            .map_err(|e| io_error(format!("cannot set up {name}"))(e.into()))?;
    }
    // The line before it may be somebody else's, without an end.
    file.write_all(format!("\n{line}").as_bytes())
        .map_err(io_error(format!("cannot write to {name}")))?;
    match termios::tcdrain(&file) {
        Ok(()) | Err(nix::Error::ENOTTY | nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(io_error(format!("cannot write to {name}"))(error.into())),
    }
}

fn measure(arguments: &Arguments) -> Document {
    let started_unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let allowed = instructions::allowed();
    let mut place = place::look(allowed);
    let mut notes = Vec::new();
    if !instructions::exact_timers() {
        notes.push("the kernel does not give exact timers to this process (PR_SET_TIMERSLACK): sleeps end up to 50 us later".to_owned());
    }
    let plan = Plan {
        samples: arguments.samples,
        waits: arguments.waits,
        warmup: arguments.warmup,
        limit: Duration::from_millis(arguments.limit),
        cpus: place::cpus(),
        khz: place.tsc.khz,
        allowed,
    };
    let kinds = if arguments.kinds.is_empty() {
        Kind::ALL.to_vec()
    } else {
        arguments.kinds.clone()
    };
    // Who watches a serial port watches something slow.
    let told = arguments.serial.is_some();
    let measurements = rounds(arguments.rounds, &kinds, &plan, told);
    let counts = |kind: Kind| {
        let of = measurements.iter().find(|m| m.kind == kind.name())?;
        match &of.outcome {
            Outcome::Measured { rounds, .. } => Some(Counts::sum(rounds)),
            Outcome::Skipped { .. } => None,
        }
    };
    place.cpuid = place::trapped(counts(Kind::Cpuid).as_ref(), counts(Kind::Empty).as_ref());
    notes.extend(place::notes(&place, allowed));
    Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        made_by: format!("l2probe {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started_unix,
        place,
        measurements,
        notes,
    }
}

/// All kinds in turn, so that what else the machine does meets all alike. What fails once is not tried again.
fn rounds(rounds: u32, kinds: &[Kind], plan: &Plan, told: bool) -> Vec<Measurement> {
    let mut outcomes: Vec<Result<Vec<Counts>, String>> = vec![Ok(Vec::new()); kinds.len()];
    for round in 1..=rounds {
        for (kind, outcome) in kinds.iter().zip(&mut outcomes) {
            let Ok(rounds) = outcome else { continue };
            if told {
                eprintln!("l2probe: round {round}: {}", kind.name());
            }
            match kind.measure(plan) {
                Ok(counts) => rounds.push(counts),
                // Rounds that were complete count.
                Err(why) if rounds.is_empty() => *outcome = Err(why),
                Err(why) => eprintln!("l2probe: {}: a round failed: {why}", kind.name()),
            }
        }
    }
    let measurement = |(kind, outcome): (&Kind, Result<Vec<Counts>, String>)| Measurement {
        kind: kind.name().to_owned(),
        outcome: match outcome {
            Ok(rounds) => Outcome::Measured {
                unit: kind.unit(),
                rounds,
            },
            Err(why) => Outcome::Skipped { why },
        },
    };
    kinds.iter().zip(outcomes).map(measurement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["l2probe", "--serial"]).unwrap();
        assert_eq!(parsed.serial.as_deref(), Some(Path::new("/dev/ttyS1")));
        assert!(Arguments::try_parse_from(["l2probe", "--kinds", "cpuid,dance"]).is_err());
    }

    #[test]
    fn the_result_is_read_again() {
        let directory = std::env::temp_dir().join(format!("l2probe-{}", std::process::id()));
        let out = directory.display().to_string();
        let words = [
            "l2probe",
            "--rounds",
            "2",
            "--samples",
            "10",
            "--waits",
            "2",
            "--out",
        ];
        let words = words.into_iter().chain([out.as_str()]);
        run(&Arguments::try_parse_from(words).unwrap()).unwrap();
        let text = std::fs::read_to_string(&directory).unwrap();
        std::fs::remove_file(&directory).unwrap();
        let document = Document::read(&text).unwrap();
        assert_eq!(document.measurements.len(), Kind::ALL.len());
        let (_, rounds) = document.rounds("clock-read").unwrap();
        assert_eq!(rounds.len(), 2);
    }
}
