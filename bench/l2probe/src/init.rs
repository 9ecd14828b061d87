//! Functions of an init of a Linux without other programs.

use std::fs;
use std::io;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

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
            eprintln!("l2probe: cannot mount {target}: {error}");
        }
    }
    Ok(after_dashes(&fs::read_to_string("/proc/cmdline")?))
}

fn after_dashes(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip_while(|word| *word != "--");
    words.skip(1).map(str::to_owned).collect()
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
        let words = after_dashes("quiet rdinit=/init -- --serial /dev/ttyS1\n");
        assert_eq!(words, ["--serial", "/dev/ttyS1"]);
        assert!(after_dashes("quiet").is_empty());
    }
}
