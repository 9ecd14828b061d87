//! `l2probe`: measures from inside any Linux the cost of its hypervisors. Needs no root and no network.

mod init;
mod instructions;
mod kinds;
mod place;
mod table;

use std::fs::{self, File};
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

/// Measures from inside a Linux the cost of its hypervisors: exits, timers, wake-ups, clocks.
///
/// Needs neither root nor a network. Unsupported kinds are reported and omitted.
/// `hypernest-bench l2-exit --l1 manual` merges the results of several runs.
#[derive(Debug, Parser)]
#[command(name = "l2probe", version)]
struct Arguments {
    /// Where to write the result
    #[arg(long, value_name = "FILE", default_value = "l2probe.json")]
    out: PathBuf,
    /// Write the result as one line to a serial port instead
    #[arg(
        long,
        value_name = "DEVICE",
        num_args = 0..=1,
        default_missing_value = "/dev/ttyS1",
        conflicts_with = "out",
    )]
    serial: Option<PathBuf>,
    /// The kinds to measure [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = Kind::parse)]
    kinds: Vec<Kind>,
    /// The number of rounds; each measures every kind once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Samples per round of short kinds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: u32,
    /// Samples per round of kinds that wait for a timer or another CPU
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    waits: u32,
    /// Turns before the first sample of a round
    #[arg(long, default_value_t = 50)]
    warmup: u32,
    /// Timeout for one measurement in a round, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 2000,
        value_parser = clap::value_parser!(u64).range(1..=3_600_000),
    )]
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
    let to_stdout = arguments.serial.is_none() && arguments.out == Path::new("-");
    // Opened first: a failure after the measurement would lose minutes of work.
    let mut port = arguments.serial.as_deref().map(open_port).transpose()?;
    let file = arguments.out.display().to_string();
    if port.is_none() && !to_stdout {
        File::create(&arguments.out).map_err(io_error(format!("cannot create {file}")))?;
    }
    // A run that is interrupted keeps its complete rounds: a file contains all rounds so far. A port is slow,
    // so it receives each round when it is complete, and at the end all of them once more.
    let document = measure(arguments, |all, newest| {
        if let Some((name, port)) = &mut port {
            let line = newest.unwrap_or(all).line()?;
            return write_line(name, port, &line);
        }
        if to_stdout {
            return Ok(());
        }
        replace(&arguments.out, &all.line()?).map_err(io_error(format!("cannot write {file}")))
    })?;
    if to_stdout {
        return print(&document.line()?);
    }
    print(&table::table(&document))?;
    if port.is_some() {
        return Ok(());
    }
    print(&format!("written: {file}\n"))
}

/// Replaces the content of `path` by `line`, atomically if possible: a reader finds this result or the
/// previous one. A file that is not a regular file (a pipe, /dev/null) is written directly.
fn replace(path: &Path, line: &str) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_file() {
        return fs::write(path, line);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    fs::write(&beside, line).and_then(|()| fs::rename(&beside, path))
}

/// Prints to stdout, without a panic when it is closed.
fn print(text: &str) -> Result<(), ProbeError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(io_error("cannot write to stdout"))
}

/// Opens a port in raw mode; the result includes its name.
fn open_port(port: &Path) -> Result<(String, File), ProbeError> {
    let name = port.display().to_string();
    let file = File::options()
        .write(true)
        .open(port)
        .map_err(io_error(format!("cannot open {name}")))?;
    // Raw mode, without a carriage return at the end of lines. A file that is not a terminal needs no
    // settings.
    if let Ok(mut attributes) = termios::tcgetattr(&file) {
        termios::cfmakeraw(&mut attributes);
        termios::tcsetattr(&file, SetArg::TCSANOW, &attributes)
            .map_err(|e| io_error(format!("cannot set up {name}"))(e.into()))?;
    }
    Ok((name, file))
}

fn write_line(name: &str, port: &mut File, line: &str) -> Result<(), ProbeError> {
    // The previous line may be of another program, and incomplete.
    port.write_all(format!("\n{line}").as_bytes())
        .map_err(io_error(format!("cannot write to {name}")))?;
    match termios::tcdrain(&*port) {
        Ok(()) | Err(nix::Error::ENOTTY | nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(io_error(format!("cannot write to {name}"))(error.into())),
    }
}

/// Measures all rounds. After each, `keep` receives the result of all so far and, unless it was the last, of
/// the newest alone.
fn measure(
    arguments: &Arguments,
    mut keep: impl FnMut(&Document, Option<&Document>) -> Result<(), ProbeError>,
) -> Result<Document, ProbeError> {
    let started_unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let allowed = instructions::allowed();
    let place = place::look(allowed);
    let mut notes = Vec::new();
    if !instructions::exact_timers() {
        notes.push(
            "the kernel refuses exact timers to this process (PR_SET_TIMERSLACK): sleeps end \
            up to 50 us later"
                .to_owned(),
        );
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
    let mut document = Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        made_by: format!("l2probe {}", env!("CARGO_PKG_VERSION")),
        command_line: std::env::args().collect(),
        started_unix,
        place,
        measurements: Vec::new(),
        notes: Vec::new(),
        round: None,
    };
    let mut rounds = Rounds::new(&kinds);
    for round in 1..=arguments.rounds {
        let before = rounds.lengths();
        // With a serial port, progress is printed: its user watches a slow machine.
        rounds.measure(round, &plan, arguments.serial.is_some());
        document.measurements = rounds.measurements(&vec![0; kinds.len()]);
        let counts = |kind: Kind| {
            let (_, rounds) = document.rounds(kind.name())?;
            Some(Counts::sum(rounds))
        };
        document.place.cpuid =
            place::trapped(counts(Kind::Cpuid).as_ref(), counts(Kind::Empty).as_ref());
        document.notes.clone_from(&notes);
        document
            .notes
            .extend(place::notes(&document.place, allowed));
        if round == arguments.rounds {
            keep(&document, None)?;
            break;
        }
        let cut = format!("only {round} of {} rounds were measured", arguments.rounds);
        document.notes.push(cut);
        let newest = Document {
            measurements: rounds.measurements(&before),
            round: Some(round),
            ..document.clone()
        };
        keep(&document, Some(&newest))?;
    }
    Ok(document)
}

/// All kinds in turn, so that other load on the machine affects all alike. A kind that fails in the first
/// round is not repeated.
struct Rounds<'a> {
    kinds: &'a [Kind],
    outcomes: Vec<Result<Vec<Counts>, String>>,
}

impl<'a> Rounds<'a> {
    fn new(kinds: &'a [Kind]) -> Self {
        Self {
            kinds,
            outcomes: vec![Ok(Vec::new()); kinds.len()],
        }
    }

    fn measure(&mut self, round: u32, plan: &Plan, shown: bool) {
        for (kind, outcome) in self.kinds.iter().zip(&mut self.outcomes) {
            let Ok(rounds) = outcome else { continue };
            if shown {
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

    /// The number of rounds of each kind.
    fn lengths(&self) -> Vec<usize> {
        let lengths = self.outcomes.iter().map(|o| o.as_ref().map_or(0, Vec::len));
        lengths.collect()
    }

    /// All rounds except the first `skipped` ones of each kind.
    fn measurements(&self, skipped: &[usize]) -> Vec<Measurement> {
        let all = self.kinds.iter().zip(&self.outcomes).zip(skipped);
        all.map(|((kind, outcome), &skipped)| Measurement {
            kind: kind.name().to_owned(),
            outcome: match outcome {
                Ok(rounds) => Outcome::Measured {
                    unit: kind.unit(),
                    rounds: rounds.iter().skip(skipped).cloned().collect(),
                },
                Err(why) => Outcome::Skipped { why: why.clone() },
            },
        })
        .collect()
    }
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
        assert!(!document.notes.join(" ").contains("rounds were measured"));
    }

    #[test]
    fn a_run_that_is_cut_in_its_last_round_keeps_those_before() {
        let words = [
            "l2probe",
            "--rounds",
            "3",
            "--samples",
            "10",
            "--kinds",
            "clock-read",
        ];
        let arguments = Arguments::try_parse_from(words).unwrap();
        let (mut files, mut lines) = (Vec::new(), Vec::new());
        measure(&arguments, |all, newest| {
            files.push(all.line()?);
            lines.push(newest.unwrap_or(all).line()?);
            Ok(())
        })
        .unwrap();
        let rounds = |text: &str| {
            let document = Document::read(text).unwrap();
            let rounds = document.rounds("clock-read").unwrap().1.to_vec();
            (rounds, document.notes.join(" "))
        };
        let (all, notes) = rounds(&files[2]);
        assert!(
            all.len() == 3 && !notes.contains("rounds were measured"),
            "{notes}"
        );
        // A port then has two rounds and the beginning of the third; a file has its content after the second.
        let cut = &lines[2][..lines[2].len() - 10];
        for text in [
            format!("boot\n{}{}{cut}", lines[0], lines[1]),
            files[1].clone(),
        ] {
            let (kept, notes) = rounds(&text);
            assert_eq!(kept, all[..2]);
            assert!(
                notes.contains("only 2 of 3 rounds were measured"),
                "{notes}"
            );
        }
        // At the end all rounds are written once.
        assert_eq!(rounds(&lines.concat()).0, all);
    }

    #[test]
    fn a_result_is_replaced_in_one_step_and_a_device_is_written_to() {
        let path = std::env::temp_dir().join(format!("l2probe-replace-{}", std::process::id()));
        fs::write(&path, "old").unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        fs::remove_file(&path).unwrap();
        replace(Path::new("/dev/null"), "new").unwrap();
    }
}
