//! Functions of an init of a Linux without other programs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::{ProbeError, io_error};

/// Whether this process is an init.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1
}

/// Mounts the kernel's file systems, and returns the arguments: all words after `--` on the kernel's command
/// line.
pub(crate) fn start() -> io::Result<Vec<String>> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        let mounted = mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        );
        if let Err(error) = mounted {
            eprintln!("tscprobe: cannot mount {target}: {error}");
        }
    }
    // The directory of a hypernest's run directory.
    fs::create_dir_all("/tmp")?;
    Ok(after_dashes(&fs::read_to_string("/proc/cmdline")?))
}

fn after_dashes(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip_while(|word| *word != "--");
    words.skip(1).map(str::to_owned).collect()
}

/// Loads all modules in `directory`, in the order of their names; none if there is no such directory.
pub(crate) fn load_modules(directory: &Path) -> Result<(), ProbeError> {
    let Ok(files) = fs::read_dir(directory) else {
        return Ok(());
    };
    let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
    paths.sort();
    for path in paths {
        let what = || format!("cannot load {}", path.display());
        let file = File::open(&path).map_err(io_error(what()))?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .map_err(|e| io_error(what())(e.into()))?;
    }
    Ok(())
}

/// Powers the machine off; returns only on failure.
pub(crate) fn power_off() -> io::Error {
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_after_the_dashes_is_for_init() {
        let words = after_dashes("quiet rdinit=/init -- --serial --beat-us 5\n");
        assert_eq!(words, ["--serial", "--beat-us", "5"]);
        assert!(after_dashes("quiet").is_empty());
    }
}
