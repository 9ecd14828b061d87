//! The VMMs that are compared, and how each is asked for the same VM.

use std::path::Path;
use std::process::Command;

use hypernest::hyperv::{HostHv, Profile, Request, qemu, resolve};

use super::VmmError;

/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";

/// A VMM in one of its shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contender {
    Hypernest,
    /// `-M q35` with the leanest firmware.
    Q35,
    /// `-M microvm` with the firmware that it brings.
    Microvm,
}

/// What runs in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initrd: Option<&'a Path>,
    pub(super) cmdline: &'a str,
    pub(super) memory_mib: u32,
}

impl Contender {
    pub(super) const ALL: [Self; 3] = [Self::Hypernest, Self::Q35, Self::Microvm];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hypernest => "hypernest",
            Self::Q35 => "QEMU q35+qboot",
            Self::Microvm => "QEMU microvm",
        }
    }

    /// The exit code of a guest program that ends well.
    pub(super) fn success(self) -> i32 {
        match self {
            Self::Hypernest => 0,
            // isa-debug-exit makes 2 * code + 1 of the guest's code.
            Self::Q35 | Self::Microvm => 1,
        }
    }

    /// The name of the mapping that is guest RAM.
    pub(super) fn ram_mapping(self) -> &'static str {
        match self {
            Self::Hypernest => "/memfd:hypernest-ram",
            Self::Q35 | Self::Microvm => "/memfd:memory-backend-memfd",
        }
    }

    /// Runs `guest`, with its debug console on standard output.
    pub(super) fn command(self, guest: &Guest<'_>, enlightenments: &Enlightenments) -> Command {
        let memory = format!("{}M", guest.memory_mib);
        if self == Self::Hypernest {
            let mut command = Command::new("hypernest");
            command.arg("run").arg("--kernel").arg(guest.kernel);
            command.args(["--cmdline", guest.cmdline, "--memory", &memory]);
            command.args(["--hv", &enlightenments.list]);
            command.args(["--serial", "none", "--debugcon", "stdio", "--debug-exit"]);
            if let Some(initrd) = guest.initrd {
                command.arg("--initrd").arg(initrd);
            }
            return command;
        }
        let mut command = Command::new(QEMU);
        match self {
            Self::Microvm => command.args(["-M", "microvm,memory-backend=ram,isa-serial=off"]),
            Self::Q35 | Self::Hypernest => {
                command.args(["-M", "q35,memory-backend=ram", "-bios", "qboot.rom"])
            }
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        let separator = if enlightenments.qemu.is_empty() {
            ""
        } else {
            ","
        };
        let cpu = format!("host,kvm=off{separator}{}", enlightenments.qemu);
        command.args(["-accel", "kvm", "-cpu", &cpu, "-m", &memory]);
        // A memory file as hypernest's, so that guest RAM can be told from the rest.
        let ram = format!("memory-backend-memfd,id=ram,size={memory}");
        command.args(["-object", &ram, "-append", guest.cmdline, "-kernel"]);
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

/// The same enlightenments for each.
#[derive(Debug, Clone)]
pub(super) struct Enlightenments {
    /// For hypernest's `--hv`.
    pub(super) list: String,
    /// For QEMU's `-cpu`.
    pub(super) qemu: String,
}

impl Enlightenments {
    /// Those of `list` on this host.
    pub(super) fn new(list: &str, host: &HostHv) -> Result<Self, VmmError> {
        let refused = |why: String| VmmError::Enlightenments {
            list: list.to_owned(),
            why,
        };
        let request = Request::parse(list, Profile::None).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            refused(problems.join("; "))
        })?;
        let resolved = resolve(&request, host, false).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            refused(problems.join("; "))
        })?;
        Ok(Self {
            list: list.to_owned(),
            qemu: qemu::flags(&request, &resolved),
        })
    }
}
