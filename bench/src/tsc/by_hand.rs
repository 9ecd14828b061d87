//! A guest that a user moves between two hosts by hand: the instructions, and the parser of the captured
//! output.

use std::fs;
use std::path::{Path, PathBuf};

use super::analyse::{AcrossMoves, Doings, Moved};
use super::args::Args;
use super::drive::{Measured, micro_line};
use super::record::Recorder;
use super::{TscError, file};

/// The warning about missing times.
pub(super) const NO_TIMES: &str = "captured reports have no times of arrival: there is no drift and no \
    downtime by the host's clock";

/// An arbitrary frequency; the guest program counts in ticks, so its times are right for a TSC of this
/// frequency.
const KHZ: f64 = 2_500_000.0;

/// Writes the guest, and returns the commands that run and move it.
pub(super) fn commands(args: &Args, directory: &Path) -> Result<String, TscError> {
    fs::create_dir_all(directory).map_err(file(format!("cannot make {}", directory.display())))?;
    let guest = directory.join("guest");
    fs::write(&guest, hypernest_guest::GUEST)
        .map_err(file(format!("cannot write {}", guest.display())))?;
    let hv = args.hv.as_deref().unwrap_or("windows,reenlightenment");
    let line = micro_line(args, KHZ);
    let guest = guest.display();
    Ok(format!(
        "On the first host:\n  \
         hypernest run --name tsc --kernel {guest} --memory {memory} --cpus {vcpus} --hv {hv} --serial none \
         --debugcon file:first --cmdline '{line}'\n\n\
         After a while, by a saved VM, which is then copied:\n  \
         hypernest save tsc saved --then stop\n  \
         hypernest restore saved --debugcon file:second          (on the second host)\n\n\
         or live:\n  \
         hypernest run --incoming ADDRESS --name tsc --debugcon file:second          (on the second host)\n  \
         hypernest migrate tsc ADDRESS\n\n\
         In the end:\n  \
         hypernest stop tsc\n  \
         hypernest-bench tsc --captured first,second\n",
        memory = args.memory(),
        vcpus = args.vcpus,
    ))
}

/// The record in `files`, one for each host.
pub(super) fn captured(files: &[PathBuf], khz: Option<u32>) -> Result<Measured, TscError> {
    let mut recorder = Recorder::default();
    let mut moves = Vec::new();
    for (run, path) in files.iter().enumerate() {
        let bytes = fs::read(path).map_err(file(format!("cannot read {}", path.display())))?;
        recorder.feed(&bytes, 0, run);
        if run > 0 {
            moves.push(Moved {
                started: 0,
                resumed: 0,
                khz: None,
            });
        }
    }
    Ok(Measured {
        record: recorder.finish(),
        doings: Doings {
            began: 0,
            khz: khz.map_or(KHZ, f64::from),
            moves,
            expects_acks: false,
            clocks: AcrossMoves::Unknown,
        },
    })
}
