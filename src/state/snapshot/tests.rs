use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::memory::MemoryConfig;
use crate::memory::{GuestRam, HostMemory};
use crate::state::{Encoder, Section, StateError};
use crate::units::Gpa;

const MIB: u64 = 1 << 20;
/// The second region begins within a chunk of the file.
const PIECES: [(Gpa, u64); 2] = [(Gpa(0), 5 * MIB), (Gpa(1 << 32), 4 * MIB)];
/// Addresses in it: one per region and chunk that is not empty.
const WRITTEN: [u64; 4] = [0x1008, 4 * MIB, (1 << 32) + 4, (1 << 32) + 4 * MIB - 4];

fn config() -> MemoryConfig {
    MemoryConfig::of(9 * MIB)
}

fn ram(mark: u8) -> GuestRam {
    let ram = GuestRam::new(&config(), &PIECES).unwrap();
    for gpa in WRITTEN {
        ram.write(Gpa(gpa), &[mark; 4]).unwrap();
    }
    ram
}

fn sections(mark: u8) -> Sections {
    let mut sections = Sections::new();
    sections.push("mark", 1, vec![mark]);
    sections
}

fn save(dir: &Path, mark: u8) -> Result<(), SnapshotError> {
    save_watched(dir, mark, Box::new(|_| Ok(())))
}

fn save_watched(
    dir: &Path,
    mark: u8,
    watch: Box<dyn FnMut(SaveStep) -> io::Result<()> + Send>,
) -> Result<(), SnapshotError> {
    let mut saving = Saving::begin_watched(dir, watch)?;
    let files = boot_files(mark);
    saving.write_boot_files(files.iter().map(|file| Box::new(file.as_slice()) as _))?;
    saving.write(sections(mark), &ram(mark))?;
    saving.commit()
}

/// A kernel larger than the copy buffer, and an initrd.
fn boot_files(mark: u8) -> [Vec<u8>; 2] {
    [vec![mark; 3 << 20], vec![mark; 5]]
}

/// The mark of a saved VM that is complete in every respect.
fn mark(dir: &Path) -> u8 {
    let snapshot = Snapshot::open(dir).unwrap();
    snapshot.ram().verify().unwrap();
    let boot = snapshot.boot().unwrap();
    boot.verify().unwrap();
    let mark = snapshot.sections().get("mark").unwrap().body[0];
    let content = |entry: &SavedFile| {
        let mut bytes = vec![0; usize::try_from(entry.range.end - entry.range.start).unwrap()];
        let (file, at) = (boot.file(), entry.range.start);
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let files: Vec<_> = boot.entries().iter().map(content).collect();
    assert_eq!(files, boot_files(mark));
    for ram in [
        snapshot.ram().map(HostMemory::default()).unwrap(),
        snapshot.ram().read(&config()).unwrap(),
    ] {
        for gpa in WRITTEN {
            let mut data = [0; 4];
            ram.read(Gpa(gpa), &mut data).unwrap();
            assert_eq!(data, [mark; 4]);
        }
        let mut data = [9; 8];
        ram.read(Gpa(3 * MIB), &mut data).unwrap();
        assert_eq!(data, [0; 8]);
    }
    mark
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_comes_back_and_zero_pages_take_no_room() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    save(&dir, 7).unwrap();
    assert_eq!(mark(&dir), 7);
    let metadata = fs::metadata(dir.join(RAM_FILE)).unwrap();
    assert_eq!(metadata.len(), 9 * MIB);
    assert!(
        metadata.blocks() * 512 <= 4 * 64 * 1024,
        "{}",
        metadata.blocks()
    );
    assert_eq!(metadata.mode() & 0o077, 0);
    assert_eq!(names(parent.path()), ["vm"]);
}

#[test]
fn a_saved_vm_is_replaced_also_while_it_is_in_use() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    save(&dir, 1).unwrap();
    let running = Snapshot::open(&dir)
        .unwrap()
        .ram()
        .map(HostMemory::default())
        .unwrap();
    running.write(Gpa(3 * MIB), &[5; 4]).unwrap();
    let mut saving = Saving::begin(&dir).unwrap();
    saving.write(sections(1), &running).unwrap();
    saving.commit().unwrap();
    assert_eq!(names(parent.path()), ["vm"]);
    let again = Snapshot::open(&dir)
        .unwrap()
        .ram()
        .map(HostMemory::default())
        .unwrap();
    for (gpa, expected) in [(WRITTEN[0], 1), (WRITTEN[3], 1), (3 * MIB, 5)] {
        for ram in [&running, &again] {
            let mut data = [0; 4];
            ram.read(Gpa(gpa), &mut data).unwrap();
            assert_eq!(data, [expected; 4]);
        }
    }
}

#[test]
fn an_empty_directory_and_a_link_to_one_are_filled() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    fs::create_dir(&dir).unwrap();
    let link = parent.path().join("link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    save(&link, 3).unwrap();
    assert_eq!(mark(&dir), 3);
    assert_eq!(names(parent.path()), ["link", "vm"]);
}

#[test]
fn what_is_not_a_saved_vm_is_not_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("home");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.tex"), b"x").unwrap();
    let error = save(&dir, 1).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(names(parent.path()), ["home"]);
    let file = parent.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(
        save(&file, 1),
        Err(SnapshotError::SaveToFile { .. })
    ));
    let opened = Snapshot::open(&file);
    assert!(matches!(opened, Err(SnapshotError::IsFile { .. })));
    let empty = tempfile::tempdir().unwrap();
    let opened = Snapshot::open(empty.path());
    assert!(matches!(opened, Err(SnapshotError::NotSaved { .. })));
    assert!(matches!(
        save(Path::new("/"), 1),
        Err(SnapshotError::NoName { .. } | SnapshotError::NotOurs { .. })
    ));
    assert!(save(&parent.path().join("no/such"), 1).is_err());
    assert_eq!(names(parent.path()), ["file", "home"]);
}

#[test]
fn two_saves_to_one_place_do_not_mix() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    let first = Saving::begin(&dir).unwrap();
    assert!(matches!(
        Saving::begin(&dir),
        Err(SnapshotError::Busy { .. })
    ));
    drop(first);
    assert!(names(parent.path()).is_empty());
    save(&dir, 1).unwrap();
}

/// The steps of a save, in order.
fn steps(dir: &Path) -> Vec<SaveStep> {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let watch = move |step| {
        seen.lock().unwrap().push(step);
        Ok(())
    };
    save_watched(dir, 1, Box::new(watch)).unwrap();
    steps.lock().unwrap().clone()
}

#[test]
fn a_full_disk_at_any_step_is_an_error_that_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    let first_time = steps(&dir);
    let replacing = steps(&dir);
    assert_eq!(replacing.last(), Some(&SaveStep::RemoveOld));
    fs::remove_dir_all(&dir).unwrap();
    for (steps, before) in [(first_time, None), (replacing, Some(1))] {
        for (fail_at, step) in steps.into_iter().enumerate() {
            if let Some(mark) = before {
                save(&dir, mark).unwrap();
            }
            let mut count = 0;
            let watch = move |_| {
                count += 1;
                if count == fail_at + 1 {
                    return Err(nix::errno::Errno::ENOSPC.into());
                }
                Ok(())
            };
            let result = save_watched(&dir, 2, Box::new(watch));
            match step {
                // Too late: it is in place.
                SaveStep::RemoveOld => {
                    result.unwrap();
                    assert_eq!(mark(&dir), 2);
                    continue;
                }
                SaveStep::SyncParent => {
                    result.unwrap_err();
                    assert_eq!(mark(&dir), 2);
                    fs::remove_dir_all(&dir).unwrap();
                    continue;
                }
                _ => {}
            }
            let error = result.unwrap_err();
            let text = format!("{error}: {:?}", std::error::Error::source(&error));
            assert!(text.contains("StorageFull"), "{step:?}: {text}");
            match before {
                Some(before) => {
                    assert_eq!(mark(&dir), before, "{step:?}");
                    assert_eq!(names(parent.path()), ["vm"]);
                }
                None => assert!(names(parent.path()).is_empty(), "{step:?}"),
            }
        }
    }
}

/// Runs one of the ignored tests below in a process of its own.
fn in_a_process(test: &str, dir: &Path, die_at: usize, shell: &str) -> process::Output {
    Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact"])
        .arg(format!("state::snapshot::tests::{test}"))
        .env("HYPERNEST_TEST_DIR", dir)
        .env("HYPERNEST_TEST_DIE_AT", die_at.to_string())
        .output()
        .unwrap()
}

fn given_directory() -> PathBuf {
    std::env::var_os("HYPERNEST_TEST_DIR").unwrap().into()
}

#[test]
#[ignore = "is run by the test below, to die"]
fn a_process_that_dies_while_saving() {
    let die_at: usize = std::env::var("HYPERNEST_TEST_DIE_AT")
        .unwrap()
        .parse()
        .unwrap();
    let mut count = 0;
    let watch = move |_| {
        if count == die_at {
            process::abort();
        }
        count += 1;
        Ok(())
    };
    save_watched(&given_directory(), 2, Box::new(watch)).unwrap();
}

#[test]
fn a_crash_at_any_step_leaves_the_old_one_or_none() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    for before in [None, Some(1)] {
        let mut seen = Vec::new();
        for die_at in 0.. {
            if dir.exists() {
                fs::remove_dir_all(&dir).unwrap();
            }
            if let Some(mark) = before {
                // This also shows that the leftovers of the previous crash do not matter.
                save(&dir, mark).unwrap();
                assert_eq!(names(parent.path()), ["vm"]);
            }
            let output = in_a_process("a_process_that_dies_while_saving", &dir, die_at, "");
            let after = dir.exists().then(|| mark(&dir));
            assert!(after == before || after == Some(2), "{die_at}: {after:?}");
            seen.push(after);
            if output.status.success() {
                break;
            }
        }
        assert_eq!(seen.first(), Some(&before));
        assert_eq!(seen.last(), Some(&Some(2)));
        assert!(seen.len() > 8, "{seen:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
#[ignore = "is run by the test below, with little room"]
fn a_process_that_may_not_write_much() {
    let dir = given_directory();
    let image = fs::File::open(dir.with_file_name("image")).unwrap();
    let ram =
        GuestRam::map_saved(&image, Path::new("ram"), &PIECES, HostMemory::default()).unwrap();
    let mut saving = Saving::begin(&dir).unwrap();
    let error = saving.write(sections(1), &ram).unwrap_err().to_string();
    assert!(
        error.contains("cannot write") && error.contains("/ram"),
        "{error}"
    );
    drop(saving);
    assert_eq!(names(dir.parent().unwrap()), ["image"]);
}

#[test]
fn a_file_that_cannot_grow_is_an_error_that_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    // Memory files would be limited as well.
    let image = fs::File::create(dir.with_file_name("image")).unwrap();
    image.set_len(config().size).unwrap();
    let shell = "trap '' XFSZ; ulimit -f 1024;";
    let output = in_a_process("a_process_that_may_not_write_much", &dir, 0, shell);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn damage_is_found_and_named() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    let spoil = |name: &str, at: u64| {
        save(&dir, 1).unwrap();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(name))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 0x10;
        file.write_all_at(&byte, at).unwrap();
    };
    for (at, gpa) in [
        (0x1008, 0),
        (2 * MIB + 5, 2 * MIB),
        (8 * MIB, (1 << 32) + 3 * MIB),
    ] {
        spoil(RAM_FILE, at);
        let snapshot = Snapshot::open(&dir).unwrap();
        let Err(SnapshotError::RamDamaged { gpa: found, .. }) = snapshot.ram().verify() else {
            panic!("{at:#x} was not found");
        };
        assert_eq!(found, Gpa(gpa));
        assert!(snapshot.ram().read(&config()).is_err());
    }
    spoil(STATE_FILE, 20);
    assert!(matches!(Snapshot::open(&dir), Err(SnapshotError::State(_))));
    save(&dir, 1).unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(dir.join(RAM_FILE))
        .unwrap();
    file.set_len(MIB).unwrap();
    assert!(matches!(
        Snapshot::open(&dir),
        Err(SnapshotError::RamSize { found: MIB, .. })
    ));
    fs::remove_file(dir.join(RAM_FILE)).unwrap();
    let error = Snapshot::open(&dir).unwrap_err().to_string();
    assert!(error.contains("/vm/ram"), "{error}");
}

#[test]
fn a_pipe_in_the_place_of_a_file_does_not_make_anybody_wait() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    for name in [STATE_FILE, RAM_FILE] {
        save(&dir, 1).unwrap();
        fs::remove_file(dir.join(name)).unwrap();
        nix::unistd::mkfifo(&dir.join(name), Mode::S_IRWXU).unwrap();
        assert!(Snapshot::open(&dir).is_err());
    }
}

fn index(write: impl Fn(&mut Encoder)) -> Result<RamIndex, StateError> {
    let mut body = Encoder::new();
    write(&mut body);
    RamIndex::load(&Section {
        name: RAM_SECTION.to_owned(),
        version: RAM_VERSION,
        body: body.into_body(),
    })
}

#[test]
fn ram_that_cannot_be_is_refused() {
    let pieces: [(&[(u64, u64)], bool); 9] = [
        (&[], true),
        (&[(0, 4096)], true),
        (&[(4096, 4096), (1 << 32, 8192)], true),
        (&[(0, 0)], false),
        (&[(0, 100)], false),
        (&[(1, 4096)], false),
        (&[(0, 8192), (4096, 4096)], false),
        (&[(u64::MAX - 4095, 4096)], false),
        (&[(0, 1 << 62), (1 << 62, 1 << 62)], false),
    ];
    for (pieces, fine) in pieces {
        let result = index(|e| {
            e.u64(pieces.len() as u64);
            for &(gpa, len) in pieces {
                e.u64(gpa);
                e.u64(len);
            }
            e.u64(CHUNK);
            let chunks = u64::from(!pieces.is_empty());
            e.u64(chunks);
            (0..chunks).for_each(|_| e.u32(0));
        });
        assert_eq!(result.is_ok(), fine, "{pieces:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_as_an_index_are_survived(body: Vec<u8>, chunk: bool) {
        let mut body = body;
        if chunk && body.len() >= 24 {
            body[..8].copy_from_slice(&[0; 8]);
            body[8..16].copy_from_slice(&CHUNK.to_le_bytes());
        }
        let section = Section { name: RAM_SECTION.to_owned(), version: RAM_VERSION, body };
        if let Ok(index) = RamIndex::load(&section) {
            prop_assert_eq!(index.save(), section.body);
        }
    }
}

#[test]
fn boot_files_that_are_damaged_cut_off_or_gone_are_named() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("vm");
    save(&dir, 3).unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(dir.join(BOOT_FILE))
        .unwrap();
    file.write_all_at(&[4], 3 << 20).unwrap();
    let snapshot = Snapshot::open(&dir).unwrap();
    let damaged = snapshot.boot().unwrap().verify().unwrap_err();
    assert!(matches!(damaged, SnapshotError::BootDamaged { .. }));
    file.set_len(3 << 20).unwrap();
    let cut = Snapshot::open(&dir).unwrap_err();
    assert!(matches!(cut, SnapshotError::BootSize { .. }), "{cut}");
    fs::remove_file(dir.join(BOOT_FILE)).unwrap();
    let gone = Snapshot::open(&dir).unwrap_err().to_string();
    assert!(gone.ends_with("vm/boot"), "{gone}");
}

#[test]
fn no_file_of_a_saved_vm_may_be_a_symbolic_link() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, elsewhere) = (parent.path().join("vm"), parent.path().join("elsewhere"));
    save(&dir, 3).unwrap();
    for name in [STATE_FILE, RAM_FILE, BOOT_FILE] {
        fs::rename(dir.join(name), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.join(name)).unwrap();
        let error = Snapshot::open(&dir).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().ends_with(name) && source.contains("symbolic link"));
        fs::remove_file(dir.join(name)).unwrap();
        fs::rename(&elsewhere, dir.join(name)).unwrap();
    }
    assert_eq!(mark(&dir), 3);
}

proptest! {
    #[test]
    fn no_lengths_of_boot_files_reach_beyond_their_file(body in proptest::collection::vec(any::<u8>(),
        0..80)) {
        let section = Section { name: BOOT_SECTION.to_owned(), version: BOOT_VERSION, body };
        if let Ok(entries) = files::load(&section) {
            let mut end = 0;
            for entry in entries {
                prop_assert_eq!(entry.range.start, end);
                prop_assert!(entry.range.end > end);
                end = entry.range.end;
            }
        }
    }
}
