//! `tscprobe`: samples the clocks of a Linux on every CPU, and reports them. `hypernest-bench tsc --guest
//! linux` runs it as the init of a guest; it can also run in any other Linux.

mod clocks;
mod init;
mod instructions;
mod output;

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use output::Output;

/// Samples the clocks of a Linux on every CPU: the TSC, CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW, in tight
/// loops.
///
/// Each CPU reports periodically, in binary; `hypernest-bench tsc` reads the reports. Without --serial the
/// program prints at the end how often each clock stepped back.
#[derive(Debug, Parser)]
#[command(name = "tscprobe", version)]
struct Arguments {
    /// Report on a serial port
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = "/dev/ttyS1")]
    serial: Option<PathBuf>,
    /// The interval between two reports of a CPU, in us
    #[arg(
        long,
        value_name = "US",
        default_value_t = 5000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000),
    )]
    beat_us: u64,
    /// End after this many seconds [default: never with --serial, else 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// As an init: load all modules in this directory first, in the order of their names
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Sample nothing: run this command, and forward its standard output to the serial port
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, requires = "serial")]
    relay: Vec<String>,
}

/// Errors of tscprobe.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("a thread that samples ended early")]
    Thread,
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
            let words = std::iter::once("tscprobe".to_owned()).chain(words);
            match Arguments::try_parse_from(words) {
                Ok(arguments) => _ = exit(run(&arguments)),
                Err(error) => eprintln!("{error}"),
            }
        }
        Err(error) => eprintln!("tscprobe: cannot start as init: {error}"),
    }
    eprintln!("tscprobe: cannot power off: {}", init::power_off());
    ExitCode::FAILURE
}

fn exit(result: Result<bool, ProbeError>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprint!("tscprobe: {error}");
            if let Some(cause) = std::error::Error::source(&error) {
                eprint!(": {cause}");
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

/// Samples the clocks. The result is whether no clock stepped back.
fn run(arguments: &Arguments) -> Result<bool, ProbeError> {
    if let Some(directory) = &arguments.modules {
        init::load_modules(directory)?;
    }
    let (output, limit) = match &arguments.serial {
        Some(device) => (Output::serial(device)?, None),
        None => (Output::nowhere(), Some(10)),
    };
    if let [program, words @ ..] = arguments.relay.as_slice() {
        return relay(program, words, &output);
    }
    let limit = arguments.seconds.or(limit).map(Duration::from_secs);
    let cpus = cpus();
    let last = clocks::sample(
        &cpus,
        Duration::from_micros(arguments.beat_us),
        limit,
        &output,
    )?;
    let mut well = true;
    for (clock, reads, backward, largest) in clocks::totals(&last) {
        well &= backward == 0;
        eprintln!(
            "{}: {reads} reads on {} CPUs, {backward} backward steps, the largest {largest}",
            clock.name(),
            cpus.len()
        );
    }
    Ok(well)
}

/// Runs a command until it exits. The result is whether it succeeded.
fn relay(program: &str, words: &[String], output: &Output) -> Result<bool, ProbeError> {
    let failed = || format!("cannot run {program}");
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io_error(failed()))?;
    if let Some(mut from) = child.stdout.take() {
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer).map_err(io_error(failed()))? {
                0 => break,
                len => output.bytes(&buffer[..len])?,
            }
        }
    }
    let status = child.wait().map_err(io_error(failed()))?;
    Ok(status.success())
}

/// CPUs that this process may use; the first one if the kernel does not report them.
fn cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return vec![0];
    };
    let cpus: Vec<_> = (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["tscprobe", "--serial"]).unwrap();
        assert_eq!(parsed.serial, Some("/dev/ttyS1".into()));
        let relay = [
            "tscprobe",
            "--serial",
            "/dev/ttyS1",
            "--relay",
            "/hypernest",
            "run",
            "--config",
            "/x",
        ];
        let parsed = Arguments::try_parse_from(relay).unwrap();
        assert_eq!(parsed.relay, relay[4..]);
    }
}
