//! The VMMs that are compared, and the command line of each for the same VM.

use std::path::Path;
use std::process::Command;

use hypernest::hyperv::HostHv;

use super::VmmError;
use crate::program;
use crate::qemu::{self, Qemu};

/// A VMM in one of its configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Hypernest,
    /// `-M q35` with the smallest firmware.
    Q35,
    /// `-M microvm` with its own firmware.
    Microvm,
}

/// The guest that it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) memory_mib: u32,
}

impl Contender {
    pub(crate) const ALL: [Self; 3] = [Self::Hypernest, Self::Q35, Self::Microvm];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hypernest => "hypernest",
            Self::Q35 => "QEMU q35+qboot",
            Self::Microvm => "QEMU microvm",
        }
    }

    /// The exit code of a guest program that succeeds.
    pub(crate) fn success(self) -> i32 {
        match self {
            Self::Hypernest => 0,
            // isa-debug-exit makes 2 * code + 1 of the guest's code.
            Self::Q35 | Self::Microvm => 1,
        }
    }

    /// Runs `guest`, with its debug console on standard output.
    pub(crate) fn command(self, guest: &Guest<'_>, terms: &Terms) -> Command {
        let memory = format!("{}M", guest.memory_mib);
        if self == Self::Hypernest {
            let mut command = Command::new(program::hypernest());
            command.arg("run").arg("--kernel").arg(guest.kernel);
            command.args(["--cmdline", guest.cmdline, "--memory", &memory]);
            command.args(["--hv", &terms.hv]);
            command.args(["--serial", "none", "--debugcon", "stdio", "--debug-exit"]);
            if let Some(initrd) = guest.initrd {
                command.arg("--initrd").arg(initrd);
            }
            return command;
        }
        let qemu = terms
            .qemu
            .as_ref()
            .expect("a QEMU contender exists only with QEMU");
        let mut command = qemu.command();
        match self {
            Self::Microvm => command.args(["-M", "microvm,isa-serial=off"]),
            Self::Q35 | Self::Hypernest => command.args(["-M", "q35", "-bios", "qboot.rom"]),
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "kvm", "-cpu", &terms.cpu, "-m", &memory]);
        command.args(["-append", guest.cmdline, "-kernel"]);
        command.arg(guest.kernel);
        command.args(["-chardev", "stdio,id=console"]);
        command.args(["-device", "isa-debugcon,iobase=0x402,chardev=console"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
        if let Some(initrd) = guest.initrd {
            command.arg("-initrd").arg(initrd);
        }
        command
    }
}

/// Parameters that all contenders share, in the syntax of each.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The enlightenments, for hypernest's `--hv`.
    hv: String,
    /// The same for QEMU's `-cpu`.
    cpu: String,
    /// QEMU, if it is measured.
    qemu: Option<Qemu>,
}

impl Terms {
    /// The parameters for the enlightenments of `list` on this host.
    pub(crate) fn new(list: &str, host: &HostHv, qemu: Option<Qemu>) -> Result<Self, VmmError> {
        let cpu = qemu::cpu(list, host, false).map_err(|why| VmmError::Enlightenments {
            list: list.to_owned(),
            why,
        })?;
        Ok(Self {
            hv: list.to_owned(),
            cpu,
            qemu,
        })
    }

    /// The enlightenments, for hypernest's `--hv`.
    pub(crate) fn hv(&self) -> &str {
        &self.hv
    }

    /// The same for QEMU's `-cpu`.
    pub(crate) fn cpu(&self) -> &str {
        &self.cpu
    }

    /// QEMU, if it is measured.
    pub(crate) fn qemu(&self) -> Option<&Qemu> {
        self.qemu.as_ref()
    }
}
