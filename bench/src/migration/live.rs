//! Live migration between processes: the total time, the downtime, and the number of bytes sent.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::command::{self, Limits};
use super::qmp::Qmp;
use super::relay::Relay;
use super::side::Side;
use super::{Bench, MigrationError, Results, compare};
use crate::program;
use crate::vmm::contender::Contender;

/// The result of one migration.
struct Moved {
    /// From the command to the first beat at the destination, in milliseconds.
    total_ms: f64,
    /// From the source's last beat to the destination's first.
    gone_ms: f64,
    /// From the source to the destination, in MiB.
    sent_mib: f64,
}

/// Migrates a VM of each contender in turn.
pub(super) fn measure(bench: &Bench) -> Result<String, MigrationError> {
    let (mut total, mut gone, mut sent) = (Results::new(), Results::new(), Results::new());
    let mut rate = Results::new();
    for round in 0..bench.rounds {
        for &contender in &bench.contenders {
            let dir = bench.files.path().join(format!("{round}-{contender:?}"));
            std::fs::create_dir(&dir).map_err(|source| MigrationError::Own {
                doing: "make a directory for sockets",
                source,
            })?;
            let moved = move_one(bench, contender, &dir)?;
            total.entry(contender).or_default().push(moved.total_ms);
            gone.entry(contender).or_default().push(moved.gone_ms);
            sent.entry(contender).or_default().push(moved.sent_mib);
            let per_second = moved.sent_mib / (moved.total_ms / 1e3);
            rate.entry(contender).or_default().push(per_second);
        }
    }
    let head = format!(
        "live migration of {} MiB, {} not zero, {} pages written every {} ticks, at most {} MiB/s and {} ms \
         of downtime\n\n",
        bench.memory_mib,
        bench.fill_mib,
        bench.dirty,
        bench.beat,
        bench.bandwidth_mib,
        bench.downtime_ms
    );
    let rows = compare(&[
        ("in all, ms", &total, 0),
        ("the guest is gone, ms", &gone, 1),
        ("sent, MiB", &sent, 1),
        ("sent per second, MiB", &rate, 1),
    ]);
    Ok(head + &rows)
}

fn move_one(bench: &Bench, contender: Contender, dir: &Path) -> Result<Moved, MigrationError> {
    let cmdline = bench.command_line(bench.dirty);
    let guest = bench.guest(&cmdline);
    let ours = contender == Contender::Hypernest;
    // Each process has its own monitor, or its own directory for the control socket.
    let [near, far] = ["near", "far"].map(|name| dir.join(name));
    let [from, to] = ["from", "to"].map(|name| dir.join(name));
    let mut source = contender.command(&guest, &bench.terms);
    let mut destination = if ours {
        let mut command = Command::new(program::hypernest());
        command.args(["run", "--incoming"]);
        command.arg(format!("unix:{}", to.display()));
        for (command, runtime) in [(&mut source, &near), (&mut command, &far)] {
            std::fs::create_dir(runtime).map_err(|source| MigrationError::Own {
                doing: "make a directory for a control socket",
                source,
            })?;
            command.env("XDG_RUNTIME_DIR", runtime);
        }
        source.args(["--name", "moved"]);
        command
    } else {
        source.arg("-qmp");
        source.arg(format!("unix:{},server=on,wait=off", near.display()));
        let mut command = contender.command(&guest, &bench.terms);
        command.arg("-incoming");
        command.arg(format!("unix:{}", to.display()));
        command
    };
    let source = Side::start(contender, &mut source, bench.limit)?;
    source.until(3)?;
    let destination = Side::start(contender, &mut destination, bench.limit)?;
    while !to.exists() {
        if destination.started().elapsed() > bench.limit {
            return Err(destination.failed("does not listen"));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let relay = Relay::start(&from, &to).map_err(|source| MigrationError::Own {
        doing: "listen for a migration",
        source,
    })?;
    let uri = format!("unix:{}", from.display());
    let limits = Limits {
        bandwidth_mib: bench.bandwidth_mib,
        downtime_ms: bench.downtime_ms,
    };
    let begun;
    if ours {
        let mut command = command::hypernest(&near, "moved", &uri, limits);
        begun = Instant::now();
        let done = command.status().map_err(|source| MigrationError::Start {
            who: contender.name(),
            source,
        })?;
        if !done.success() {
            return Err(source.failed("did not move its VM"));
        }
    } else {
        let mut qmp = Qmp::connect(&near, bench.limit)?;
        command::limit(&mut qmp, limits)?;
        begun = Instant::now();
        qmp.migrate(&uri)?;
    }
    let first = destination.until(1)?;
    let last = source.end()?;
    Ok(Moved {
        total_ms: (first - begun).as_secs_f64() * 1e3,
        gone_ms: first.saturating_duration_since(last).as_secs_f64() * 1e3,
        // Far below 2^53.
        sent_mib: relay.bytes() as f64 / f64::from(1 << 20),
    })
}
