//! Flags as clap arguments, made from the table of settings.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::draft::Draft;
use super::problem::{Origin, Problem};
use super::setting::{Entry, SETTINGS, Scalar, Shape};

/// The flags that were given, not yet understood: clap knows which there are, this module's parent what they mean, so
/// that all mistakes are reported together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    given: Vec<(&'static str, OsString)>,
}

impl Flags {
    /// Flags by name (without dashes) and value. Unknown names are left out.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self {
            given: pairs
                .into_iter()
                .filter_map(|(key, value)| {
                    super::setting::find(key).map(|setting| (setting.key, value.into()))
                })
                .collect(),
        }
    }

    pub(super) fn draft(&self) -> Draft {
        let mut draft = Draft::default();
        for (key, value) in &self.given {
            let Some(setting) = super::setting::find(key) else {
                continue;
            };
            let origin = Origin::Flag(setting.key);
            match value.to_str() {
                Some("") if matches!(setting.shape, Shape::Switch | Shape::Optional) => {
                    draft.add(setting, Entry::new(setting, Scalar::Boolean(true), origin));
                }
                Some(text) => draft.add(
                    setting,
                    Entry::new(setting, Scalar::Text(text.to_owned()), origin),
                ),
                None => {
                    draft.attempt(setting.key);
                    draft.problems.push(Problem {
                        origin,
                        what: format!("{value:?} is not UTF-8"),
                        help: Some("rename the file, or name it through a link".to_owned()),
                    });
                }
            }
        }
        draft
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(|setting| {
            let arg = Arg::new(setting.key)
                .long(setting.key)
                .value_name(setting.value)
                .help(setting.help)
                .value_parser(value_parser!(OsString))
                .action(if setting.repeats() {
                    ArgAction::Append
                } else {
                    ArgAction::Set
                });
            match setting.shape {
                Shape::Switch | Shape::Optional => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value(""),
                // `-evmcs` in a list begins with a dash, and so may a command line.
                Shape::List => arg.allow_hyphen_values(true),
                _ if setting.key == "cmdline" => arg.allow_hyphen_values(true),
                _ => arg,
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            for value in matches
                .get_many::<OsString>(setting.key)
                .into_iter()
                .flatten()
            {
                self.given.push((setting.key, value.clone()));
            }
        }
        Ok(())
    }
}
