//! `--guest linux`: a stock kernel whose init is tscprobe.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hypernest_lab::cpio::Writer;
use hypernest_lab::plan::LAB_DIR_VARIABLE;

use super::args::{Args, Linux};
use super::{TscError, file};

/// The program's name.
const PROBE: &str = "tscprobe";
/// Where modules are in the guest.
const MODULES: &str = "modules";

/// Writes the guest's initramfs to `initrd`, and says where its kernel is.
pub(super) fn files(linux: &Linux, initrd: &Path) -> Result<PathBuf, TscError> {
    let kernel = match (&linux.kernel, std::env::var_os(LAB_DIR_VARIABLE)) {
        (Some(kernel), _) => kernel.clone(),
        (None, Some(lab)) => PathBuf::from(lab).join("linux-6.12/vmlinux"),
        (None, None) => return Err(TscError::NoKernel),
    };
    let probe = probe(linux);
    let name = initrd.display().to_string();
    let out = File::create(initrd).map_err(file(format!("cannot create {name}")))?;
    let mut archive = Writer::new(BufWriter::new(out));
    archive.copy("init", &probe).map_err(file(format!(
        "cannot copy {} (--probe FILE names a static tscprobe)",
        probe.display()
    )))?;
    for (number, module) in linux.modules.iter().enumerate() {
        archive
            .copy(&format!("{MODULES}/{number:02}.ko"), module)
            .map_err(file(format!("cannot copy {}", module.display())))?;
    }
    // Linux opens it for init's standard streams.
    archive
        .character_device("dev/console", 5, 1)
        .and_then(|()| archive.finish())
        .map_err(file(format!("cannot write {name}")))?;
    Ok(kernel)
}

/// Where the probe is: named, beside this program, or on the PATH.
fn probe(linux: &Linux) -> PathBuf {
    if let Some(probe) = &linux.probe {
        return probe.clone();
    }
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(PROBE)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join(PROBE));
    beside
        .into_iter()
        .chain(on_path)
        .find(|program| program.is_file())
        .unwrap_or_else(|| PROBE.into())
}

/// The kernel's command line, with the probe's words after `--`.
pub(super) fn line(args: &Args) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 rdinit=/init {} -- --debugcon --beat-us {} --modules /{MODULES}",
        args.linux.append, args.beat_us
    )
}
