//! Explains a command line that `hypernest run` does not understand: all its mistakes at once, those of the
//! VM's configuration included.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::qemu_flags::{self, Hint};
use super::{Cli, Command};
use crate::config::{ConfigError, Origin, Problem};
use crate::text::nearest;

/// The words of a command line, sorted.
#[derive(Default)]
struct Sorted {
    /// Arguments of hypernest, and those to write instead of others.
    arguments: Vec<OsString>,
    /// QEMU's flags.
    qemu: Vec<(String, Hint)>,
    /// Words that are neither.
    unknown: Vec<(String, Hint)>,
}

/// What is wrong with the command line `words`, if it is one for `run` or `config`.
pub(super) fn explain(words: &[OsString]) -> Option<String> {
    let Sorted {
        arguments,
        mut qemu,
        mut unknown,
    } = sort(words)?;
    if qemu.is_empty() && unknown.is_empty() {
        return None;
    }
    let (problems, other) = problems(&arguments);
    for (_, hint) in qemu.iter_mut().chain(&mut unknown) {
        let flags = hint.arguments.iter().filter_map(|a| a.strip_prefix("--"));
        let mut keys = flags.map(|flag| flag.split('=').next().unwrap_or_default());
        if keys.any(|key| problems.iter().any(|p| p.origin.is_flag(key))) {
            hint.text.push_str(" with another value: see below");
        }
    }
    let mut sections = Vec::new();
    let listed = |title: &str, items: &[(String, Hint)]| {
        let items = items
            .iter()
            .map(|(word, hint)| format!("\n  {word}: {}", hint.text));
        format!("{title}{}", items.collect::<String>())
    };
    if !qemu.is_empty() {
        let title = "these are flags of QEMU; for `hypernest run`:";
        sections.push(listed(title, &qemu));
    }
    if !unknown.is_empty() {
        sections.push(listed("these arguments are unknown:", &unknown));
    }
    if !problems.is_empty() {
        sections.push(ConfigError::Invalid(problems).to_string());
    }
    sections.extend(other);
    Some(sections.join("\n"))
}

/// `None` if the command is another one.
fn sort(words: &[OsString]) -> Option<Sorted> {
    let command = Cli::command();
    let run = command.find_subcommand("run")?;
    let flags = || run.get_arguments().chain(command.get_arguments());
    let longs: Vec<&str> = flags()
        .flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default())
        .chain(["append", "smp"])
        .collect();
    let takes_value = |long: &str| {
        let mut flags = flags();
        flags
            .find(|arg| arg.get_long() == Some(long))
            .is_none_or(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
    };
    let mut sorted = Sorted::default();
    let (program, words) = words.split_first()?;
    let mut words = words.iter().peekable();
    let mut name = words.next_if(|word| !word.to_string_lossy().starts_with('-'));
    sorted.arguments.push(program.clone());
    sorted.arguments.push("run".into());
    while let Some(argument) = words.next() {
        let word = argument.to_string_lossy();
        let Some(flag) = word.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            if name.is_none() {
                name = Some(argument);
            } else {
                sorted.stray(&word);
            }
            continue;
        };
        if matches!(word.as_ref(), "-h" | "-V") {
            continue;
        }
        let long = flag.strip_prefix('-');
        let flag = long.unwrap_or(flag);
        let (key, inline) = match flag.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (flag, None),
        };
        let is_ours = longs.contains(&key);
        if long.is_some() && is_ours {
            sorted.arguments.push(argument.clone());
            if inline.is_none() && takes_value(key) {
                // A list and a command line may begin with a dash.
                let any = matches!(key, "hv" | "cmdline" | "append");
                let value = words.next_if(|next| any || !is_flag(next));
                sorted.arguments.extend(value.cloned());
            }
            continue;
        }
        let instead = qemu_flags::find(flag);
        let meant = match is_ours {
            true => Some(key),
            // One letter is a typo of nothing.
            false => nearest(key, longs.iter().copied()).filter(|_| key.len() > 2),
        };
        let value = match (instead, meant, inline) {
            (_, _, Some(_)) => None,
            (Some(_), ..) if !qemu_flags::has_value(flag) => None,
            (None, Some(meant), _) if !takes_value(meant) => None,
            (Some(_), ..) if flag == "append" => words.next(),
            _ => words.next_if(|next| !is_flag(next)),
        };
        let value = value.map(|value| value.to_string_lossy());
        let value = value.as_deref().unwrap_or_default();
        let shown = format!("{word} {value}").trim_end().to_owned();
        let Some(instead) = instead else {
            sorted.unknown(shown, unknown(meant, takes_value, inline, value));
            continue;
        };
        let hint = instead.hint(value);
        sorted
            .arguments
            .extend(hint.arguments.iter().map(OsString::from));
        sorted.qemu.push((shown, hint));
    }
    let is_run = name.is_none_or(|name| name == "run" || name == "config");
    is_run.then_some(sorted)
}

fn is_flag(word: &OsString) -> bool {
    word.to_string_lossy().starts_with('-')
}

/// For a flag that is neither QEMU's nor one of hypernest, which has `meant`.
fn unknown(
    meant: Option<&str>,
    takes_value: impl Fn(&str) -> bool,
    inline: Option<&str>,
    value: &str,
) -> Hint {
    match (meant, inline) {
        (None, _) => Hint::say("neither a flag of hypernest nor a known one of QEMU"),
        (Some(meant), Some(value)) => Hint::write(vec![format!("--{meant}={value}")], ""),
        (Some(meant), None) if takes_value(meant) => {
            Hint::flag(&format!("--{meant}"), value, "VALUE")
        }
        (Some(meant), None) => Hint::write(vec![format!("--{meant}")], ""),
    }
}

impl Sorted {
    fn unknown(&mut self, shown: String, hint: Hint) {
        let arguments = hint.arguments.iter().map(OsString::from);
        self.arguments.extend(arguments);
        self.unknown.push((shown, hint));
    }

    /// A word without a flag.
    fn stray(&mut self, word: &str) {
        let mut given = self.arguments.iter().map(|a| a.to_string_lossy());
        let has_kernel = given.any(|a| a == "--kernel" || a.starts_with("--kernel="));
        let flag = match word.ends_with(".toml") {
            true => "--config",
            false => "--kernel",
        };
        let hint = match flag == "--kernel" && has_kernel {
            false => Hint::flag(flag, word, "FILE"),
            true => Hint::say(
                "no flag is before it; a value with spaces needs quotes, as in --cmdline 'quiet splash'",
            ),
        };
        self.unknown(word.to_owned(), hint);
    }
}

/// What is wrong with the configuration in `arguments`, and what else is.
fn problems(arguments: &[OsString]) -> (Vec<Problem>, Option<String>) {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => match cli.command {
            Command::Run(args) => match args.configuration() {
                Some(Err(ConfigError::Invalid(problems))) => (problems, None),
                Some(Err(other)) => (Vec::new(), Some(crate::error::chain(&other))),
                Some(Ok(_)) | None => (Vec::new(), None),
            },
            _ => (Vec::new(), None),
        },
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            (Vec::new(), None)
        }
        Err(e) => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            (Vec::new(), Some(first.to_owned()))
        }
    }
}

impl Origin {
    fn is_flag(&self, key: &str) -> bool {
        matches!(self, Self::Flag(flag) if *flag == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<String> {
        let words = ["hypernest"].into_iter().chain(line.split_whitespace());
        explain(&words.map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = of("run -kernel nowhere -m 2X -foo bar --kernal a --cpus 0 -enable-kvm vm.toml")
            .unwrap();
        let mut lines = text.lines();
        for expected in [
            "these are flags of QEMU; for `hypernest run`:",
            "  -kernel nowhere: write --kernel nowhere",
            "  -m 2X: write --memory 2X",
            "  -enable-kvm: leave it out: hypernest always uses KVM",
            "these arguments are unknown:",
            "  -foo bar: neither a flag of hypernest nor a known one of QEMU",
            "  --kernal a: write --kernel a",
            "  vm.toml: write --config vm.toml",
            // Two flags that become one.
            "the argument '--kernel <FILE>' cannot be used multiple times",
        ] {
            assert_eq!(lines.next(), Some(expected), "{text}");
        }
        assert_eq!(lines.next(), None, "{text}");
    }

    /// A malformed value is not passed on as if it were right.
    #[test]
    fn values_are_checked_as_those_of_the_flag() {
        for (line, marked, problem) in [
            (
                "run -m 2X",
                "write --memory 2X with another value: see below",
                "\"2X\" is not a size",
            ),
            (
                "run -smp no",
                "write --cpus no with another value",
                "\"no\" is not a number",
            ),
            (
                "run -device virtio-rng-pci,addr=0x1f",
                "write --device virtio-rng,slot=31 with another value",
                "\"31\" is out of range",
            ),
            (
                "run -cpu host,hv_tiem",
                "--hv hv-tiem with another value",
                "did you mean `hv-time`?",
            ),
            (
                "run --memry 2X",
                "--memry 2X: write --memory 2X with another",
                "\"2X\" is not a size",
            ),
            (
                "run -enable-kvm --cpus 0",
                "-enable-kvm: leave it out",
                "0\" is out of range",
            ),
            (
                "run -m 2G",
                "-m 2G: write --memory 2G\n",
                "no kernel is given",
            ),
        ] {
            let text = of(line).unwrap();
            assert!(
                text.contains(marked) && text.contains(problem),
                "{line}: {text}"
            );
        }
    }

    #[test]
    fn words_without_a_flag_and_flags_with_one_dash_are_told_with_two() {
        for (line, says) in [
            ("run vmlinux", "\n  vmlinux: write --kernel vmlinux"),
            ("config vm.toml", "\n  vm.toml: write --config vm.toml"),
            (
                "run --kernel a --cmdline quiet splash",
                "\n  splash: no flag is before it",
            ),
            ("run -memory 2G", "\n  -memory 2G: write --memory 2G\n"),
            ("run -nested --kernel k", "\n  -nested: write --nested\n"),
            ("-kernel k", "\n  -kernel k: write --kernel k"),
            (
                "run -nographic vmlinux",
                "\n  vmlinux: write --kernel vmlinux",
            ),
            ("run --foo=1", "\n  --foo=1: neither"),
        ] {
            let text = of(line).unwrap();
            assert!(format!("{text}\n").contains(says), "{line}: {text}");
        }
    }

    #[test]
    fn flags_of_hypernest_are_not_explained() {
        for line in [
            "run --kernel k --cpu host --serial stdio --name x --machine pc-1 --log warn",
            "run --append quiet --smp 4 --nested --debug-exit=0xf4 --config=vm.toml",
            "run --cmdline -append --hv -m",
            "status vm -m 2",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }
}
