//! The disk that is measured.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::O_EXCL;
use tempfile::TempDir;

/// A file or a block device, whose first part has been written: no request is answered without a look at the
/// medium.
pub(super) struct Scratch {
    path: PathBuf,
    /// The file's directory, if the file is this program's.
    _own: Option<TempDir>,
}

const MIB: usize = 1 << 20;

impl Scratch {
    /// The device or file at `given`, or a new file in `dir`; its first `mib` are overwritten.
    pub(super) fn new(given: Option<&Path>, dir: Option<&Path>, mib: u32) -> io::Result<Self> {
        let (path, own) = match (given, dir) {
            (Some(given), _) => (given.to_owned(), None),
            (None, dir) => {
                let own = match dir {
                    Some(dir) => TempDir::new_in(dir)?,
                    None => TempDir::new()?,
                };
                let path = own.path().join("scratch.raw");
                File::create(&path)?.set_len(u64::from(mib) << 20)?;
                (path, Some(own))
            }
        };
        fill(&path, mib)?;
        Ok(Self { path, _own: own })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub(super) fn what(&self) -> &'static str {
        let is_device = |m: std::fs::Metadata| m.file_type().is_block_device();
        match self.path.metadata().is_ok_and(is_device) {
            true => "a block device",
            false => "a file",
        }
    }
}

fn fill(path: &Path, mib: u32) -> io::Result<()> {
    let is_device = path.metadata()?.file_type().is_block_device();
    let mut options = OpenOptions::new();
    options.write(true);
    if is_device {
        // Fails if it is mounted or otherwise in use (open(2)).
        options.custom_flags(O_EXCL);
    }
    let mut file = options.open(path)?;
    let mut block = vec![0; MIB];
    for number in 0..u64::from(mib) {
        // Neither zeroes nor the same twice, which file systems and images may store otherwise.
        let mut word = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for bytes in block.chunks_exact_mut(8) {
            // xorshift64 (Marsaglia 2003).
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_new_file_is_full_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(None, Some(dir.path()), 3).unwrap();
        let bytes = fs::read(scratch.path()).unwrap();
        assert_eq!(bytes.len(), 3 * MIB);
        assert!(
            bytes
                .chunks(4096)
                .all(|block| block.iter().any(|b| *b != 0))
        );
        assert_ne!(bytes[..MIB], bytes[MIB..2 * MIB]);
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_given_file_is_overwritten_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; 2 * MIB]).unwrap();
        drop(Scratch::new(Some(&path), None, 1).unwrap());
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 2 * MIB);
        assert!(bytes[..MIB].iter().any(|b| *b != 0) && bytes[MIB..].iter().all(|b| *b == 0));
    }
}
