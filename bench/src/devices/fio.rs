//! What fio reports (`--output-format=json`; HOWTO, "JSON output"), as it comes over a console.

use std::collections::BTreeMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde::Deserialize;
use thiserror::Error;

/// The figures of one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fio {
    pub(crate) requests_per_second: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) mean_ns: f64,
    pub(crate) median_ns: f64,
    pub(crate) p99_ns: f64,
}

/// A report that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FioError {
    #[error("it did not arrive as it was sent: lines of something else are among its own")]
    Base64(#[from] base64::DecodeError),
    #[error("it did not arrive as it was sent")]
    Gzip(#[from] std::io::Error),
    #[error("it is longer than {MOST} bytes")]
    TooLong,
    #[error("it has not the form of fio's JSON")]
    Json(#[from] serde_json::Error),
    #[error("it is about {0} jobs, and one was run")]
    Jobs(usize),
    #[error("its job ended with error {0}")]
    Failed(i64),
    #[error("its job made no requests")]
    Nothing,
    #[error("it has no percentile {0}")]
    Percentile(&'static str),
}

/// A report of one job has some 8 KiB.
const MOST: u64 = 1 << 20;

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    total_ios: u64,
    iops: f64,
    bw_bytes: f64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

/// A report that was packed by gzip and base64: a line of something else on the console would otherwise be
/// read as a part of it.
pub(crate) fn unpack(text: &str) -> Result<String, FioError> {
    let packed: String = text.split_whitespace().collect();
    let mut json = String::new();
    let packed = STANDARD.decode(packed)?;
    GzDecoder::new(&*packed)
        .take(MOST + 1)
        .read_to_string(&mut json)?;
    if json.len() as u64 > MOST {
        return Err(FioError::TooLong);
    }
    Ok(json)
}

/// The figures of the only job of the report `json`: of its reads, or of its writes.
pub(crate) fn parse(json: &str, reads: bool) -> Result<Fio, FioError> {
    let report: Report = serde_json::from_str(json)?;
    let [job] = &*report.jobs else {
        return Err(FioError::Jobs(report.jobs.len()));
    };
    if job.error != 0 {
        return Err(FioError::Failed(job.error));
    }
    let direction = if reads { &job.read } else { &job.write };
    if direction.total_ios == 0 {
        return Err(FioError::Nothing);
    }
    let percentile = |name: &'static str| {
        let value = direction.lat_ns.percentile.get(name);
        value.copied().ok_or(FioError::Percentile(name))
    };
    Ok(Fio {
        requests_per_second: direction.iops,
        bytes_per_second: direction.bw_bytes,
        mean_ns: direction.lat_ns.mean,
        median_ns: percentile("50.000000")?,
        p99_ns: percentile("99.000000")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::read::GzEncoder;

    /// The report of sequential writes, of fio 3.39 in the lab; parts that are not read were cut out.
    const RECORDED: &str = include_str!("fio.json");

    fn pack(text: &str) -> String {
        let mut packed = Vec::new();
        let mut encoder = GzEncoder::new(text.as_bytes(), Compression::best());
        encoder.read_to_end(&mut packed).unwrap();
        let text = STANDARD.encode(packed);
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(76)
            .map(String::from_utf8_lossy)
            .collect();
        format!("\r\n{}\r\n", lines.join("\r\n"))
    }

    #[test]
    fn a_recorded_report_is_read() {
        let json = unpack(&pack(RECORDED)).unwrap();
        assert_eq!(json, RECORDED);
        let fio = parse(&json, false).unwrap();
        assert_eq!(
            fio,
            Fio {
                requests_per_second: 328.585707,
                bytes_per_second: 345_595_138.0,
                mean_ns: 12_094_116.160_85,
                median_ns: 11_468_800.0,
                p99_ns: 29_753_344.0,
            }
        );
        assert!(matches!(parse(&json, true), Err(FioError::Nothing)));
    }

    #[test]
    fn a_line_of_something_else_among_its_own_is_noticed() {
        let packed = pack(RECORDED);
        let mangled = packed.replacen("\r\n", "\r\n[   12.3] vdb: new size\r\n", 2);
        assert!(matches!(unpack(&mangled), Err(FioError::Base64(_))));
        let lost: String = packed.chars().skip(78 * 4).collect();
        assert!(unpack(&lost).is_err());
        let long = " ".repeat(2 << 20);
        assert!(matches!(unpack(&pack(&long)), Err(FioError::TooLong)));
    }

    #[test]
    fn a_report_without_figures_is_refused() {
        let failed = RECORDED.replace("\"error\": 0", "\"error\": 5");
        assert!(matches!(parse(&failed, false), Err(FioError::Failed(5))));
        let no_median = RECORDED.replace("50.000000", "95.000000");
        assert!(matches!(
            parse(&no_median, false),
            Err(FioError::Percentile("50.000000"))
        ));
        assert!(matches!(
            parse("{\"jobs\": []}", false),
            Err(FioError::Jobs(0))
        ));
        assert!(matches!(parse("{}", false), Err(FioError::Json(_))));
    }
}
