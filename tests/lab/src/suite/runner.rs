//! Runs tests on the host of this process.

use std::io::{self, Write as _};
use std::panic;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;

use super::protocol::{Event, Listed, Outcome};
use super::verdict::Counts;
use super::{Stage, Test};
use crate::host::Host;
use crate::plan::LAB_HOST_VARIABLE;

/// Tests on this host. `cargo lab test` runs them on all hosts.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// List the tests, in JSON.
    #[arg(long)]
    list_json: bool,
    /// Run these tests, and report in JSON.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    run_json: Option<Vec<String>>,
    /// Run this test in this very process.
    #[arg(long, value_name = "NAME")]
    inside: Option<String>,
}

/// The main function of a test binary.
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::parse();
    match run(tests, &arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(tests: &[Test], arguments: &Arguments) -> io::Result<ExitCode> {
    if arguments.list_json {
        if let Some(name) = ambiguous_stage(tests) {
            return Err(io::Error::other(format!(
                "the stage {name} is defined in two ways"
            )));
        }
        let listed: Vec<Listed> = tests.iter().map(Listed::from).collect();
        println!("{}", serde_json::to_string(&listed)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &arguments.inside {
        return Ok(inside(tests, name));
    }
    if let Some(names) = &arguments.run_json {
        for name in names {
            let test = tests.iter().find(|test| test.name == name);
            let test = test.ok_or_else(|| io::Error::other(format!("no test {name}")))?;
            say(&Event::Started { name: name.clone() })?;
            let outcome = run_one(test)?;
            say(&Event::Ended {
                name: name.clone(),
                outcome,
            })?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let host = std::env::var(LAB_HOST_VARIABLE)
        .ok()
        .and_then(|name| Host::from_name(&name))
        .unwrap_or(Host::Here);
    let mut counts = Counts::default();
    for test in tests {
        let wanted = arguments
            .filter
            .as_ref()
            .is_none_or(|filter| test.name.contains(filter));
        if !wanted || !test.is_for(host) {
            continue;
        }
        let outcome = run_one(test)?;
        println!("{}", describe(test.name, &outcome, ""));
        match outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Skipped(_) => counts.skipped += 1,
        }
    }
    println!("{counts}");
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A name of two different stages: the tests of one would run on a host set up for the other.
fn ambiguous_stage(tests: &[Test]) -> Option<&'static str> {
    let mut stages: Vec<Stage> = Vec::new();
    for test in tests {
        match stages.iter().find(|stage| stage.name == test.stage.name) {
            Some(stage) if *stage != test.stage => return Some(stage.name),
            Some(_) => {}
            None => stages.push(test.stage),
        }
    }
    None
}

/// One line that ends with `took`; for a failed test, also its output.
pub(crate) fn describe(name: &str, outcome: &Outcome, took: &str) -> String {
    match outcome {
        Outcome::Passed => format!("test {name} ... ok{took}"),
        Outcome::Skipped(missing) => format!("test {name} ... skipped: needs {missing}"),
        Outcome::Failed(output) => {
            let mut text = format!("test {name} ... FAILED{took}");
            for line in output.lines() {
                text.push_str("\n    ");
                text.push_str(line);
            }
            text
        }
    }
}

fn say(event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

fn inside(tests: &[Test], name: &str) -> ExitCode {
    let Some(test) = tests.iter().find(|test| test.name == name) else {
        eprintln!("no test {name}");
        return ExitCode::FAILURE;
    };
    match (test.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// The maximum length of a failed test's output.
const OUTPUT_KEPT: usize = 64 * 1024;

fn run_one(test: &Test) -> io::Result<Outcome> {
    match panic::catch_unwind(test.needs) {
        Ok(Ok(())) => {}
        Ok(Err(missing)) => return Ok(Outcome::Skipped(missing)),
        Err(_) => {
            return Ok(Outcome::Failed(
                "the check of the test's requirements panicked".to_owned(),
            ));
        }
    }
    // Both streams go into one file, in the order of the writes.
    let mut captured = tempfile::tempfile()?;
    let status = Command::new(std::env::current_exe()?)
        .args(["--inside", test.name])
        .stdin(Stdio::null())
        .stdout(captured.try_clone()?)
        .stderr(captured.try_clone()?)
        .status()?;
    if status.success() {
        return Ok(Outcome::Passed);
    }
    let mut output = Vec::new();
    io::Seek::rewind(&mut captured)?;
    io::Read::read_to_end(&mut captured, &mut output)?;
    let from = output.len().saturating_sub(OUTPUT_KEPT);
    let mut text = String::from_utf8_lossy(&output[from..]).into_owned();
    text.push_str(&format!("\n({status})"));
    Ok(Outcome::Failed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_one_definition() {
        let plain = Test::new("a", || Ok(()));
        let other = plain.stage(Stage {
            name: "other",
            cpus: 2,
            ..Stage::PLAIN
        });
        let clash = plain.stage(Stage {
            name: "other",
            ..Stage::PLAIN
        });
        assert_eq!(ambiguous_stage(&[plain, other, other]), None);
        assert_eq!(ambiguous_stage(&[plain, other, clash]), Some("other"));
    }

    #[test]
    fn lines_of_the_report() {
        assert_eq!(
            describe("a::b", &Outcome::Passed, " (2 s)"),
            "test a::b ... ok (2 s)"
        );
        assert_eq!(
            describe("a", &Outcome::Skipped("VMX".to_owned()), ""),
            "test a ... skipped: needs VMX"
        );
        assert_eq!(
            describe("a", &Outcome::Failed("x\ny".to_owned()), ""),
            "test a ... FAILED\n    x\n    y"
        );
    }
}
