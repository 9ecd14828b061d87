//! Raw images: a regular file or a block device, byte for byte the guest's disk. The content is the guest's,
//! so it never makes a raw image one of another format: one that begins as another does is refused.

mod bounce;
mod error;
mod format;
mod image;
mod resize;

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc::O_DIRECT;
use nix::sys::eventfd::EventFd;
use nix::sys::stat::{major, minor};

use super::lock::{self, Access, LockError};
use super::threads::Threads;
use super::{Backend, Completion, Info, Request, Resize, Syncer};
use error::is;
use image::Image;

pub use super::lock::Conflict;
pub use error::{Doing, RawError};

/// When the guest's writes reach the host's disk; QEMU's `cache=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// They go past the host's page cache, and are durable when the guest flushes.
    None,
    /// They go through the page cache, and are durable when the guest flushes.
    #[default]
    Writeback,
    /// They are durable when they complete.
    Writethrough,
    /// They go through the page cache, and the guest's flushes do nothing: a crash of the host may destroy
    /// the guest's file systems.
    Unsafe,
}

/// Which image, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// When writes are durable.
    pub cache: Cache,
    /// It is not written to, and other VMs may read it at the same time.
    pub read_only: bool,
    /// Blocks that the guest discards are given back to the host.
    pub discard: bool,
    /// It is raw also if it begins as another format does.
    pub any_content: bool,
    /// Bytes of a logical block, see [`Info`].
    pub logical_block: u32,
}

/// A disk in a raw image. It is not locked until [`Backend::acquire`].
#[derive(Debug)]
pub struct RawDisk {
    threads: Threads,
    image: Arc<Image>,
}

impl RawDisk {
    /// Opens an image, which must exist, and starts its threads. They are called "disk `name`" (of at most 10
    /// bytes, without NUL); each holds what `watch` makes, also while it panics.
    ///
    /// # Errors
    /// If it is no regular file or block device, is empty or not of whole sectors, or cannot be opened in
    /// this way; or there are no more threads.
    pub fn open<W: Send + 'static>(
        options: &RawOptions,
        name: &str,
        watch: impl FnMut() -> W,
    ) -> Result<Self, RawError> {
        let image = Arc::new(open(options)?);
        let threads = Threads::start(name, &image, watch);
        Ok(Self {
            threads: threads.map_err(|source| RawError::Threads {
                path: options.path.clone(),
                source,
            })?,
            image,
        })
    }

    fn access(&self) -> Access {
        match self.image.info().read_only {
            true => Access::Read,
            false => Access::Write,
        }
    }
}

impl Backend for RawDisk {
    fn info(&self) -> Info {
        self.image.info()
    }

    fn bell(&self) -> &Arc<EventFd> {
        self.threads.bell()
    }

    fn submit(&mut self, request: Request) {
        self.threads.submit(request);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.threads.completed()
    }

    fn set_size(&mut self, size: u64) -> bool {
        self.image.becomes(size)
    }

    fn resize(&mut self, resize: Resize) -> io::Result<()> {
        self.image.resize(resize)
    }

    fn cancel(&mut self) -> Option<Request> {
        self.threads.cancel()
    }

    fn failure(&self) -> Option<String> {
        let path = self.image.path.display();
        let failed = self.image.has_failed();
        failed.then(|| format!("a flush of its image {path} has failed, so data may be lost"))
    }

    fn syncer(&self) -> Option<Syncer> {
        let image = Arc::clone(&self.image);
        self.image
            .writes_back()
            .then(|| Box::new(move || Ok(image.sync()?)) as Syncer)
    }

    fn release(&mut self) {
        lock::release(self.image.file.as_fd());
    }

    fn acquire(&mut self) -> io::Result<()> {
        let path = self.image.path.clone();
        lock::take(self.image.file.as_fd(), self.access()).map_err(|error| {
            io::Error::from(match error {
                LockError::Conflict(conflict) => RawError::InUse { path, conflict },
                LockError::Kernel(source) => RawError::Lock { path, source },
            })
        })
    }
}

/// Checks that there is a file or a block device at `path`, without opening it: that waits for a pipe's other
/// end, and acts on some devices.
///
/// # Errors
/// If there is not.
pub fn check(path: &Path) -> Result<(), RawError> {
    let metadata = fs::metadata(path).map_err(|source| RawError::opening(path, source))?;
    check_kind(path, &metadata)
}

fn open(options: &RawOptions) -> Result<Image, RawError> {
    let path = &options.path;
    let opening = |source| RawError::opening(path, source);
    check(path)?;
    if !options.any_content
        && let Ok(image) = fs::File::open(path)
        && let Some(format) = format::format(&image).map_err(opening)?
    {
        let path = path.clone();
        return Err(RawError::Format { path, format });
    }
    let direct = options.cache == Cache::None;
    let opened = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(if direct { O_DIRECT } else { 0 })
        .open(path);
    let mut file = opened.map_err(|source| match source.kind() {
        _ if direct && is(&source, Errno::EINVAL) => RawError::NoDirect { path: path.clone() },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if !options.read_only =>
        {
            RawError::NotWritable {
                path: path.clone(),
                source,
            }
        }
        _ => opening(source),
    })?;
    let metadata = file.metadata().map_err(opening)?;
    check_kind(path, &metadata)?;
    // The metadata of a block device have no size.
    let size = file.seek(SeekFrom::End(0)).map_err(opening)?;
    if size == 0 {
        return Err(RawError::Empty { path: path.clone() });
    }
    let block = options.logical_block;
    if !size.is_multiple_of(block.into()) {
        let path = path.clone();
        return Err(RawError::Size { path, size, block });
    }
    let unit = match direct {
        true => image::direct_unit(&file, block)
            .map_err(opening)?
            .ok_or_else(|| RawError::Alignment {
                path: path.clone(),
                block,
            })?,
        false => 1,
    };
    let info = Info {
        size,
        read_only: options.read_only,
        write_through: options.cache == Cache::Writethrough,
        discard: options.discard && !options.read_only,
        logical_block: block,
        physical_block: physical_block(&metadata),
    };
    Ok(Image::new(file, path.clone(), info, options.cache, unit))
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), RawError> {
    let kind = metadata.file_type();
    let is = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_char_device() => "a character device",
        () if kind.is_socket() => "a socket",
        () => "no file",
    };
    let path = path.to_owned();
    Err(RawError::NotADisk { path, is })
}

/// Bytes of the block that the host reads and writes at once: a power of two from 512 to 4096, the pages of
/// its cache.
fn physical_block(metadata: &Metadata) -> u32 {
    let bytes = match metadata.file_type().is_block_device() {
        true => device_block(metadata.rdev()).unwrap_or(512),
        false => u32::try_from(metadata.blksize()).unwrap_or(4096),
    };
    match bytes.is_power_of_two() {
        true => bytes.clamp(512, 4096),
        false => 4096,
    }
}

/// The physical block size of a block device, or of that which it is a partition of (Linux
/// Documentation/ABI/stable/sysfs-block).
fn device_block(device: u64) -> Option<u32> {
    let device = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        major(device),
        minor(device)
    ));
    ["queue", "../queue"].into_iter().find_map(|queue| {
        let file = device.join(queue).join("physical_block_size");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
