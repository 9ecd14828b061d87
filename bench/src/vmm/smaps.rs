//! `/proc/PID/smaps` (Documentation/filesystems/proc.rst): the memory of each mapping.

use std::path::Path;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// A path, a name in brackets, or empty.
    name: String,
    size_kib: u64,
    rss_kib: u64,
}

/// Parses the file; `None` if it is malformed.
pub(crate) fn parse(text: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if let Some(field) = first.strip_suffix(':') {
            let mapping = mappings.last_mut()?;
            match field {
                "Size" => mapping.size_kib = words.next()?.parse().ok()?,
                "Rss" => mapping.rss_kib = words.next()?.parse().ok()?,
                _ => {}
            }
        } else {
            // Range, permissions, offset, device, inode, name; the name may contain spaces.
            let (_, after) = line.split_once(' ')?;
            let name = after.splitn(5, ' ').nth(4).unwrap_or("").trim_start();
            mappings.push(Mapping {
                name: name.to_owned(),
                size_kib: 0,
                rss_kib: 0,
            });
        }
    }
    Some(mappings)
}

/// Memory of a VMM's process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// All memory except guest RAM and the kernel's file.
    pub(crate) beyond_guest: u64,
    /// Its share in pages of the program and its libraries.
    pub(crate) files: u64,
    /// Its share in the heap, stacks and other anonymous memory.
    pub(crate) anonymous: u64,
    /// Guest RAM that the guest or the VMM touched.
    pub(crate) guest: u64,
}

impl Resident {
    /// Guest RAM is the largest anonymous mapping of at least `ram_kib`: both VMMs map it as one region, and
    /// the kernel may have merged it with a neighbour.
    pub(crate) fn new(mappings: &[Mapping], ram_kib: u64, kernel: &Path) -> Self {
        let kernel = kernel.display().to_string();
        let is_file = |mapping: &Mapping| mapping.name.starts_with('/');
        let ram = mappings.iter().filter(|mapping| !is_file(mapping));
        let ram = ram.filter(|mapping| mapping.size_kib >= ram_kib);
        let ram = ram.max_by_key(|mapping| mapping.size_kib);
        let mut resident = Self::default();
        for mapping in mappings {
            let Mapping { name, rss_kib, .. } = mapping;
            if ram.is_some_and(|ram| std::ptr::eq(ram, mapping)) {
                resident.guest += rss_kib;
            } else if *name != kernel {
                resident.beyond_guest += rss_kib;
                // Of the kernel's names only [vdso] and [vvar] are not anonymous memory, and they are tiny.
                if name.starts_with('/') {
                    resident.files += rss_kib;
                } else {
                    resident.anonymous += rss_kib;
                }
            }
        }
        resident
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00500000 r-xp 00000000 00:02 1234                               /bin/hyper nest\n\
Size:               1024 kB\nRss:                 600 kB\nPss:                 300 kB\nVmFlags: rd ex mr mw \
me\n\
00600000-00700000 rw-p 00000000 00:00 0                                  [heap]\nRss:                  40 \
kB\n\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \nSize:             131072 kB\n\
Rss:               65536 kB\n\
7f0010000000-7f0010100000 rw-p 00000000 00:00 0 \nSize:               1024 kB\nRss:                   4 kB\n\
7f0020000000-7f0024000000 r--p 00000000 00:02 99                         /lab/vmlinux\nRss:               \
50000 kB\n";

    #[test]
    fn guest_ram_and_the_kernels_file_are_left_out() {
        let mappings = parse(TEXT).unwrap();
        assert_eq!(mappings.len(), 5);
        assert_eq!(mappings[0].name, "/bin/hyper nest");
        assert_eq!(mappings[3].name, "");
        let resident = Resident::new(&mappings, 128 << 10, Path::new("/lab/vmlinux"));
        assert_eq!(
            resident,
            Resident {
                beyond_guest: 644,
                files: 600,
                anonymous: 44,
                guest: 65536
            }
        );
    }

    #[test]
    fn what_is_no_smaps_is_refused() {
        assert_eq!(parse("Rss: 4 kB"), None);
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse(""), Some(Vec::new()));
    }
}
