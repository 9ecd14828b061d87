//! Every flag that a message or a page names exists in one of the programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;

use crate::Arguments;

/// Flags of other programs that pages and messages name.
const FOREIGN: &[(&str, &[&str])] = &[
    (
        "cargo",
        &[
            "bin",
            "lib",
            "locked",
            "package",
            "path",
            "release",
            "sanitizer",
            "target",
            "target-dir",
        ],
    ),
    ("QEMU", &["enable-kvm"]),
    ("wsl.exe", &["list", "shutdown", "verbose"]),
    ("docker run", &["device"]),
    ("ld.so", &["library-path"]),
    ("passt", &["fd", "foreground", "quiet", "runas"]),
    ("perf", &["filter"]),
    ("systemctl", &["now"]),
    ("useradd", &["groups", "system"]),
    ("configure of kvm-unit-tests", &["arch"]),
    ("the test harness", &["ignored", "nocapture"]),
];

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn of_tree(command: &clap::Command, flags: &mut BTreeSet<String>) {
    for argument in command.get_arguments() {
        let names = argument.get_long_and_visible_aliases().unwrap_or_default();
        flags.extend(names.into_iter().map(str::to_owned));
        let hidden = argument.get_all_aliases().unwrap_or_default();
        flags.extend(hidden.into_iter().map(str::to_owned));
    }
    for command in command.get_subcommands() {
        of_tree(command, flags);
    }
}

/// The flags of a program that is not a library, from its `#[arg(long)]` fields.
fn of_source(text: &str, flags: &mut BTreeSet<String>) {
    let mut attribute = String::new();
    for line in text.lines().map(str::trim) {
        if attribute.is_empty() && !line.starts_with("#[arg(") {
            continue;
        }
        if !attribute.is_empty() && attribute.ends_with(")]") {
            let field = line
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ");
            if let Some((field, _)) = field.split_once(':')
                && attribute.contains("long")
            {
                let named = attribute.split_once("long = \"");
                let name = named.and_then(|(_, rest)| rest.split('"').next());
                flags.insert(name.map_or_else(|| field.replace('_', "-"), str::to_owned));
                attribute.clear();
            } else if !line.starts_with("#[") && !line.starts_with("//") {
                attribute.clear();
            }
            continue;
        }
        attribute.push_str(line);
    }
}

/// The `--word`s in `text` that are neither CSS variables nor parts of a word.
fn named(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "-_(<!".contains(c)) {
            continue;
        }
        let rest = &text[at + 2..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .unwrap_or(rest.len());
        let word = rest[..end].trim_end_matches('-');
        let css = rest[end..].starts_with(':') && rest[end + 1..].starts_with(['#', ' ']);
        if word.starts_with(|c: char| c.is_ascii_lowercase()) && word.len() > 1 && !css {
            found.insert(word.to_owned());
        }
    }
    found
}

/// The string literals of code outside tests. Comments are skipped: they name no flags to users.
fn messages(source: &str) -> String {
    let code = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let lines: Vec<&str> = lines.collect();
    // Odd parts between quotes are literals; an escaped quote splits one in two, which does no harm here.
    let code = lines.join("\n");
    let pieces: Vec<&str> = code.split('"').skip(1).step_by(2).collect();
    pieces.join("\n")
}

#[test]
fn every_flag_that_a_message_or_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut known = BTreeSet::from(["help".to_owned(), "version".to_owned()]);
    of_tree(&hypernest::cli::command(), &mut known);
    of_tree(&Arguments::command(), &mut known);
    for (program, least) in [
        ("bench/l2probe/src", 5),
        ("bench/tscprobe/src", 3),
        ("tests/lab/src", 10),
    ] {
        let mut sources = Vec::new();
        files(&root.join(program), "rs", &mut sources);
        let mut flags = BTreeSet::new();
        for source in sources {
            of_source(&fs::read_to_string(source).unwrap(), &mut flags);
        }
        assert!(flags.len() >= least, "{program} has only {flags:?}");
        known.extend(flags);
    }
    known.extend(
        FOREIGN
            .iter()
            .flat_map(|(_, flags)| flags.iter().map(|f| (*f).to_owned())),
    );
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    files(&root.join("docs"), "md", &mut pages);
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        texts.push((page, text));
    }
    for dir in [
        "src",
        "bench/src",
        "bench/l2probe/src",
        "bench/tscprobe/src",
    ] {
        let mut sources = Vec::new();
        files(&root.join(dir), "rs", &mut sources);
        for source in sources {
            let test = source.file_stem().is_some_and(|stem| {
                stem.to_string_lossy().contains("test")
                    || stem == "named_flags"
                    || stem == "qemu_flags"
            });
            if !test {
                let text = messages(&fs::read_to_string(&source).unwrap());
                texts.push((source, text));
            }
        }
    }
    let mut wrong = Vec::new();
    for (path, text) in &texts {
        for flag in named(text).difference(&known) {
            wrong.push(format!("{}: --{flag}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "no such flags:\n{}", wrong.join("\n"));
}

#[test]
fn a_flag_that_does_not_exist_is_found() {
    let found = named("use --hugepages, or `--memory`; --x: #fff var(--y) a--b <!-- no -->");
    assert_eq!(found, ["hugepages", "memory"].map(str::to_owned).into());
    let code =
        "fn f() { // --comment\n    say(\"--flag\");\n}\n#[cfg(test)]\nmod tests {\n    \"--no\"";
    assert_eq!(named(&messages(code)), ["flag".to_owned()].into());
    let mut flags = BTreeSet::new();
    of_source(
        "    #[arg(long, value_name = \"N\")]\n    pub(crate) some_flag: u8,\n    other: u8,",
        &mut flags,
    );
    of_source("#[arg(\nlong = \"named\"\n)]\nx: u8,", &mut flags);
    assert_eq!(flags, ["named", "some-flag"].map(str::to_owned).into());
}
