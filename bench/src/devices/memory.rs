//! The memory of a VMM's process beyond its guest's RAM.

use std::fs;
use std::path::Path;

use super::console::Console;
use super::figures::{Figure, Values};
use super::{Bench, DevicesError};
use crate::vmm::smaps::{self, Resident};

const ALL: Figure = Figure::new("resident beyond guest RAM and kernel file", "MiB", 2);
const FILES: Figure = Figure::new("of that program and libraries", "MiB", 2);
const ANONYMOUS: Figure = Figure::new("of that anonymous", "MiB", 2);

/// When it is measured: what a reader is shown.
pub(super) const BOOTED: &str = "memory of the VMM, guest booted";
pub(super) const LOADED: &str = "memory of the VMM, after the loads";

/// The memory of the VMM behind `console`.
pub(super) fn measure(console: &Console, bench: &Bench) -> Result<Values, DevicesError> {
    let smaps = format!("/proc/{}/smaps", console.pid());
    let text = fs::read_to_string(&smaps);
    let text = text.map_err(|error| console.failed(&format!("has no {smaps}: {error}")))?;
    let ram_kib = u64::from(bench.memory_mib) << 10;
    values(&text, ram_kib, &bench.kernel)
        .ok_or_else(|| console.failed(&format!("has no guest RAM in {smaps}")))
}

fn values(smaps: &str, ram_kib: u64, kernel: &Path) -> Option<Values> {
    let resident = Resident::new(&smaps::parse(smaps)?, ram_kib, kernel);
    // Otherwise guest RAM is in several mappings, and would count as the VMM's.
    let is_known = resident.guest > 0;
    // Far below 2^53.
    let mib = |kib: u64| kib as f64 / 1024.0;
    is_known.then(|| {
        vec![
            (ALL, mib(resident.beyond_guest)),
            (FILES, mib(resident.files)),
            (ANONYMOUS, mib(resident.anonymous)),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:02 1234 /bin/vmm\nSize: 1024 kB\nRss: 512 kB\n\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \nSize: 131072 kB\nRss: 65536 kB\n\
7f0010000000-7f0010100000 rw-p 00000000 00:00 0 [heap]\nSize: 1024 kB\nRss: 256 kB\n";

    #[test]
    fn guest_ram_is_left_out() {
        let values = values(SMAPS, 128 << 10, Path::new("/vmlinuz"));
        let expected = vec![(ALL, 0.75), (FILES, 0.5), (ANONYMOUS, 0.25)];
        assert_eq!(values, Some(expected));
    }

    #[test]
    fn guest_ram_that_is_not_found_is_an_error() {
        assert_eq!(values(SMAPS, 256 << 10, Path::new("/vmlinuz")), None);
        assert_eq!(values("nonsense", 1, Path::new("/vmlinuz")), None);
    }
}
