//! A file on its way into guest RAM: read straight into the guest, or from memory if it had to be unpacked.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use crate::memory::GuestRam;
use crate::state::snapshot::SavedFile;
use crate::units::Gpa;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is started.
    Kernel,
    /// It is handed to a Linux kernel.
    Initrd,
    /// It is handed to a PVH or multiboot kernel.
    Module,
    /// The vCPUs start in it.
    Firmware,
    /// The variables that firmware starts with.
    Variables,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Module => "module",
            Self::Firmware => "firmware",
            Self::Variables => "template of variables",
        })
    }
}

/// Bytes at offsets: what the parsers read from.
pub trait Content {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// If there are not that many bytes, or they cannot be read.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Content for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}

/// An open file, a part of one, or bytes in memory.
#[derive(Debug)]
pub struct Image {
    role: Role,
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File {
        file: File,
        len: u64,
    },
    /// In the file of a saved VM's boot files.
    Part(Arc<File>, SavedFile),
    Memory(Vec<u8>),
}

impl Image {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// If it is no readable regular file, or empty.
    pub fn open(role: Role, path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::Unreadable {
            role,
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        let found = std::fs::metadata(path).map_err(unreadable)?;
        if !found.is_file() {
            return Err(BootError::NotAFile {
                role,
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        if len == 0 {
            return Err(BootError::Empty {
                role,
                path: path.to_owned(),
            });
        }
        Ok(Self {
            role,
            path: path.to_owned(),
            source: Source::File { file, len },
        })
    }

    /// The file that was at `path` when a VM was started, now in its saved state.
    pub fn part(role: Role, path: &Path, file: &Arc<File>, entry: SavedFile) -> Self {
        Self {
            role,
            path: path.to_owned(),
            source: Source::Part(Arc::clone(file), entry),
        }
    }

    /// The file that was at `path` when a VM was started, as `bytes`.
    pub fn in_memory(role: Role, path: &Path, bytes: Vec<u8>) -> Self {
        Self {
            role,
            path: path.to_owned(),
            source: Source::Memory(bytes),
        }
    }

    /// Compares the content with its checksum, where it has one.
    ///
    /// # Errors
    /// If it cannot be read, or is another.
    pub fn check(&self) -> Result<(), BootError> {
        let Source::Part(file, entry) = &self.source else {
            return Ok(());
        };
        let found = entry.checksum(file).map_err(|e| self.unreadable(e))?;
        if found == entry.crc32c {
            return Ok(());
        }
        Err(BootError::Damaged {
            role: self.role,
            path: self.path.clone(),
            expected: entry.crc32c,
            found,
        })
    }

    /// The content from the beginning.
    pub fn reader(&self) -> impl Read + '_ {
        Reader { image: self, at: 0 }
    }

    /// What the file is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name without its directories, as boot loaders put it in front of a command line.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().replace(char::is_whitespace, "_"))
            .unwrap_or_default()
    }

    /// The first `most` bytes, or all if there are fewer.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn head(&self, most: usize) -> Result<Vec<u8>, BootError> {
        let len = usize::try_from(self.len()).map_or(most, |len| len.min(most));
        let mut head = vec![0; len];
        self.read_exact_at(0, &mut head)
            .map_err(|e| self.unreadable(e))?;
        Ok(head)
    }

    /// Unpacks gzip, up to `most` bytes.
    ///
    /// # Errors
    /// If the file is damaged or unpacks to more than `most` bytes.
    pub fn gunzip(&self, most: u64) -> Result<Self, BootError> {
        let damaged = |source| BootError::Gzip {
            role: self.role,
            path: self.path.clone(),
            source,
        };
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(io::BufReader::new(self.reader()))
            .take(most.saturating_add(1))
            .read_to_end(&mut unpacked)
            .map_err(damaged)?;
        if unpacked.len() as u64 > most {
            return Err(BootError::UnpacksTooLarge {
                role: self.role,
                path: self.path.clone(),
                most,
            });
        }
        if unpacked.is_empty() {
            return Err(BootError::Empty {
                role: self.role,
                path: self.path.clone(),
            });
        }
        Ok(Self::in_memory(self.role, &self.path, unpacked))
    }

    /// Copies `len` bytes from `offset` on into guest RAM at `gpa`; from a file without a copy in between.
    ///
    /// # Errors
    /// If the file has become shorter or cannot be read, or there is no RAM there.
    pub fn copy_to(
        &self,
        ram: &GuestRam,
        gpa: Gpa,
        offset: u64,
        len: u64,
    ) -> Result<(), BootError> {
        let failed = |source: vm_memory::GuestMemoryError| BootError::Copy {
            role: self.role,
            path: self.path.clone(),
            gpa,
            source,
        };
        let address = GuestAddress(gpa.0);
        let size = usize::try_from(len)
            .map_err(|_| self.unreadable(io::ErrorKind::FileTooLarge.into()))?;
        let copy = |mut file: &File, offset| {
            file.seek(SeekFrom::Start(offset))
                .map_err(|e| self.unreadable(e))?;
            ram.mmap()
                .read_exact_volatile_from(address, &mut file, size)
                .map_err(failed)
        };
        match &self.source {
            Source::File { file, .. } => copy(file, offset),
            Source::Part(file, entry) => {
                let end = offset.checked_add(len);
                if end.is_none_or(|end| end > entry.range.end - entry.range.start) {
                    return Err(self.unreadable(io::ErrorKind::UnexpectedEof.into()));
                }
                copy(file, entry.range.start + offset)
            }
            Source::Memory(bytes) => {
                let from = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..)?.get(..size))
                    .ok_or_else(|| self.unreadable(io::ErrorKind::UnexpectedEof.into()))?;
                ram.mmap().write_slice(from, address).map_err(failed)
            }
        }
    }

    /// That the file could not be read.
    pub fn unreadable(&self, source: io::Error) -> BootError {
        BootError::Unreadable {
            role: self.role,
            path: self.path.clone(),
            source,
        }
    }
}

impl Content for Image {
    fn len(&self) -> u64 {
        match &self.source {
            Source::File { len, .. } => *len,
            Source::Part(_, entry) => entry.range.end - entry.range.start,
            Source::Memory(bytes) => bytes.len() as u64,
        }
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.source {
            Source::File { file, .. } => FileExt::read_exact_at(file, buffer, offset),
            Source::Part(file, entry) => {
                let end = offset.checked_add(buffer.len() as u64);
                if end.is_none_or(|end| end > self.len()) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                FileExt::read_exact_at(&**file, buffer, entry.range.start + offset)
            }
            Source::Memory(bytes) => Content::read_exact_at(bytes.as_slice(), offset, buffer),
        }
    }
}

/// Reads an image from its beginning to its end, without a file offset that others could move.
struct Reader<'a> {
    image: &'a Image,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.image.len().saturating_sub(self.at);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.image.read_exact_at(self.at, &mut buffer[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}
