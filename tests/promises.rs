//! Every test that docs/promises.md names exists.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "bench"] {
        sources(&root.join(dir), &mut files);
    }
    let text: String = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let exists = |name: &str| match name.split_once("::") {
        // A module of the library with unit tests.
        Some(("hyperv", module)) => root.join(format!("src/hyperv/{module}.rs")).exists(),
        Some(_) => text.contains(&format!("\"{name}\"")),
        None => text.contains(&format!("fn {name}(")),
    };
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let named: Vec<_> = page
        .lines()
        .filter_map(|line| line.rsplit('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| name.contains("::") || name.contains('_'))
        .collect();
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(named.len() > 40, "the page is not read: {named:?}");
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}
