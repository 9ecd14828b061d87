//! Restore from a file: the time until the guest's first beat.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::qmp::Qmp;
use super::side::Side;
use super::{Bench, MigrationError, Results, compare};
use crate::program;
use crate::vmm::contender::Contender;

/// The name of hypernest's VM.
const NAME: &str = "saved";

/// Saves a VM of each contender, and restores these in turn.
pub(super) fn measure(bench: &Bench) -> Result<String, MigrationError> {
    for &contender in &bench.contenders {
        save(bench, contender)?;
    }
    let mut times = Results::new();
    for _ in 0..bench.rounds {
        for &contender in &bench.contenders {
            let mut command = restore(bench, contender);
            let restored = Side::start(contender, &mut command, bench.limit)?;
            let time = restored.until(1)? - restored.started();
            let values = times.entry(contender).or_default();
            values.push(time.as_secs_f64() * 1e3);
        }
    }
    for &contender in &bench.contenders {
        remove(bench, contender)?;
    }
    let what = format!(
        "restoring {} MiB, of which {} are not zero: exec to the guest's first sign, ms",
        bench.memory_mib, bench.fill_mib
    );
    Ok(compare(&[(&what, &times, 1)]))
}

fn saved(bench: &Bench, contender: Contender) -> PathBuf {
    bench.files.path().join(match contender {
        Contender::Hypernest => "saved.hypernest",
        _ => "saved.qemu",
    })
}

fn monitor(bench: &Bench) -> PathBuf {
    bench.files.path().join("monitor")
}

fn save(bench: &Bench, contender: Contender) -> Result<(), MigrationError> {
    let cmdline = bench.command_line(0);
    let guest = bench.guest(&cmdline);
    let mut command = contender.command(&guest, &bench.terms);
    let place = saved(bench, contender);
    if contender == Contender::Hypernest {
        command.args(["--name", NAME]);
        command.env("XDG_RUNTIME_DIR", bench.files.path());
        let running = Side::start(contender, &mut command, bench.limit)?;
        running.until(3)?;
        let mut save = Command::new(program::hypernest());
        save.env("XDG_RUNTIME_DIR", bench.files.path());
        save.args(["save", NAME]).arg(&place);
        let saved = save.args(["--then", "stop"]).status();
        let saved = saved.map_err(|source| MigrationError::Start {
            who: contender.name(),
            source,
        })?;
        if !saved.success() {
            return Err(running.failed("was not saved"));
        }
        return Ok(());
    }
    let socket = monitor(bench);
    command.arg("-qmp");
    command.arg(format!("unix:{},server=on,wait=off", socket.display()));
    let running = Side::start(contender, &mut command, bench.limit)?;
    running.until(3)?;
    let mut qmp = Qmp::connect(&socket, bench.limit)?;
    // Without a bandwidth limit. The guest runs until the end: a guest that was stopped before is also
    // stopped after the restore.
    qmp.call("migrate-set-parameters", &json!({"max-bandwidth": 0}))?;
    qmp.migrate(&format!("file:{}", place.display()))
}

fn restore(bench: &Bench, contender: Contender) -> Command {
    let place = saved(bench, contender);
    if contender == Contender::Hypernest {
        let mut command = Command::new(program::hypernest());
        command.env("XDG_RUNTIME_DIR", bench.files.path());
        command.arg("restore").arg(place);
        return command;
    }
    let cmdline = bench.command_line(0);
    let mut command = contender.command(&bench.guest(&cmdline), &bench.terms);
    command.arg("-incoming");
    command.arg(format!("file:{}", place.display()));
    command
}

/// A disk in memory may not have room for two of them.
fn remove(bench: &Bench, contender: Contender) -> Result<(), MigrationError> {
    let place = saved(bench, contender);
    let removed = match contender {
        Contender::Hypernest => fs::remove_dir_all(place),
        _ => fs::remove_file(place),
    };
    removed.map_err(|source| MigrationError::Own {
        doing: "remove a saved VM",
        source,
    })
}
