//! Reads the archives that [`Writer`](super::Writer) writes.

use std::io::{self, Read};

use super::{MAGIC, S_IFDIR, S_IFREG, TRAILER, invalid};

/// The type bits of a mode.
const S_IFMT: u32 = 0o170_000;
/// The header: the magic number and 13 fields of eight hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// The maximum length of a name in Linux (`PATH_MAX`).
const MAX_NAME: u32 = 4096;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// Any other kind.
    Other,
}

/// One entry of an archive; its contents are read from the [`Reader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, relative to the archive's root.
    pub name: String,
    /// Its kind.
    pub kind: EntryKind,
    /// Its type and permission bits.
    pub mode: u32,
    /// The size of its contents.
    pub size: u32,
}

/// Reads one archive.
#[derive(Debug)]
pub struct Reader<R: Read> {
    from: R,
    position: u64,
    /// Unread bytes of the current entry's contents.
    rest: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the archive in `from`.
    pub fn new(from: R) -> Self {
        Self {
            from,
            position: 0,
            rest: 0,
        }
    }

    /// The next entry, or `None` at the archive's end. Unread contents of the previous entry are skipped.
    ///
    /// # Errors
    /// If `from` ends early or is not such an archive.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        io::copy(&mut self.contents(), &mut io::sink())?;
        if self.rest > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.align()?;
        let mut header = [0; HEADER];
        self.take(&mut header)?;
        if !header.starts_with(MAGIC.as_bytes()) {
            return Err(invalid("not a cpio archive in the newc format".to_owned()));
        }
        let field = |number: usize| {
            let start = MAGIC.len() + number * 8;
            std::str::from_utf8(&header[start..start + 8])
                .ok()
                .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .ok_or_else(|| invalid(format!("field {number} of a cpio header is no number")))
        };
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        if !(2..=MAX_NAME).contains(&name_size) {
            return Err(invalid(format!("a cpio name of {name_size} bytes")));
        }
        let mut name = vec![0; usize::try_from(name_size).map_err(io::Error::other)?];
        self.take(&mut name)?;
        name.pop();
        let name = String::from_utf8(name).map_err(|error| invalid(error.to_string()))?;
        self.align()?;
        if name == TRAILER {
            return Ok(None);
        }
        self.rest = size.into();
        Ok(Some(Entry {
            name,
            kind: match mode & S_IFMT {
                S_IFDIR => EntryKind::Directory,
                S_IFREG => EntryKind::File,
                _ => EntryKind::Other,
            },
            mode,
            size,
        }))
    }

    /// The unread contents of the current entry.
    pub fn contents(&mut self) -> impl Read + '_ {
        Contents(self)
    }

    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        while !self.position.is_multiple_of(4) {
            self.take(&mut [0])?;
        }
        Ok(())
    }
}

struct Contents<'a, R: Read>(&'a mut Reader<R>);

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.0.from).take(self.0.rest).read(bytes)?;
        self.0.rest -= read as u64;
        self.0.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn damaged_archives_are_errors_and_never_panic(
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
            length in any::<usize>(),
        ) {
            let mut writer = super::super::Writer::new(Vec::new());
            writer.file("a/b", 0o644, b"12345").unwrap();
            let mut archive = writer.finish().unwrap();
            for (at, byte) in changes {
                let at = at % archive.len();
                archive[at] = byte;
            }
            archive.truncate(length % (archive.len() + 1));
            let mut reader = Reader::new(&archive[..]);
            while let Ok(Some(_)) = reader.next_entry() {}
        }
    }

    #[test]
    fn contents_that_end_early_are_an_error() {
        let mut writer = super::super::Writer::new(Vec::new());
        writer.file("a", 0o644, &[7; 100]).unwrap();
        let archive = writer.finish().unwrap();
        let mut reader = Reader::new(&archive[..150]);
        assert!(reader.next_entry().unwrap().is_some());
        assert!(reader.next_entry().is_err());
    }
}
