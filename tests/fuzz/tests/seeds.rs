//! Runs every target on its committed seeds, and checks that the seeds, the targets and `fuzz/` agree.
//!
//! `HYPERNEST_WRITE_SEEDS=1 cargo test -p hypernest-fuzz-targets` writes the seeds again. Inputs with which a
//! fuzzer found a bug are kept beside them, under any name that begins with `found-`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use hypernest_fuzz_targets::{TARGETS, run};

#[path = "seeds/made.rs"]
mod made;

fn fuzz() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = fuzz().join("seeds").join(target);
    let entries =
        fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn seeds_are_replayed_and_reach_each_targets_code() {
    if std::env::var_os("HYPERNEST_WRITE_SEEDS").is_some() {
        for (target, name, bytes) in made::seeds() {
            let directory = fuzz().join("seeds").join(target);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name), bytes).unwrap();
        }
    }
    for (target, _) in TARGETS {
        let mut accepted = 0;
        let seeds = seeds(target);
        for (name, bytes) in &seeds {
            println!("{target} {name}");
            accepted += usize::from(run(target, bytes));
        }
        assert!(
            accepted > 0,
            "{target}: none of its {} seeds gets past the first checks",
            seeds.len()
        );
    }
}

#[test]
fn damaged_seeds_are_survived() {
    for (target, _) in TARGETS {
        for (_, bytes) in seeds(target) {
            // Few cuts of a large seed: the fuzzers do more.
            for cut in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
                run(target, &bytes[..cut]);
                let mut flipped = bytes.clone();
                flipped[cut] ^= 0x55;
                run(target, &flipped);
            }
        }
    }
}

#[test]
fn every_target_has_its_program_and_every_program_its_target() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let programs: BTreeSet<String> = manifest
        .split("[[bin]]")
        .skip(1)
        .map(|part| part.split('"').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(programs, names);
    for name in &names {
        let program = fuzz().join(format!("fuzz_targets/{}.rs", name.replace('-', "_")));
        let text = fs::read_to_string(&program).unwrap();
        assert!(
            text.contains(&format!("run(\"{name}\"")),
            "{}",
            program.display()
        );
    }
    let directories: BTreeSet<String> = fs::read_dir(fuzz().join("seeds"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(directories, names);
}

#[test]
fn seeds_are_small() {
    let mut total = 0;
    for (target, _) in TARGETS {
        for (name, bytes) in seeds(target) {
            assert!(
                bytes.len() <= 40 << 10,
                "{target}/{name}: {} bytes",
                bytes.len()
            );
            total += bytes.len();
        }
    }
    assert!(total <= 256 << 10, "{total} bytes of seeds");
}
