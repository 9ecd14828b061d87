//! The body of a section: a sequence of numbers and byte strings.

use super::StateError;

/// Writes a section's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Creates an empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Appends a signed number of eight bytes.
    pub fn i64(&mut self, value: i64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Appends a boolean as one byte.
    pub fn bool(&mut self, value: bool) {
        self.0.push(value.into());
    }

    /// Appends the number of bytes, and the bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.0.extend(value);
    }

    /// Appends bytes without their number, which the reader has as a constant.
    pub fn array<const N: usize>(&mut self, value: &[u8; N]) {
        self.0.extend(value);
    }

    /// Appends the length of a text, and the text.
    pub fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Appends a part of a section, with its own name and version.
    pub fn part(&mut self, name: &str, version: u32, body: Self) {
        self.str(name);
        self.u32(version);
        self.bytes(&body.0);
    }

    /// The finished body.
    pub fn into_body(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a section's body. Errors name the section and the item.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    section: &'a str,
    version: u32,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Creates a decoder for `body`, which has version `version` of `section`.
    pub fn new(section: &'a str, version: u32, body: &'a [u8]) -> Self {
        Self {
            section,
            version,
            rest: body,
        }
    }

    /// The section's version: the current or the previous one.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The section's name.
    pub fn section(&self) -> &'a str {
        self.section
    }

    /// The number of bytes that are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// If the body ends too early, as for all numbers below.
    pub fn u8(&mut self, item: &str) -> Result<u8, StateError> {
        self.array(item).map(u8::from_le_bytes)
    }

    /// Reads two bytes.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn u16(&mut self, item: &str) -> Result<u16, StateError> {
        self.array(item).map(u16::from_le_bytes)
    }

    /// Reads four bytes.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn u32(&mut self, item: &str) -> Result<u32, StateError> {
        self.array(item).map(u32::from_le_bytes)
    }

    /// Reads eight bytes.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn u64(&mut self, item: &str) -> Result<u64, StateError> {
        self.array(item).map(u64::from_le_bytes)
    }

    /// Reads a signed number of eight bytes.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn i64(&mut self, item: &str) -> Result<i64, StateError> {
        self.array(item).map(i64::from_le_bytes)
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// If the body ends too early, or the byte is neither 0 nor 1.
    pub fn bool(&mut self, item: &str) -> Result<bool, StateError> {
        match self.u8(item)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(item, format!("{other} is neither 0 nor 1"))),
        }
    }

    /// Reads bytes that follow their number. They are not copied.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn bytes(&mut self, item: &str) -> Result<&'a [u8], StateError> {
        let length = self.u64(item)?;
        let taken = usize::try_from(length)
            .ok()
            .and_then(|n| self.rest.split_at_checked(n));
        let Some((bytes, rest)) = taken else {
            return Err(self.short(item, length));
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// If the body ends too early.
    pub fn array<const N: usize>(&mut self, item: &str) -> Result<[u8; N], StateError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            return Err(self.short(item, N as u64));
        };
        self.rest = rest;
        Ok(*bytes)
    }

    /// Reads a string that follows its length.
    ///
    /// # Errors
    /// If the body ends too early, or the string is not UTF-8.
    pub fn str(&mut self, item: &str) -> Result<&'a str, StateError> {
        let bytes = self.bytes(item)?;
        std::str::from_utf8(bytes).map_err(|e| self.invalid(item, e.to_string()))
    }

    /// Reads the next part, which must be `name` in version `current` or the previous one.
    ///
    /// # Errors
    /// If it is another part or version, or the body ends too early.
    pub fn part(&mut self, name: &str, current: u32) -> Result<Self, StateError> {
        let found = self.str("name of a part")?;
        if found != name {
            let why = format!("{found:?} where {name} should be");
            return Err(self.invalid("name of a part", why));
        }
        let version = self.u32("version of a part")?;
        if !(current.saturating_sub(1).max(1)..=current).contains(&version) {
            let why = format!("version {version}; this version of hypernest reads {current}");
            return Err(self.invalid(name, why));
        }
        Ok(Self {
            section: self.section,
            version,
            rest: self.bytes(name)?,
        })
    }

    /// Reads the number of elements that follow, each at least `element` bytes long; they must fit into the
    /// rest of the body.
    ///
    /// # Errors
    /// If the body ends too early, or is too short for that number.
    pub fn count(&mut self, item: &str, element: usize) -> Result<usize, StateError> {
        let count = self.u64(item)?;
        let fits = self.rest.len().checked_div(element).unwrap_or(0);
        usize::try_from(count)
            .ok()
            .filter(|&n| n <= fits)
            .ok_or_else(|| {
                self.invalid(
                    item,
                    format!(
                        "{count} elements do not fit into the {} bytes left",
                        self.rest.len()
                    ),
                )
            })
    }

    /// Creates the error for an item with an invalid value.
    pub fn invalid(&self, item: &str, why: impl Into<String>) -> StateError {
        StateError::Item {
            section: self.section.to_owned(),
            item: item.to_owned(),
            why: why.into(),
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// If bytes are left.
    pub fn finish(self) -> Result<(), StateError> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(self.invalid("end", format!("{n} bytes too many"))),
        }
    }

    fn short(&self, item: &str, needed: u64) -> StateError {
        self.invalid(
            item,
            format!("{needed} bytes are needed and {} are left", self.rest.len()),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_of_item_round_trips() {
        let mut e = Encoder::new();
        e.u8(1);
        e.u16(2);
        e.u32(3);
        e.u64(4);
        e.i64(-5);
        e.bool(true);
        e.bytes(b"six");
        e.array(b"sev");
        e.str("acht");
        let body = e.into_body();
        let mut d = Decoder::new("s", 1, &body);
        assert_eq!(d.u8("a").unwrap(), 1);
        assert_eq!(d.u16("a").unwrap(), 2);
        assert_eq!(d.u32("a").unwrap(), 3);
        assert_eq!(d.u64("a").unwrap(), 4);
        assert_eq!(d.i64("a").unwrap(), -5);
        assert!(d.bool("a").unwrap());
        assert_eq!(d.bytes("a").unwrap(), b"six");
        assert_eq!(d.array("a").unwrap(), *b"sev");
        assert_eq!(d.str("a").unwrap(), "acht");
        d.finish().unwrap();
    }

    #[test]
    fn parts_round_trip_in_order_and_version() {
        let mut inner = Encoder::new();
        inner.u16(7);
        let mut e = Encoder::new();
        e.part("header", 2, inner);
        e.part("rest", 1, Encoder::new());
        let body = e.into_body();
        let mut d = Decoder::new("s", 1, &body);
        for (name, current) in [("rest", 1), ("header", 1), ("header", 4)] {
            d.clone().part(name, current).unwrap_err();
        }
        d.clone().part("header", 3).unwrap();
        let mut part = d.part("header", 2).unwrap();
        assert_eq!((part.version(), part.u16("x").unwrap()), (2, 7));
        part.finish().unwrap();
        d.part("rest", 1).unwrap().finish().unwrap();
        d.finish().unwrap();
    }

    #[test]
    fn errors_name_the_section_and_the_item() {
        let far = [0xff; 8];
        type Read = fn(&mut Decoder<'_>) -> Result<(), StateError>;
        let cases: [(&[u8], Read, &str); 6] = [
            (&[], |d| d.u32("rip").map(drop), "rip: 4 bytes are needed"),
            (
                &far,
                |d| d.bytes("rip").map(drop),
                "rip: 18446744073709551615",
            ),
            (
                &far,
                |d| d.count("rip", 8).map(drop),
                "rip: 18446744073709551615",
            ),
            (&[2], |d| d.bool("rip").map(drop), "rip: 2 is neither"),
            (
                &[1, 0, 0, 0, 0, 0, 0, 0, 0xff],
                |d| d.str("rip").map(drop),
                "rip: invalid utf-8",
            ),
            (&[1, 2], |d| d.clone().finish(), "end: 2 bytes too many"),
        ];
        for (body, read, expected) in cases {
            let error = read(&mut Decoder::new("vcpu/0", 1, body)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("vcpu/0") && text.contains(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back(parts: Vec<Vec<u8>>) {
            let mut e = Encoder::new();
            for part in &parts {
                e.bytes(part);
            }
            let body = e.into_body();
            let mut d = Decoder::new("s", 1, &body);
            for part in &parts {
                prop_assert_eq!(d.bytes("part").unwrap(), part);
            }
            d.finish().unwrap();
        }
    }
}
