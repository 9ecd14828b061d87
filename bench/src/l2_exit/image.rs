//! `--l1 image=FILE`: L1 is a kernel of the user's, which runs `l2probe --serial` in its own guest and
//! forwards the result line to the second serial port.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypernest::units::TscKhz;
use hypernest_nested::l2exit::Mode;
use l2probe::document::Document;

use super::outcome::end_of;
use super::probed::{self, Labelled, Run, Scale};
use super::shadow::ShadowVmcs;
use super::{Args, L2ExitError, l1, modes};
use crate::report::{ALL_KINDS, Entry, L1, Outcome, Vmm};
use crate::unit::Unit;

/// Results, warnings, and whether a user interrupted the run.
pub(super) type Measured = (Vec<Entry>, Vec<String>, bool);

fn describe(mode: Mode) -> String {
    let shadow = match mode.shadow_vmcs() {
        Some(true) => ", shadow VMCS on",
        Some(false) => ", shadow VMCS off",
        None => "",
    };
    format!("boot L1 with --hv {}{shadow}: {mode}", modes::hv(mode))
}

/// Boots `image` in each mode. Results are also written to `out`, to be merged with others.
pub(super) fn measure(
    args: &Args,
    image: &Path,
    modes: &[Mode],
    shadow: &mut ShadowVmcs,
    unit: &Unit,
    khz: Option<TscKhz>,
) -> Result<Measured, L2ExitError> {
    let directory = tempfile::tempdir().map_err(L2ExitError::Temporary)?;
    let mut failures = Vec::new();
    let mut runs = Vec::new();
    let mut interrupted = false;
    for &mode in modes {
        eprintln!("{}", describe(mode));
        let ended = shadow
            .set(mode.shadow_vmcs())
            .and_then(|()| boot(args, image, mode, directory.path()));
        let ran = match ended {
            Ok(ran) => ran,
            Err(why) => {
                failures.push(failed(mode, why, String::new()));
                continue;
            }
        };
        match Document::read(&ran.results) {
            Ok(document) => {
                let file = keep(mode, &document, args.directory())?;
                let label = Labelled {
                    vmm: Vmm::Hypernest,
                    mode,
                    file,
                };
                runs.push(Run { label, document });
            }
            Err(error) => {
                let limit = Duration::from_secs(args.linux.timeout);
                let why = format!(
                    "L1's second serial port gave no result of l2probe ({error}): {}",
                    ran.how_it_ended(limit)
                );
                failures.push(failed(mode, why, end_of(&ran.console)));
            }
        }
        if ran.interrupted() {
            interrupted = true;
            break;
        }
    }
    let scale = Scale {
        unit: unit.clone(),
        // Without the host's TSC rate the unit is the tick, and L2's own clock is the only one.
        ticks_per_ns: khz.map_or_else(
            || probed::ticks_per_ns(&runs),
            |khz| Ok(f64::from(khz.0) / 1e6),
        )?,
    };
    let mut entries = probed::entries(L1::Image, &runs, &scale)?;
    entries.extend(failures);
    Ok((entries, probed::warnings(&runs), interrupted))
}

/// One boot, or the reason of its failure.
fn boot(args: &Args, image: &Path, mode: Mode, directory: &Path) -> Result<l1::Ran, String> {
    let mut flags = vec![
        ("name", "l1".to_owned()),
        ("kernel", image.display().to_string()),
        ("cmdline", args.linux.append.clone()),
        ("memory", args.linux.memory.clone()),
        ("nested", "true".to_owned()),
        ("hv", modes::hv(mode).to_owned()),
    ];
    if let Some(initrd) = &args.linux.initrd {
        flags.push(("initrd", initrd.display().to_string()));
    }
    l1::run(&flags, directory, Duration::from_secs(args.linux.timeout))
        .map_err(|e| crate::chain(&e))
}

/// The file of the result: a file in `out` if there is such a directory.
fn keep(mode: Mode, document: &Document, out: Option<&Path>) -> Result<PathBuf, L2ExitError> {
    let name = PathBuf::from(format!("l2probe-{mode}.json"));
    let Some(out) = out else { return Ok(name) };
    let path = out.join(name);
    document
        .line()
        .map_err(std::io::Error::from)
        .and_then(|line| {
            fs::create_dir_all(out)?;
            fs::write(&path, line)
        })
        .map_err(|source| L2ExitError::Keep {
            path: path.clone(),
            source,
        })?;
    Ok(path)
}

fn failed(mode: Mode, why: String, console: String) -> Entry {
    Entry {
        l1: L1::Image,
        vmm: Vmm::Hypernest,
        mode,
        kind: ALL_KINDS.to_owned(),
        touch: None,
        cpus: 1,
        hv: modes::hv(mode).to_owned(),
        shadow_vmcs: mode.shadow_vmcs(),
        runs: None,
        outcome: Outcome::Failed {
            why,
            console,
            partial: None,
        },
    }
}
