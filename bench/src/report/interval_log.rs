//! A report as an HDR histogram log.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};

use super::groups::{PARTS, groups, plain};
use super::{Part, Report};
use crate::histogram;

/// Writes a line for each round, tagged `L1.MODE.KIND.PART` (`L1@qemu.…` under QEMU), values in TSC ticks.
/// Reports do not contain the start of a round, so the time axis of each tag is the time spent in its
/// samples: the length of a round is their sum, and it begins at the end of the previous one.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    // The writer's type requires a sized writer.
    let mut out = out;
    let mut serializer = V2DeflateSerializer::new();
    let unit = &report.unit;
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!(
            "[parts of exits of L2 in TSC ticks; {} ticks are 1 of: {}; time is that spent in the samples \
             of a tag]",
            unit.ticks,
            plain(&unit.name)
        ))
        .with_max_value_divisor(1.0)
        .begin_log_with(&mut out, &mut serializer)?;
    let khz = report.environment.tsc_khz.filter(|khz| *khz > 0);
    let ticks_per_second = match khz {
        Some(khz) => f64::from(khz) * 1e3,
        // The unit of an L2's own report is the nanosecond. Without a known rate, a tick counts as one
        // nanosecond.
        None if unit.ticks.is_normal() && unit.ticks > 0.0 => unit.ticks * 1e9,
        None => 1e9,
    };
    let mut line = |tag: &str, part: &Part| -> io::Result<()> {
        // A tag has no spaces and commas.
        let tag = tag.replace(
            |c: char| c.is_whitespace() || c.is_control() || c == ',',
            "_",
        );
        let mut start = Duration::ZERO;
        for round in &part.rounds {
            let histogram = histogram::decode(round).map_err(io::Error::other)?;
            let ticks = histogram.mean() * histogram.len() as f64;
            let length = Duration::try_from_secs_f64(ticks / ticks_per_second).unwrap_or_default();
            let from = start;
            start = start.saturating_add(length);
            log.write_histogram(&histogram, from, length, Tag::new(&tag))
                .map_err(|e| match e {
                    IntervalLogWriterError::IoError(e) => e,
                    IntervalLogWriterError::SerializeError(e) => io::Error::other(e),
                })?;
        }
        Ok(())
    };
    for group in groups(report) {
        for entry in group.entries() {
            let Some(measured) = entry.measured() else {
                continue;
            };
            let tag = format!("{}.{}.{}", group.name(), entry.mode, entry.kind);
            for (what, _, part) in PARTS {
                if let Some(part) = part(&measured.parts) {
                    line(&format!("{tag}.{what}"), part)?;
                }
            }
            if let Some(part) = &measured.empty {
                line(&format!("{tag}.empty"), part)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Vmm;
    use crate::report::sample::{measured, report, report_of};
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use hypernest_nested::l2exit::Mode;

    /// Tags and numbers of samples, as HdrHistogram's own reader parses them.
    fn read_back(report: &Report) -> Vec<(String, u64)> {
        let mut bytes = Vec::new();
        write(report, &mut bytes).unwrap();
        IntervalLogIterator::new(&bytes)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => {
                    let histogram = histogram::decode(interval.encoded_histogram()).unwrap();
                    Some((interval.tag().unwrap().as_str().to_owned(), histogram.len()))
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn each_round_of_each_part_has_a_line_with_its_tag() {
        let lines = read_back(&report());
        let tag = |name: &str| (name.to_owned(), 200);
        assert_eq!(
            lines[..8],
            [
                tag("micro.classic.cpuid.round-trip"),
                tag("micro.classic.cpuid.round-trip"),
                tag("micro.classic.cpuid.l2-to-l1"),
                tag("micro.classic.cpuid.l2-to-l1"),
                tag("micro.classic.cpuid.l1"),
                tag("micro.classic.cpuid.l1"),
                tag("micro.classic.cpuid.l1-to-l2"),
                tag("micro.classic.cpuid.l1-to-l2"),
            ]
        );
        assert_eq!(lines.last(), Some(&tag("linux.evmcs.cpuid.empty")));
        assert!(lines.contains(&tag("micro.classic+shadow.interrupt.l1")));
    }

    #[test]
    fn rounds_of_a_tag_follow_each_other_in_time() {
        let mut bytes = Vec::new();
        write(&report(), &mut bytes).unwrap();
        let mut last = ("".to_owned(), Duration::ZERO);
        let mut later = 0;
        for entry in IntervalLogIterator::new(&bytes) {
            let LogEntry::Interval(interval) = entry.unwrap() else {
                continue;
            };
            let tag = interval.tag().unwrap().as_str().to_owned();
            let histogram = histogram::decode(interval.encoded_histogram()).unwrap();
            // 2,000,000 kHz; the log has milliseconds.
            let seconds = histogram.mean() * histogram.len() as f64 / 2e9;
            let length = interval.duration().as_secs_f64();
            assert!(
                (length - seconds).abs() < 0.0011,
                "{tag}: {length} {seconds}"
            );
            if last.0 == tag {
                assert!(interval.start_timestamp() >= last.1, "{tag}");
                later += 1;
            } else {
                assert_eq!(interval.start_timestamp(), Duration::ZERO);
            }
            last = (tag, interval.start_timestamp());
        }
        assert!(later > 10);
    }

    #[test]
    fn what_a_tag_cannot_hold_is_replaced() {
        let mut entry = measured(Mode::Evmcs, "a b,c\n#", 100.0);
        entry.vmm = Vmm::Qemu;
        let lines = read_back(&report_of(vec![entry]));
        assert_eq!(lines[0].0, "micro@qemu.evmcs.a_b_c_#.round-trip");
    }
}
