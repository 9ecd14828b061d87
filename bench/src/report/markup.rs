//! Text inside XML, and in the names of files.

use std::borrow::Cow;

/// For XML and HTML, as text and in quoted attributes. XML has no words for most control characters.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let special =
        |c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || (c.is_control() && c != '\n');
    if !text.contains(special) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// A part of a file's name: what is not a letter, a digit, `-`, `+` or `@` becomes `_`.
pub(crate) fn file_part(text: &str) -> String {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '@');
    let part: String = text
        .chars()
        .take(64)
        .map(|c| if fine(c) { c } else { '_' })
        .collect();
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(escape("L1 & co"), "L1 &amp; co");
        assert_eq!(
            escape("</script><b a=\"'\u{1b}"),
            "&lt;/script&gt;&lt;b a=&quot;&#39;\u{fffd}"
        );
        assert_eq!(file_part("../cpuid.x y"), "___cpuid_x_y");
    }
}
