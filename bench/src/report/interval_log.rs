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

/// Writes a line for each round, tagged `L1.MODE.KIND.PART` (`L1@qemu.…` under QEMU), values in TSC ticks. It has no time axis:
/// rounds stand in their order.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    // The writer's type wants a sized one.
    let mut out = out;
    let mut serializer = V2DeflateSerializer::new();
    let unit = &report.unit;
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&format!(
            "[parts of exits of L2 in TSC ticks; {} ticks are 1 of: {}]",
            unit.ticks,
            plain(&unit.name)
        ))
        .with_max_value_divisor(1.0)
        .begin_log_with(&mut out, &mut serializer)?;
    let mut line = |tag: &str, part: &Part| -> io::Result<()> {
        // A tag has no blanks and commas.
        let tag = tag.replace(
            |c: char| c.is_whitespace() || c.is_control() || c == ',',
            "_",
        );
        for round in &part.rounds {
            let histogram = histogram::decode(round).map_err(io::Error::other)?;
            log.write_histogram(&histogram, Duration::ZERO, Duration::ZERO, Tag::new(&tag))
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

    /// Tags and numbers of samples, as HdrHistogram's own reader sees them.
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
    fn what_a_tag_cannot_hold_is_replaced() {
        let mut entry = measured(Mode::Evmcs, "a b,c\n#", 100.0);
        entry.vmm = Vmm::Qemu;
        let lines = read_back(&report_of(vec![entry]));
        assert_eq!(lines[0].0, "micro@qemu.evmcs.a_b_c_#.round-trip");
    }
}
