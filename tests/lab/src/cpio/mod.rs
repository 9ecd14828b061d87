//! Initramfs archives: the "newc" cpio format Linux unpacks at boot
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Several archives may be concatenated; Linux unpacks all of them, and later files replace earlier ones.

mod read;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

pub use read::{EntryKind, Reader};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes one archive. Missing parent directories are added.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    inode: u32,
    written: u64,
    directories: BTreeSet<String>,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    size: u32,
    links: u32,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// An archive written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            written: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory (mode 0755) and its parents.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = relative(path)?;
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.directories.insert(path.to_owned());
        self.header(&Entry {
            name: path,
            mode: S_IFDIR | 0o755,
            size: 0,
            links: 2,
            device: (0, 0),
        })
    }

    /// Adds a file with `contents`; `mode` contains the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        let size = u64::try_from(contents.len()).map_err(io::Error::other)?;
        self.file_from(path, mode, size, contents)
    }

    /// Adds a file whose `size` bytes are read from `contents`.
    pub fn file_from(
        &mut self,
        path: &str,
        mode: u32,
        size: u64,
        contents: impl Read,
    ) -> io::Result<()> {
        let path = relative(path)?;
        let size = u32::try_from(size)
            .map_err(|_| invalid(format!("{path}: over 4 GiB, more than cpio can hold")))?;
        self.parents(path)?;
        self.header(&Entry {
            name: path,
            mode: S_IFREG | (mode & 0o7777),
            size,
            links: 1,
            device: (0, 0),
        })?;
        let copied = io::copy(&mut contents.take(u64::from(size)), &mut self.out)?;
        if copied != u64::from(size) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path}: {copied} bytes where {size} were announced"),
            ));
        }
        self.written += copied;
        self.pad()
    }

    /// Adds a file of this machine, with its contents and permission bits.
    pub fn copy(&mut self, path: &str, source: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = File::open(source)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(invalid(format!("{}: not a file", source.display())));
        }
        self.file_from(path, metadata.permissions().mode(), metadata.len(), file)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = relative(path)?;
        self.parents(path)?;
        self.header(&Entry {
            name: path,
            mode: S_IFLNK | 0o777,
            size: u32::try_from(target.len()).map_err(io::Error::other)?,
            links: 1,
            device: (0, 0),
        })?;
        self.put(target.as_bytes())?;
        self.pad()
    }

    /// Adds a character device node (mode 0600).
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let path = relative(path)?;
        self.parents(path)?;
        self.header(&Entry {
            name: path,
            mode: S_IFCHR | 0o600,
            size: 0,
            links: 1,
            device: (major, minor),
        })
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header(&Entry {
            name: TRAILER,
            mode: 0,
            size: 0,
            links: 1,
            device: (0, 0),
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn header(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let name_size = u32::try_from(entry.name.len() + 1).map_err(io::Error::other)?;
        let inode = self.inode;
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, dev major/minor, rdev major/minor, name size, check
        let fields = [
            inode,
            entry.mode,
            0,
            0,
            entry.links,
            0,
            entry.size,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0,
        ];
        let mut header = String::from(MAGIC);
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        header.push_str(entry.name);
        header.push('\0');
        self.put(header.as_bytes())?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Pads to a multiple of four bytes, as required after names and contents.
    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

fn relative(path: &str) -> io::Result<&str> {
    let path = path.trim_matches('/');
    if path.contains('\0') || path.split('/').any(|part| part == ".." || part == ".") {
        return Err(invalid(format!("{path:?} is no name for an initramfs")));
    }
    Ok(path)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Parsed {
        name: String,
        mode: u32,
        data: Vec<u8>,
    }

    fn parse(archive: &[u8]) -> Vec<Parsed> {
        let mut reader = Reader::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut data = Vec::new();
            reader.contents().read_to_end(&mut data).unwrap();
            entries.push(Parsed {
                name: entry.name,
                mode: entry.mode,
                data,
            });
        }
        entries
    }

    #[test]
    fn files_links_and_their_directories_in_order() {
        let mut writer = Writer::new(Vec::new());
        writer.file("/a/b/c", 0o750, b"12345").unwrap();
        writer.symlink("a/link", "b/c").unwrap();
        writer.file("a/b/empty", 0o644, b"").unwrap();
        writer.character_device("dev/console", 5, 1).unwrap();
        let entries = parse(&writer.finish().unwrap());
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.name.as_str(), e.mode, e.data.as_slice()))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", 0o040_755, &b""[..]),
                ("a/b", 0o040_755, b""),
                ("a/b/c", 0o100_750, b"12345"),
                ("a/link", 0o120_777, b"b/c"),
                ("a/b/empty", 0o100_644, b""),
                ("dev", 0o040_755, b""),
                ("dev/console", 0o020_600, b""),
            ]
        );
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        for name in ["../x", "a/../b", "a/./b", "a\0b"] {
            let mut writer = Writer::new(Vec::new());
            assert!(writer.file(name, 0o644, b"").is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let error = writer.file_from("x", 0o644, 10, &b"short"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
