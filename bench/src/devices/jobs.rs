//! The loads: jobs of fio.

/// One load on the scratch disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    /// Its name on the command line.
    pub(super) key: &'static str,
    /// What a reader is shown.
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) rw: &'static str,
    /// The size of a request in bytes.
    pub(super) block: u32,
    /// How many requests are under way.
    pub(super) depth: u32,
}

const fn job(
    key: &'static str,
    name: &'static str,
    rw: &'static str,
    block: u32,
    depth: u32,
) -> Job {
    Job {
        key,
        name,
        rw,
        block,
        depth,
    }
}

/// All loads, in the order in which they run.
pub(super) const JOBS: [Job; 6] = [
    job(
        "randread-1",
        "4 KiB random read, depth 1",
        "randread",
        4 << 10,
        1,
    ),
    job(
        "randwrite-1",
        "4 KiB random write, depth 1",
        "randwrite",
        4 << 10,
        1,
    ),
    job(
        "randread-32",
        "4 KiB random read, depth 32",
        "randread",
        4 << 10,
        32,
    ),
    job(
        "randwrite-32",
        "4 KiB random write, depth 32",
        "randwrite",
        4 << 10,
        32,
    ),
    job("read", "1 MiB sequential read, depth 4", "read", 1 << 20, 4),
    job(
        "write",
        "1 MiB sequential write, depth 4",
        "write",
        1 << 20,
        4,
    ),
];

/// Seconds before fio counts, in which everything that is used for the first time is used.
pub(super) const RAMP: u32 = 1;
/// Seconds by which fio runs longer than the host measures, so that the host measures nothing but the load.
pub(super) const MARGIN: u32 = 5;

impl Job {
    /// Whether its throughput is given in bytes: nobody counts requests of 1 MiB.
    pub(super) fn in_bytes(self) -> bool {
        self.block >= 1 << 20
    }

    /// Whether it reads.
    pub(super) fn reads(self) -> bool {
        matches!(self.rw, "read" | "randread")
    }

    /// Its lines in a job file of fio, for the first `mib` of a disk and `seconds` of measuring.
    pub(super) fn lines(self, mib: u32, seconds: u32) -> Vec<String> {
        let Self {
            rw, block, depth, ..
        } = self;
        let runtime = seconds + MARGIN;
        vec![
            format!("rw={rw}"),
            format!("bs={block}"),
            format!("iodepth={depth}"),
            format!("size={mib}m"),
            format!("ramp_time={RAMP}"),
            format!("runtime={runtime}"),
            "time_based=1".to_owned(),
            "ioengine=libaio".to_owned(),
            "direct=1".to_owned(),
            // From submission to completion, as in the mean; fio's default is from the kernel on.
            "lat_percentiles=1".to_owned(),
            "clat_percentiles=0".to_owned(),
            "percentile_list=50:99".to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_job_file_of_words() {
        for job in JOBS {
            let lines = job.lines(256, 3);
            assert!(lines.contains(&"runtime=8".to_owned()), "{lines:?}");
            // They pass through a shell.
            let plain = |c: char| c.is_ascii_alphanumeric() || "=_:".contains(c);
            assert!(lines.iter().all(|line| line.chars().all(plain)));
            assert_eq!(job.reads(), job.name.contains("read"));
            assert_eq!(job.in_bytes(), job.name.contains("MiB"));
        }
    }
}
