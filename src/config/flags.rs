//! Flags as clap arguments, made from the table of settings.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::draft::Draft;
use super::placement;
use super::problem::{Origin, Problem};
use super::setting::{self, Entry, LOCAL, SETTINGS, Scalar, Setting, Shape};

/// The given flags, not yet interpreted: clap checks their names, this module's parent their values, so that
/// all problems are reported together.
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

/// The flags that set a saved VM's host resources, not its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalFlags(pub Flags);

impl LocalFlags {
    /// Checks that all `flags` set host resources.
    ///
    /// # Errors
    /// The flags that belong to the VM's configuration.
    pub fn of(flags: Flags) -> Result<Self, Vec<&'static str>> {
        let names_guest_memory = placement::names_guest_memory(&flags.draft());
        let is_local = |key: &&str| match *key {
            "memory" => !names_guest_memory,
            key => LOCAL.contains(&key),
        };
        let given = flags.given.iter().map(|(key, _)| *key);
        let others: Vec<_> = given.filter(|key| !is_local(key)).collect();
        match others.is_empty() {
            true => Ok(Self(flags)),
            false => Err(others),
        }
    }

    pub(super) fn given(&self, key: &str) -> bool {
        self.0.given.iter().any(|(given, _)| *given == key)
    }
}

fn arguments(settings: impl Iterator<Item = &'static Setting>) -> impl Iterator<Item = Arg> {
    settings.map(|setting| {
        let arg = Arg::new(setting.key)
            .long(setting.key)
            .value_name(setting.value)
            .help(setting.flag_help())
            .value_parser(value_parser!(OsString))
            .action(if setting.repeats() {
                ArgAction::Append
            } else {
                ArgAction::Set
            });
        let arg = arg
            .aliases(setting::aliases(setting.key))
            .help_heading(setting::heading(setting.key));
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
    })
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(arguments(SETTINGS.iter()))
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
        self.take(matches, SETTINGS.iter());
        Ok(())
    }
}

impl Flags {
    fn take(&mut self, matches: &ArgMatches, settings: impl Iterator<Item = &'static Setting>) {
        for setting in settings {
            for value in matches
                .get_many::<OsString>(setting.key)
                .into_iter()
                .flatten()
            {
                self.given.push((setting.key, value.clone()));
            }
        }
    }
}

fn local_settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS
        .iter()
        .filter(|setting| LOCAL.contains(&setting.key))
}

impl clap::Args for LocalFlags {
    fn augment_args(command: Command) -> Command {
        command.args(arguments(local_settings()).map(|arg| {
            // A setting that is left out keeps its saved value.
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let (help, _default) = help.split_once(" [default").unwrap_or((&help, ""));
            let help = match arg.get_id().as_str() {
                "tsc-khz" => {
                    "Assume this frequency for this host's TSC [default: the real one]"
                }
                "kernel" => {
                    "Boot this kernel after a reset [default: the one that was saved with the VM]"
                }
                "initrd" | "module" => "After a reset, for the kernel of --kernel: as for `run`",
                "memory" => "This host's handling of the guest's RAM: as for `run`, without size and \
                 hugepages",
                "serial" | "serial2" | "debugcon" => {
                    "none, stdio, pty, file:PATH or socket:PATH [default: stdio if it was that, or none]"
                }
                _ => help,
            };
            let help = help.to_owned();
            let arg = match arg.get_id().as_str() {
                "memory" => arg.value_name("[prealloc][,mergeable][,lock][,numa=NODES]"),
                _ => arg,
            };
            arg.help(help)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for LocalFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.take(matches, local_settings());
        Ok(())
    }
}
