//! Another size for an image that is used: a file is made longer or shorter, and what others have made of a
//! file or a block device is taken over.

use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::image::{Call, Image, uninterrupted};
use super::{Doing, RawError};
use crate::block::Resize;
use crate::block::lock::{LockError, Resizing};

impl Image {
    /// Carries out `resize`. No request is under way that could reach beyond it.
    ///
    /// # Errors
    /// If it cannot be, or must not be. The disk has its size then.
    pub(super) fn resize(&self, resize: Resize) -> io::Result<()> {
        let of_image = self.measure()?;
        let size = resize.target(&self.info(), of_image)?;
        if size != of_image {
            self.truncate(size, of_image)?;
        }
        self.set(size);
        Ok(())
    }

    /// Takes over the size of the image, if that is `size`. The disk is not used.
    pub(super) fn becomes(&self, size: u64) -> bool {
        let whole = size > 0 && size.is_multiple_of(self.info().logical_block.into());
        let is = whole && self.measure().is_ok_and(|of| of == size);
        if is {
            self.set(size);
        }
        is
    }

    fn set(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Bytes that the image has now.
    fn measure(&self) -> Result<u64, RawError> {
        // The position is nobody's: all reads and writes say where. A block device's metadata have no size.
        let end = (&self.file).seek(SeekFrom::End(0));
        end.map_err(|source| self.resizing(source))
    }

    /// Makes a file longer, with zeroes, or shorter.
    fn truncate(&self, size: u64, of_image: u64) -> Result<(), RawError> {
        let path = || self.path.clone();
        if self.info().read_only {
            let doing = Doing::Resize;
            return Err(RawError::ReadOnly {
                path: path(),
                doing,
            });
        }
        let metadata = self.file.metadata().map_err(|e| self.resizing(e))?;
        if !metadata.is_file() {
            let size = of_image;
            return Err(RawError::Device { path: path(), size });
        }
        self.usable()?;
        let _resizing = Resizing::begin(self.file.as_fd()).map_err(|error| match error {
            LockError::Conflict(conflict) => RawError::InUse {
                path: path(),
                conflict,
            },
            LockError::Kernel(source) => RawError::Lock {
                path: path(),
                source,
            },
        })?;
        let run = || {
            self.before(Call::Truncate)?;
            nix::unistd::ftruncate(&self.file, size.cast_signed())
        };
        uninterrupted(run).map_err(|errno| self.resizing(errno.into()))
    }

    fn resizing(&self, source: io::Error) -> RawError {
        RawError::request(self.path.clone(), Doing::Resize, source)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt as _;

    use nix::errno::Errno;

    use super::*;
    use crate::block::Backend as _;
    use crate::block::Operation;
    use crate::block::raw::Cache;
    use crate::block::raw::tests::{CACHES, disk, image, options, run};
    use crate::error::chain;

    const MIB: u64 = 1 << 20;

    fn grow(size: u64) -> Resize {
        Resize {
            size: Some(size),
            shrink: false,
        }
    }

    fn zeroes(offset: u64, len: u64) -> Operation {
        let unmap = false;
        Operation::WriteZeroes { offset, len, unmap }
    }

    fn why(result: io::Result<()>) -> String {
        let error = result.unwrap_err();
        error
            .get_ref()
            .map_or_else(|| error.to_string(), |inner| chain(inner))
    }

    #[test]
    fn a_file_grows_with_zeroes_that_can_be_written() {
        for cache in CACHES {
            let file = image(MIB);
            let Some(mut disk) = disk(&options(file.path(), cache)) else {
                continue;
            };
            assert!(run(&mut disk, zeroes(MIB, 512)).is_err(), "it is outside");
            disk.resize(grow(2 * MIB)).unwrap();
            assert_eq!(disk.info().size, 2 * MIB);
            assert_eq!(fs::metadata(file.path()).unwrap().len(), 2 * MIB);
            run(&mut disk, zeroes(MIB, MIB)).unwrap();
            assert!(run(&mut disk, zeroes(2 * MIB, 512)).is_err());
            // No lock is left, and the others are kept.
            disk.resize(grow(3 * MIB)).unwrap();
        }
    }

    #[test]
    fn it_shrinks_only_with_leave() {
        let file = image(2 * MIB);
        file.as_file().write_all_at(&[7; 512], MIB).unwrap();
        let mut disk = disk(&options(file.path(), Cache::Writeback)).unwrap();
        let refused = why(disk.resize(grow(MIB)));
        assert!(refused.contains("--shrink"), "{refused}");
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 2 * MIB);
        disk.resize(Resize {
            size: Some(MIB),
            shrink: true,
        })
        .unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().len(), MIB);
        assert!(run(&mut disk, zeroes(MIB, 512)).is_err());
        disk.resize(grow(2 * MIB)).unwrap();
        assert_eq!(
            fs::read(file.path()).unwrap()[1 << 20],
            0,
            "what was there is lost"
        );
    }

    #[test]
    fn what_others_have_made_of_it_is_taken_over() {
        let file = image(MIB);
        let mut read_only = options(file.path(), Cache::Writeback);
        read_only.read_only = true;
        let mut disk = disk(&read_only).unwrap();
        disk.resize(Resize::default()).unwrap();
        assert_eq!(disk.info().size, MIB);
        let others = OpenOptions::new().write(true).open(file.path()).unwrap();
        others.set_len(3 * MIB).unwrap();
        assert!(!disk.set_size(2 * MIB));
        assert_eq!(disk.info().size, MIB);
        disk.resize(Resize::default()).unwrap();
        assert_eq!(disk.info().size, 3 * MIB);
        others.set_len(MIB).unwrap();
        assert!(why(disk.resize(Resize::default())).contains("--shrink"));
        others.set_len(4 * MIB + 1).unwrap();
        assert!(why(disk.resize(Resize::default())).contains("multiple of 512"));
        others.set_len(4 * MIB).unwrap();
        // As by a VM that was saved after its disk had grown.
        assert!(disk.set_size(4 * MIB));
        assert_eq!(disk.info().size, 4 * MIB);
        // It is not made longer here.
        assert!(why(disk.resize(grow(5 * MIB))).contains("read-only"));
        assert_eq!(disk.info().size, 4 * MIB);
    }

    #[test]
    fn what_the_host_refuses_changes_nothing() {
        let file = image(MIB);
        let mut disk = disk(&options(file.path(), Cache::Writeback)).unwrap();
        for (errno, says) in [
            (Errno::EFBIG, "change the size"),
            (Errno::ENOSPC, "no space left"),
        ] {
            disk.image.faults.add(Call::Truncate, errno);
            let refused = why(disk.resize(grow(2 * MIB)));
            assert!(refused.contains(says), "{refused}");
            assert_eq!(disk.info().size, MIB);
        }
        for size in [0, 511, u64::MAX - 511] {
            assert!(disk.resize(grow(size)).is_err(), "{size}");
        }
    }
}
