//! Text inside XML, HTML and scripts, and in the names of files.

use std::borrow::Cow;

/// Escapes text for XML and HTML, also in quoted attributes. XML cannot represent most control characters.
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

/// JSON inside a `script` element: no `<` remains that could begin or end an element or a comment, and the
/// two line separators that JSON allows in strings are escaped.
pub(crate) fn script_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // JSON has none of these outside of strings.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// A part of a file's name: any character other than a letter, a digit, `-`, `+` or `@` becomes `_`.
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
    use proptest::prelude::*;

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(escape("L1 & co"), "L1 &amp; co");
        assert_eq!(
            escape("</script><b a=\"'\u{1b}"),
            "&lt;/script&gt;&lt;b a=&quot;&#39;\u{fffd}"
        );
        assert_eq!(
            script_json("[\"</script><!--\u{2028}\"]"),
            "[\"\\u003c/script\\u003e\\u003c!--\\u2028\"]"
        );
        assert_eq!(file_part("../cpuid.x y"), "___cpuid_x_y");
    }

    proptest! {
        #[test]
        fn a_script_reads_what_was_written(text in "\\PC*|.{0,40}") {
            let json = serde_json::to_string(&text).unwrap();
            let safe = script_json(&json);
            prop_assert!(!safe.contains('<'));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
    }
}
