//! `hypernest status`: the state of a running VM.

use std::fmt::Write;

use super::{CliError, ExitStatus, print, to_json};
use crate::api::{self, ApiError, RunDirs};
use crate::block::{DiskReport, ThrottleReport};
use crate::bus::DeviceReport;
use crate::config::show_size;
use crate::machine::{DeviceStatus, RamStatus, Status};
use crate::migration::MigrationReport;

/// Show the state of a running VM
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM's name
    name: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the status.
///
/// # Errors
/// If there is no such VM, or it does not reply.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let status = api::status(&RunDirs::of_user(), &args.name)?;
    print(&if args.json {
        to_json(&status)?
    } else {
        describe(&status)
    })?;
    Ok(ExitStatus::DONE)
}

/// The devices of a running VM whose report `is` of their kind.
///
/// # Errors
/// If there is no such VM, or it does not reply.
pub(super) fn devices(
    dirs: &RunDirs,
    name: &str,
    is: impl Fn(&DeviceReport) -> bool,
) -> Result<Vec<DeviceStatus>, ApiError> {
    let mut devices = api::status(dirs, name)?.devices;
    devices.retain(|device| is(&device.report));
    Ok(devices)
}

fn describe(status: &Status) -> String {
    let mut text = format!(
        "{}: {} for {} (process {}, hypernest {})\n",
        status.name,
        status.state.name(),
        show_time(status.uptime_ms),
        status.pid,
        status.version
    );
    let mut line = |what: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "  {what:<10}{value}");
    };
    line("vCPUs", &status.vcpus.to_string());
    line("memory", &show_size(status.memory));
    if let Some(ram) = &status.ram {
        line("", &describe_ram(ram));
    }
    let hv = match status.hv.as_slice() {
        [] => "none".to_owned(),
        names => names.join(" "),
    };
    line("Hyper-V", &hv);
    if let Some(khz) = status.tsc.khz {
        let mut tsc = format!("{khz} kHz");
        match status.tsc.host_khz {
            Some(host) if status.tsc.emulating => {
                tsc.push_str(&format!(
                    " until the guest has adapted to this host's {host} kHz"
                ));
            }
            Some(host) if host != khz => tsc.push_str(&format!(" (this host: {host} kHz)")),
            _ => {}
        }
        line("TSC", &tsc);
    }
    if status.resets > 0 {
        line("resets", &status.resets.to_string());
    }
    for (device, path) in &status.ptys {
        line(device, path);
    }
    for device in &status.devices {
        line("device", &describe_device(device));
    }
    if let Some(migration) = &status.migration {
        line("migration", &describe_migration(migration));
    }
    if let Some(crash) = &status.crash {
        let mut what = crash.by.clone();
        for param in crash.params.iter().flatten() {
            what.push_str(&format!(" {param:#x}"));
        }
        line("crash", &what);
        // The message comes from the guest and may contain terminal control sequences.
        for words in crash.message.iter().flat_map(|m| m.lines()) {
            line("", &words.escape_debug().to_string());
        }
    }
    text
}

/// The host memory that backs guest RAM, in one line.
fn describe_ram(ram: &RamStatus) -> String {
    let backing = match ram.backing.as_str() {
        "hugepages" => "reserved huge pages",
        "saved" => "mapped from the saved VM",
        other => other,
    };
    let mut text = format!(
        "{}: {} resident, {} of that in huge pages",
        backing.escape_debug(),
        show_bytes(ram.resident),
        show_bytes(ram.huge)
    );
    for (bytes, what) in [(ram.swapped, "swapped out"), (ram.locked, "locked")] {
        if bytes > 0 {
            text.push_str(&format!(", {} {what}", show_bytes(bytes)));
        }
    }
    text
}

/// A device, in one line.
fn describe_device(device: &DeviceStatus) -> String {
    let mut text = format!(
        "{}: {} in slot {}",
        device.id.escape_debug(),
        device.of.escape_debug(),
        device.slot
    );
    if let Some(disk) = &device.report.disk {
        text.push_str(", ");
        text.push_str(&describe_disk(disk));
    }
    if let Some(net) = &device.report.net {
        text.push_str(", ");
        text.push_str(&super::net::describe(net));
    }
    if let Some(balloon) = &device.report.balloon {
        text.push_str(", ");
        text.push_str(&super::balloon::describe(balloon));
    }
    text
}

/// What a disk shows, in one line.
pub(super) fn describe_disk(disk: &DiskReport) -> String {
    let mut text = format!(
        "{}: {} read in {} requests, {} written in {}",
        show_size(disk.size),
        show_bytes(disk.rd_bytes),
        disk.rd_operations,
        show_bytes(disk.wr_bytes),
        disk.wr_operations
    );
    for (count, what) in [
        (disk.flush_operations, "flushes"),
        (disk.failed_operations(), "failed"),
        (disk.invalid_operations, "invalid"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if let Some(limits) = describe_limits(&disk.throttle) {
        text.push_str("; ");
        text.push_str(&limits);
    }
    if disk.paused {
        text.push_str("; an error has paused the VM");
    }
    text
}

/// The limits of a disk, if there are any.
pub(super) fn describe_limits(throttle: &ThrottleReport) -> Option<String> {
    let iops = (throttle.iops > 0).then(|| format!("{} requests/s", throttle.iops));
    let bps = (throttle.bps > 0).then(|| format!("{}/s", show_bytes(throttle.bps)));
    let limits: Vec<_> = iops.into_iter().chain(bps).collect();
    (!limits.is_empty()).then(|| {
        format!(
            "at most {}, which have held back requests {} times",
            limits.join(" and "),
            throttle.held
        )
    })
}

/// The progress of a migration, in one line.
pub(super) fn describe_migration(report: &MigrationReport) -> String {
    let mut text = format!(
        "{} to {}: {} sent in {:.1} s",
        report.phase.map_or("migrating", |phase| phase.name()),
        report.to.escape_debug(),
        show_bytes(report.sent),
        seconds(report.elapsed_ms)
    );
    if report.remaining > 0 {
        text.push_str(&format!(
            ", {} left in this round",
            show_bytes(report.remaining)
        ));
    }
    if report.rounds > 0 {
        text.push_str(&format!(
            ", {} rounds, {}/s, guest writes {}/s",
            report.rounds,
            show_bytes(report.rate),
            show_bytes(report.dirty_rate)
        ));
    }
    if report.throttle > 0 {
        text.push_str(&format!(", slowed down by {} %", report.throttle));
    }
    if let Some(ms) = report.estimate_ms {
        text.push_str(&format!(", {:.1} s to go", seconds(ms)));
    }
    if let Some(ms) = report.downtime_ms {
        text.push_str(&format!(", stopped for {ms} ms"));
    }
    if let Some(error) = &report.error {
        text.push_str(&format!(": {}", error.escape_debug()));
    }
    text
}

/// Accuracy for display: a tenth.
#[allow(
    clippy::cast_precision_loss,
    reason = "milliseconds of an hour have room in a double"
)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Bytes in the largest unit that leaves a number of at least 1.
pub(super) fn show_bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut left = bytes;
    while left >= 10_240 && unit < 4 {
        left /= 1024;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB"].get(unit).unwrap_or(&"");
    format!("{left} {name}")
}

/// A time in its two largest units.
pub(super) fn show_time(ms: u64) -> String {
    let (days, hours, minutes, seconds) = (
        ms / 86_400_000,
        ms / 3_600_000 % 24,
        ms / 60_000 % 60,
        ms / 1000 % 60,
    );
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Crash;
    use crate::machine::State;

    #[test]
    fn a_status_for_people() {
        let status = Status {
            name: "win".to_owned(),
            pid: 7,
            version: "1.2.3".to_owned(),
            state: State::Crashed,
            uptime_ms: 3_723_000,
            resets: 2,
            vcpus: 4,
            memory: 2 << 30,
            hv: vec!["hv-relaxed".to_owned(), "hv-time".to_owned()],
            crash: Some(Crash {
                by: "hyper-v".to_owned(),
                params: Some([0x7e, 1, 2, 3, 4]),
                message: Some("dead\u{1b}[2J\nend".to_owned()),
            }),
            tsc: crate::machine::TscStatus::default(),
            ptys: [("serial".to_owned(), "/dev/pts/3".to_owned())].into(),
            migration: None,
            ram: Some(RamStatus {
                backing: "anonymous".to_owned(),
                resident: 700 << 20,
                huge: 698 << 20,
                swapped: 0,
                locked: 4096,
            }),
            devices: vec![
                DeviceStatus {
                    id: "disk".to_owned(),
                    of: "virtio-blk".to_owned(),
                    slot: 1,
                    report: DeviceReport {
                        disk: Some(DiskReport {
                            size: 20 << 30,
                            rd_bytes: 3 << 20,
                            rd_operations: 7,
                            wr_bytes: 512,
                            wr_operations: 1,
                            failed_wr_operations: 1,
                            failed_rd_operations: 2,
                            paused: true,
                            throttle: ThrottleReport {
                                iops: 20,
                                bps: 50 << 20,
                                held: 9,
                            },
                            ..DiskReport::default()
                        }),
                        ..DeviceReport::default()
                    },
                },
                DeviceStatus {
                    id: "rng\u{1b}".to_owned(),
                    of: "virtio-rng".to_owned(),
                    slot: 2,
                    report: DeviceReport::default(),
                },
            ],
        };
        assert_eq!(
            describe(&status),
            "win: crashed for 1 h 2 min (process 7, hypernest 1.2.3)\n  \
               vCPUs     4\n  \
               memory    2G\n            \
                         anonymous: 700 MiB resident, 698 MiB of that in huge pages, 4096 B locked\n  \
               Hyper-V   hv-relaxed hv-time\n  \
               resets    2\n  \
               serial    /dev/pts/3\n  \
               device    disk: virtio-blk in slot 1, 20G: 3072 KiB read in 7 requests, 512 B written in 1, \
                         3 failed; at most 20 requests/s and 50 MiB/s, which have held back requests \
                         9 times; an error has paused the VM\n  \
               device    rng\\u{1b}: virtio-rng in slot 2\n  \
               crash     hyper-v 0x7e 0x1 0x2 0x3 0x4\n            \
                         dead\\u{1b}[2J\n            \
                         end\n"
        );
    }

    #[test]
    fn times() {
        for (ms, shown) in [
            (0, "0 s"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (90_061_000, "1 d 1 h"),
        ] {
            assert_eq!(show_time(ms), shown);
        }
    }
}
