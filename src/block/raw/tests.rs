use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use tempfile::{NamedTempFile, TempDir};

use super::image::Call;
use super::*;
use crate::block::Operation;
use crate::error::chain;
use crate::memory::{Dma, GuestRam, MemoryConfig};
use crate::units::Gpa;

pub(super) const CACHES: [Cache; 4] = [
    Cache::None,
    Cache::Writeback,
    Cache::Writethrough,
    Cache::Unsafe,
];

/// The next calls that fail, and how.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<(Call, Errno)>>);

impl Faults {
    pub(super) fn add(&self, call: Call, errno: Errno) {
        self.0.lock().unwrap().push((call, errno));
    }

    pub(super) fn take(&self, call: Call) -> Result<(), Errno> {
        let mut faults = self.0.lock().unwrap();
        match faults.iter().position(|(of, _)| *of == call) {
            Some(at) => Err(faults.remove(at).1),
            None => Ok(()),
        }
    }
}

pub(super) fn options(path: &Path, cache: Cache) -> RawOptions {
    RawOptions {
        path: path.to_owned(),
        cache,
        read_only: false,
        discard: true,
        any_content: false,
        logical_block: 512,
    }
}

#[test]
fn an_image_of_another_format_is_refused_unless_it_is_said_to_be_raw() {
    for (first, format) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"KDMV\x01", "VMDK"),
        (b"# Disk DescriptorFile\n", "VMDK"),
        (b"QED\0", "QED"),
        (b"<<< Oracle VM VirtualBox Disk Image >>>", "VDI"),
    ] {
        for cache in CACHES {
            let file = image(1 << 16);
            let mut content = vec![0; 1 << 16];
            content[..first.len()].copy_from_slice(first);
            fs::write(file.path(), content).unwrap();
            let mut options = options(file.path(), cache);
            let refused = RawDisk::open(&options, "test", || ()).unwrap_err();
            let text = chain(&refused);
            assert!(text.contains(&format!("a {format} image")), "{text}");
            assert!(text.contains("format=raw"), "{text}");
            options.any_content = true;
            let _opened = disk(&options);
        }
    }
}

/// None: the file system has no direct I/O of single sectors.
pub(super) fn disk(options: &RawOptions) -> Option<RawDisk> {
    match RawDisk::open(options, "test", || ()) {
        Ok(mut disk) => {
            disk.acquire().unwrap();
            Some(disk)
        }
        Err(RawError::NoDirect { .. } | RawError::Alignment { .. })
            if options.cache == Cache::None =>
        {
            None
        }
        Err(e) => panic!("{}", chain(&e)),
    }
}

pub(super) fn dma(len: u64) -> Dma {
    let ram = GuestRam::new(&MemoryConfig::of(0), &[(Gpa(0), len)]);
    let dma = Dma::new(ram.unwrap());
    dma.gate().set(true);
    dma
}

/// Waits for the next completion.
pub(super) fn next(disk: &mut RawDisk) -> Completion {
    loop {
        if let Some(completion) = disk.completed() {
            return completion;
        }
        let mut fds = [PollFd::new(disk.bell().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        disk.bell().read().unwrap();
    }
}

pub(super) fn run(disk: &mut RawDisk, operation: Operation) -> io::Result<()> {
    disk.submit(Request { tag: 3, operation });
    let completion = next(disk);
    assert_eq!(completion.tag, 3);
    completion.result
}

fn write(dma: &Dma, offset: u64, len: u64) -> Operation {
    let from = dma.readable(Gpa(0), len).unwrap();
    Operation::Write { offset, from }
}

fn read(dma: &Dma, offset: u64, len: u64) -> Operation {
    let to = dma.writable(Gpa(0), len).unwrap();
    Operation::Read { offset, to }
}

pub(super) fn image(len: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file
}

/// What is said about `error`, which a [`RawError`] is behind.
fn text(error: &io::Error) -> String {
    let raw = error.get_ref().unwrap();
    assert!(raw.is::<RawError>(), "{error:?}");
    chain(raw)
}

#[test]
fn info_follows_the_options() {
    let file = image(1 << 20);
    for cache in CACHES {
        for (read_only, discard) in [(false, false), (false, true), (true, false), (true, true)] {
            let options = RawOptions {
                read_only,
                discard,
                ..options(file.path(), cache)
            };
            let Some(disk) = disk(&options) else { continue };
            let info = disk.info();
            assert_eq!(info.size, 1 << 20);
            assert_eq!(info.read_only, read_only);
            assert_eq!(info.discard, discard && !read_only);
            assert_eq!(info.write_through, cache == Cache::Writethrough);
            assert!((512..=4096).contains(&info.physical_block));
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("odd"), [0; 1000]).unwrap();
    nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for (path, kind, said) in [
        (
            path("none"),
            io::ErrorKind::NotFound,
            "make one, e.g. by `truncate -s 20G ",
        ),
        (
            path("empty"),
            io::ErrorKind::InvalidData,
            "is empty: give it a size",
        ),
        (
            path("odd"),
            io::ErrorKind::InvalidData,
            "1000 bytes, which is no multiple of 512: if it is a raw image, extend it by \
            `truncate -s %512 ",
        ),
        (path("pipe"), io::ErrorKind::InvalidData, "is a pipe"),
        (path("socket"), io::ErrorKind::InvalidData, "is a socket"),
        (path(""), io::ErrorKind::InvalidData, "is a directory"),
        (
            "/dev/null".into(),
            io::ErrorKind::InvalidData,
            "is a character device",
        ),
        // No file system of the kernel's own data has direct I/O.
        (
            "/proc/version".into(),
            io::ErrorKind::Unsupported,
            "use cache=writeback",
        ),
    ] {
        let options = RawOptions {
            read_only: true,
            ..options(&path, Cache::None)
        };
        let error: io::Error = RawDisk::open(&options, "test", || ()).unwrap_err().into();
        let text = text(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(said), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(!path.ends_with("none") || !path.exists());
    }
    // What the message says helps.
    let odd = path("odd");
    let mut truncate = Command::new("truncate");
    let status = truncate.args(["-s", "%512"]).arg(&odd).status();
    assert!(status.unwrap().success());
    let disk = disk(&options(&odd, Cache::Writeback)).unwrap();
    assert_eq!(disk.info().size, 1024);
}

#[test]
fn requests_outside_the_disk_or_of_parts_of_sectors_are_refused() {
    let file = image(4096);
    let dma = dma(1 << 16);
    let mut disk = disk(&options(file.path(), Cache::Writeback)).unwrap();
    for (offset, len) in [
        (4096, 512),
        (3584, 1024),
        (u64::MAX - 511, 512),
        (1, 512),
        (0, 511),
    ] {
        let unmap = false;
        for operation in [
            read(&dma, offset, len),
            write(&dma, offset, len),
            Operation::Discard { offset, len },
            Operation::WriteZeroes { offset, len, unmap },
        ] {
            let error = run(&mut disk, operation).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
    for offset in [0, 4096] {
        let (len, unmap) = (0, true);
        for operation in [
            read(&dma, offset, len),
            write(&dma, offset, len),
            Operation::Discard { offset, len },
            Operation::WriteZeroes { offset, len, unmap },
        ] {
            run(&mut disk, operation).unwrap();
        }
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let file = image(4096);
    let dma = dma(1 << 16);
    for cache in CACHES {
        let options = RawOptions {
            read_only: true,
            ..options(file.path(), cache)
        };
        let Some(mut disk) = disk(&options) else {
            continue;
        };
        let (offset, len, unmap) = (0, 512, true);
        for operation in [
            write(&dma, offset, len),
            Operation::Discard { offset, len },
            Operation::WriteZeroes { offset, len, unmap },
        ] {
            let error = run(&mut disk, operation).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        run(&mut disk, read(&dma, offset, len)).unwrap();
        run(&mut disk, Operation::Flush).unwrap();
    }
}

#[test]
fn a_truncated_image_does_not_read_as_zeroes() {
    let dma = dma(1 << 22);
    for cache in CACHES {
        let file = image(1 << 21);
        let Some(mut disk) = disk(&options(file.path(), cache)) else {
            continue;
        };
        // The last block is whole, and is not.
        for end in [1 << 20, (1 << 20) - 300] {
            file.as_file().set_len(end).unwrap();
            run(&mut disk, read(&dma, 0, 1 << 16)).unwrap();
            // Aligned, and not.
            for gpa in [0, 8] {
                for (offset, len) in [(0, 1 << 21), ((1 << 20) - 512, 1024), (1 << 20, 512)] {
                    let to = dma.writable(Gpa(gpa), len).unwrap();
                    let error = run(&mut disk, Operation::Read { offset, to }).unwrap_err();
                    assert_eq!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof,
                        "{cache:?} {error}"
                    );
                    assert!(text(&error).contains("no process may change its size"));
                }
            }
        }
    }
}

#[test]
fn after_a_failed_flush_nothing_is_written() {
    let dma = dma(1 << 16);
    for cache in [Cache::None, Cache::Writeback, Cache::Writethrough] {
        let file = image(1 << 16);
        let options = options(file.path(), cache);
        let Some(mut failing) = disk(&options) else {
            continue;
        };
        run(&mut failing, write(&dma, 0, 512)).unwrap();
        failing.image.faults.add(Call::Sync, Errno::EIO);
        let first = match cache {
            Cache::Writethrough => write(&dma, 0, 512),
            _ => Operation::Flush,
        };
        let error = run(&mut failing, first).unwrap_err();
        assert!(
            text(&error).contains("earlier writes may be lost"),
            "{error}"
        );
        assert!(text(&error).contains("os error 5"));
        let (offset, len, unmap) = (0, 512, false);
        for operation in [
            Operation::Flush,
            write(&dma, offset, len),
            Operation::Discard { offset, len },
            Operation::WriteZeroes { offset, len, unmap },
        ] {
            let error = run(&mut failing, operation).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Other);
            assert!(text(&error).contains("since a flush failed"), "{error}");
        }
        run(&mut failing, read(&dma, 0, 512)).unwrap();
        drop(failing);
        let mut reopened = disk(&options).unwrap();
        run(&mut reopened, write(&dma, 0, 512)).unwrap();
        run(&mut reopened, Operation::Flush).unwrap();
    }
}

#[test]
fn flushes_reach_the_disk_as_the_cache_says() {
    let dma = dma(1 << 16);
    for (cache, by_write, by_flush) in [
        (Cache::None, false, true),
        (Cache::Writeback, false, true),
        (Cache::Writethrough, true, true),
        (Cache::Unsafe, false, false),
    ] {
        let (offset, len, unmap) = (0, 512, false);
        let of = |what| match what {
            0 => write(&dma, offset, len),
            1 => Operation::Discard { offset, len },
            2 => Operation::WriteZeroes { offset, len, unmap },
            _ => Operation::Flush,
        };
        for what in 0..4 {
            let file = image(1 << 16);
            let Some(mut disk) = disk(&options(file.path(), cache)) else {
                continue;
            };
            disk.image.faults.add(Call::Sync, Errno::EIO);
            let failed = run(&mut disk, of(what)).is_err();
            let expected = if what == 3 { by_flush } else { by_write };
            assert_eq!(failed, expected, "{cache:?} {what}");
        }
    }
}

#[test]
fn other_errors_say_what_they_are_and_end_with_the_request() {
    let file = image(1 << 16);
    let dma = dma(1 << 16);
    let mut disk = disk(&options(file.path(), Cache::Writeback)).unwrap();
    let (offset, len) = (512, 512);
    let failed = io::Error::from(Errno::EIO).kind();
    for (call, errno, kind, said) in [
        (
            Call::Write,
            Errno::ENOSPC,
            io::ErrorKind::StorageFull,
            "cannot write to ",
        ),
        (
            Call::Write,
            Errno::EDQUOT,
            io::ErrorKind::StorageFull,
            "no space left",
        ),
        (Call::Write, Errno::EIO, failed, "cannot write to "),
        (Call::Punch, Errno::EIO, failed, "cannot discard blocks of "),
        (
            Call::ZeroRange,
            Errno::ENOSPC,
            io::ErrorKind::StorageFull,
            "cannot write zeroes to ",
        ),
    ] {
        let operation = || match call {
            Call::Punch => Operation::Discard { offset, len },
            Call::ZeroRange => {
                let unmap = false;
                Operation::WriteZeroes { offset, len, unmap }
            }
            _ => write(&dma, offset, len),
        };
        disk.image.faults.add(call, errno);
        let error = run(&mut disk, operation()).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(text(&error).contains(said), "{}", text(&error));
        assert!(text(&error).contains(&file.path().display().to_string()));
        run(&mut disk, operation()).unwrap();
    }
}

#[test]
fn blocks_are_given_back_where_the_guest_and_the_options_say() {
    // Longer than what is written at once.
    const LEN: u64 = (1 << 20) + (1 << 19);
    let discard = || Operation::Discard {
        offset: 0,
        len: LEN,
    };
    let zeroes = |unmap| Operation::WriteZeroes {
        offset: 512,
        len: LEN - 1024,
        unmap,
    };
    let (none, inner, all) = (0..0, 512..LEN - 512, 0..LEN);
    let no_punch = &[Call::Punch][..];
    let no_range = &[Call::ZeroRange][..];
    let neither = &[Call::Punch, Call::ZeroRange][..];
    for (allow, operation, unsupported, zero) in [
        (true, discard(), &[][..], &all),
        (true, discard(), no_punch, &none),
        (false, discard(), &[], &none),
        (true, zeroes(true), &[], &inner),
        (true, zeroes(true), no_punch, &inner),
        (true, zeroes(true), neither, &inner),
        (false, zeroes(true), &[], &inner),
        (false, zeroes(false), &[], &inner),
        (true, zeroes(false), &[], &inner),
        (true, zeroes(false), no_range, &inner),
    ] {
        let file = image(LEN);
        let len = usize::try_from(LEN).unwrap();
        file.as_file().write_all_at(&vec![0xaa; len], 0).unwrap();
        let before = file.as_file().metadata().unwrap();
        let options = RawOptions {
            discard: allow,
            ..options(file.path(), Cache::Writeback)
        };
        let mut disk = disk(&options).unwrap();
        for call in unsupported {
            disk.image.faults.add(*call, Errno::EOPNOTSUPP);
        }
        let shown = format!("{allow} {operation:?} {unsupported:?}");
        let unmap = matches!(
            operation,
            Operation::WriteZeroes { unmap: true, .. } | Operation::Discard { .. }
        );
        run(&mut disk, operation).unwrap();
        let data = fs::read(file.path()).unwrap();
        let wrong = (0..LEN).zip(&data).find(|(at, byte)| {
            let expected = if zero.contains(at) { 0 } else { 0xaa };
            **byte != expected
        });
        assert_eq!((wrong, data.len()), (None, len), "{shown}");
        run(&mut disk, Operation::Flush).unwrap();
        let after = file.as_file().metadata().unwrap();
        // The file systems of the tests have holes.
        let freed = after.blocks() < before.blocks() / 2;
        assert_eq!(freed, allow && unmap && unsupported.is_empty(), "{shown}");
        // All faults took place.
        assert!(disk.image.faults.0.lock().unwrap().is_empty(), "{shown}");
    }
}

#[test]
fn the_image_is_for_one_writer_or_for_readers() {
    let file = image(4096);
    let open = |read_only| {
        let options = RawOptions {
            read_only,
            ..options(file.path(), Cache::Writeback)
        };
        RawDisk::open(&options, "test", || ()).unwrap()
    };
    let (mut writer, mut other, mut reader, mut second) =
        (open(false), open(false), open(true), open(true));
    writer.acquire().unwrap();
    writer.acquire().unwrap();
    for disk in [&mut other, &mut reader] {
        let error = disk.acquire().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let expected = format!(
            "another process (QEMU, hypernest, ...) has {} open for writing: end that process, or use a copy \
            of the image",
            file.path().display()
        );
        assert_eq!(text(&error), expected);
    }
    writer.release();
    reader.acquire().unwrap();
    second.acquire().unwrap();
    let error = writer.acquire().unwrap_err();
    let said = "open, and does not let others write to it: end that process";
    assert!(text(&error).contains(said), "{error}");
    reader.release();
    drop(second);
    other.acquire().unwrap();
    drop(other);
    writer.acquire().unwrap();
}

#[test]
fn dropping_it_completes_what_has_begun() {
    const PIECE: u64 = 1 << 16;
    let dma = dma(1 << 16);
    dma.write(Gpa(0), &[0x55; 1 << 16]).unwrap();
    for cache in CACHES {
        let file = image(64 * PIECE);
        let Some(mut disk) = disk(&options(file.path(), cache)) else {
            continue;
        };
        for tag in 0..64 {
            let operation = write(&dma, tag as u64 * PIECE, PIECE);
            disk.submit(Request { tag, operation });
        }
        drop(disk);
        // Each request is carried out as a whole or not at all, and none later.
        let data = fs::read(file.path()).unwrap();
        for piece in data.chunks(usize::try_from(PIECE).unwrap()) {
            assert!(piece.iter().all(|byte| *byte == piece[0]));
        }
        let again = fs::read(file.path()).unwrap();
        assert!(data == again);
    }
}

#[test]
fn what_has_not_begun_is_taken_back() {
    let dma = dma(1 << 16);
    let file = image(1 << 16);
    let mut disk = disk(&options(file.path(), Cache::Writeback)).unwrap();
    for tag in 0..200 {
        let operation = write(&dma, 0, 512);
        disk.submit(Request { tag, operation });
    }
    let cancelled = std::iter::from_fn(|| disk.cancel()).count();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut completed = 0;
    while cancelled + completed < 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "{cancelled} {completed}"
        );
        completed += usize::from(disk.completed().is_some());
    }
    assert!(disk.completed().is_none());
}
