//! All settings: the flags, the keys of the file, and the checks of the documentation are derived from this
//! table.

use super::problem::{Origin, Problem};
use crate::devices::table::{DEVICE_TYPES, Takes};

/// One setting: the flag `--key`, and `key` in the file.
#[derive(Debug)]
pub struct Setting {
    /// The flag's name without dashes, and the key in the file.
    pub key: &'static str,
    /// The form of the value.
    pub shape: Shape,
    /// The value's name in the help, e.g. `SIZE`.
    pub value: &'static str,
    /// The help text, one line; `{types}` in it stands for the types of devices.
    pub help: &'static str,
    /// A correct use of the flag's value.
    pub flag_example: &'static str,
    /// A correct line of the file.
    pub file_example: &'static str,
}

/// The settings of the host that restores a saved VM, as opposed to the guest's.
pub(super) const LOCAL: [&str; 21] = [
    "name",
    "kernel",
    "initrd",
    "module",
    "firmware-vars",
    "memory",
    "pin",
    "disk",
    "net",
    "console",
    "serial",
    "serial2",
    "debugcon",
    "on-crash",
    "on-triple-fault",
    "stop-timeout",
    "dirty-ring-size",
    "tsc-khz",
    "on-tsc-change",
    "clock",
    "stats",
];

/// In a help text: the types of devices.
const TYPES: &str = "{types}";

/// Parts that are true if only their name is given.
const SWITCHES: [&str; 3] = ["prealloc", "mergeable", "lock"];

/// A key of devices that is true if only its name is given.
fn is_device_switch(name: &str) -> bool {
    let mut keys = DEVICE_TYPES.iter().flat_map(|row| row.keys);
    keys.any(|key| key.name == name && matches!(key.takes, Takes::Switch))
}

/// The form of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// True or false; the flag alone means true.
    Switch,
    /// One value that may be omitted.
    Optional,
    /// `VALUE[,NAME=VALUE]...`: a string like that or a table. The first name is that of the leading value.
    Parts(&'static [&'static str]),
    /// As `Parts`, but may be given several times, and the last part extends to the end, including commas.
    Files(&'static [&'static str]),
    /// As `Parts`, but may be given several times; the names are those of the device's type.
    Devices,
    /// Comma lists; may be given several times.
    List,
}

/// QEMU's names for flags with the same values.
pub(super) fn aliases(key: &str) -> &'static [&'static str] {
    match key {
        "cmdline" => &["append"],
        "cpus" => &["smp"],
        _ => &[],
    }
}

/// The heading above a flag in the help: that of docs/configuration.md.
pub(super) fn heading(key: &str) -> &'static str {
    match key {
        "name" | "kernel" | "initrd" | "cmdline" | "module" | "firmware" | "firmware-vars" => {
            "What boots"
        }
        "memory" | "cpus" | "pin" | "cpu" | "nested" | "hv" | "kvm-leaves" => {
            "Memory and processors"
        }
        "tsc-khz" | "on-tsc-change" | "clock" => "Time",
        "on-crash" | "on-triple-fault" | "stop-timeout" | "stats" => "Reactions to guest events",
        _ => "Devices",
    }
}

impl Setting {
    /// Whether each use adds to earlier ones.
    pub(super) fn repeats(&self) -> bool {
        matches!(self.shape, Shape::Files(_) | Shape::Devices | Shape::List)
    }

    /// The help of its flag.
    pub(super) fn flag_help(&self) -> String {
        let types = DEVICE_TYPES.iter();
        let types = types.map(|row| format!("{} ({})", row.name, row.about));
        let types: Vec<_> = types.collect();
        self.help.replace(TYPES, &types.join(", "))
    }

    /// The example in the notation of `origin`.
    pub(super) fn example(&self, origin: &Origin) -> String {
        match origin {
            Origin::Flag(_) => format!("for example: --{}{}", self.key, self.flag_example),
            Origin::File { .. } => format!("for example: {}", self.file_example),
        }
    }

    /// A problem with this setting.
    pub(super) fn problem(
        &self,
        origin: &Origin,
        what: impl AsRef<str>,
        expected: &str,
    ) -> Problem {
        let what = match origin {
            Origin::Flag(_) => what.as_ref().to_owned(),
            Origin::File { .. } => format!("{}: {}", self.key, what.as_ref()),
        };
        Problem {
            origin: origin.clone(),
            what,
            help: Some(format!("expected {expected}; {}", self.example(origin))),
        }
    }
}

/// A value as it was given, not yet interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    /// A flag's text, or a string in the file.
    Text(String),
    /// An integer in the file.
    Integer(i64),
    /// A boolean in the file, or a flag that needs no value.
    Boolean(bool),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Escaped, since the text may contain terminal control sequences.
            Self::Text(text) if text.len() <= 200 => write!(f, "{text:?}"),
            Self::Text(text) => {
                write!(f, "{:?}...", text.chars().take(60).collect::<String>())
            }
            Self::Integer(n) => write!(f, "{n}"),
            Self::Boolean(b) => write!(f, "{b}"),
        }
    }
}

/// A part of a value: the leading one has no name if it was given as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// As in `hugepages=2M`.
    pub(super) name: Option<String>,
    /// Its value.
    pub(super) value: Scalar,
    /// Its origin.
    pub(super) origin: Origin,
}

/// One use of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its origin.
    pub(super) origin: Origin,
    /// At least one, except for an empty table.
    pub(super) parts: Vec<Part>,
}

impl Entry {
    /// Splits a value given as one scalar according to the setting's shape.
    pub(super) fn new(setting: &Setting, value: Scalar, origin: Origin) -> Self {
        let part = |name: Option<&str>, value: Scalar| Part {
            name: name.map(str::to_owned),
            value,
            origin: origin.clone(),
        };
        let is_switch = |piece: &str| match setting.shape {
            Shape::Parts(names) => SWITCHES.contains(&piece) && names.contains(&piece),
            Shape::Devices => is_device_switch(piece),
            _ => false,
        };
        let parts = match (setting.shape, &value) {
            (Shape::Parts(_) | Shape::Devices, Scalar::Text(text)) => text
                .split(',')
                .enumerate()
                .map(|(i, piece)| match piece.split_once('=') {
                    Some((name, value)) => part(Some(name.trim()), Scalar::Text(value.into())),
                    None if is_switch(piece) && !(i == 0 && setting.shape == Shape::Devices) => {
                        part(Some(piece), Scalar::Boolean(true))
                    }
                    None => part(None, Scalar::Text(piece.into())),
                })
                .collect(),
            (Shape::Files(names), Scalar::Text(text)) => {
                let last = names.last().copied().unwrap_or_default();
                match text.split_once(&format!(",{last}=")) {
                    Some((path, rest)) => vec![
                        part(None, Scalar::Text(path.into())),
                        part(Some(last), Scalar::Text(rest.into())),
                    ],
                    None => vec![part(None, value)],
                }
            }
            _ => vec![part(None, value)],
        };
        Self { origin, parts }
    }
}

/// The setting called `key`.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.key == key)
}

/// Every setting, in the order of the help.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "name",
        shape: Shape::One,
        value: "NAME",
        help: "The VM's name, for `hypernest status NAME` and the like [default: vm-PID]",
        flag_example: " windows-11",
        file_example: "name = \"windows-11\"",
    },
    Setting {
        key: "kernel",
        shape: Shape::One,
        value: "FILE",
        help: "What to boot: a Linux bzImage, an ELF kernel with a PVH note, or a multiboot 1 image",
        flag_example: " vmlinuz",
        file_example: "kernel = \"vmlinuz\"",
    },
    Setting {
        key: "initrd",
        shape: Shape::One,
        value: "FILE",
        help: "The initial RAM disk",
        flag_example: " initrd.img",
        file_example: "initrd = \"initrd.img\"",
    },
    Setting {
        key: "cmdline",
        shape: Shape::One,
        value: "TEXT",
        help: "The kernel's command line",
        flag_example: " 'console=ttyS0 root=/dev/vda1'",
        file_example: "cmdline = \"console=ttyS0 root=/dev/vda1\"",
    },
    Setting {
        key: "module",
        shape: Shape::Files(&["path", "args"]),
        value: "FILE[,args=TEXT]",
        help: "A further module for PVH and multiboot kernels, in order; `args` runs to the end. Repeatable",
        flag_example: " dom0-vmlinuz,args=console=hvc0",
        file_example: "module = [{ path = \"dom0-vmlinuz\", args = \"console=hvc0\" }]",
    },
    Setting {
        key: "firmware",
        shape: Shape::Parts(&["path", "template"]),
        value: "FILE[,template=FILE]",
        help: "Firmware that boots from a disk, instead of a kernel: uefi or seabios (as this host has it \
            installed), or a flash image; template: the variables that it starts with [default: those beside \
            FILE]",
        flag_example: " OVMF_CODE_4M.fd",
        file_example: "firmware = \"OVMF_CODE_4M.fd\"",
    },
    Setting {
        key: "firmware-vars",
        shape: Shape::One,
        value: "FILE",
        help: "The VM's own file of UEFI variables, made if there is none [default: they are gone when the \
            VM ends]",
        flag_example: " vm.vars",
        file_example: "firmware-vars = \"vm.vars\"",
    },
    Setting {
        key: "memory",
        shape: Shape::Parts(&["size", "hugepages", "prealloc", "mergeable", "lock", "numa"]),
        value: "SIZE[,hugepages=2M|1G][,prealloc][,mergeable][,lock][,numa=NODES]",
        help: "Guest RAM; prealloc: all of it at the start; mergeable: by KSM; lock: never in swap; numa: \
            from these nodes of the host [default: 1G]",
        flag_example: " 2G,hugepages=2M",
        file_example: "memory = { size = \"2G\", hugepages = \"2M\" }",
    },
    Setting {
        key: "cpus",
        shape: Shape::Parts(&["count", "sockets", "cores", "threads"]),
        value: "N[,sockets=N][,cores=N][,threads=N]",
        help: "Virtual processors and how they are grouped [default: 1]",
        flag_example: " 4,sockets=1,cores=2,threads=2",
        file_example: "cpus = { count = 4, sockets = 1, cores = 2, threads = 2 }",
    },
    Setting {
        key: "pin",
        shape: Shape::One,
        value: "CPUS",
        help: "The CPUs of the host that the vCPUs run on: one for each in turn, or VCPU=CPU for some \
            [default: any]",
        flag_example: " 2-5",
        file_example: "pin = \"0=4-5\"",
    },
    Setting {
        key: "cpu",
        shape: Shape::One,
        value: "MODEL[,-FEATURE...]",
        help: "The CPU that the guest sees: host, x86-64-v2, x86-64-v3 or x86-64-v4, and features to \
               hide [default: host]",
        flag_example: " host,-flushbyasid",
        file_example: "cpu = \"host,-flushbyasid\"",
    },
    Setting {
        key: "nested",
        shape: Shape::Switch,
        value: "BOOL",
        help: "Show VMX or SVM to the guest, so that it can run guests of its own",
        flag_example: "",
        file_example: "nested = true",
    },
    Setting {
        key: "hv",
        shape: Shape::List,
        value: "LIST",
        help: "Hyper-V enlightenments and profiles (none, windows, nested, all, passthrough); -NAME leaves \
            one out. Repeatable [default: windows, or nested with --nested]",
        flag_example: " nested,-hv-evmcs,hv-spinlocks=0x1fff",
        file_example: "hv = [\"nested\", \"-hv-evmcs\", \"hv-spinlocks=0x1fff\"]",
    },
    Setting {
        key: "kvm-leaves",
        shape: Shape::Switch,
        value: "BOOL",
        help: "Show KVM's own paravirtual CPUID leaves, at 0x40000000 or, beside Hyper-V's, at 0x40000100 \
            [default: true where Linux would find no clock of Hyper-V's, else false]",
        flag_example: "",
        file_example: "kvm-leaves = true",
    },
    Setting {
        key: "machine",
        shape: Shape::One,
        value: "TYPE",
        help: "The board: pc-1 (like QEMU's q35) or direct-1 (as of earlier versions) [default: pc-1]",
        flag_example: " pc-1",
        file_example: "machine = \"pc-1\"",
    },
    Setting {
        key: "serial",
        shape: Shape::One,
        value: "BACKEND",
        help: "COM1: none, stdio, file:PATH, pty or socket:PATH [default: stdio, unless a --console has it]",
        flag_example: " file:console.log",
        file_example: "serial = \"file:console.log\"",
    },
    Setting {
        key: "serial2",
        shape: Shape::One,
        value: "BACKEND",
        help: "COM2, as COM1 [default: none]",
        flag_example: " socket:debug.sock",
        file_example: "serial2 = \"socket:debug.sock\"",
    },
    Setting {
        key: "debugcon",
        shape: Shape::One,
        value: "BACKEND",
        help: "The debug console at I/O port 0x402, as COM1 [default: no such device]",
        flag_example: " file:firmware.log",
        file_example: "debugcon = \"file:firmware.log\"",
    },
    Setting {
        key: "debug-exit",
        shape: Shape::Optional,
        value: "PORT",
        help: "The debug-exit device: a byte written to it ends the VM with that exit code [port when left \
            out: 0xf4]",
        flag_example: "=0xf4",
        file_example: "debug-exit = 0xf4",
    },
    Setting {
        key: "fw-cfg",
        shape: Shape::Switch,
        value: "BOOL",
        help: "QEMU's firmware configuration device at I/O port 0x510, with the number of CPUs and the size \
            of RAM [default: true]",
        flag_example: "=false",
        file_example: "fw-cfg = false",
    },
    Setting {
        key: "disk",
        shape: Shape::Devices,
        value: "FILE[,KEY=VALUE]...",
        help: "A disk: --device virtio-blk with this raw image. Repeatable; of a restored VM, the images of \
            its disks",
        flag_example: " disk.raw,cache=none",
        file_example: "disk = [\"disk.raw,cache=none\"]",
    },
    Setting {
        key: "net",
        shape: Shape::Devices,
        value: "KIND[,KEY=VALUE]...",
        help: "A network card: --device virtio-net on this network: user (by passt), tap, stream, loopback \
            or none. Repeatable; of a restored VM, the networks of its cards",
        flag_example: " tap,ifname=tap0",
        file_example: "net = [\"tap,ifname=tap0\"]",
    },
    Setting {
        key: "console",
        shape: Shape::Devices,
        value: "BACKEND[,KEY=VALUE]...",
        help: "A virtio console: --device virtio-console with this back end, as COM1; with name=NAME a port \
            of that name for programs. Repeatable; of a restored VM, the back ends of its consoles",
        flag_example: " socket:agent.sock,name=org.qemu.guest_agent.0",
        file_example: "console = [\"socket:agent.sock,name=org.qemu.guest_agent.0\"]",
    },
    Setting {
        key: "device",
        shape: Shape::Devices,
        value: "TYPE[,id=ID][,slot=N]",
        help: "A PCI device: {types}. Repeatable",
        flag_example: " virtio-rng,id=rng0,slot=3",
        file_example: "device = [{ type = \"virtio-rng\", id = \"rng0\", slot = 3 }]",
    },
    Setting {
        key: "irqchip",
        shape: Shape::One,
        value: "WHERE",
        help: "The interrupt controllers: kernel (all in KVM) or split (I/O APIC in hypernest, no PIC, no \
            PIT) [default: kernel]",
        flag_example: " split",
        file_example: "irqchip = \"split\"",
    },
    Setting {
        key: "on-crash",
        shape: Shape::One,
        value: "ACTION",
        help: "When the guest reports a crash: continue, pause, reset or stop [default: continue]",
        flag_example: " pause",
        file_example: "on-crash = \"pause\"",
    },
    Setting {
        key: "on-triple-fault",
        shape: Shape::One,
        value: "ACTION",
        help: "When a vCPU has a triple fault: reset, as a PC does, or stop with a report. Five in a row \
            within seconds stop the VM, too [default: reset]",
        flag_example: " stop",
        file_example: "on-triple-fault = \"stop\"",
    },
    Setting {
        key: "stop-timeout",
        shape: Shape::One,
        value: "SECONDS",
        help: "On SIGTERM the power button is pressed: end the VM if it has not powered off after so many \
            seconds [default: wait for as long as it takes]",
        flag_example: " 90",
        file_example: "stop-timeout = 90",
    },
    Setting {
        key: "tsc-khz",
        shape: Shape::One,
        value: "KHZ",
        help: "The frequency of the guest's TSC, by TSC scaling [default: the host's]",
        flag_example: " 2400000",
        file_example: "tsc-khz = 2400000",
    },
    Setting {
        key: "on-tsc-change",
        shape: Shape::One,
        value: "ACTION",
        help: "On a host with another TSC frequency: auto, scale (keep the guest's), reenlighten (tell the \
            guest) or refuse [default: auto]",
        flag_example: " scale",
        file_example: "on-tsc-change = \"scale\"",
    },
    Setting {
        key: "clock",
        shape: Shape::One,
        value: "ACTION",
        help: "While the VM is saved or on its way, the guest's clocks: continue or pause [default: \
            continue]",
        flag_example: " pause",
        file_example: "clock = \"pause\"",
    },
    Setting {
        key: "stats",
        shape: Shape::One,
        value: "FILE",
        help: "Write exit statistics to FILE (JSON) and FILE.hlog (HDR log) at the end and on SIGUSR1",
        flag_example: " exits.json",
        file_example: "stats = \"exits.json\"",
    },
    Setting {
        key: "dirty-ring-size",
        shape: Shape::One,
        value: "ENTRIES",
        help: "How many pages a vCPU may write to until hypernest must look, while the VM is moved; 0: a \
            bitmap of all RAM instead [default: 4096 where KVM has rings]",
        flag_example: " 8192",
        file_example: "dirty-ring-size = 8192",
    },
];
