//! The file of boot files: kernel, initrd and modules in sequence, each with a checksum.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BOOT_VERSION, SnapshotError};
use crate::state::{Encoder, Section, StateError};

/// The size of the copy buffer, in bytes.
const BUFFER: usize = 1 << 20;

/// One entry in the file of boot files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFile {
    /// The range of its content.
    pub range: Range<u64>,
    /// The content's CRC32C.
    pub crc32c: u32,
}

/// The boot files of a saved VM: opened, their content not read.
#[derive(Clone, Debug)]
pub struct SavedFiles {
    file: Arc<File>,
    path: PathBuf,
    entries: Vec<SavedFile>,
}

/// Writes `contents` in sequence.
pub(super) fn write(
    mut to: &File,
    contents: &mut dyn Iterator<Item = Box<dyn Read + '_>>,
) -> io::Result<Vec<SavedFile>> {
    let mut entries = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut end = 0;
    for mut content in contents {
        let (start, mut crc32c) = (end, 0);
        loop {
            let read = content.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]);
            to.write_all(&buffer[..read])?;
            end += read as u64;
        }
        entries.push(SavedFile {
            range: start..end,
            crc32c,
        });
    }
    Ok(entries)
}

/// The entries as the body of their section.
pub(super) fn save(entries: &[SavedFile]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.u64(entries.len() as u64);
    for entry in entries {
        e.u64(entry.range.end - entry.range.start);
        e.u32(entry.crc32c);
    }
    e.into_body()
}

/// Reads the entries from their section.
pub(super) fn load(section: &Section) -> Result<Vec<SavedFile>, StateError> {
    let mut d = section.decoder(BOOT_VERSION)?;
    let mut entries = Vec::new();
    let mut start = 0_u64;
    for _ in 0..d.count("number of boot files", 12)? {
        let len = d.u64("length of a boot file")?;
        let end = start.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or_else(|| {
            d.invalid(
                "length of a boot file",
                format!("{len} bytes after {start}"),
            )
        })?;
        entries.push(SavedFile {
            range: start..end,
            crc32c: d.u32("checksum of a boot file")?,
        });
        start = end;
    }
    d.finish()?;
    Ok(entries)
}

impl SavedFiles {
    pub(super) fn new(
        file: File,
        path: PathBuf,
        entries: Vec<SavedFile>,
    ) -> Result<Self, SnapshotError> {
        let failed = super::error::read_failed(&path);
        let metadata = file.metadata().map_err(failed)?;
        let expected = entries.last().map_or(0, |entry| entry.range.end);
        if metadata.len() != expected || !metadata.is_file() {
            return Err(SnapshotError::BootSize {
                path,
                expected,
                found: metadata.len(),
            });
        }
        Ok(Self {
            file: Arc::new(file),
            path,
            entries,
        })
    }

    /// The file that contains all entries.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The entries.
    pub fn entries(&self) -> &[SavedFile] {
        &self.entries
    }

    /// Reads and checks all entries.
    ///
    /// # Errors
    /// If the file cannot be read, or an entry is damaged.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        for entry in &self.entries {
            let found = entry.checksum(&self.file);
            let found = found.map_err(super::error::read_failed(&self.path))?;
            if found != entry.crc32c {
                return Err(SnapshotError::BootDamaged {
                    path: self.path.clone(),
                    expected: entry.crc32c,
                    found,
                });
            }
        }
        Ok(())
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl SavedFile {
    /// Returns the CRC32C of this range of `file`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn checksum(&self, file: &File) -> io::Result<u32> {
        let mut buffer = vec![0; BUFFER];
        let (mut at, mut crc32c) = (self.range.start, 0);
        while at < self.range.end {
            let left = usize::try_from(self.range.end - at).unwrap_or(BUFFER);
            let bytes = &mut buffer[..left.min(BUFFER)];
            file.read_exact_at(bytes, at)?;
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            at += bytes.len() as u64;
        }
        Ok(crc32c)
    }
}
