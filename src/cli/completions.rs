//! `hypernest completions` and `hypernest man`: shell completions and manual pages, generated from the
//! command tree.

use std::path::PathBuf;

use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::{CliError, ExitStatus, command, print};

/// Print a shell's completions for hypernest
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page of hypernest, or write those of all commands
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write hypernest.1 and a page for each command into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitStatus, CliError> {
    let mut script = Vec::new();
    generate(args.shell, &mut command(), "hypernest", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitStatus::DONE)
}

/// The commands below `command`, and those below them.
fn collect(command: &clap::Command, commands: &mut Vec<clap::Command>) {
    for below in command.get_subcommands() {
        commands.push(below.clone());
        collect(below, commands);
    }
}

pub(super) fn man(args: &ManArgs) -> Result<ExitStatus, CliError> {
    let mut root = command().disable_help_subcommand(true);
    // Gives each command its name, as `hypernest-run`, and the flags of all.
    root.build();
    let mut commands = Vec::new();
    collect(&root, &mut commands);
    let page = |command: clap::Command| {
        let page = Man::new(command);
        let mut text = Vec::new();
        // Writing to memory cannot fail.
        let _written = page.render(&mut text);
        (page.get_filename(), text)
    };
    let root = page(root);
    match &args.out {
        None => print(&String::from_utf8_lossy(&root.1))?,
        Some(dir) => {
            let pages = commands.into_iter().map(page);
            for (name, text) in std::iter::once(root).chain(pages) {
                let path = dir.join(name);
                std::fs::write(&path, text).map_err(|source| CliError::Write { path, source })?;
            }
        }
    }
    Ok(ExitStatus::DONE)
}
