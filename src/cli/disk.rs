//! `hypernest disk`: the disks of a running VM.

use clap::Subcommand;

use super::status::{describe_disk, describe_limits, devices, show_bytes};
use super::{CliError, ExitStatus, print, to_json};
use crate::api::{ApiError, ControlRequest, DiskResize, DiskThrottle, RunDirs, call};
use crate::block::DiskReport;
use crate::config::{parse_size, show_size};
use crate::machine::DeviceStatus;

/// Show, resize or limit the disks of a running VM
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List a VM's disks, with what the guest has read and written
    List {
        /// The VM's name
        name: String,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a disk another size, which the guest notices at once
    Resize {
        /// The VM's name
        name: String,

        /// The disk's id
        disk: String,

        /// The new size of the image, which must be a file; K, M, G and T are powers of 1024 [default: the
        /// size that the file or block device has by now, if it was changed by other means]
        size: Option<String>,

        /// Let the size be less: what is beyond is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Show the limits of a disk, or change them until the VM ends
    Throttle {
        /// The VM's name
        name: String,

        /// The disk's id
        disk: String,

        /// Most reads, writes, discards and write zeroes per second; 0: no limit
        #[arg(long, value_name = "N")]
        iops: Option<u64>,

        /// Most bytes per second that are read, written and zeroed, e.g. 50M; 0: no limit
        #[arg(long, value_name = "SIZE")]
        bps: Option<String>,
    },
}

/// Carries out the command.
///
/// # Errors
/// If there is no such VM or disk, or it refuses.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let dirs = RunDirs::of_user();
    match &args.action {
        Action::List { name, json } => {
            let disks = disks(&dirs, name)?;
            print(&match json {
                true => to_json(&disks)?,
                false => list(&disks),
            })?;
        }
        Action::Resize {
            name,
            disk,
            size,
            shrink,
        } => {
            let request = DiskResize {
                id: disk.clone(),
                size: size.as_deref().map(|s| bytes("SIZE", s)).transpose()?,
                shrink: *shrink,
            };
            call(&dirs, name, &ControlRequest::DiskResize(request))?;
            let report = report(&dirs, name, disk)?;
            print(&format!(
                "{disk}: {} ({} bytes)\n",
                show_size(report.size),
                report.size
            ))?;
        }
        Action::Throttle {
            name,
            disk,
            iops,
            bps,
        } => {
            let request = DiskThrottle {
                id: disk.clone(),
                iops: *iops,
                bps: bps.as_deref().map(|s| bytes("--bps", s)).transpose()?,
            };
            // Also if it only asks: a device that is no disk then says so.
            call(&dirs, name, &ControlRequest::DiskThrottle(request))?;
            let report = report(&dirs, name, disk)?;
            print(&format!("{disk}: {}\n", limits(&report)))?;
        }
    }
    Ok(ExitStatus::DONE)
}

fn bytes(flag: &'static str, text: &str) -> Result<u64, CliError> {
    parse_size(text).map_err(|why| CliError::Argument { flag, why })
}

fn disks(dirs: &RunDirs, name: &str) -> Result<Vec<DeviceStatus>, ApiError> {
    devices(dirs, name, |report| report.disk.is_some())
}

/// What the disk `id` shows; nothing, if the VM is of another version.
fn report(dirs: &RunDirs, name: &str, id: &str) -> Result<DiskReport, ApiError> {
    let disk = disks(dirs, name)?.into_iter().find(|disk| disk.id == id);
    Ok(disk.and_then(|disk| disk.report.disk).unwrap_or_default())
}

fn limits(report: &DiskReport) -> String {
    match describe_limits(&report.throttle) {
        Some(limits) => limits,
        None => "no limit".to_owned(),
    }
}

fn list(disks: &[DeviceStatus]) -> String {
    let mut text = String::new();
    for device in disks {
        let Some(disk) = &device.report.disk else {
            continue;
        };
        text.push_str(&format!(
            "{}: {}\n",
            device.id.escape_debug(),
            describe_disk(disk)
        ));
        for (what, bytes, operations) in [
            ("discarded", disk.unmap_bytes, disk.unmap_operations),
            ("zeroed", disk.zero_bytes, disk.zero_operations),
        ] {
            if operations > 0 {
                let bytes = show_bytes(bytes);
                text.push_str(&format!("  {bytes} {what} in {operations} requests\n"));
            }
        }
        for (what, nanoseconds, operations) in [
            ("read", disk.rd_total_time_ns, disk.rd_operations),
            ("write", disk.wr_total_time_ns, disk.wr_operations),
            ("flush", disk.flush_total_time_ns, disk.flush_operations),
        ] {
            if let Some(each) = nanoseconds.checked_div(operations) {
                text.push_str(&format!("  a {what} takes {} µs on average\n", each / 1000));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::block::ThrottleReport;
    use crate::bus::DeviceReport;
    use crate::cli::Cli;

    #[test]
    fn a_list_for_people() {
        let disk = DiskReport {
            size: 1 << 30,
            rd_bytes: 4096,
            rd_operations: 2,
            rd_total_time_ns: 7_000,
            unmap_bytes: 1 << 20,
            unmap_operations: 1,
            in_flight: 3,
            throttle: ThrottleReport {
                iops: 20,
                bps: 0,
                held: 5,
            },
            ..DiskReport::default()
        };
        let device = DeviceStatus {
            id: "data".to_owned(),
            of: "virtio-blk".to_owned(),
            slot: 1,
            report: DeviceReport {
                disk: Some(disk),
                ..DeviceReport::default()
            },
        };
        assert_eq!(
            list(&[device]),
            "data: 1G: 4096 B read in 2 requests, 0 B written in 0; at most 20 requests/s, which have held \
             back requests 5 times\n  \
               1024 KiB discarded in 1 requests\n  \
               a read takes 3 µs on average\n"
        );
        assert_eq!(list(&[]), "");
        assert_eq!(limits(&DiskReport::default()), "no limit");
    }

    #[test]
    fn wrong_sizes_and_words_are_wrong_use() {
        for (flag, line) in [
            ("SIZE", "disk resize vm data 20Q"),
            ("--bps", "disk throttle vm data --bps 1.5M"),
        ] {
            let cli = Cli::parse_from(["hypernest"].into_iter().chain(line.split(' ')));
            let crate::cli::Command::Disk(args) = cli.command else {
                panic!("{line}");
            };
            let error = run(&args).unwrap_err();
            assert!(error.to_string().contains(flag), "{error}");
            assert_eq!(error.exit(), ExitStatus::USAGE);
        }
        for line in [
            "disk",
            "disk list",
            "disk resize vm",
            "disk throttle vm d --iops -1",
            "disk vm list",
        ] {
            let words = ["hypernest"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
