//! Random requests against a plain vector of bytes.

use std::ops::Range;

use proptest::prelude::*;

use super::tests::{CACHES, disk, dma, next, options};
use super::*;
use crate::block::Operation;
use crate::memory::Dma;
use crate::units::Gpa;

/// Sectors of the disk.
const SECTORS: usize = 64;
const LEN: usize = SECTORS * 512;
/// Guest memory of each request, for its data and as much in gaps.
const ROOM: u64 = 4 * LEN as u64;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Discard,
    Zero { unmap: bool },
    Flush,
}

/// One of several requests that are under way at the same time.
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    /// Sectors that no other request has, then those of this one.
    skip: usize,
    count: usize,
    /// Where the guest's buffer begins, and the lengths of its parts; the last has the rest. A gap is after
    /// each.
    start: u64,
    parts: Vec<u64>,
    gap: u64,
    fill: u8,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Read),
        4 => Just(Kind::Write),
        1 => Just(Kind::Discard),
        2 => any::<bool>().prop_map(|unmap| Kind::Zero { unmap }),
        1 => Just(Kind::Flush),
    ]
}

/// Bytes that direct I/O takes in half of all cases.
fn bytes(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![0..most, (0..most / 512).prop_map(|sectors| sectors * 512)]
}

fn step() -> impl Strategy<Value = Step> {
    let parts = prop::collection::vec(bytes(4096), 0..5);
    let place = (0..8_usize, 0..24_usize, bytes(4096));
    (kind(), place, parts, bytes(1024), any::<u8>()).prop_map(
        |(kind, (skip, count, start), parts, gap, fill)| Step {
            kind,
            skip,
            count,
            start,
            parts,
            gap,
            fill,
        },
    )
}

/// The guest's buffer of `len` bytes of the request with this number.
fn ranges(step: &Step, tag: usize, len: u64) -> Vec<(Gpa, u64)> {
    let mut at = tag as u64 * ROOM + step.start;
    let mut left = len;
    let mut ranges = Vec::new();
    for part in step.parts.iter().copied().chain([len]) {
        let part = part.min(left);
        ranges.push((Gpa(at), part));
        at += part + step.gap;
        left -= part;
    }
    ranges
}

fn guest(dma: &Dma, ranges: &[(Gpa, u64)]) -> Vec<u8> {
    let mut data = Vec::new();
    for &(gpa, len) in ranges {
        let mut part = vec![0; usize::try_from(len).unwrap()];
        dma.read(gpa, &mut part).unwrap();
        data.extend(part);
    }
    data
}

/// Runs `steps` at the same time, as far as the disk has sectors for them.
fn batch(disk: &mut RawDisk, dma: &Dma, steps: &[Step], model: &mut [u8]) {
    let mut sector = 0;
    let mut places: Vec<Range<usize>> = Vec::new();
    for (tag, step) in steps.iter().enumerate() {
        let first = (sector + step.skip).min(SECTORS);
        sector = (first + step.count).min(SECTORS);
        let place = first * 512..sector * 512;
        places.push(place.clone());
        let (offset, len) = (place.start as u64, place.len() as u64);
        let mut ranges = ranges(step, tag, len).into_iter();
        let (gpa, head) = ranges.next().unwrap();
        let operation = match step.kind {
            Kind::Read => {
                let mut to = dma.writable(gpa, head).unwrap();
                ranges.for_each(|(gpa, len)| to.push(gpa, len).unwrap());
                Operation::Read { offset, to }
            }
            Kind::Write => {
                let mut value = step.fill;
                let bytes = std::iter::from_fn(|| {
                    value = value.wrapping_mul(5).wrapping_add(1);
                    Some(value)
                });
                let all: Vec<_> = bytes.take(usize::try_from(ROOM).unwrap()).collect();
                dma.write(Gpa(tag as u64 * ROOM), &all).unwrap();
                let mut from = dma.readable(gpa, head).unwrap();
                ranges.for_each(|(gpa, len)| from.push(gpa, len).unwrap());
                Operation::Write { offset, from }
            }
            Kind::Discard => Operation::Discard { offset, len },
            Kind::Zero { unmap } => Operation::WriteZeroes { offset, len, unmap },
            Kind::Flush => Operation::Flush,
        };
        disk.submit(Request { tag, operation });
    }
    let mut done = vec![false; steps.len()];
    for _ in steps {
        let completion = next(disk);
        completion.result.unwrap();
        assert!(!std::mem::replace(&mut done[completion.tag], true));
    }
    assert!(disk.completed().is_none());
    let content = fs::read(&disk.image.path).unwrap();
    for (tag, (step, place)) in steps.iter().zip(places).enumerate() {
        let old = &mut model[place.clone()];
        let new = &content[place.clone()];
        match step.kind {
            Kind::Read => assert_eq!(guest(dma, &ranges(step, tag, place.len() as u64)), old),
            Kind::Write => {
                old.copy_from_slice(&guest(dma, &ranges(step, tag, place.len() as u64)));
            }
            Kind::Zero { .. } => old.fill(0),
            Kind::Discard => {
                assert!(new == old || new.iter().all(|byte| *byte == 0));
                old.copy_from_slice(new);
            }
            Kind::Flush => {}
        }
    }
    assert!(content == model);
}

/// The directories of the tests: some file systems have neither direct I/O nor ranges of zeroes.
fn directories() -> impl Iterator<Item = PathBuf> {
    let memory = PathBuf::from("/dev/shm");
    [std::env::temp_dir(), memory]
        .into_iter()
        .filter(|path| path.is_dir())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_disk_is_its_bytes(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..6), 1..8),
        discard: bool,
    ) {
        let dma = dma(6 * ROOM);
        for directory in directories() {
            for cache in CACHES {
                let file = tempfile::NamedTempFile::new_in(&directory).unwrap();
                file.as_file().set_len(LEN as u64).unwrap();
                let options = RawOptions { discard, ..options(file.path(), cache) };
                let Some(mut open) = disk(&options) else { continue };
                let mut model = vec![0; LEN];
                for steps in &batches {
                    batch(&mut open, &dma, steps, &mut model);
                }
                let flush = Request { tag: 0, operation: Operation::Flush };
                open.submit(flush);
                next(&mut open).result.unwrap();
                drop(open);
                // Reopened, and read at once.
                let mut open = disk(&options).unwrap();
                let to = dma.writable(Gpa(0), LEN as u64).unwrap();
                open.submit(Request { tag: 0, operation: Operation::Read { offset: 0, to } });
                next(&mut open).result.unwrap();
                assert!(guest(&dma, &[(Gpa(0), LEN as u64)]) == model);
            }
        }
    }
}
