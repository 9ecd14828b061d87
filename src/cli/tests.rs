use clap::CommandFactory;

use super::*;
use crate::boot::BootError;
use crate::config::{ConfigFile, Flags, HostLimits, build};

const BOOK: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

/// Summaries are in the imperative, as git's: "Start a VM", neither "Starts" nor "Starts a VM.".
#[test]
fn command_summaries_have_one_form() {
    let command = Cli::command();
    for c in command.get_subcommands().chain([&command]) {
        let about = c.get_about().map(ToString::to_string).unwrap_or_default();
        let first = about.split(' ').next().unwrap_or_default();
        let verb = first.ends_with("ss") || !first.ends_with('s');
        assert!(verb && !first.is_empty(), "{}: {about}", c.get_name());
        assert!(!about.ends_with('.'), "{}: {about}", c.get_name());
    }
}

/// A help text begins with the flags that every VM needs.
#[test]
fn the_help_of_run_begins_with_the_kernel() {
    let mut command = Cli::command();
    let run = command.find_subcommand_mut("run").unwrap();
    let help = run.render_help().to_string();
    let at = |flag: &str| help.find(&format!("{flag} <")).unwrap();
    assert!(at("--kernel") < at("--memory"), "{help}");
    assert!(at("--memory") < at("--incoming"), "{help}");
    assert!(at("--incoming") < at("--tls-cert"), "{help}");
}

#[test]
fn completions_and_pages_are_made_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let cli = Cli::parse_from(["hypernest", "man", "--out", &dir.path().to_string_lossy()]);
    run(cli.command).unwrap();
    for command in Cli::command().get_subcommands() {
        let page = dir
            .path()
            .join(format!("hypernest-{}.1", command.get_name()));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(".TH"), "{}", page.display());
    }
    for (page, words) in [
        ("hypernest-run.1", ["kernel", "incoming"]),
        ("hypernest-disk-resize.1", ["shrink", "DISK"]),
        ("hypernest-net-link.1", ["CARD", "down"]),
        ("hypernest-balloon.1", ["SIZE", "statistics"]),
    ] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        for word in words {
            assert!(text.contains(word), "{page} without {word}");
        }
    }
    assert!(Cli::try_parse_from(["hypernest", "completions", "bash"]).is_ok());
    assert!(Cli::try_parse_from(["hypernest", "completions", "cmd"]).is_err());
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
    let mut section = "";
    for line in BOOK.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        } else if let Some(key) = line.strip_prefix("### `") {
            let key = key.trim_end_matches('`');
            let run = command.find_subcommand("run").unwrap();
            let arg = run.get_arguments().find(|a| a.get_long() == Some(key));
            let heading = arg.and_then(|a| a.get_help_heading());
            assert_eq!(heading, Some(section), "the help's heading of --{key}");
        }
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
    assert_eq!(e.exit(), ExitStatus::USAGE);
}

/// A file that is no kernel is a mistake of the configuration; a damaged one is not.
#[test]
fn a_wrong_kernel_is_wrong_use() {
    let exit = |e: BootError| CliError::Machine(MachineError::Boot(e)).exit();
    let path = PathBuf::from("passwd");
    let reason = "it has no header";
    let wrong = BootError::NoKernel {
        path: path.clone(),
        reason,
    };
    assert_eq!(exit(wrong), ExitStatus::USAGE);
    assert_eq!(exit(BootError::NoEntry { path }), ExitStatus::USAGE);
    assert_eq!(exit(BootError::TooLittleRam), ExitStatus::FAILED);
}
