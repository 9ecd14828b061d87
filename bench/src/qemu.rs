//! QEMU's program, started without a shell script that would be measured with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use hypernest::hyperv::{EnlightenmentRequest, HostHv, Profile, qemu, resolve};
use thiserror::Error;

use crate::program;

const PROGRAM: &str = "qemu-system-x86_64";

/// The location of QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Qemu {
    /// A program.
    Program(PathBuf),
    /// A directory with `bin/`, `lib/` and `share/`, started by its own loader. The shell script that does
    /// this for users would count as start-up time.
    Unpacked(PathBuf),
}

/// QEMU was not found.
#[derive(Debug, Error)]
pub(crate) enum QemuError {
    #[error("{} is neither a program nor a directory with lib/, bin/{PROGRAM} and share/", .0.display())]
    NotThere(PathBuf),
    #[error("{PROGRAM} is not on the PATH")]
    NotOnPath,
}

impl Qemu {
    /// QEMU at `path`, or on the PATH.
    pub(crate) fn find(path: Option<&Path>) -> Result<Self, QemuError> {
        let Some(path) = path else {
            let found = program::on_path(PROGRAM);
            return found.map(|p| Self::at(&p)).ok_or(QemuError::NotOnPath);
        };
        if path.is_file() || is_unpacked(path) {
            Ok(Self::at(path))
        } else {
            Err(QemuError::NotThere(path.to_owned()))
        }
    }

    fn at(path: &Path) -> Self {
        let beside = path.parent().filter(|_| path.is_file());
        let directory = beside.unwrap_or(path);
        if is_unpacked(directory) {
            Self::Unpacked(directory.to_owned())
        } else {
            Self::Program(path.to_owned())
        }
    }

    /// A command that starts QEMU, without arguments of QEMU's own.
    pub(crate) fn command(&self) -> Command {
        match self {
            Self::Program(program) => Command::new(program),
            Self::Unpacked(directory) => {
                let mut command = Command::new(loader(directory));
                command.arg("--library-path").arg(directory.join("lib"));
                command.arg(directory.join("bin").join(PROGRAM));
                command.arg("-L").arg(directory.join("share"));
                command
            }
        }
    }
}

/// The value of `-cpu` for this host's CPU with the enlightenments of `list`, or the error in `list`.
pub(crate) fn cpu(list: &str, host: &HostHv, nested: bool) -> Result<String, String> {
    let request = EnlightenmentRequest::parse(list, Profile::None).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })?;
    let resolved = resolve(&request, host, nested).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })?;
    let flags = qemu::flags(&request, &resolved);
    let separator = if flags.is_empty() { "" } else { "," };
    Ok(format!("host,kvm=off{separator}{flags}"))
}

fn loader(directory: &Path) -> PathBuf {
    directory.join("lib/ld-linux-x86-64.so.2")
}

fn is_unpacked(directory: &Path) -> bool {
    let program = directory.join("bin").join(PROGRAM);
    [loader(directory), program].iter().all(|p| p.is_file()) && directory.join("share").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_unpacked_one_is_started_without_its_script() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        let script = write(PROGRAM);
        let find = |path: &Path| Qemu::find(Some(path)).unwrap();
        assert_eq!(find(&script), Qemu::Program(script.clone()));
        assert!(Qemu::find(Some(root.path())).is_err());
        write("bin/qemu-system-x86_64");
        write("lib/ld-linux-x86-64.so.2");
        write("share/qboot.rom");
        let unpacked = Qemu::Unpacked(root.path().to_owned());
        assert_eq!(find(&script), unpacked);
        assert_eq!(find(root.path()), unpacked);
        let command = unpacked.command();
        assert!(Path::new(command.get_program()).ends_with("lib/ld-linux-x86-64.so.2"));
        assert_eq!(command.get_args().count(), 5);
        assert!(Qemu::find(Some(Path::new("/nowhere/qemu"))).is_err());
    }
}
