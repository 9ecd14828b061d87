//! What is said to the guest, and what it answers.

use super::console::Console;
use super::cost::{Cost, Sample};
use super::fio::{self, Fio};
use super::jobs::Job;
use super::machine::SERIAL;
use super::{Bench, DevicesError};

/// The program that puts a load on a disk.
const PROGRAM: &str = include_str!("guest.sh");
/// Where the guest has it.
const PLACE: &str = "/run/hypernest-bench.sh";

/// A job's figures, from inside and from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) fio: Fio,
    /// Of `requests` requests.
    pub(super) cost: Cost,
    pub(super) requests: f64,
}

/// Waits for the shell of root, and returns the name of the scratch disk in the guest.
pub(super) fn prepare(console: &mut Console, bench: &Bench) -> Result<String, DevicesError> {
    console.until(&bench.prompt)?;
    // A shell that prints nothing but the output of its commands. Each word that is waited for is written so
    // that its echo is another.
    console.tell("exec sh")?;
    console.tell("stty -echo; PS1=; PS2=; dmesg -n 1; echo; echo @rea''dy")?;
    console.until("@ready")?;
    for program in ["fio", "gzip", "base64"] {
        console.tell(&format!(
            "command -v {program} >/dev/null && echo @yes || echo @no {program}"
        ))?;
    }
    let mut missing = Vec::new();
    for program in ["fio", "gzip", "base64"] {
        console.until("@")?;
        if console.until("\n")?.starts_with("no") {
            missing.push(program);
        }
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(console.failed(&format!("has a guest without {missing}")));
    }
    console.tell(&format!("cat >{PLACE} <<'END'\n{PROGRAM}END"))?;
    console.tell(&format!(
        "for b in /sys/block/*; do [ \"$(cat $b/serial 2>/dev/null)\" = {SERIAL} ] && \
         echo @disk ${{b##*/}}; done; echo @disk"
    ))?;
    let disk = console.line("@disk")?;
    if disk.is_empty() || !disk.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(console.failed("has a guest that does not find the scratch disk"));
    }
    console.until("@disk")?;
    Ok(disk)
}

/// How often a job is run whose measurement was longer than fio's time, as on a host under other load.
const ATTEMPTS: u32 = 3;

/// Runs `job` on `disk`.
pub(super) fn measure(
    console: &mut Console,
    bench: &Bench,
    disk: &str,
    job: Job,
) -> Result<Measured, DevicesError> {
    for _ in 0..ATTEMPTS {
        if let Some(measured) = attempt(console, bench, disk, job)? {
            return Ok(measured);
        }
    }
    let why = format!("has a guest in which fio ended {ATTEMPTS} times before the measurement");
    Err(console.failed(&why))
}

/// `None` if fio ended before the measurement.
fn attempt(
    console: &mut Console,
    bench: &Bench,
    disk: &str,
    job: Job,
) -> Result<Option<Measured>, DevicesError> {
    let lines = job.lines(bench.size_mib, bench.seconds).join(" ");
    console.tell(&format!("sh {PLACE} {disk} {} {lines}", bench.seconds))?;
    let sample = |console: &Console| {
        let sample = Sample::of(console.pid());
        sample.map_err(|error| console.failed(&format!("has no counters: {error}")))
    };
    let from = console.line("@from ")?;
    let before = sample(console)?;
    let to = console.line("@to ")?;
    let after = sample(console)?;
    let status = console.line("@status ")?;
    let report = console.until("@done")?;
    if status != "0" {
        return Err(console.failed(&format!("has a guest in which fio ended with {status}")));
    }
    let Some(to) = to.strip_suffix(" yes") else {
        return Ok(None);
    };
    let requests = requests(&from, to, job)
        .map_err(|why| console.failed(&format!("has a guest in which {why}")))?;
    let fio = fio::unpack(&report).and_then(|json| fio::parse(&json, job.reads()));
    let fio = fio.map_err(|source| DevicesError::Report {
        job: job.name,
        source,
    })?;
    Ok(Some(Measured {
        fio,
        cost: after.since(before),
        requests,
    }))
}

/// The guest powers off.
pub(super) fn end(mut console: Console) -> Result<(), DevicesError> {
    console.tell("sync; poweroff -f")?;
    console.end()
}

/// The number of requests between two counts of sectors.
fn requests(from: &str, to: &str, job: Job) -> Result<f64, String> {
    let unreadable = || format!("the disk has no counters: {from:?}, {to:?}");
    let number = |text: &str| text.parse::<u64>().map_err(|_| unreadable());
    let sectors = number(to)?.saturating_sub(number(from)?);
    let requests = sectors as f64 * 512.0 / f64::from(job.block);
    if requests < 1.0 {
        return Err("no request ended while it was measured".to_owned());
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::jobs::JOBS;

    #[test]
    fn requests_are_counted_by_sectors() {
        assert_eq!(requests("100", "900", JOBS[0]), Ok(100.0));
        for (from, to, why) in [
            ("100", "", "no counters"),
            ("x", "900", "no counters"),
            ("100", "100", "no request"),
        ] {
            let error = requests(from, to, JOBS[0]).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_program_can_be_typed() {
        // It is in a here-document, and a terminal takes lines of up to 4095 characters.
        assert!(
            PROGRAM
                .lines()
                .all(|line| line != "END" && line.len() < 1000)
        );
        assert!(PROGRAM.ends_with('\n') && PROGRAM.is_ascii() && !PROGRAM.contains('\t'));
    }
}
