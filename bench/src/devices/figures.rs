//! The figures of all jobs and rounds, and the ratios of the two VMMs.

use serde::Serialize;

use super::guest::Measured;
use super::jobs::{JOBS, Job};
use crate::vmm::contender::Contender;
use crate::vmm::samples::median;

/// A figure of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    Throughput,
    MeanLatency,
    MedianLatency,
    TailLatency,
    Cpu,
    CpuBesideVcpus,
    Exits,
}

impl Figure {
    pub(super) const ALL: [Self; 7] = [
        Self::Throughput,
        Self::MeanLatency,
        Self::MedianLatency,
        Self::TailLatency,
        Self::Cpu,
        Self::CpuBesideVcpus,
        Self::Exits,
    ];

    /// Its name and its unit.
    pub(super) fn title(self, job: Job) -> (&'static str, &'static str) {
        match self {
            Self::Throughput if job.in_bytes() => ("throughput", "MiB/s"),
            Self::Throughput => ("throughput", "requests/s"),
            Self::MeanLatency => ("mean latency", "us"),
            Self::MedianLatency => ("median latency", "us"),
            Self::TailLatency => ("99th percentile of the latency", "us"),
            Self::Cpu => ("CPU time of the VMM per request", "us"),
            Self::CpuBesideVcpus => ("of that beside the vCPUs", "us"),
            Self::Exits => ("exits of the VM per request", "exits"),
        }
    }

    /// The decimals that are shown.
    pub(super) fn decimals(self) -> usize {
        match self {
            Self::Exits => 2,
            Self::Cpu | Self::CpuBesideVcpus => 1,
            _ => 0,
        }
    }

    /// Its value, if the host tells it.
    fn of(self, measured: &Measured, job: Job) -> Option<f64> {
        let Measured {
            fio,
            cost,
            requests,
        } = measured;
        match self {
            Self::Throughput if job.in_bytes() => Some(fio.bytes_per_second / f64::from(1 << 20)),
            Self::Throughput => Some(fio.requests_per_second),
            Self::MeanLatency => Some(fio.mean_ns / 1e3),
            Self::MedianLatency => Some(fio.median_ns / 1e3),
            Self::TailLatency => Some(fio.p99_ns / 1e3),
            Self::Cpu => Some(cost.cpu_us / requests),
            Self::CpuBesideVcpus => cost.beside_vcpus_us.map(|us| us / requests),
            Self::Exits => cost.exits.map(|exits| exits / requests),
        }
    }
}

/// A figure of a job in both VMMs, with a value of each round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) job: &'static str,
    pub(super) figure: &'static str,
    pub(super) unit: &'static str,
    pub(super) hypernest: Vec<f64>,
    pub(super) qemu: Vec<f64>,
    /// hypernest's value divided by QEMU's of the same round: what slows a round slows both alike.
    pub(super) ratios: Vec<f64>,
    /// The median of the ratios.
    pub(super) ratio: Option<f64>,
    #[serde(skip)]
    pub(super) decimals: usize,
}

/// What was measured, in the order of the rounds.
#[derive(Debug, Default)]
pub(super) struct Results(Vec<(usize, Contender, Measured)>);

impl Results {
    /// Adds the result of the job with this number.
    pub(super) fn add(&mut self, job: usize, who: Contender, measured: Measured) {
        self.0.push((job, who, measured));
    }

    /// All figures that have values.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (number, job) in JOBS.into_iter().enumerate() {
            for figure in Figure::ALL {
                let values = |who: Contender| -> Vec<f64> {
                    let ours = self.0.iter().filter(|(j, w, _)| (*j, *w) == (number, who));
                    ours.filter_map(|(.., measured)| figure.of(measured, job))
                        .collect()
                };
                let (hypernest, qemu) = (values(Contender::Hypernest), values(Contender::Q35));
                if hypernest.is_empty() && qemu.is_empty() {
                    continue;
                }
                let ratios = ratios(&hypernest, &qemu);
                let (name, unit) = figure.title(job);
                rows.push(Row {
                    job: job.name,
                    figure: name,
                    unit,
                    ratio: median(&ratios),
                    hypernest,
                    qemu,
                    ratios,
                    decimals: figure.decimals(),
                });
            }
        }
        rows
    }
}

/// Of each round, ours to theirs.
fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    // Without a value of each round it is not known which belong together.
    if ours.len() != theirs.len() {
        return Vec::new();
    }
    let pairs = ours.iter().zip(theirs);
    pairs
        .filter(|(_, theirs)| **theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::devices::cost::Cost;
    use crate::devices::fio::Fio;

    pub(in crate::devices) fn measured(scale: f64, exits: Option<f64>) -> Measured {
        Measured {
            fio: Fio {
                requests_per_second: 1000.0 * scale,
                bytes_per_second: f64::from(1 << 20) * 50.0 * scale,
                mean_ns: 40_000.0 / scale,
                median_ns: 30_000.0 / scale,
                p99_ns: 90_000.0 / scale,
            },
            cost: Cost {
                cpu_us: 2e6,
                beside_vcpus_us: Some(5e5),
                exits,
            },
            requests: 1000.0 * scale,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut results = Results::default();
        for (ours, theirs) in [(1.0, 2.0), (3.0, 1.0), (8.0, 8.0)] {
            results.add(0, Contender::Q35, measured(theirs, Some(900.0)));
            results.add(0, Contender::Hypernest, measured(ours, Some(600.0)));
        }
        let rows = results.rows();
        assert_eq!(rows.len(), Figure::ALL.len());
        let throughput = &rows[0];
        assert_eq!(throughput.hypernest, [1000.0, 3000.0, 8000.0]);
        assert_eq!(throughput.qemu, [2000.0, 1000.0, 8000.0]);
        assert_eq!(throughput.ratios, [0.5, 3.0, 1.0]);
        assert_eq!(throughput.ratio, Some(1.0));
        assert_eq!(throughput.unit, "requests/s");
        let cpu = rows.iter().find(|row| row.figure.starts_with("CPU"));
        assert_eq!(cpu.unwrap().hypernest[0], 2000.0);
    }

    #[test]
    fn figures_that_the_host_does_not_tell_are_left_out() {
        let mut results = Results::default();
        results.add(4, Contender::Hypernest, measured(1.0, None));
        let rows = results.rows();
        assert_eq!(rows.len(), Figure::ALL.len() - 1);
        assert_eq!((rows[0].unit, rows[0].hypernest[0]), ("MiB/s", 50.0));
        assert_eq!(rows[0].ratio, None);
        assert_eq!(ratios(&[1.0], &[0.0]), [0.0; 0]);
        assert_eq!(ratios(&[1.0, 2.0], &[2.0]), [0.0; 0]);
    }
}
