//! `cargo lab test`: the tests of this machine, and the suites on every host.

mod boots;
mod on_host;
mod repeat;
mod retry;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use thiserror::Error;

use self::boots::{Boot, Suite, boots, limit};
use self::on_host::{HostResults, HostRun};
use crate::binaries::{self, BuildError};
use crate::cache::Cache;
use crate::exec::ExecError;
use crate::host::Host;
use crate::owned::OwnedChild;
use crate::plan::LAB_LONG_VARIABLE;
use crate::progress;
use crate::setup::{self, SetupError};
use crate::suite::protocol::Listed;
use crate::suite::verdict::{Counts, cargo_test_counts, verdict};

/// The tests could not be run.
#[derive(Debug, Error)]
pub enum TestError {
    /// Setup.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The programs.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A host.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A test binary failed.
    #[error("{}: {what}", binary.display())]
    Suite {
        /// Its path.
        binary: PathBuf,
        /// The failure.
        what: String,
    },
}

/// Runs the tests whose name contains `filter`, on `hosts` or (if there are none) on every host, this
/// machine's ordinary tests first; `long`: loops at their full length. Returns whether all passed.
pub fn test(hosts: &[Host], filter: Option<&str>, long: bool) -> Result<bool, TestError> {
    let every_host = hosts.is_empty();
    let mut counts = Counts::default();
    let mut results = HostResults::default();
    if every_host {
        eprintln!(
            "lab: all tests take about 45 min on two cores, and 4 GB of disk for what is built; a part of a \
             test's name \
             after `cargo lab test`, or --host, chooses some"
        );
        let start = Instant::now();
        let (of_cargo, ended_well) = cargo_test(filter)?;
        eprintln!(
            "lab: tests of this machine alone: {of_cargo} ({} s)",
            start.elapsed().as_secs()
        );
        counts += of_cargo;
        if !ended_well && of_cargo.failed == 0 {
            results
                .trouble
                .push("cargo test failed without a failed test".to_owned());
        }
    }
    let cache = Cache::locate().map_err(SetupError::Cache)?;
    setup::ensure(&cache)?;
    let binaries = binaries::build()?;
    let suites = suites(&binaries::build_suites()?, filter, long)?;

    let wanted = |host: &Host| every_host || hosts.contains(host);
    let emulated: Vec<Host> = [Host::Amd, Host::Intel]
        .into_iter()
        .filter(wanted)
        .collect();
    let here = if wanted(&Host::Here) {
        boots(&suites, &[Host::Here])
    } else {
        Vec::new()
    };
    let emulated = boots(&suites, &emulated);
    let limits = here.iter().chain(&emulated);
    let limits = limits.flat_map(|boot| boot.tests().map(|test| limit(boot.host, test)));
    let starts = here.iter().chain(&emulated).flat_map(Boot::chain);
    let starts = starts.map(|boot| boot.host);
    let progress = progress::Tests::new(limits, starts.map(boots::start_up), at_once());
    let progress = Arc::new(progress);
    let reports = Arc::clone(&progress).report();
    let run = |boot: Boot<'_>| {
        let host = HostRun::new(boot.host, &cache, &binaries, long, &progress);
        let starts: Vec<_> = boot
            .chain()
            .map(|boot| boots::start_up(boot.host))
            .collect();
        let results = host.run(boot);
        for start in starts {
            progress.boot_ended(start);
        }
        results
    };
    for boot in here {
        results.add(run(boot));
    }
    results.add(side_by_side(emulated, run));
    drop(reports);
    let mut passed_alone = Vec::new();
    for host in Host::ALL {
        let failed = repeat::suites_of_failed(&suites, &results.records, host);
        for boot in boots(&failed, &[host]) {
            println!("lab: what failed on {} is run again, alone", host.name());
            let again = run(boot);
            passed_alone.extend(repeat::take_over(&mut results.records, &again.records));
            results.trouble.extend(again.trouble);
        }
    }

    let verdict = verdict(&results.records, every_host);
    for (name, hosts) in &verdict.ran_nowhere {
        let verb = if every_host {
            "FAILED: no host can run it"
        } else {
            "ran on none of these hosts"
        };
        println!("test {name} ... {verb}");
        for (host, missing) in hosts {
            println!("    {host} lacks {missing}");
        }
    }
    counts += verdict.counts;
    for trouble in &results.trouble {
        println!("FAILED: {trouble}");
        counts.failed += 1;
    }
    if !results.restarts.is_empty() {
        println!(
            "an emulator died and was started again {} times:",
            results.restarts.len()
        );
        for restart in &results.restarts {
            println!("    {restart}");
        }
    }
    if !passed_alone.is_empty() {
        println!("failed beside other tests, and passed alone:");
        for test in &passed_alone {
            println!("    {test}");
        }
    }
    println!("{counts}");
    Ok(counts.failed == 0)
}

/// The number of boots at once: one for each CPU, since an emulator keeps one CPU busy.
fn at_once() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Runs several boots at once.
fn side_by_side<'a>(
    boots: Vec<Boot<'a>>,
    run: impl Fn(Boot<'a>) -> HostResults + Sync,
) -> HostResults {
    let waiting = Mutex::new(VecDeque::from(boots));
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    };
    let mut results = HostResults::default();
    thread::scope(|scope| {
        let runners: Vec<_> = (0..at_once())
            .map(|_| {
                scope.spawn(|| {
                    let mut results = HostResults::default();
                    while let Some(boot) = next() {
                        results.add(run(boot));
                    }
                    results
                })
            })
            .collect();
        for runner in runners {
            match runner.join() {
                Ok(more) => results.add(more),
                Err(_) => results
                    .trouble
                    .push("a runner of emulated hosts panicked".to_owned()),
            }
        }
    });
    results
}

/// The ordinary tests, with their output shown.
fn cargo_test(filter: Option<&str>) -> Result<(Counts, bool), TestError> {
    let root = binaries::workspace()?;
    let mut command = binaries::cargo().map_err(BuildError::Cargo)?;
    command
        .args(["test", "--workspace", "--no-fail-fast", "--quiet"])
        .args(filter)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = OwnedChild::spawn(&mut command).map_err(BuildError::Cargo)?;
    let mut output = Vec::new();
    if let Some(from) = &mut child.child().stdout {
        let mut buffer = [0; 8192];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            output.extend(&buffer[..read]);
            // Only shown; the counts determine the result.
            let _ = std::io::stderr().write_all(&buffer[..read]);
        }
    }
    let status = child.wait().map_err(BuildError::Cargo)?;
    Ok((
        cargo_test_counts(&String::from_utf8_lossy(&output)),
        status.success(),
    ))
}

fn suites(paths: &[PathBuf], filter: Option<&str>, long: bool) -> Result<Vec<Suite>, TestError> {
    paths
        .iter()
        .map(|binary| {
            let mut tests = list(binary, long)?;
            tests.retain(|test| filter.is_none_or(|filter| test.name.contains(filter)));
            Ok(Suite {
                binary: binary.clone(),
                tests,
            })
        })
        .collect()
}

/// The tests of a suite. The suite is static, so it runs on this machine too.
fn list(binary: &Path, long: bool) -> Result<Vec<Listed>, TestError> {
    let failed = |what: String| TestError::Suite {
        binary: binary.to_owned(),
        what,
    };
    let output = std::process::Command::new(binary)
        .arg("--list-json")
        .envs(long.then_some((LAB_LONG_VARIABLE, "1")))
        .output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
}
