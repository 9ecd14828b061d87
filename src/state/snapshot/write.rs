//! Writes a saved VM next to its destination, and renames it in one step.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};
use nix::unistd::geteuid;

use super::{
    BOOT_FILE, BOOT_SECTION, BOOT_VERSION, RAM_FILE, RAM_SECTION, RAM_VERSION, STATE_FILE,
    SavedFile, SnapshotError, files, image,
};
use crate::memory::GuestRam;
use crate::state::Sections;

/// All files of a saved VM.
const FILES: [&str; 3] = [STATE_FILE, RAM_FILE, BOOT_FILE];

/// The next step of a save. Tests make the writer fail or die there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveStep {
    /// Create the directory next to the destination.
    Create,
    /// Write the boot files.
    Boot,
    /// Write one more chunk of the RAM file.
    Ram,
    /// Write the state file.
    State,
    /// Sync the files to the disk.
    SyncFiles,
    /// Sync their names to the disk.
    SyncDirectory,
    /// Rename the directory.
    Rename,
    /// Sync its name to the disk.
    SyncParent,
    /// Remove the replaced directory.
    RemoveOld,
}

/// Called before every step; an error makes the step fail.
type Watch = Box<dyn FnMut(SaveStep) -> io::Result<()> + Send>;

/// A save in progress. Dropped before it is committed, it leaves nothing behind.
pub struct Saving {
    /// The destination.
    place: PathBuf,
    parent: PathBuf,
    /// The hidden directory that is written.
    beside: PathBuf,
    /// Held until the end. A lock on the directory itself, so that it ends with the process.
    lock: Option<Flock<File>>,
    /// The boot files and their ranges in their file.
    boot: Option<(File, Vec<SavedFile>)>,
    files: Option<(File, File)>,
    watch: Watch,
}

impl std::fmt::Debug for Saving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Saving {
    /// Starts to save into `dir`, which does not exist, is empty, or contains a saved VM that is to be
    /// replaced.
    ///
    /// Everything that can be refused is refused here: before the guest is stopped.
    ///
    /// # Errors
    /// If `dir` is something else, or nothing can be written next to it.
    pub fn begin(dir: &Path) -> Result<Self, SnapshotError> {
        Self::begin_watched(dir, Box::new(|_| Ok(())))
    }

    /// The same, with `watch` called before each step.
    pub(super) fn begin_watched(dir: &Path, watch: Watch) -> Result<Self, SnapshotError> {
        let place = resolve(dir)?;
        let no_name = || SnapshotError::NoName {
            path: dir.to_owned(),
        };
        let parent = place.parent().ok_or_else(no_name)?.to_owned();
        let mut beside = std::ffi::OsString::from(".");
        beside.push(place.file_name().ok_or_else(no_name)?);
        beside.push(".saving");
        let mut saving = Self {
            beside: parent.join(beside),
            place,
            parent,
            lock: None,
            boot: None,
            files: None,
            watch,
        };
        check_replaceable(&saving.place)?;
        saving.step(SaveStep::Create, "create")?;
        saving.lock = Some(saving.own_directory()?);
        Ok(saving)
    }

    /// Creates and locks the hidden directory. Leftovers of a crashed save are removed.
    fn own_directory(&self) -> Result<Flock<File>, SnapshotError> {
        let failed = |doing| file_error(doing, &self.beside);
        loop {
            // Only the user may read a guest's memory.
            match DirBuilder::new().mode(0o700).create(&self.beside) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create")(e));
                }
                _ => {}
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let directory = OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits())
                .open(&self.beside);
            let directory = match directory {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed("open"))?,
            };
            let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock);
            let lock = lock.map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => SnapshotError::Busy {
                    path: self.place.clone(),
                },
                other => failed("lock")(other.into()),
            })?;
            // Another save may have ended between opening and locking, and removed the directory.
            if is_ours(&lock, &self.beside).map_err(failed("inspect"))? {
                check_replaceable(&self.beside)?;
                remove_files(&self.beside).map_err(failed("empty"))?;
                return Ok(lock);
            }
        }
    }

    /// Writes the guest's boot files. The guest may run meanwhile.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write_boot_files<'a>(
        &mut self,
        mut contents: impl Iterator<Item = Box<dyn Read + 'a>>,
    ) -> Result<(), SnapshotError> {
        self.step(SaveStep::Boot, "write")?;
        let path = self.beside.join(BOOT_FILE);
        let file = create(&path).map_err(file_error("write", &path))?;
        let entries = files::write(&file, &mut contents);
        let entries = entries.map_err(file_error("copy the boot files to", &path))?;
        self.boot = Some((file, entries));
        Ok(())
    }

    /// Writes everything else; the guest must not run meanwhile. It may resume afterwards.
    ///
    /// # Errors
    /// If the files cannot be written, e.g. because the disk is full.
    ///
    /// # Panics
    /// If `sections` contains one named `ram` or `boot`: those are added here.
    pub fn write(&mut self, mut sections: Sections, ram: &GuestRam) -> Result<(), SnapshotError> {
        let path = self.beside.join(RAM_FILE);
        let failed = file_error("write", &path);
        let ram_file = create(&path).map_err(&failed)?;
        let watch = &mut self.watch;
        let index = image::write(&ram_file, ram, &mut || watch(SaveStep::Ram)).map_err(&failed)?;
        sections.push(RAM_SECTION, RAM_VERSION, index.save());
        if let Some((_, entries)) = &self.boot {
            // Only a reset needs it, so a reader may ignore it.
            sections.push_optional(BOOT_SECTION, BOOT_VERSION, files::save(entries));
        }

        let path = self.beside.join(STATE_FILE);
        let failed = file_error("write", &path);
        self.step(SaveStep::State, "write")?;
        let mut state_file = BufWriter::new(create(&path).map_err(&failed)?);
        sections.encode(&mut state_file)?;
        state_file.flush().map_err(&failed)?;
        let state_file = state_file
            .into_inner()
            .map_err(|e| failed(e.into_error()))?;
        self.files = Some((state_file, ram_file));
        Ok(())
    }

    /// Syncs the save to the disk and puts it in place.
    ///
    /// # Errors
    /// If the disk or the file system fails. The previous content is still in place then, unless the last
    /// step failed: syncing the new name to the disk.
    ///
    /// # Panics
    /// If nothing was written.
    pub fn commit(mut self) -> Result<(), SnapshotError> {
        let (state, ram) = self.files.take().expect("written before it is committed");
        self.step(SaveStep::SyncFiles, "write")?;
        let boot = self.boot.take().map(|(file, _)| (BOOT_FILE, file));
        let files = [(RAM_FILE, ram), (STATE_FILE, state)];
        for (name, file) in boot.into_iter().chain(files) {
            let failed = file_error("write", &self.beside.join(name));
            file.sync_all().map_err(failed)?;
        }
        self.step(SaveStep::SyncDirectory, "write")?;
        sync_directory(&self.beside)?;
        self.step(SaveStep::Rename, "rename")?;
        let replaced = self.put_in_place()?;
        // From here on the new save is in place, and `beside` is the replaced one.
        let lock = self.lock.take();
        let synced = self
            .step(SaveStep::SyncParent, "write")
            .and_then(|()| sync_directory(&self.parent));
        if replaced && synced.is_ok() {
            // If this fails, the next save removes it.
            let _next_time = self
                .step(SaveStep::RemoveOld, "remove")
                .is_ok_and(|()| remove(&self.beside).is_ok());
        }
        drop(lock);
        synced
    }

    /// Returns whether a previous save existed, which is now next to the place.
    fn put_in_place(&self) -> Result<bool, SnapshotError> {
        let rename = |flags| renameat2(AT_FDCWD, &self.beside, AT_FDCWD, &self.place, flags);
        // Retries if the place appears or disappears meanwhile.
        for _ in 0..8 {
            match rename(RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => return Ok(false),
                // Without the flag this is not atomic against other processes, and replaces only an empty
                // directory.
                Err(Errno::EINVAL) if !self.place.exists() => {
                    fs::rename(&self.beside, &self.place)
                        .map_err(file_error("rename", &self.beside))?;
                    return Ok(false);
                }
                Err(Errno::EEXIST | Errno::EINVAL) => {}
                Err(other) => return Err(file_error("rename", &self.beside)(other.into())),
            }
            check_replaceable(&self.place)?;
            match rename(RenameFlags::RENAME_EXCHANGE) {
                Ok(()) => return Ok(true),
                Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(SnapshotError::CannotExchange {
                        path: self.place.clone(),
                        source: errno.into(),
                    });
                }
            }
        }
        Err(SnapshotError::Busy {
            path: self.place.clone(),
        })
    }

    fn step(&mut self, step: SaveStep, doing: &'static str) -> Result<(), SnapshotError> {
        (self.watch)(step).map_err(file_error(doing, &self.beside))
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            // If this fails, the next save removes it.
            let _next_time = remove(&self.beside);
            drop(lock);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn file_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |source| SnapshotError::File {
        doing,
        path: path.clone(),
        source,
    }
}

/// Returns the real path; its last part need not exist.
fn resolve(dir: &Path) -> Result<PathBuf, SnapshotError> {
    match fs::canonicalize(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(file_error("find", dir)),
    }
    let Some(name) = dir.file_name() else {
        return Err(SnapshotError::NoName {
            path: dir.to_owned(),
        });
    };
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = fs::canonicalize(parent).map_err(file_error("find", parent))?;
    Ok(parent.join(name))
}

/// Checks that the place is empty or contains a saved VM.
fn check_replaceable(place: &Path) -> Result<(), SnapshotError> {
    let entries = match fs::read_dir(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(SnapshotError::SaveToFile {
                path: place.to_owned(),
            });
        }
        other => other.map_err(file_error("read the directory", place))?,
    };
    for entry in entries {
        let name = entry
            .map_err(file_error("read the directory", place))?
            .file_name();
        if !FILES.iter().any(|file| name == *file) {
            return Err(SnapshotError::NotOurs {
                path: place.to_owned(),
                other: name.display().to_string(),
            });
        }
    }
    Ok(())
}

/// Whether `directory` is the one at `path`. A directory of another user, who could have put it there, is
/// an error.
fn is_ours(directory: &File, path: &Path) -> io::Result<bool> {
    let opened = directory.metadata()?;
    if opened.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())),
    }
}

fn sync_directory(path: &Path) -> Result<(), SnapshotError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(file_error("write", path))
}

fn remove(directory: &Path) -> io::Result<()> {
    remove_files(directory)?;
    fs::remove_dir(directory)
}

fn remove_files(directory: &Path) -> io::Result<()> {
    for name in FILES {
        match fs::remove_file(directory.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
