//! `hypernest balloon`: how much of its memory a running VM's guest has.

use super::status::{devices, show_bytes};
use super::{CliError, ExitStatus, print, to_json};
use crate::api::{ApiError, Balloon, ControlRequest, RunDirs, call};
use crate::config::{parse_size, show_size};
use crate::machine::DeviceStatus;
use crate::memory::balloon::BalloonReport;

/// Show or set how much of its memory a running VM's guest has, by its virtio-balloon
///
/// The guest's own statistics are shown as well. The guest takes its time to reach a new size, and may not
/// reach it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM's name
    name: String,

    /// How much memory the guest is to have; K, M, G and T are powers of 1024 [default: as it is]
    size: Option<String>,

    /// The balloon's id, if the VM has several
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Carries out the command.
///
/// # Errors
/// If there is no such VM or balloon, or the size is none that the VM can have.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let dirs = RunDirs::of_user();
    let name = &args.name;
    let size = args.size.as_deref().map(parse_size).transpose();
    let size = size.map_err(|why| CliError::Argument { flag: "SIZE", why })?;
    let balloons = balloons(&dirs, name)?;
    let id = choose(name, &balloons, args.id.as_deref())?;
    if let Some(size) = size {
        let id = id.to_owned();
        call(&dirs, name, &ControlRequest::Balloon(Balloon { id, size }))?;
    }
    let mut now = self::balloons(&dirs, name)?;
    now.retain(|balloon| balloon.id == id);
    print(&match args.json {
        true => to_json(&now)?,
        false => list(&now),
    })?;
    Ok(ExitStatus::DONE)
}

fn balloons(dirs: &RunDirs, name: &str) -> Result<Vec<DeviceStatus>, ApiError> {
    devices(dirs, name, |report| report.balloon.is_some())
}

/// The id of the balloon that is meant.
fn choose<'a>(
    vm: &str,
    balloons: &'a [DeviceStatus],
    id: Option<&'a str>,
) -> Result<&'a str, CliError> {
    let ids = || {
        let ids = balloons
            .iter()
            .map(|balloon| balloon.id.escape_debug().to_string());
        ids.collect::<Vec<_>>().join(", ")
    };
    let why = match (balloons, id) {
        ([], _) => return Err(CliError::NoBalloon { vm: vm.to_owned() }),
        ([one], None) => return Ok(&one.id),
        (_, None) => format!("the VM {vm} has several balloons: {}", ids()),
        (_, Some(id)) if balloons.iter().any(|balloon| balloon.id == id) => return Ok(id),
        (_, Some(id)) => format!("the VM {vm} has no balloon {id:?}; it has {}", ids()),
    };
    Err(CliError::Argument { flag: "--id", why })
}

fn list(balloons: &[DeviceStatus]) -> String {
    let mut text = String::new();
    for device in balloons {
        let Some(balloon) = &device.report.balloon else {
            continue;
        };
        let id = device.id.escape_debug();
        text.push_str(&format!("{id}: {}\n", describe(balloon)));
        for (name, value) in &balloon.stats {
            text.push_str(&format!("  {} {value}\n", name.escape_debug()));
        }
    }
    text
}

/// What a balloon shows, in one line.
pub(super) fn describe(balloon: &BalloonReport) -> String {
    let mut text = format!("the guest has {}", show_size(balloon.actual));
    if balloon.target != balloon.actual {
        text.push_str(&format!(", and is to have {}", show_size(balloon.target)));
    }
    text.push_str(&format!("; {} given back", show_bytes(balloon.released)));
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bus::DeviceReport;
    use crate::cli::Cli;

    fn balloon(id: &str) -> DeviceStatus {
        let balloon = BalloonReport {
            actual: 1 << 30,
            target: 512 << 20,
            released: 3 << 20,
            stats: [("stat-free-memory".to_owned(), 7)].into(),
            last_update: 1,
        };
        DeviceStatus {
            id: id.to_owned(),
            of: "virtio-balloon".to_owned(),
            slot: 1,
            report: DeviceReport {
                balloon: Some(balloon),
                ..DeviceReport::default()
            },
        }
    }

    #[test]
    fn a_list_for_people() {
        let mut device = balloon("b");
        assert_eq!(
            list(std::slice::from_ref(&device)),
            "b: the guest has 1G, and is to have 512M; 3072 KiB given back\n  stat-free-memory 7\n"
        );
        let report = device.report.balloon.as_mut().unwrap();
        report.target = report.actual;
        assert_eq!(describe(report), "the guest has 1G; 3072 KiB given back");
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn the_one_that_is_meant_is_found() {
        let one = [balloon("a")];
        let two = [balloon("a"), balloon("b")];
        assert_eq!(choose("vm", &one, None).unwrap(), "a");
        assert_eq!(choose("vm", &two, Some("b")).unwrap(), "b");
        for (balloons, id, says) in [
            (
                &[][..],
                None,
                "has no balloon; it needs --device virtio-balloon",
            ),
            (&two, None, "several balloons: a, b"),
            (&two, Some("c"), "has no balloon \"c\"; it has a, b"),
        ] {
            let error = choose("vm", balloons, id).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn wrong_sizes_and_words_are_wrong_use() {
        let cli = Cli::parse_from(["hypernest", "balloon", "vm", "1.5G"]);
        let crate::cli::Command::Balloon(args) = cli.command else {
            panic!("another command");
        };
        let error = run(&args).unwrap_err();
        assert_eq!(error.exit(), ExitStatus::USAGE);
        for line in ["balloon", "balloon vm 1G 2G", "balloon --id x"] {
            let words = ["hypernest"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
