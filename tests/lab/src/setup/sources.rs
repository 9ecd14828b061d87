//! The package archives of this machine, read from its own apt configuration.

use std::fmt::Write as _;

use thiserror::Error;

/// One entry of an apt source list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Addresses, each as written.
    pub uris: Vec<String>,
    /// Suites, as `bookworm` or `bookworm-security`.
    pub suites: Vec<String>,
    /// Components, as `main`.
    pub components: Vec<String>,
    /// Its keys: a file, a fingerprint, or a key block of several lines.
    pub signed_by: Option<String>,
    /// The machine's owner trusts it without a signature.
    pub trusted: bool,
}

/// A package archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Its address.
    pub uri: String,
    /// Its keys, if the machine's configuration has any.
    pub signed_by: Option<String>,
    /// It is trusted without a signature.
    pub trusted: bool,
}

/// The archives of the machine's distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archives {
    /// The Debian archive.
    pub main: Archive,
    /// The archive of security updates.
    pub security: Option<Archive>,
}

/// There is no usable archive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SourcesError {
    /// There are only other archives, or none.
    #[error(
        "no Debian archive among this machine's apt sources ({0}): name one with --mirror ADDRESS"
    )]
    NoDebian(String),
}

/// Suites of Debian's own archive, in all their names.
const DEBIAN: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// Reads a file in the one-line format (sources.list(5)).
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with(char::is_whitespace) {
        return None;
    }
    let mut rest = rest.trim_start();
    let mut source = Source::default();
    if let Some(inside) = rest.strip_prefix('[') {
        let (options, after) = inside.split_once(']')?;
        for option in options.split_whitespace() {
            match option.split_once('=') {
                Some(("signed-by", keys)) => source.signed_by = Some(keys.to_owned()),
                Some(("trusted", value)) => source.trusted = is_yes(value),
                _ => {}
            }
        }
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris = vec![words.next()?];
    source.suites = vec![words.next()?];
    source.components = words.collect();
    Some(source)
}

fn is_yes(value: &str) -> bool {
    ["yes", "true", "1", "on", "with", "enable"]
        .contains(&value.trim().to_ascii_lowercase().as_str())
}

/// Reads a file in the deb822 format (sources.list(5)).
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    // The added empty line closes the last stanza.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&std::mem::take(&mut fields)));
        } else if line.starts_with(char::is_whitespace) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Option<Source> {
    let field = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    let words = |wanted: &str| -> Vec<String> {
        field(wanted)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let enabled = field("enabled").is_none_or(is_yes);
    if !enabled || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
        trusted: field("trusted").is_some_and(is_yes),
    })
}

/// The archives to use: the first with Debian's own suites, and the first with its security updates.
pub fn archives(sources: &[Source]) -> Result<Archives, SourcesError> {
    let find = |wanted: fn(&str) -> bool| {
        sources.iter().find_map(|source| {
            let uri = source.uris.iter().find(|uri| !uri.starts_with("cdrom:"))?;
            source
                .suites
                .iter()
                .any(|suite| wanted(suite))
                .then(|| Archive {
                    uri: uri.clone(),
                    signed_by: source.signed_by.clone(),
                    trusted: source.trusted,
                })
        })
    };
    let main = find(|suite| {
        let base = ["-updates", "-backports", "-proposed-updates"]
            .iter()
            .find_map(|ending| suite.strip_suffix(ending))
            .unwrap_or(suite);
        DEBIAN.contains(&base)
    });
    let security = find(|suite| {
        suite
            .strip_suffix("-security")
            .or_else(|| suite.strip_suffix("/updates"))
            .is_some_and(|base| DEBIAN.contains(&base))
    });
    let main = main.ok_or_else(|| {
        let suites: Vec<_> = sources.iter().flat_map(|s| s.suites.clone()).collect();
        SourcesError::NoDebian(if suites.is_empty() {
            "there are none".to_owned()
        } else {
            format!("they carry {}", suites.join(", "))
        })
    })?;
    Ok(Archives { main, security })
}

/// A deb822 file for the given suites of the archives; security suites are left out if there is no such
/// archive.
pub fn write_deb822(archives: &Archives, suites: &[&str]) -> String {
    let mut text = String::new();
    for suite in suites {
        let archive = if suite.ends_with("-security") {
            match &archives.security {
                Some(archive) => archive,
                None => continue,
            }
        } else {
            &archives.main
        };
        let _ = write!(
            text,
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n",
            archive.uri
        );
        if let Some(keys) = &archive.signed_by {
            let _ = writeln!(text, "Signed-By: {keys}");
        }
        if archive.trusted {
            text.push_str("Trusted: yes\n");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, keys: Option<&str>) -> Archive {
        Archive {
            uri: uri.to_owned(),
            signed_by: keys.map(str::to_owned),
            trusted: false,
        }
    }

    #[test]
    fn both_formats_lead_to_the_same_archives() {
        let one_line = "\
            # a comment\n\
            deb-src http://a.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # why\n\
            deb http://a.example/debian bookworm-updates main\n\
            deb [ signed-by=/s.gpg ] http://s.example/debian-security bookworm-security main\n";
        let deb822 = "\
            # a comment\n\
            Types: deb deb-src\n\
            # between\n\
            URIs: http://a.example/debian\n\
            Suites: bookworm bookworm-updates\n\
            Components: main contrib\n\
            Signed-By: /k.gpg\n\
            \n\
            \n\
            Types: deb\n\
            uris: http://s.example/debian-security http://t.example/debian-security\n\
            suites: bookworm-security\n\
            Components: main\n\
            Signed-By: /s.gpg";
        let wanted = Archives {
            main: archive("http://a.example/debian", Some("/k.gpg")),
            security: Some(archive("http://s.example/debian-security", Some("/s.gpg"))),
        };
        assert_eq!(archives(&parse_one_line(one_line)).as_ref(), Ok(&wanted));
        assert_eq!(archives(&parse_deb822(deb822)).as_ref(), Ok(&wanted));
    }

    #[test]
    fn what_is_no_use_is_passed_over() {
        let table: [(&str, &str, Option<&str>); 8] = [
            (
                "other vendors",
                "deb http://v.example/x stable-vendor main\ndeb http://a.example/d trixie main",
                Some("http://a.example/d"),
            ),
            (
                "cdrom",
                "deb cdrom:[Debian]/ trixie main\ndeb http://a.example/d trixie main",
                Some("http://a.example/d"),
            ),
            (
                "only backports",
                "deb http://a.example/d bookworm-backports main",
                Some("http://a.example/d"),
            ),
            (
                "mirror lists",
                "deb mirror+file:/etc/apt/mirrors/d.list trixie main",
                Some("mirror+file:/etc/apt/mirrors/d.list"),
            ),
            (
                "another distribution",
                "deb http://a.example/ubuntu noble main",
                None,
            ),
            (
                "only security",
                "deb http://s.example/s trixie-security main",
                None,
            ),
            (
                "not a source",
                "debian http://a.example/d trixie main\ndeb\ndeb [x",
                None,
            ),
            ("nothing", "", None),
        ];
        for (name, text, wanted) in table {
            let found = archives(&parse_one_line(text))
                .ok()
                .map(|found| found.main.uri);
            assert_eq!(found.as_deref(), wanted, "{name}");
        }
    }

    #[test]
    fn disabled_stanzas_and_source_stanzas_do_not_count() {
        for text in [
            "Types: deb\nEnabled: no\nURIs: http://a.example/d\nSuites: trixie\nComponents: main\n",
            "Types: deb-src\nURIs: http://a.example/d\nSuites: trixie\nComponents: main\n",
        ] {
            assert_eq!(parse_deb822(text), []);
        }
    }

    #[test]
    fn a_key_block_survives() {
        let text = "Types: deb\nURIs: http://a.example/d\nSuites: trixie\nComponents: main\nSigned-By:\n \
            -----BEGIN\n .\n abc\n -----END\n";
        let archives = archives(&parse_deb822(text)).unwrap();
        let written = write_deb822(&archives, &["trixie-backports"]);
        let back = parse_deb822(&written);
        assert_eq!(
            back[0].signed_by.as_deref(),
            Some("\n -----BEGIN\n .\n abc\n -----END")
        );
        assert_eq!(back[0].suites, ["trixie-backports"]);
    }

    #[test]
    fn security_suites_need_a_security_archive() {
        let only_main = Archives {
            main: archive("http://a.example/d", None),
            security: None,
        };
        let written = write_deb822(&only_main, &["bookworm", "bookworm-security"]);
        let suites: Vec<_> = parse_deb822(&written)
            .into_iter()
            .flat_map(|s| s.suites)
            .collect();
        assert_eq!(suites, ["bookworm"]);
    }

    #[test]
    fn the_error_says_what_was_found_and_what_to_do() {
        let error = archives(&parse_one_line("deb http://a.example/u noble main")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("noble") && text.contains("--mirror"),
            "{text}"
        );
    }
}
