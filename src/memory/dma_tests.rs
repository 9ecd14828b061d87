use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::GuestMemoryRegion;

use super::*;
use crate::memory::MemoryConfig;
use crate::memory::dirty::{PAGE, PageSet};

/// Two regions that touch, a hole, and a third.
const RANGES: [(Gpa, u64); 3] = [
    (Gpa(0), 0x3000),
    (Gpa(0x3000), 0x1000),
    (Gpa(0x1_0000), 0x2000),
];
const END: usize = 0x1_2000;

fn dma() -> Dma {
    let config = MemoryConfig::of(0);
    let dma = Dma::new(GuestRam::new(&config, &RANGES).unwrap());
    dma.gate().set(true);
    dma
}

/// The pages that were marked since the last call.
fn marked(dma: &Dma) -> Vec<u64> {
    let mut set = PageSet::none(dma.ram.pieces());
    dma.ram.written().collect(&mut set);
    set.runs(1).map(|run| run.gpa.0 / PAGE).collect()
}

#[test]
fn a_closed_gate_refuses_everything() {
    let dma = dma();
    let clone = dma.clone();
    dma.gate().set(false);
    let refused = DmaError::NotBusMaster;
    assert_eq!(clone.read(Gpa(0), &mut [0]), Err(refused));
    assert_eq!(clone.write(Gpa(0), &[0]), Err(refused));
    assert_eq!(clone.read_obj::<u32>(Gpa(0)), Err(refused));
    assert_eq!(clone.write_obj(Gpa(0), &1_u32), Err(refused));
    assert_eq!(clone.load_u16(Gpa(0), Ordering::Acquire), Err(refused));
    assert_eq!(clone.store_u16(Gpa(0), 1, Ordering::Release), Err(refused));
    assert_eq!(clone.load_u32(Gpa(0), Ordering::Acquire), Err(refused));
    assert_eq!(clone.store_u32(Gpa(0), 1, Ordering::Release), Err(refused));
    assert_eq!(clone.begin().unwrap_err(), refused);
    assert_eq!(clone.readable(Gpa(0), 1).unwrap_err(), refused);
    assert_eq!(clone.writable(Gpa(0), 1).unwrap_err(), refused);
    assert!(!Dma::new(dma.ram).gate().is_open());
}

#[test]
fn holes_ends_and_wrapping_ranges_are_refused() {
    let dma = dma();
    for (gpa, len) in [
        (0x3fff, 2),
        (0x4000, 1),
        (0xffff, 2),
        (0x1_1fff, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (0, 0x4001),
        (0, u64::MAX),
    ] {
        let gpa = Gpa(gpa);
        let len_usize = usize::try_from(len).unwrap();
        let missing = DmaError::NoRam(NoRam {
            gpa,
            len: len_usize,
        });
        assert_eq!(dma.readable(gpa, len).unwrap_err(), missing);
        assert_eq!(dma.writable(gpa, len).unwrap_err(), missing);
        if len_usize < 0x8000 {
            let mut data = vec![0; len_usize];
            assert_eq!(dma.read(gpa, &mut data), Err(missing));
            assert_eq!(dma.write(gpa, &data), Err(missing));
        }
    }
    // Nothing of a refused range stays in a request.
    let mut readable = dma.readable(Gpa(0x3000), 0x10).unwrap();
    assert!(readable.push(Gpa(0x3ff0), 0x20).is_err());
    assert!(readable.push(Gpa(0x2ff0), 0x2000).is_err());
    assert_eq!((readable.len(), readable.iovecs().len()), (0x10, 1));
}

#[test]
fn indices_are_little_endian_aligned_and_marked() {
    let dma = dma();
    dma.ram.written().switch(true);
    dma.store_u16(Gpa(0x2ffe), 0x1234, Ordering::Release)
        .unwrap();
    assert_eq!(marked(&dma), [2]);
    assert_eq!(dma.load_u16(Gpa(0x2ffe), Ordering::Acquire), Ok(0x1234));
    assert_eq!(dma.read_obj::<[u8; 2]>(Gpa(0x2ffe)), Ok([0x34, 0x12]));
    for gpa in [Gpa(1), Gpa(0x3fff), Gpa(u64::MAX)] {
        let refused = DmaError::Misaligned { gpa };
        assert_eq!(dma.load_u16(gpa, Ordering::Relaxed), Err(refused));
        assert_eq!(dma.store_u16(gpa, 0, Ordering::Relaxed), Err(refused));
    }
    let gpa = Gpa(0x4000);
    let missing = DmaError::NoRam(NoRam { gpa, len: 2 });
    assert_eq!(dma.load_u16(gpa, Ordering::Relaxed), Err(missing));
    assert_eq!(dma.store_u16(gpa, 0, Ordering::Relaxed), Err(missing));
}

#[test]
fn wider_accesses_are_as_indices_are() {
    let dma = dma();
    dma.ram.written().switch(true);
    let access = dma.begin().unwrap();
    dma.store_u32(Gpa(0x1ffc), 0x1234_5678, Ordering::Release)
        .unwrap();
    assert_eq!(marked(&dma), [1]);
    assert_eq!(
        dma.load_u32(Gpa(0x1ffc), Ordering::Acquire),
        Ok(0x1234_5678)
    );
    access
        .store_u64(Gpa(0x2ff8), 0x1122_3344_5566_7788, Ordering::Release)
        .unwrap();
    assert_eq!(marked(&dma), [2]);
    let read = access.load_u64(Gpa(0x2ff8), Ordering::Acquire);
    assert_eq!(read, Ok(0x1122_3344_5566_7788));
    assert_eq!(dma.read_obj(Gpa(0x2ff8)), Ok([0x88_u8, 0x77, 0x66]));
    for (at, four, eight) in [(2, false, false), (4, true, false), (8, true, true)] {
        let gpa = Gpa(at);
        assert_eq!(dma.load_u32(gpa, Ordering::Relaxed).is_ok(), four);
        assert_eq!(dma.store_u32(gpa, 0, Ordering::Relaxed).is_ok(), four);
        assert_eq!(access.load_u64(gpa, Ordering::Relaxed).is_ok(), eight);
        assert_eq!(access.store_u64(gpa, 0, Ordering::Relaxed).is_ok(), eight);
    }
    let gpa = Gpa(0x4000);
    let missing = DmaError::NoRam(NoRam { gpa, len: 8 });
    assert_eq!(access.load_u64(gpa, Ordering::Relaxed), Err(missing));
    assert_eq!(access.store_u64(gpa, 0, Ordering::Relaxed), Err(missing));
    // What has begun ends.
    dma.gate().set(false);
    assert!(access.load_u64(Gpa(0), Ordering::Relaxed).is_ok());
}

#[test]
fn files_are_read_into_and_written_from_several_ranges() {
    let dma = dma();
    dma.ram.written().switch(true);
    let file = tempfile::tempfile().unwrap();
    let data: Vec<u8> = (0..0x1800_u32).map(|n| (n % 251) as u8).collect();
    file.write_all_at(&data, 0x200).unwrap();

    // Across two regions, then a third, then a page that the file's end leaves alone.
    let mut writable = dma.writable(Gpa(0x2800), 0x1000).unwrap();
    writable.push(Gpa(0x1_0000), 0x800).unwrap();
    writable.push(Gpa(0x1_1000), 0x800).unwrap();
    assert_eq!(writable.len(), 0x2000);
    assert_eq!(writable.iovecs().len(), 4);
    assert_eq!(marked(&dma), [0; 0]);
    assert_eq!(writable.read_from(file.as_fd(), 0x200).unwrap(), 0x1800);
    assert!(writable.is_empty());
    assert_eq!(marked(&dma), [2, 3, 0x10]);
    drop(writable);
    assert_eq!(marked(&dma), [0; 0]);
    let mut found = vec![0; 0x1800];
    dma.read(Gpa(0x2800), &mut found[..0x1000]).unwrap();
    dma.read(Gpa(0x1_0000), &mut found[0x1000..]).unwrap();
    assert_eq!(found, data);

    let mut readable = dma.readable(Gpa(0x1_0000), 0x800).unwrap();
    readable.push(Gpa(0x2800), 0).unwrap();
    readable.push(Gpa(0x2800), 0x1000).unwrap();
    assert_eq!(readable.write_to(file.as_fd(), 0x4000).unwrap(), 0x1800);
    file.read_exact_at(&mut found, 0x4000).unwrap();
    assert_eq!(found[..0x800], data[0x1000..]);
    assert_eq!(found[0x800..], data[..0x1000]);
    readable.clear();
    assert_eq!(readable.write_to(file.as_fd(), 0).unwrap(), 0);
    assert_eq!(marked(&dma), [0; 0]);
}

#[test]
fn more_ranges_than_one_system_call_takes_are_transferred() {
    let dma = dma();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 3 * MAX_IOVECS], 0).unwrap();
    let mut writable = dma.writable(Gpa(0), 0).unwrap();
    for n in 0..2 * MAX_IOVECS as u64 {
        writable.push(Gpa(2 * n), 1).unwrap();
    }
    assert_eq!(writable.read_from(file.as_fd(), 0).unwrap(), 2048);
    let mut found = [0; 8];
    dma.read(Gpa(4090), &mut found).unwrap();
    assert_eq!(found, [7, 0, 7, 0, 7, 0, 0, 0]);
}

#[test]
fn a_request_that_fails_or_is_dropped_counts_as_written() {
    let dma = dma();
    dma.ram.written().switch(true);
    let file = std::fs::File::open("/dev/null").unwrap();
    let readable = dma.readable(Gpa(0), 8).unwrap();
    assert!(readable.write_to(file.as_fd(), 0).is_err());
    assert!(readable.write_to(file.as_fd(), u64::MAX).is_err());
    assert_eq!(marked(&dma), [0; 0]);
    let directory = std::fs::File::open("/").unwrap();
    let mut writable = dma.writable(Gpa(0x1000), 8).unwrap();
    assert!(writable.read_from(directory.as_fd(), 0).is_err());
    assert_eq!(marked(&dma), [1]);
    drop(dma.writable(Gpa(0x2fff), 2).unwrap());
    assert_eq!(marked(&dma), [2, 3]);
}

/// An access by a device: what, where, how long.
fn accesses() -> impl Strategy<Value = Vec<(u8, u64, usize, u8)>> {
    let near = prop_oneof![
        0_u64..0x4100,
        0xff00_u64..0x1_2100,
        u64::MAX - 0x100..=u64::MAX,
    ];
    proptest::collection::vec((0_u8..5, near, 0_usize..0x2100, any::<u8>()), 0..40)
}

proptest! {
    /// Against an array with holes: what succeeds reads and writes the same, marks the pages it wrote and no
    /// others, and what touches a hole fails.
    #[test]
    fn accesses_are_those_of_an_array_with_holes(accesses in accesses()) {
        let dma = dma();
        dma.ram.written().switch(true);
        let mut model = vec![0_u8; END];
        let is_ram = |at: usize| at < 0x4000 || (0x1_0000..END).contains(&at);
        for (op, gpa, len, byte) in accesses {
            let len = if op == 4 { 2 } else { len };
            let range = usize::try_from(gpa).ok().and_then(|at| Some(at..at.checked_add(len)?));
            let range = range.filter(|range| range.end <= END && range.clone().all(is_ram));
            let pages: Vec<_> = range.iter().filter(|r| !r.is_empty()).flat_map(|r| {
                r.start as u64 / PAGE..=(r.end as u64 - 1) / PAGE
            }).collect();
            let gpa = Gpa(gpa);
            match op {
                0 => {
                    let mut data = vec![0; len];
                    let read = dma.read(gpa, &mut data);
                    prop_assert!(len == 0 || read.is_ok() == range.is_some());
                    if let (Ok(()), Some(range)) = (read, range) {
                        prop_assert_eq!(&data, &model[range]);
                    }
                    prop_assert_eq!(marked(&dma), [0; 0]);
                }
                1 if range.is_some() => {
                    dma.write(gpa, &vec![byte; len]).unwrap();
                    model[range.unwrap()].fill(byte);
                    prop_assert_eq!(marked(&dma), pages);
                }
                2 => {
                    let readable = dma.readable(gpa, len as u64);
                    prop_assert!(len == 0 || readable.is_ok() == range.is_some());
                    let lengths = readable.iter().flat_map(|r| r.iovecs()).map(|v| v.iov_len);
                    prop_assert_eq!(lengths.sum::<usize>(), if readable.is_ok() { len } else { 0 });
                    for vec in readable.iter().flat_map(|r| r.iovecs()) {
                        let (at, len) = (vec.iov_base as u64, vec.iov_len as u64);
                        let inside = dma.ram.mmap().iter().any(|region| {
                            let start = region.as_ptr() as u64;
                            start <= at && at + len <= start + region.len()
                        });
                        prop_assert!(inside);
                    }
                }
                3 => {
                    let writable = dma.writable(gpa, len as u64);
                    prop_assert!(len == 0 || writable.is_ok() == range.is_some());
                    drop(writable);
                    prop_assert_eq!(marked(&dma), pages);
                }
                4 => {
                    let value = u16::from(byte) << 8 | 1;
                    let stored = dma.store_u16(gpa, value, Ordering::Release);
                    prop_assert_eq!(stored.is_ok(), range.is_some() && gpa.0.is_multiple_of(2));
                    if let (Ok(()), Some(range)) = (stored, range) {
                        model[range].copy_from_slice(&value.to_le_bytes());
                        prop_assert_eq!(dma.load_u16(gpa, Ordering::Acquire), Ok(value));
                        prop_assert_eq!(marked(&dma), pages);
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn parts_of_ranges_are_copied_in_order() {
    let dma = dma();
    dma.ram.written().switch(true);
    // Across two regions, nothing, and a third.
    let mut writable = dma.writable(Gpa(0x2ffe), 4).unwrap();
    writable.push(Gpa(0x1000), 0).unwrap();
    writable.push(Gpa(0x1_0000), 3).unwrap();
    let mut readable = dma.readable(Gpa(0x2ffe), 4).unwrap();
    readable.push(Gpa(0x1_0000), 3).unwrap();
    assert_eq!(writable.copy_from(0, b"abcdefg").unwrap(), 7);
    for (at, len, copied) in [
        (0, 7, "abcdefg"),
        (0, 9, "abcdefg"),
        (1, 2, "bc"),
        (3, 2, "de"),
        (4, 1, "e"),
        (6, 4, "g"),
        (7, 4, ""),
        (u64::MAX, 4, ""),
        (2, 0, ""),
    ] {
        let mut data = vec![0; len];
        let count = readable.copy_to(at, &mut data).unwrap();
        assert_eq!(&data[..count], copied.as_bytes(), "{at} {len}");
    }
    marked(&dma);
    assert_eq!(writable.copy_from(5, b"FGH").unwrap(), 2);
    assert_eq!(marked(&dma), [0x10]);
    let mut data = [0; 7];
    readable.copy_to(0, &mut data).unwrap();
    assert_eq!(&data, b"abcdeFG");
}
