//! Short texts without an allocator.

use core::fmt;

/// At most 111 bytes; a longer text is truncated.
pub(crate) struct Text {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Text {
    const MAX: usize = 111;

    pub(crate) fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            bytes: [0; Self::MAX],
            len: 0,
        };
        // Writing to it never fails; an argument that fails is only left out.
        let _ = fmt::write(&mut text, arguments);
        text
    }

    pub(crate) fn as_str(&self) -> &str {
        // Only whole characters were written.
        core::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for c in part.chars() {
            let mut utf8 = [0; 4];
            let c = c.encode_utf8(&mut utf8).as_bytes();
            let end = usize::from(self.len) + c.len();
            let Some(place) = self.bytes.get_mut(usize::from(self.len)..end) else {
                break;
            };
            place.copy_from_slice(c);
            self.len = u8::try_from(end).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(Text::new(format_args!("{}-{}", 1, "a")).to_string(), "1-a");
        let long = "äx".repeat(100);
        assert_eq!(
            Text::new(format_args!("{long}")).to_string(),
            long[..111 / 3 * 3]
        );
    }
}
