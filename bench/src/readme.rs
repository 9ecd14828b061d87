//! What README.md says about this program, compared with the page on L2 exits and the source.

use std::fs;
use std::path::Path;

fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap()
}

/// A page without its line breaks.
fn flowing(page: &str) -> String {
    page.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A row of the page's table: the cells after the kind, each with median, ratio and host exits.
fn row(page: &str, kind: &str) -> Vec<String> {
    let start = format!("| {kind} | ");
    let row = page.lines().find_map(|line| line.strip_prefix(&start));
    let cells = row
        .unwrap_or_else(|| panic!("no row for {kind}"))
        .split('|');
    cells.map(|cell| cell.trim().to_owned()).collect()
}

fn median(cell: &str) -> f64 {
    let number = cell.split(' ').next().unwrap().replace(',', "");
    number.parse().unwrap()
}

/// The saving in whole percent.
fn saving(of: f64, than: f64) -> String {
    format!("{:.0} %", (1.0 - of / than) * 100.0)
}

#[test]
fn the_figures_are_those_of_the_page() {
    let (readme, page) = (text("README.md"), text("docs/l2-exits.md"));
    let extract = readme.split("```text\n").nth(1).unwrap();
    let extract = extract.split("```").next().unwrap();
    let mut rows = 0;
    for line in extract.lines().skip(1) {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap();
        let shown = words.collect::<Vec<_>>().join(" ");
        assert_eq!(shown, row(&page, kind)[..4].join(" "), "{kind}");
        rows += 1;
    }
    assert!(rows >= 5, "the extract is not read");
}

#[test]
fn evmcs_is_compared_with_both_kinds_of_vmcs() {
    let (readme, page) = (flowing(&text("README.md")), text("docs/l2-exits.md"));
    let cpuid = row(&page, "cpuid");
    let [classic, shadow, evmcs, emsr] = [0, 1, 2, 3].map(|column| median(&cpuid[column]));
    let exits = |column: usize| cpuid[column].split(' ').next_back().unwrap();
    assert_eq!(exits(1), exits(2));
    for part in [
        format!(
            "Compared with a VMCS without shadowing, eVMCS saves {} of the emulated instructions of a CPUID \
             exit and 8 of 11 host exits",
            saving(evmcs, classic)
        ),
        format!(
            "compared with shadow VMCS, {} of the emulated instructions and no host exit",
            saving(evmcs, shadow)
        ),
        format!("{} with the enlightened MSR bitmap", saving(emsr, shadow)),
    ] {
        assert!(readme.contains(&part), "{part:?} is not in the README");
    }
    let linux = "14,669 (0.63x) and 3.0; evmcs 14,077 (0.60x) and 3.0; evmcs+emsr 13,165";
    assert!(flowing(&page).contains(linux));
    let of_linux = format!(
        "under a stock Linux {} and {}",
        saving(14_077.0, 14_669.0),
        saving(13_165.0, 14_669.0)
    );
    assert!(
        readme.contains(&of_linux),
        "{of_linux:?} is not in the README"
    );
}

#[test]
fn every_program_that_is_used_can_be_installed() {
    let readme = text("README.md");
    for (program, directory, manifest) in [
        ("hypernest", ".", "Cargo.toml"),
        ("hypernest-bench", "bench", "bench/Cargo.toml"),
    ] {
        assert!(text(manifest).contains(&format!("name = \"{program}\"")));
        let command = format!("cargo install --path {directory}`");
        assert!(readme.contains(&command), "{program}: no {command}");
    }
}
