use clap::CommandFactory;

use super::*;
use crate::config::{ConfigFile, Flags, HostLimits, SETTINGS, build};

const BOOK: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

/// Every `--flag` in the text exists, and every setting has its heading.
#[test]
fn the_documentation_names_what_exists() {
    let command = Cli::command();
    let known: Vec<String> = command
        .get_subcommands()
        .chain([&command])
        .flat_map(|c| c.get_arguments().filter_map(|a| a.get_long()))
        .map(str::to_owned)
        .collect();
    let mentioned = BOOK.split("--").skip(1).filter_map(|rest| {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .unwrap_or(rest.len());
        (end > 0 && rest.starts_with(|c: char| c.is_ascii_alphabetic())).then(|| &rest[..end])
    });
    for flag in mentioned {
        assert!(known.iter().any(|k| k == flag), "--{flag} does not exist");
    }
    for setting in SETTINGS {
        let heading = format!("\n### `{}`\n", setting.key);
        assert!(BOOK.contains(&heading), "{} has no heading", setting.key);
    }
    for heading in BOOK.lines().filter_map(|l| l.strip_prefix("### `")) {
        let key = heading.trim_end_matches('`');
        assert!(
            SETTINGS.iter().any(|s| s.key == key),
            "{key} does not exist"
        );
    }
}

/// Every TOML example is a configuration; only its files need not be there.
#[test]
fn the_documentation_shows_what_works() {
    let mut examples = 0;
    for block in BOOK.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        let file = ConfigFile::new("vm.toml".as_ref(), text.to_owned());
        if let Err(ConfigError::Invalid(problems)) =
            build(Some(&file), &Flags::default(), HostLimits::default())
        {
            for p in problems {
                let excused = p.what.contains("cannot read") || p.what == "no kernel is given";
                assert!(excused, "{p}\nin:\n{text}");
            }
        }
        examples += 1;
    }
    assert!(examples > 1);
}

#[test]
fn one_line_tells_the_whole_chain() {
    let e = CliError::Config(ConfigError::Unreadable {
        path: "vm.toml".into(),
        source: io::Error::from_raw_os_error(13),
    });
    assert_eq!(
        report(&e),
        "hypernest: cannot read the configuration file vm.toml: Permission denied (os error 13)"
    );
    assert_eq!(e.exit(), Exit::USAGE);
}
