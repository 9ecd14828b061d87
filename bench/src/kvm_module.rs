//! Loading and unloading KVM's module for this CPU, on the host and in L1.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use thiserror::Error;

/// A module could not be loaded or unloaded.
#[derive(Debug, Error)]
pub(crate) enum ModuleError {
    #[error("cannot load the kernel module {} ({parameters})", path.display())]
    Load {
        path: PathBuf,
        parameters: String,
        source: io::Error,
    },
    #[error("cannot unload the kernel module {name}: end all other virtual machines first")]
    Unload { name: &'static str, source: Errno },
    #[error("modprobe does not load {name} ({parameters}): {why}")]
    Modprobe {
        name: &'static str,
        parameters: String,
        /// modprobe's output.
        why: String,
    },
}

/// KVM's module for one vendor's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// `kvm_intel`.
    Intel,
    /// `kvm_amd`.
    Amd,
}

impl Vendor {
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
        }
    }

    fn module_c(self) -> &'static CStr {
        match self {
            Self::Intel => c"kvm_intel",
            Self::Amd => c"kvm_amd",
        }
    }

    /// The module's file name.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Intel => "kvm-intel.ko",
            Self::Amd => "kvm-amd.ko",
        }
    }
}

/// Loads a module from a file.
pub(crate) fn load(path: &Path, parameters: &str) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::Load {
        path: path.to_owned(),
        parameters: parameters.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let text = CString::new(parameters).map_err(|e| failed(e.into()))?;
    match finit_module(&file, &text, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Attempts to unload: KVM frees a VM's resources shortly after the VM ends.
const TRIES: u32 = 20;

/// Unloads the vendor's module.
pub(crate) fn unload(vendor: Vendor) -> Result<(), ModuleError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match delete_module(vendor.module_c(), DeleteModuleFlags::O_NONBLOCK) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EBUSY) if tries < TRIES => sleep(Duration::from_millis(10)),
            Err(source) => {
                return Err(ModuleError::Unload {
                    name: vendor.module(),
                    source,
                });
            }
        }
    }
}

/// The source of the running kernel's module.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// modprobe, which applies this machine's parameters.
    Modprobe,
    /// A directory with the file, without parameters.
    Directory(PathBuf),
}

/// Unloads the vendor's module and loads it again with nesting on, and with `parameter`.
pub(crate) fn reload(vendor: Vendor, source: &Source, parameter: &str) -> Result<(), ModuleError> {
    unload(vendor)?;
    let parameters = format!("nested=1 {parameter}");
    match source {
        Source::Directory(directory) => load(&directory.join(vendor.file()), &parameters),
        Source::Modprobe => {
            let name = vendor.module();
            let failed = |why| ModuleError::Modprobe {
                name,
                parameters: parameters.clone(),
                why,
            };
            let output = Command::new("modprobe")
                .arg(name)
                .args(parameters.split(' '))
                .output()
                .map_err(|e| failed(e.to_string()))?;
            if output.status.success() {
                Ok(())
            } else {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(failed(format!("{} ({})", said.trim(), output.status)))
            }
        }
    }
}
