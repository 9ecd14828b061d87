//! The modules of `src/` are layers: each uses only those below it in [`LAYERS`]. Test code is exempt.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. docs/architecture.md draws them; docs/decisions/0014-layers.md gives the reasons.
#[rustfmt::skip]
const LAYERS: [&str; 29] = [
    "units", "text", "error", "sys", "layout", "memory", "block", "net", "state", "cpuid", "hyperv", "kvm",
    "bus", "irq", "life", "pci", "virtio", "devices", "boot", "vcpu", "time", "config", "migration",
    "machine", "api", "doctor", "inspect", "cli",
    "main",
];

/// The declarations of the modules: no code.
const ROOT: &str = "lib";

#[test]
fn modules_use_only_lower_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let violations: Vec<_> = files
        .iter()
        .flat_map(|file| {
            let name = file.strip_prefix(&src).unwrap().display().to_string();
            violations(&name, &fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(files.len() > 100, "the sources are not read: {files:?}");
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// [`sys::spawn`](../src/sys/thread.rs) names each thread after its role.
#[test]
fn threads_are_started_by_sys_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    for file in files {
        let name = file.strip_prefix(&src).unwrap().display().to_string();
        if is_test(&name) || name == "sys/thread.rs" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for start in ["thread::spawn(", "thread::Builder", "scope.spawn("] {
            assert!(
                !code(&text).contains(start),
                "src/{name} starts a thread by {start}; use sys::spawn or sys::spawn_scoped"
            );
        }
    }
}

/// `text` of a file without its module of tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

fn uses(user: &str, used: &str) -> String {
    format!("{user} uses {used}, a higher layer")
}

#[test]
fn a_use_of_a_higher_layer_is_found() {
    let text = "//! `crate::cli` in a comment.\n\
                use crate::units::Gpa;\n\
                use crate::{cpuid, vcpu::{thread, stats}};\n\
                fn f() { crate::machine::run() }\n\
                #[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
    assert_eq!(
        violations("kvm/host.rs", text),
        [
            "src/kvm/host.rs:3: kvm uses vcpu, a higher layer",
            "src/kvm/host.rs:4: kvm uses machine, a higher layer",
        ]
    );
    assert_eq!(violations("cli/run.rs", text), [""; 0]);
    assert_eq!(violations("kvm/host/tests.rs", text), [""; 0]);
    assert_eq!(
        violations("new.rs", "use crate::units;\n"),
        ["src/new.rs: the module new has no place in the layers"]
    );
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// What `text`, the file `name` under `src/`, uses of higher layers.
fn violations(name: &str, text: &str) -> Vec<String> {
    let module = name
        .split('/')
        .next()
        .unwrap_or(name)
        .trim_end_matches(".rs");
    if module == ROOT || is_test(name) {
        return Vec::new();
    }
    let Some(layer) = layer(module) else {
        return vec![format!(
            "src/{name}: the module {module} has no place in the layers"
        )];
    };
    let mut found = Vec::new();
    for (index, line) in code(text).lines().enumerate() {
        let line = line.split("//").next().unwrap_or(line);
        for used in used_modules(line) {
            if self::layer(used).is_some_and(|used| used > layer) {
                let number = index + 1;
                found.push(format!("src/{name}:{number}: {}", uses(module, used)));
            }
        }
    }
    found
}

fn is_test(name: &str) -> bool {
    name.split(['/', '.'])
        .any(|part| part == "testing" || part == "tests" || part.ends_with("_tests"))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
}

/// The modules that a line names by their path from the crate's root.
fn used_modules(line: &str) -> Vec<&str> {
    let mut modules = Vec::new();
    for (_, rest) in line
        .match_indices("crate::")
        .map(|(at, path)| line.split_at(at + path.len()))
    {
        match rest.strip_prefix('{') {
            // `use crate::{a, b::{c, d}};`: the names at depth 1.
            Some(group) => {
                let mut depth = 1;
                for part in group.split_inclusive(['{', '}', ',']) {
                    if depth == 1 {
                        modules.push(first_name(part.trim()));
                    }
                    match part.chars().last() {
                        Some('{') => depth += 1,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
            None => modules.push(first_name(rest)),
        }
    }
    modules
}

fn first_name(path: &str) -> &str {
    path.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .unwrap_or(path)
}
