//! The result: a table, or JSON.

use serde::Serialize;

use super::figures::Row;
use super::{Bench, moving};
use crate::report::Environment;
use crate::vmm::samples::{spread, table};

/// The result of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: u32,
    made_by: &'static str,
    command_line: Vec<String>,
    started: String,
    environment: Environment,
    /// What the figures depend on.
    setting: String,
    warnings: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(
        bench: &Bench,
        started: String,
        environment: Environment,
        rows: Vec<Row>,
    ) -> Self {
        let warnings = environment.lab.iter().map(|lab| {
            format!(
                "the CPU of this host (the {lab} lab) is emulated, so its time is the emulator's: only the \
                 ratios say anything"
            )
        });
        Self {
            version: 1,
            made_by: "hypernest-bench",
            command_line: std::env::args().collect(),
            started,
            warnings: warnings.collect(),
            environment,
            setting: setting(bench),
            rows,
        }
    }

    pub(super) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.setting);
        for warning in &self.warnings {
            text += &format!("note: {warning}\n");
        }
        text + "\n" + &self.table()
    }

    fn table(&self) -> String {
        let compared = self.rows.iter().any(|row| !row.qemu.is_empty());
        let mut head = vec!["load", "median (least - greatest)", "hypernest"];
        if compared {
            head.extend(["QEMU q35", "ratio"]);
        }
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let mut cells = vec![
                    row.job.to_owned(),
                    format!("{}, {}", row.figure, row.unit),
                    spread(&row.hypernest, row.decimals),
                ];
                if compared {
                    cells.push(spread(&row.qemu, row.decimals));
                    cells.push(ratio(&row.ratios));
                }
                cells
            })
            .collect();
        table(&head, &rows)
    }
}

/// As `0.98x (0.95 - 1.01)`.
fn ratio(ratios: &[f64]) -> String {
    spread(ratios, 2).replacen(" (", "x (", 1)
}

fn setting(bench: &Bench) -> String {
    let network = match bench.has_network() {
        true => " and virtio-net by a tap on a bridge (QEMU with vhost=off)",
        false => "",
    };
    let migration = match bench.migrates() {
        true => format!(
            "; migrations with at most {} MiB/s and {} ms of downtime",
            moving::LIMITS.bandwidth_mib,
            moving::LIMITS.downtime_ms
        ),
        false => String::new(),
    };
    format!(
        "virtio-blk{network}, {} vCPUs with {} MiB, cache={}, {} MiB of {}; {} rounds, {} s per load, \
         QEMU with aio={}{migration}",
        bench.cpus,
        bench.memory_mib,
        bench.cache.name(),
        bench.size_mib,
        bench.scratch.what(),
        bench.rounds,
        bench.seconds,
        bench.engine.name(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::figures::{Figure, Results};
    use crate::vmm::contender::Contender;

    const LOAD: &str = "4 KiB random read, depth 1";
    const THROUGHPUT: Figure = Figure::new("throughput", "requests/s", 0);

    fn report(rows: Vec<Row>) -> Report {
        Report {
            version: 1,
            made_by: "hypernest-bench",
            command_line: Vec::new(),
            started: String::new(),
            environment: Environment::default(),
            setting: "setting".to_owned(),
            warnings: vec!["its time is the emulator's".to_owned()],
            rows,
        }
    }

    #[test]
    fn each_row_has_both_vmms_and_the_ratio() {
        let mut results = Results::default();
        for (ours, theirs) in [(1000.0, 2000.0), (3000.0, 2000.0)] {
            results.add(LOAD, Contender::Hypernest, vec![(THROUGHPUT, ours)]);
            results.add(LOAD, Contender::Q35, vec![(THROUGHPUT, theirs)]);
        }
        let report = report(results.rows());
        let text = report.text();
        assert!(text.starts_with("setting\nnote: its time"), "{text}");
        let row = "| 4 KiB random read, depth 1 | throughput, requests/s | 1000 (1000 - 3000) | 2000 (2000 - \
            2000) | 0.50x (0.50 - 1.50) |";
        assert!(text.contains(row), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["rows"][0]["qemu"][1], 2000.0);
        assert_eq!(json["rows"][0]["ratio"], 0.5);
    }

    #[test]
    fn hypernest_alone_has_no_ratio() {
        let mut results = Results::default();
        results.add(LOAD, Contender::Hypernest, vec![(THROUGHPUT, 1.0)]);
        let text = report(results.rows()).text();
        assert!(!text.contains("ratio") && !text.contains("QEMU"), "{text}");
        assert_eq!(ratio(&[]), "-");
    }
}
