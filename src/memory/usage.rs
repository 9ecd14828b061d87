//! What the host holds of guest RAM, from /proc/self/smaps (Documentation/filesystems/proc.rst).

use std::fs;
use std::io;
use std::ops::Range;

/// What of some memory is where, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In memory.
    pub resident: u64,
    /// Of that: in huge pages, transparent or reserved ones.
    pub huge: u64,
    /// In swap.
    pub swapped: u64,
    /// In memory and locked there.
    pub locked: u64,
    /// There are reserved huge pages.
    pub reserved: bool,
}

impl Usage {
    /// Of `ranges` of this process, which begin and end with mappings.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn of(ranges: &[Range<usize>]) -> io::Result<Self> {
        Ok(Self::read(&fs::read_to_string("/proc/self/smaps")?, ranges))
    }

    /// From the file's text. What is not understood counts as nothing.
    fn read(text: &str, ranges: &[Range<usize>]) -> Self {
        let mut usage = Self::default();
        let mut counts = false;
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let Some(field) = first.strip_suffix(':') else {
                // The kernel splits a mapping where parts of it are treated differently.
                counts = parse_range(first).is_some_and(|mapping| {
                    let holds = |r: &Range<usize>| r.start <= mapping.start && mapping.end <= r.end;
                    ranges.iter().any(holds)
                });
                continue;
            };
            let value = words.next().and_then(|value| value.parse::<u64>().ok());
            let (true, Some(kib)) = (counts, value) else {
                continue;
            };
            let bytes = kib << 10;
            match field {
                "Rss" => usage.resident += bytes,
                "AnonHugePages" | "FilePmdMapped" => usage.huge += bytes,
                // They are not in Rss.
                "Private_Hugetlb" | "Shared_Hugetlb" => {
                    usage.resident += bytes;
                    usage.huge += bytes;
                }
                "Swap" => usage.swapped += bytes,
                "Locked" => usage.locked += bytes,
                // VM_HUGETLB mappings have a page size of their own.
                "KernelPageSize" => usage.reserved |= kib > 4,
                _ => {}
            }
        }
        usage
    }
}

fn parse_range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::super::anonymous::{HUGE, Mapping};
    use super::*;
    use crate::units::Gpa;

    const TEXT: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
Size:             131072 kB\nKernelPageSize:        4 kB\nRss:               10240 kB\nAnonHugePages:      \
8192 kB\n\
Swap:                  8 kB\nLocked:                4 kB\nVmFlags: rd wr mr mw me nr sd hg\n\
7f0008000000-7f0010000000 rw-p 00000000 00:00 0 \nRss:                   4 kB\n\
7f0010000000-7f0018000000 rw-s 00000000 00:10 7 /anon_hugepage (deleted)\nKernelPageSize:     2048 kB\n\
Rss:                   0 kB\nPrivate_Hugetlb:    4096 kB\n";

    #[test]
    fn only_the_given_ranges_count() {
        let first = 0x7f00_0000_0000..0x7f00_0800_0000;
        let usage = Usage::read(TEXT, std::slice::from_ref(&first));
        assert_eq!(
            usage,
            Usage {
                resident: 10 << 20,
                huge: 8 << 20,
                swapped: 8 << 10,
                locked: 4 << 10,
                reserved: false,
            }
        );
        // Two mappings of one range, and reserved huge pages.
        let all = 0x7f00_0000_0000..0x7f00_1800_0000;
        let usage = Usage::read(TEXT, std::slice::from_ref(&all));
        assert_eq!(usage.resident, (14 << 20) + (4 << 10));
        assert!(usage.reserved);
        assert_eq!(Usage::read(TEXT, &[]), Usage::default());
        assert_eq!(
            Usage::read("nonsense\n\nRss: x kB", &[first]),
            Usage::default()
        );
    }

    #[test]
    fn what_is_touched_is_resident() {
        let mapping = Mapping::new(Gpa(0), 2 * HUGE).unwrap();
        let ranges = [mapping.range()];
        assert_eq!(Usage::of(&ranges).unwrap(), Usage::default());
        super::super::host::touch(&mapping);
        let usage = Usage::of(&ranges).unwrap();
        assert!([4096, HUGE as u64].contains(&usage.resident), "{usage:?}");
        assert!(usage.huge == 0 || usage.huge == usage.resident);
    }
}
