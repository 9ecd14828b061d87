//! Package versions: Debian's order, and the newest of a series.

use std::cmp::Ordering;

/// A package, from the output of `apt-cache show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its version.
    pub version: String,
    /// The packages it depends on, without versions and alternatives.
    pub depends: Vec<String>,
}

/// Reads the output of `apt-cache show`.
pub fn parse_show(text: &str) -> Vec<Candidate> {
    text.split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let depends = field("Depends").unwrap_or_default();
            Some(Candidate {
                version: field("Version")?.to_owned(),
                depends: depends
                    .split(',')
                    .filter_map(|one| Some(one.split_whitespace().next()?.to_owned()))
                    .collect(),
            })
        })
        .collect()
}

/// The newest candidate whose upstream version starts with `series`, as `6.12` (but not `6.120`).
pub fn newest<'a>(candidates: &'a [Candidate], series: &str) -> Option<&'a Candidate> {
    candidates
        .iter()
        .filter(|candidate| {
            upstream(&candidate.version)
                .strip_prefix(series)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .max_by(|a, b| compare(&a.version, &b.version))
}

/// The newest candidate.
pub fn newest_of_all(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates
        .iter()
        .max_by(|a, b| compare(&a.version, &b.version))
}

/// The version without Debian's epoch.
pub fn upstream(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

/// Debian's order of versions (deb-version(7)).
pub fn compare(a: &str, b: &str) -> Ordering {
    let epoch = |version: &str| -> u64 {
        version
            .split_once(':')
            .and_then(|(epoch, _)| epoch.parse().ok())
            .unwrap_or(0)
    };
    let split = |version: &str| -> (String, String) {
        let rest = upstream(version);
        let (main, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        (main.to_owned(), revision.to_owned())
    };
    let (a_main, a_revision) = split(a);
    let (b_main, b_revision) = split(b);
    epoch(a)
        .cmp(&epoch(b))
        .then_with(|| compare_part(&a_main, &b_main))
        .then_with(|| compare_part(&a_revision, &b_revision))
}

fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (a_text, a_rest) = cut(a, |c| !c.is_ascii_digit());
        let (b_text, b_rest) = cut(b, |c| !c.is_ascii_digit());
        let (a_number, a_end) = cut(a_rest, |c| c.is_ascii_digit());
        let (b_number, b_end) = cut(b_rest, |c| c.is_ascii_digit());
        let order = weights(a_text)
            .cmp(weights(b_text))
            .then_with(|| number(a_number).cmp(&number(b_number)));
        if order.is_ne() {
            return order;
        }
        (a, b) = (a_end, b_end);
    }
    Ordering::Equal
}

fn cut(text: &str, while_true: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !while_true(c)).unwrap_or(text.len()))
}

/// Weights of characters: a tilde sorts before the end, the end before letters, letters before all else.
fn weights(text: &str) -> impl Iterator<Item = u32> {
    text.chars()
        .map(|c| match c {
            '~' => 0,
            c if c.is_ascii_alphabetic() => u32::from(c),
            c => u32::from(c) + 0x11_0000,
        })
        .chain([1])
}

/// Numbers compare by length first, so that numbers of any size are ordered correctly.
fn number(digits: &str) -> (usize, &str) {
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_order() {
        use Ordering::{Equal, Greater, Less};
        for (a, b, wanted) in [
            ("6.12.95-1~bpo12+1", "6.12.95-1", Less),
            ("6.12.107-1", "6.12.95-1", Greater),
            ("1:1.0", "2.0", Greater),
            ("2.7+dfsg-4+deb12u1", "2.7+dfsg-4", Greater),
            ("1.0~rc1", "1.0", Less),
            ("1.0a", "1.0", Greater),
            ("1.0+b", "1.0a", Greater),
            ("1.09", "1.9", Equal),
            ("1:11.1.3+ds-1~bpo13+1", "1:10.0.13+ds-0+deb13u1", Greater),
            (
                "99999999999999999999999999-1",
                "99999999999999999999999998-1",
                Greater,
            ),
        ] {
            assert_eq!(compare(a, b), wanted, "{a} against {b}");
            assert_eq!(compare(b, a), wanted.reverse(), "{b} against {a}");
        }
    }

    #[test]
    fn the_newest_of_a_series() {
        let show = "\
            Package: linux-image-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nDepends: \
            linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), other\n\n\
            Package: linux-image-cloud-amd64\nVersion: 6.12.95-1\nDepends: linux-image-6.12.95-cloud-amd64 \
            (= 6.12.95-1)\n\n\
            Package: linux-image-cloud-amd64\nVersion: 6.12.107-1\nDepends: \
            linux-image-6.12.107-cloud-amd64 (= 6.12.107-1)\n\n\
            Package: linux-image-cloud-amd64\nVersion: 6.120.1-1\n\n";
        let candidates = parse_show(show);
        assert_eq!(candidates.len(), 4);
        assert_eq!(
            candidates[0].depends,
            ["linux-image-7.3.4+deb13-cloud-amd64", "other"]
        );
        let newest = |series| super::newest(&candidates, series).map(|c| c.version.as_str());
        assert_eq!(newest("6.12"), Some("6.12.107-1"));
        assert_eq!(newest("7.3"), Some("7.3.4-1~bpo13+1"));
        assert_eq!(newest("6.1"), None);
        let of_all = newest_of_all(&candidates).map(|c| c.version.as_str());
        assert_eq!(of_all, Some("7.3.4-1~bpo13+1"));
    }
}
