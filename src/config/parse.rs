//! Parses single values. Pure, except for the check whether a file can be read.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::setting::Scalar;
use crate::block::raw;
use crate::error::chain;
use crate::text::nearest;
use crate::units::TscKhz;

/// The problem of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) expected: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
        }
    }
}

const SIZE: &str = "a number of bytes, with K, M, G or T for powers of 1024";

/// A size in bytes.
pub(super) fn size(value: &Scalar) -> Result<u64, Wrong> {
    let wrong = || Wrong::new(format!("{value} is not a size"), SIZE);
    let too_large = || Wrong::new(format!("{value} is more than 64 bits can hold"), SIZE);
    let text = match value {
        Scalar::Integer(n) => return u64::try_from(*n).map_err(|_| wrong()),
        Scalar::Text(text) => text.trim(),
        Scalar::Boolean(_) => return Err(wrong()),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    if suffix.starts_with('.') {
        return Err(Wrong::new(
            format!("{value} has a fraction"),
            "a whole number: write 1536M, not 1.5G",
        ));
    }
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    if digits.is_empty() {
        return Err(wrong());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(too_large)
}

/// A size in bytes, in the user's notation.
///
/// # Errors
/// The problem.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size(&Scalar::Text(text.to_owned())).map_err(|e| format!("{}; it takes {}", e.what, e.expected))
}

/// A size for display: the largest unit that leaves a whole number.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A whole number, decimal or with 0x.
pub(super) fn number(value: &Scalar, expected: &str) -> Result<u64, Wrong> {
    let number = match value {
        Scalar::Integer(n) => u64::try_from(*n).ok(),
        Scalar::Text(text) => match text.strip_prefix("0x") {
            // from_str_radix would accept a sign.
            Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                u64::from_str_radix(hex, 16).ok()
            }
            Some(_) => None,
            None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
            None => None,
        },
        Scalar::Boolean(_) => None,
    };
    number.ok_or_else(|| Wrong::new(format!("{value} is not a number"), expected))
}

/// True or false.
pub(super) fn boolean(value: &Scalar) -> Result<bool, Wrong> {
    match value {
        Scalar::Boolean(b) => Ok(*b),
        Scalar::Text(text) => match text.as_str() {
            "true" | "on" | "yes" => Ok(true),
            "false" | "off" | "no" => Ok(false),
            _ => Err(Wrong::new(
                format!("{value} is neither true nor false"),
                "true or false",
            )),
        },
        Scalar::Integer(_) => Err(Wrong::new(
            format!("{value} is neither true nor false"),
            "true or false",
        )),
    }
}

/// Text that is not empty and contains no NUL (which neither a path nor a command line can contain).
pub(super) fn text(value: &Scalar, expected: &str) -> Result<String, Wrong> {
    match value {
        Scalar::Text(text) if text.contains('\0') => {
            Err(Wrong::new(format!("{value} holds a NUL"), expected))
        }
        Scalar::Text(text) => Ok(text.clone()),
        _ => Err(Wrong::new(
            format!("{value} is not {expected}"),
            format!("{expected}, as a string"),
        )),
    }
}

/// One of several keywords.
pub(super) fn choice<T: Copy>(value: &Scalar, choices: &[(&str, T)]) -> Result<T, Wrong> {
    let expected = || {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.join(", "),
        }
    };
    let unknown = |text: &str| {
        let mut what = format!("{value} is unknown");
        if let Some(meant) = nearest(text, choices.iter().map(|(word, _)| *word)) {
            what.push_str(&format!(" (did you mean {meant}?)"));
        }
        Wrong::new(what, expected())
    };
    match value {
        Scalar::Text(text) => choices
            .iter()
            .find(|(word, _)| word == text)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| unknown(text)),
        _ => Err(unknown("")),
    }
}

/// A dirty ring's size: KVM accepts powers of two, and reserves entries for writes that a processor logs at
/// once.
pub(super) fn dirty_ring_size(value: &Scalar) -> Result<u32, Wrong> {
    let expected = "a power of two from 1024 to 65536, or 0 for a bitmap";
    match u32::try_from(number(value, expected)?) {
        Ok(0) => Ok(0),
        Ok(entries @ 1024..=65536) if entries.is_power_of_two() => Ok(entries),
        _ => Err(Wrong::new(format!("{value} is no such size"), expected)),
    }
}

/// One day at most: a longer timeout is probably an error, and no limit is the default.
pub(super) fn stop_timeout(value: &Scalar) -> Result<u32, Wrong> {
    let expected = "seconds, from 0 to 86400";
    match u32::try_from(number(value, expected)?) {
        Ok(seconds @ 0..=86_400) => Ok(seconds),
        _ => Err(Wrong::new(format!("{value} is out of range"), expected)),
    }
}

pub(super) fn tsc_khz(value: &Scalar) -> Result<TscKhz, Wrong> {
    // The range that KVM supports (`max_guest_tsc_khz`), and a minimum below which Linux does not trust its
    // clock.
    let expected = "a frequency in kHz, from 100000 (0.1 GHz) to 2147483646";
    match u32::try_from(number(value, expected)?) {
        Ok(khz @ 100_000..=0x7fff_fffe) => Ok(TscKhz(khz)),
        _ => {
            let mut what = format!("{value} is out of range");
            if let Ok(mhz @ 100..100_000) = number(value, expected) {
                what.push_str(&format!(" (did you mean {mhz}000?)"));
            }
            Err(Wrong::new(what, expected))
        }
    }
}

/// A character backend: its kind and its path.
pub(super) fn backend(value: &Scalar) -> Result<(BackendKind, Option<String>), Wrong> {
    const EXPECTED: &str = "none, stdio, file:PATH, pty or socket:PATH";
    let text = text(value, "a backend")?;
    let (kind, path) = match text.split_once(':') {
        Some((kind, path)) => (kind, Some(path)),
        None => (text.as_str(), None),
    };
    let kind = match (kind, path) {
        ("none", None) => BackendKind::None,
        ("stdio", None) => BackendKind::Stdio,
        ("pty", None) => BackendKind::Pty,
        ("file", Some(path)) if !path.is_empty() => BackendKind::File,
        ("socket", Some(path)) if !path.is_empty() => BackendKind::Socket,
        ("file" | "socket", _) => {
            return Err(Wrong::new(format!("{value} lacks a path"), EXPECTED));
        }
        ("none" | "stdio" | "pty", Some(_)) => {
            return Err(Wrong::new(
                format!("{value}: {kind} takes no path"),
                EXPECTED,
            ));
        }
        _ => {
            let mut what = format!("{value} is no backend");
            if let Some(meant) = nearest(kind, ["none", "stdio", "file", "pty", "socket"]) {
                what.push_str(&format!(" (did you mean {meant}?)"));
            }
            return Err(Wrong::new(what, EXPECTED));
        }
    };
    Ok((kind, path.map(str::to_owned)))
}

/// The kinds of character backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackendKind {
    None,
    Stdio,
    File,
    Pty,
    Socket,
}

/// A VM's name.
pub(super) fn name(value: &Scalar) -> Result<String, Wrong> {
    name_of(value, "a VM")
}

/// A name of `what` that is safe in paths and on a terminal.
pub(super) fn name_of(value: &Scalar, what: &str) -> Result<String, Wrong> {
    let text = text(value, "a name")?;
    if is_name(&text) {
        Ok(text)
    } else {
        Err(Wrong::new(
            format!("{value} cannot name {what}"),
            "1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or digit",
        ))
    }
}

/// Whether `text` is a valid name of a VM: it becomes a directory's name.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// Checks that there is a file or a block device at `path`, without opening it.
pub(super) fn disk(path: &Path) -> Result<(), String> {
    raw::check(path).map_err(|e| chain(&e))
}

/// Checks that the file at `path` can be read as a whole.
pub(super) fn readable(path: &Path) -> Result<(), String> {
    // Non-blocking: a FIFO must not block the check.
    let metadata = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| file.metadata())
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if metadata.is_dir() {
        Err(format!("{} is a directory", path.display()))
    } else if !metadata.is_file() {
        Err(format!(
            "{} is not a regular file (its size is not known in advance)",
            path.display()
        ))
    } else if metadata.len() == 0 {
        Err(format!("{} is empty", path.display()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn t(text: &str) -> Scalar {
        Scalar::Text(text.to_owned())
    }

    #[test]
    fn sizes() {
        for (given, bytes) in [
            ("2G", Some(2 << 30)),
            ("512M", Some(512 << 20)),
            ("512m", Some(512 << 20)),
            ("4GiB", Some(4 << 30)),
            ("1T", Some(1 << 40)),
            ("64K", Some(64 << 10)),
            ("4096", Some(4096)),
            ("0", Some(0)),
            ("", None),
            ("G", None),
            ("-1G", None),
            ("+1G", None),
            ("1.5G", None),
            ("2Q", None),
            ("2 G", None),
            ("99999999999999999999", None),
            ("99999999T", None),
        ] {
            assert_eq!(size(&t(given)).ok(), bytes, "{given}");
        }
        assert_eq!(size(&Scalar::Integer(4096)).ok(), Some(4096));
        assert!(size(&Scalar::Integer(-1)).is_err());
        assert!(size(&Scalar::Boolean(true)).is_err());
    }

    #[test]
    fn numbers() {
        for (given, expected) in [
            ("0", Some(0)),
            ("0xf4", Some(0xf4)),
            ("255", Some(255)),
            ("+1", None),
            ("-1", None),
            ("0x", None),
            ("0x+1", None),
            ("", None),
            ("1e3", None),
        ] {
            assert_eq!(number(&t(given), "a number").ok(), expected, "{given}");
        }
    }

    #[test]
    fn backends() {
        assert_eq!(backend(&t("stdio")), Ok((BackendKind::Stdio, None)));
        assert_eq!(
            backend(&t("file:a:b")),
            Ok((BackendKind::File, Some("a:b".to_owned())))
        );
        for wrong in ["", "stdoi", "file", "file:", "socket:", "pty:x", "stdio:"] {
            assert!(backend(&t(wrong)).is_err(), "{wrong}");
        }
        assert!(backend(&t("stdoi")).unwrap_err().what.contains("stdio?"));
    }

    #[test]
    fn names() {
        for good in ["a", "vm-1", "Windows.11_x", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_a_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good"), "x").unwrap();
        std::fs::write(path("empty"), "").unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(readable(&path("good")), Ok(()));
        assert!(readable(&path("empty")).unwrap_err().contains("empty"));
        assert!(readable(&path("fifo")).unwrap_err().contains("regular"));
        assert!(readable(dir.path()).unwrap_err().contains("directory"));
        assert!(
            readable(&path("missing"))
                .unwrap_err()
                .contains("No such file or directory")
        );
    }

    proptest! {
        #[test]
        fn a_shown_size_reads_back(n in 1u64..1 << 50) {
            let shown = show_size(n);
            let shown = shown.trim_end_matches(" bytes");
            prop_assert_eq!(size(&t(shown)).ok(), Some(n));
        }
    }
}
