use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use proptest::prelude::*;

use super::*;
use crate::units::TscKhz;

fn recorder() -> Recorder {
    Recorder::new(ExitClock::new(None)).unwrap()
}

fn report(vcpus: Vec<CountersSnapshot>) -> StatsReport<'static> {
    StatsReport {
        vm: "test",
        started: SystemTime::UNIX_EPOCH,
        uptime: Duration::from_secs(5),
        vcpus,
    }
}

/// Two vCPUs; the second also has an exit that is out of range.
fn two_vcpus() -> StatsReport<'static> {
    let (mut first, mut second) = (recorder(), recorder());
    for ns in 1..=1000 {
        first.record(ExitReason::PortOut, ns);
    }
    first.record(ExitReason::MmioRead, 0);
    second.record(ExitReason::PortOut, 5000);
    second.record(ExitReason::PortOut, 100_000_000_000);
    report(vec![first.reader().snapshot(), second.reader().snapshot()])
}

#[test]
fn each_reason_stands_in_its_place() {
    for (i, reason) in ExitReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, i);
    }
    let mut names: Vec<_> = ExitReason::ALL.map(ExitReason::name).to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ExitReason::ALL.len());
}

#[test]
fn nothing_recorded_is_nothing_read() {
    assert_eq!(recorder().reader().snapshot(), CountersSnapshot::default());
}

#[test]
fn every_reason_is_counted_by_itself() {
    let mut recorder = recorder();
    for (i, reason) in ExitReason::ALL.into_iter().enumerate() {
        for _ in 0..=i {
            recorder.record(reason, 1 << i);
        }
    }
    let snapshot = recorder.reader().snapshot();
    for (i, reason) in ExitReason::ALL.into_iter().enumerate() {
        let summary = snapshot.reasons[&reason].summary();
        assert_eq!(summary.count, i as u64 + 1);
        assert_eq!((summary.p50, summary.max), (1 << i, 1 << i));
    }
}

#[test]
fn what_is_out_of_range_is_counted_and_largest() {
    let report = two_vcpus();
    let summary = report.vcpus[1].reasons[&ExitReason::PortOut].summary();
    assert_eq!(summary.count, 2);
    assert_eq!(summary.out_of_range, 1);
    assert!((4960..=5040).contains(&summary.p50), "{summary:?}");
    assert_eq!(summary.p90, 100_000_000_000);
    assert_eq!(summary.max, 100_000_000_000);
    assert_eq!(summary.sum, 100_000_005_000);
}

#[test]
fn the_json_is_as_documented() {
    let mut text = Vec::new();
    two_vcpus().write_json(&mut text).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["format"], "hypernest-exits");
    assert_eq!(json["version"], 1);
    assert_eq!(json["vm"], "test");
    assert_eq!(json["uptime_ns"], 5_000_000_000u64);
    assert_eq!(json["vcpus"][0]["vcpu"], 0);
    assert_eq!(json["vcpus"][0]["exits"]["mmio-read"]["count"], 1);
    assert_eq!(json["vcpus"][0]["exits"]["port-out"]["count"], 1000);
    assert_eq!(json["vcpus"][0]["exits"]["port-out"]["mean"], 500.5);
    assert_eq!(json["all"]["port-out"]["count"], 1002);
    assert_eq!(json["all"]["port-out"]["out_of_range"], 1);
    assert!(json["all"]["rdmsr"].is_null());
    let book = include_str!("../../../docs/exit-statistics.md");
    for key in json
        .as_object()
        .unwrap()
        .keys()
        .chain(json["all"]["port-out"].as_object().unwrap().keys())
        .map(String::as_str)
        .chain(ExitReason::ALL.map(ExitReason::name))
    {
        assert!(
            book.contains(&format!("`{key}`")),
            "{key} is not documented"
        );
    }
}

#[test]
fn the_log_can_be_read_back() {
    let report = two_vcpus();
    let mut text = Vec::new();
    report.write_log(&mut text).unwrap();
    let mut read: Vec<(String, Histogram<u64>)> = Vec::new();
    for entry in IntervalLogIterator::new(&text) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            let bytes = decode_base64(interval.encoded_histogram());
            read.push((
                interval.tag().unwrap().as_str().to_owned(),
                Deserializer::new()
                    .deserialize(&mut bytes.as_slice())
                    .unwrap(),
            ));
            assert_eq!(interval.duration(), Duration::from_secs(5));
        }
    }
    let tags: Vec<_> = read.iter().map(|(tag, _)| tag.as_str()).collect();
    assert_eq!(
        tags,
        [
            "vcpu0.port-out",
            "vcpu0.mmio-read",
            "vcpu1.port-out",
            "all.port-out",
            "all.mmio-read"
        ]
    );
    assert_eq!(
        read[0].1,
        report.vcpus[0].reasons[&ExitReason::PortOut].histogram()
    );
    assert_eq!(read[3].1.len(), 1002);
}

/// RFC 4648, without padding rules.
fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bits, mut have, mut bytes) = (0u32, 0, Vec::new());
    for c in text.bytes().filter(|c| *c != b'=') {
        bits = bits << 6 | u32::from(digit(c));
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have).to_le_bytes()[0]);
        }
    }
    bytes
}

#[test]
fn both_files_are_written_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("exits.json");
    std::fs::write(&path, "old").unwrap();
    two_vcpus().write(&path).unwrap();
    two_vcpus().write(&path).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\n"));
    let log = std::fs::read_to_string(dir.path().join("exits.json.hlog")).unwrap();
    assert!(log.contains("Tag=all.port-out,"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_full_disk_is_told_and_the_device_stays_one() {
    let e = two_vcpus().write("/dev/full".as_ref()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "cannot write the exit statistics to /dev/full"
    );
    let ExitStatsError::Write { source, .. } = e else {
        panic!("{e}");
    };
    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
    assert!(!std::fs::metadata("/dev/full").unwrap().is_file());
}

#[test]
fn a_missing_directory_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let e = two_vcpus()
        .write(&dir.path().join("no/exits.json"))
        .unwrap_err();
    assert!(
        matches!(e, ExitStatsError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Fails after a number of bytes, wherever that is.
struct Full(usize);
impl Write for Full {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.0.min(buf.len()) {
            0 => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            n => {
                self.0 -= n;
                Ok(n)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_fills_anywhere_is_an_error() {
    let report = two_vcpus();
    for room in (0..600).step_by(7) {
        assert!(report.write_json(&mut Full(room)).is_err(), "{room}");
        assert!(report.write_log(&mut Full(room)).is_err(), "{room}");
    }
}

#[test]
fn a_reader_sees_every_exit_of_a_running_vcpu_in_the_end() {
    const EXITS: u64 = 100_000;
    let mut recorder = recorder();
    let reader = recorder.reader();
    let vcpu = std::thread::spawn(move || {
        for i in 0..EXITS {
            recorder.record(ExitReason::PortIn, i);
        }
    });
    let mut last = 0;
    while !vcpu.is_finished() {
        let count = reader.snapshot().count();
        assert!(last <= count && count <= EXITS);
        last = count;
    }
    vcpu.join().unwrap();
    assert_eq!(reader.snapshot().count(), EXITS);
}

#[test]
fn the_cost_can_be_measured() {
    let cost = cost(10_000, ExitClock::new(Some(TscKhz(2_000_000)))).unwrap();
    assert!(cost.record_ns.is_finite() && cost.timed_record_ns.is_finite());
    println!("{cost:?}");
}

proptest! {
    /// Compares with a histogram of the values themselves.
    #[test]
    fn the_figures_are_those_of_the_values(
        values in proptest::collection::vec(0u64..bucket::MAX, 1..200),
    ) {
        let mut recorder = recorder();
        let mut direct = Histogram::<u64>::new_with_bounds(1, bucket::MAX, bucket::DIGITS).unwrap();
        for ns in &values {
            recorder.record(ExitReason::Hypercall, *ns);
            direct.record(*ns).unwrap();
        }
        let snapshot = recorder.reader().snapshot();
        let counts = &snapshot.reasons[&ExitReason::Hypercall];
        let summary = counts.summary();
        prop_assert_eq!(counts.histogram(), direct.clone());
        prop_assert_eq!(summary.max, *values.iter().max().unwrap());
        prop_assert_eq!(summary.sum, values.iter().sum::<u64>());
        prop_assert_eq!(summary.p50, direct.value_at_quantile(0.5).min(summary.max));
        prop_assert_eq!(summary.p99_9, direct.value_at_quantile(0.999).min(summary.max));
    }
}
