//! The host's properties that limit a configuration.

use std::fs;

/// The host's limits. An unknown property does not limit anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Width of a physical address, in bits.
    pub physical_bits: Option<u32>,
    /// RAM and swap together, in bytes.
    pub ram_and_swap: Option<u64>,
}

impl HostLimits {
    /// This host's, from /proc.
    pub fn read() -> Self {
        Self {
            physical_bits: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| physical_bits(&text)),
            ram_and_swap: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|text| ram_and_swap(&text)),
        }
    }
}

/// Parses a line like `address sizes : 46 bits physical, 48 bits virtual`.
fn physical_bits(cpuinfo: &str) -> Option<u32> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("address sizes"))?
        .trim_start()
        .strip_prefix(':')?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Parses the lines `MemTotal: N kB` and `SwapTotal: N kB`.
fn ram_and_swap(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    kib("MemTotal")?
        .checked_add(kib("SwapTotal").unwrap_or(0))?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        assert_eq!(
            physical_bits("model name\t: x\naddress sizes\t: 46 bits physical, 48 bits virtual\n"),
            Some(46)
        );
        assert_eq!(physical_bits("nothing"), None);
        assert_eq!(
            ram_and_swap("MemTotal:  100 kB\nMemFree: 1 kB\nSwapTotal: 20 kB\n"),
            Some(120 * 1024)
        );
        assert_eq!(ram_and_swap("MemTotal: 18446744073709551615 kB\n"), None);
        assert_eq!(ram_and_swap(""), None);
    }
}
