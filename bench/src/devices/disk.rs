//! The loads on the disk: jobs of fio.

use super::console::Console;
use super::cost::{Cost, Sample, Shown};
use super::figures::{Figure, Values};
use super::fio::{self, Fio};
use super::jobs::Job;
use super::{Bench, DevicesError};

/// The program that puts a load on a disk.
pub(super) const PROGRAM: &str = include_str!("disk.sh");
/// Where the guest has it.
pub(super) const PLACE: &str = "/run/hypernest-bench-disk.sh";

/// A job's figures, from inside and from outside.
#[derive(Debug, Clone, Copy)]
struct Measured {
    fio: Fio,
    /// Of `requests` requests.
    cost: Cost,
    requests: f64,
}

const BYTES: Figure = Figure::new("throughput", "MiB/s", 0);
const REQUESTS: Figure = Figure::new("throughput", "requests/s", 0);
const MEAN: Figure = Figure::new("mean latency", "us", 0);
const MEDIAN: Figure = Figure::new("median latency", "us", 0);
const TAIL: Figure = Figure::new("99th percentile of the latency", "us", 0);
const COST: Shown = Shown {
    cpu: Figure::new("CPU time of the VMM per request", "us", 1),
    beside_vcpus: Figure::new("of that beside the vCPUs", "us", 1),
    exits: Figure::new("exits of the VM per request", "exits", 2),
};

impl Measured {
    fn values(&self, job: Job) -> Values {
        let Self {
            fio,
            cost,
            requests,
        } = *self;
        let throughput = match job.in_bytes() {
            true => (BYTES, fio.bytes_per_second / f64::from(1 << 20)),
            false => (REQUESTS, fio.requests_per_second),
        };
        let mut values = vec![
            throughput,
            (MEAN, fio.mean_ns / 1e3),
            (MEDIAN, fio.median_ns / 1e3),
            (TAIL, fio.p99_ns / 1e3),
        ];
        values.extend(cost.values(COST, requests, requests));
        values
    }
}

/// How often a job is run whose measurement was longer than fio's time, as on a host under other load.
const ATTEMPTS: u32 = 3;

/// Runs `job` on `disk`.
pub(super) fn measure(
    console: &mut Console,
    bench: &Bench,
    disk: &str,
    job: Job,
) -> Result<Values, DevicesError> {
    for _ in 0..ATTEMPTS {
        if let Some(measured) = attempt(console, bench, disk, job)? {
            return Ok(measured.values(job));
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
    fn figures_are_of_one_request() {
        let measured = Measured {
            fio: Fio {
                requests_per_second: 1000.0,
                bytes_per_second: f64::from(1 << 20) * 50.0,
                mean_ns: 40_000.0,
                median_ns: 30_000.0,
                p99_ns: 90_000.0,
            },
            cost: Cost {
                cpu_us: 2e6,
                beside_vcpus_us: Some(5e5),
                exits: None,
            },
            requests: 1000.0,
        };
        assert_eq!(
            measured.values(JOBS[0]),
            [
                (REQUESTS, 1000.0),
                (MEAN, 40.0),
                (MEDIAN, 30.0),
                (TAIL, 90.0),
                (COST.cpu, 2000.0),
                (COST.beside_vcpus, 500.0),
            ]
        );
        assert_eq!(measured.values(JOBS[4])[0], (BYTES, 50.0));
    }
}
