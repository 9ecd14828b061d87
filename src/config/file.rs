//! The TOML file. It is parsed into a tree with positions and walked here, so that one error does not hide
//! the next.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::draft::Draft;
use super::problem::{ConfigError, Origin, Problem};
use super::setting::{Entry, Part, SETTINGS, Scalar, Setting, Shape};
use crate::text::nearest;

/// Far more than any configuration requires.
const MAX_BYTES: u64 = 1 << 20;

/// The maximum number of syntax errors reported: the first ones mostly cause the others.
const MAX_SYNTAX_ERRORS: usize = 10;

/// A configuration file's text and name.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: Arc<PathBuf>,
    text: String,
}

impl ConfigFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// If it cannot be read, is too large, or is not text.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                limit: MAX_BYTES,
            });
        }
        let text = String::from_utf8(bytes).map_err(|e| ConfigError::NotText {
            path: path.to_owned(),
            at: e.utf8_error().valid_up_to(),
        })?;
        Ok(Self::new(path, text))
    }

    /// A file's text that is already in memory.
    pub fn new(path: &Path, text: String) -> Self {
        Self {
            path: Arc::new(path.to_owned()),
            text,
        }
    }

    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: Arc::clone(&self.path),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
        }
    }

    pub(super) fn draft(&self) -> Draft {
        let mut draft = Draft::default();
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        draft.unclear = !errors.is_empty();
        for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
            draft.problems.push(Problem {
                origin: self.origin(error.span().map_or(0, |span| span.start)),
                what: format!("TOML syntax: {}", error.message()),
                help: None,
            });
        }
        for (key, value) in in_order(table.get_ref()) {
            let name = key.get_ref().as_ref();
            match super::setting::find(name) {
                Some(setting) => self.setting(setting, value, &mut draft),
                None if name == "hpet" => self.hpet(value, &mut draft),
                None => self.unknown_key(key.span().start, name, &mut draft),
            }
        }
        draft
    }

    /// A key of earlier versions, which wrote `hpet = false` into every saved VM and refused anything else.
    fn hpet(&self, value: &Spanned<DeValue<'_>>, draft: &mut Draft) {
        if !matches!(value.get_ref(), DeValue::Boolean(false)) {
            draft.problems.push(Problem {
                origin: self.origin(value.span().start),
                what: "hpet: there is no HPET, as KVM has none".to_owned(),
                help: Some(
                    "remove the line: Windows and Linux take the TSC and Hyper-V's timers instead"
                        .to_owned(),
                ),
            });
        }
    }

    fn unknown_key(&self, offset: usize, name: &str, draft: &mut Draft) {
        let keys = || SETTINGS.iter().map(|s| s.key);
        let help = match nearest(name, keys()) {
            Some(meant) => {
                draft.attempt(meant);
                format!("did you mean `{meant}`?")
            }
            None => format!("the keys are: {}", keys().collect::<Vec<_>>().join(", ")),
        };
        draft.problems.push(Problem {
            origin: self.origin(offset),
            what: format!("unknown key {}", Scalar::Text(name.to_owned())),
            help: Some(help),
        });
    }

    fn setting(&self, setting: &'static Setting, value: &Spanned<DeValue<'_>>, draft: &mut Draft) {
        if let (true, DeValue::Array(items)) = (setting.repeats(), value.get_ref()) {
            for item in items.iter() {
                self.entry(setting, item, draft);
            }
        } else {
            self.entry(setting, value, draft);
        }
    }

    fn entry(&self, setting: &'static Setting, value: &Spanned<DeValue<'_>>, draft: &mut Draft) {
        let origin = self.origin(value.span().start);
        if let (Shape::Parts(_) | Shape::Files(_) | Shape::Devices, DeValue::Table(table)) =
            (setting.shape, value.get_ref())
        {
            let mut parts = Vec::new();
            for (key, value) in in_order(table) {
                match self.scalar(setting, value) {
                    Ok(scalar) => parts.push(Part {
                        name: Some(key.get_ref().to_string()),
                        value: scalar,
                        origin: self.origin(key.span().start),
                    }),
                    Err(problem) => draft.problems.push(problem),
                }
            }
            draft.add(setting, Entry { origin, parts });
        } else {
            match self.scalar(setting, value) {
                Ok(scalar) => draft.add(setting, Entry::new(setting, scalar, origin)),
                Err(problem) => {
                    draft.attempt(setting.key);
                    draft.problems.push(problem);
                }
            }
        }
    }

    fn scalar(&self, setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<Scalar, Problem> {
        let wrong = |what: &str| {
            let expected = match setting.shape {
                Shape::Switch => "true or false",
                Shape::Optional => "a number, true or false",
                Shape::One => "one value",
                Shape::Parts(_) => "a value or a table",
                Shape::Files(_) | Shape::Devices => "a string, a table, or a list of these",
                Shape::List => "a string or a list of strings",
            };
            setting.problem(&self.origin(value.span().start), what, expected)
        };
        match value.get_ref() {
            DeValue::String(text) => Ok(Scalar::Text(text.to_string())),
            DeValue::Boolean(b) => Ok(Scalar::Boolean(*b)),
            DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
                .map(Scalar::Integer)
                .map_err(|_| wrong("the number is too large")),
            other => Err(wrong(&format!(
                "a TOML {} is no value for this",
                other.type_str()
            ))),
        }
    }
}

/// The table's pairs in the order of the file.
fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(
    &'a Spanned<std::borrow::Cow<'i, str>>,
    &'a Spanned<DeValue<'i>>,
)> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}
