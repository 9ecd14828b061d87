//! Named sections and the file that holds them.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Decoder, Encoder, StateError};

/// The format version that is written, and the only one that is read: sections have their own versions.
pub const FORMAT_VERSION: u32 = 1;

/// The first bytes. As in PNG, a byte that is not ASCII and both kinds of line end reveal a mangled file
/// early.
const MAGIC: [u8; 12] = *b"\x89hypernest\r\n";

/// The name of the manifest in errors.
const MANIFEST: &str = "manifest";

/// The flag of a section that a reader may ignore if it does not support it.
const OPTIONAL: u32 = 1;

/// Bytes of a section's entry in the manifest with an empty name: name, version, flags, length, checksum.
const ENTRY: usize = 8 + 4 + 4 + 8 + 4;

/// The maximum length of a section's name, in bytes.
const NAME_MAX: usize = 255;

/// A named section of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Unique in its file, e.g. `vcpu/0`.
    pub name: String,
    /// The version of the body's layout; from 1.
    pub version: u32,
    /// The content.
    pub body: Vec<u8>,
}

impl Section {
    /// Returns a decoder for the body; `current` is the version that is written now.
    ///
    /// # Errors
    /// If the section's version is neither `current` nor the previous one.
    pub fn decoder(&self, current: u32) -> Result<Decoder<'_>, StateError> {
        self.check_version(current)?;
        Ok(Decoder::new(&self.name, self.version, &self.body))
    }

    /// Reads a body in JSON.
    ///
    /// # Errors
    /// If the version is not read, or the JSON is not a `T`.
    pub fn json<T: DeserializeOwned>(&self, current: u32) -> Result<T, StateError> {
        self.check_version(current)?;
        serde_json::from_slice(&self.body).map_err(|source| StateError::Json {
            section: self.name.clone(),
            source,
        })
    }

    fn check_version(&self, current: u32) -> Result<(), StateError> {
        if self.version != 0
            && (self.version == current || self.version.checked_add(1) == Some(current))
        {
            return Ok(());
        }
        Err(StateError::Version {
            section: self.name.clone(),
            found: self.version,
            current,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    section: Section,
    optional: bool,
}

/// The state of a VM: sections in the order of writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sections {
    writer: String,
    kept: Vec<Kept>,
}

impl Default for Sections {
    fn default() -> Self {
        Self::new()
    }
}

impl Sections {
    /// Creates an empty state, written by this program.
    pub fn new() -> Self {
        Self {
            writer: concat!("hypernest ", env!("CARGO_PKG_VERSION")).to_owned(),
            kept: Vec::new(),
        }
    }

    /// The program and version that wrote them.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Appends a section.
    ///
    /// # Panics
    /// If the name is taken or longer than 255 bytes; names are constants of the writer.
    pub fn push(&mut self, name: impl Into<String>, version: u32, body: Vec<u8>) {
        self.keep(name.into(), version, body, false);
    }

    /// Appends a section that a reader may ignore.
    ///
    /// # Panics
    /// As [`Sections::push`].
    pub fn push_optional(&mut self, name: impl Into<String>, version: u32, body: Vec<u8>) {
        self.keep(name.into(), version, body, true);
    }

    /// Appends a section in JSON.
    ///
    /// # Errors
    /// If `value` has no JSON form.
    ///
    /// # Panics
    /// As [`Sections::push`].
    pub fn push_json<T: Serialize + ?Sized>(
        &mut self,
        name: impl Into<String>,
        version: u32,
        value: &T,
    ) -> Result<(), StateError> {
        let name = name.into();
        match serde_json::to_vec_pretty(value) {
            Ok(body) => {
                self.push(name, version, body);
                Ok(())
            }
            Err(source) => Err(StateError::Json {
                section: name,
                source,
            }),
        }
    }

    fn keep(&mut self, name: String, version: u32, body: Vec<u8>, optional: bool) {
        assert!(self.get(&name).is_none(), "two sections {name}");
        assert!(name.len() <= NAME_MAX, "a long section name: {name}");
        self.kept.push(Kept {
            section: Section {
                name,
                version,
                body,
            },
            optional,
        });
    }

    /// Returns a section without taking it.
    pub fn get(&self, name: &str) -> Option<&Section> {
        self.iter().find(|section| section.name == name)
    }

    /// The remaining sections, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Section> {
        self.kept.iter().map(|kept| &kept.section)
    }

    /// The names of the remaining sections, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|section| section.name.as_str())
    }

    /// Takes a section.
    ///
    /// # Errors
    /// If it is missing.
    pub fn take(&mut self, name: &str) -> Result<Section, StateError> {
        self.take_optional(name).ok_or_else(|| StateError::Missing {
            section: name.to_owned(),
        })
    }

    /// Takes a section if it exists.
    pub fn take_optional(&mut self, name: &str) -> Option<Section> {
        let at = self
            .kept
            .iter()
            .position(|kept| kept.section.name == name)?;
        Some(self.kept.remove(at).section)
    }

    /// Checks that every required section was taken.
    ///
    /// # Errors
    /// If a section is left that must not be ignored; the error names all of them.
    pub fn finish(self) -> Result<(), StateError> {
        let left = self.kept.into_iter().filter(|kept| !kept.optional);
        let sections: Vec<_> = left.map(|kept| kept.section.name).collect();
        if sections.is_empty() {
            Ok(())
        } else {
            Err(StateError::Unknown { sections })
        }
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// If `to` cannot be written.
    pub fn encode(&self, to: &mut impl Write) -> Result<(), StateError> {
        let mut manifest = Encoder::new();
        manifest.str(&self.writer);
        manifest.u64(self.kept.len() as u64);
        for Kept { section, optional } in &self.kept {
            manifest.str(&section.name);
            manifest.u32(section.version);
            manifest.u32(if *optional { OPTIONAL } else { 0 });
            manifest.u64(section.body.len() as u64);
            manifest.u32(crc32c::crc32c(&section.body));
        }
        let manifest = manifest.into_body();
        let mut head = MAGIC.to_vec();
        head.extend(FORMAT_VERSION.to_le_bytes());
        head.extend((manifest.len() as u64).to_le_bytes());
        head.extend(crc32c::crc32c(&manifest).to_le_bytes());
        let written = |section: &str, result: io::Result<()>| {
            result.map_err(|source| StateError::Io {
                doing: "write",
                section: section.to_owned(),
                source,
            })
        };
        written(MANIFEST, to.write_all(&head))?;
        written(MANIFEST, to.write_all(&manifest))?;
        for section in self.iter() {
            written(&section.name, to.write_all(&section.body))?;
        }
        Ok(())
    }

    /// Reads a complete file of at most `limit` bytes.
    ///
    /// # Errors
    /// If it is not a complete, undamaged file of this format; the error names the section.
    pub fn decode(from: impl Read, limit: u64) -> Result<Self, StateError> {
        let mut from = SectionSource {
            from,
            limit,
            left: limit,
        };
        let magic = from.take(MANIFEST, MAGIC.len() as u64)?;
        if magic != MAGIC {
            return Err(StateError::NotState);
        }
        let format = u32::from_le_bytes(from.array(MANIFEST)?);
        if format != FORMAT_VERSION {
            return Err(StateError::Format { found: format });
        }
        let length = u64::from_le_bytes(from.array(MANIFEST)?);
        let crc = u32::from_le_bytes(from.array(MANIFEST)?);
        let manifest = from.checked(MANIFEST, length, crc)?;
        let manifest = Manifest::decode(&manifest)?;
        let mut sections = Self {
            writer: manifest.writer,
            kept: Vec::with_capacity(manifest.entries.len()),
        };
        for entry in manifest.entries {
            let body = from.checked(&entry.name, entry.length, entry.crc)?;
            sections.kept.push(Kept {
                section: Section {
                    name: entry.name,
                    version: entry.version,
                    body,
                },
                optional: entry.optional,
            });
        }
        let last = sections.names().last().unwrap_or(MANIFEST).to_owned();
        from.end(last)?;
        Ok(sections)
    }
}

struct Manifest {
    writer: String,
    entries: Vec<SectionEntry>,
}

struct SectionEntry {
    name: String,
    version: u32,
    optional: bool,
    length: u64,
    crc: u32,
}

impl Manifest {
    fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut d = Decoder::new(MANIFEST, FORMAT_VERSION, bytes);
        let writer = d.str("writer")?.to_owned();
        let count = d.count("number of sections", ENTRY)?;
        let mut entries = Vec::with_capacity(count);
        let mut names = HashSet::new();
        for _ in 0..count {
            let name = d.str("name of a section")?.to_owned();
            if name.len() > NAME_MAX {
                return Err(d.invalid("name of a section", "too long"));
            }
            let version = d.u32(&name)?;
            let flags = d.u32(&name)?;
            if flags & !OPTIONAL != 0 {
                return Err(d.invalid(&name, format!("unknown flags {flags:#x}")));
            }
            if !names.insert(name.clone()) {
                return Err(StateError::Duplicate { section: name });
            }
            entries.push(SectionEntry {
                version,
                optional: flags & OPTIONAL != 0,
                length: d.u64(&name)?,
                crc: d.u32(&name)?,
                name,
            });
        }
        d.finish()?;
        Ok(Self { writer, entries })
    }
}

/// Input with a size limit.
struct SectionSource<R> {
    from: R,
    limit: u64,
    left: u64,
}

impl<R: Read> SectionSource<R> {
    /// Reads `length` bytes; allocates only as data arrives.
    fn take(&mut self, section: &str, length: u64) -> Result<Vec<u8>, StateError> {
        let Some(left) = self.left.checked_sub(length) else {
            return Err(StateError::TooLarge {
                section: section.to_owned(),
                limit: self.limit,
            });
        };
        self.left = left;
        let mut bytes = Vec::new();
        let read = self.from.by_ref().take(length).read_to_end(&mut bytes);
        read.map_err(|source| StateError::Io {
            doing: "read",
            section: section.to_owned(),
            source,
        })?;
        match length - bytes.len() as u64 {
            0 => Ok(bytes),
            missing => Err(StateError::Truncated {
                section: section.to_owned(),
                missing,
            }),
        }
    }

    fn array<const N: usize>(&mut self, section: &str) -> Result<[u8; N], StateError> {
        let bytes = self.take(section, N as u64)?;
        Ok(bytes.try_into().expect("as many as were taken"))
    }

    fn checked(
        &mut self,
        section: &str,
        length: u64,
        expected: u32,
    ) -> Result<Vec<u8>, StateError> {
        let bytes = self.take(section, length)?;
        let found = crc32c::crc32c(&bytes);
        if found == expected {
            return Ok(bytes);
        }
        Err(StateError::Damaged {
            section: section.to_owned(),
            expected,
            found,
        })
    }

    fn end(mut self, section: String) -> Result<(), StateError> {
        match self.from.by_ref().take(1).read_to_end(&mut Vec::new()) {
            Ok(0) => Ok(()),
            Ok(_) => Err(StateError::Trailing { section }),
            Err(source) => Err(StateError::Io {
                doing: "read",
                section,
                source,
            }),
        }
    }
}

#[cfg(test)]
#[path = "sections_tests.rs"]
mod tests;
