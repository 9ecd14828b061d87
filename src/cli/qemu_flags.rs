//! Detects QEMU flags in a command line of `hypernest run`, and names their equivalents.

use std::ffi::OsString;

use crate::devices::table::{DEVICE_TYPES, DeviceType};

/// The equivalent of a flag.
#[derive(Clone, Copy)]
enum Instead {
    /// This flag, with the same value.
    Same(&'static str),
    /// `--memory`; QEMU's unit is MiB if no suffix is given.
    Memory,
    /// `--cpu`, `--hv` and `--nested`.
    Cpu,
    /// `--debug-exit` for isa-debug-exit, and `--device`.
    Device,
    /// A serial port or console, with QEMU's back ends.
    Console(&'static str),
    /// None needed: it is always the case.
    LeaveOut(&'static str),
    /// Not available.
    Missing(&'static str),
}

use Instead::{Console, LeaveOut, Missing, Same};

const NO_DISK: Instead = Missing("there are no disks yet: boot from --kernel and --initrd");
const NO_NETWORK: Instead = Missing("there is no network yet");
const NO_DISPLAY: Instead = LeaveOut("there is no display; the guest's COM1 is on the terminal");
const MACHINE: Instead = LeaveOut(
    "the default, --machine pc-1, is like q35; the interrupt controllers are chosen by --irqchip",
);
const NO_FIRMWARE: Instead = Missing("there is no firmware yet: boot from --kernel");
const CONTROL: Instead =
    LeaveOut("`hypernest status`, `pause`, `save` and `migrate` and the control socket do its job");

/// QEMU's names, without dashes.
const FLAGS: [(&str, Instead); 48] = [
    ("kernel", Same("--kernel")),
    ("initrd", Same("--initrd")),
    ("append", Same("--cmdline")),
    ("smp", Same("--cpus")),
    ("name", Same("--name")),
    ("incoming", Same("--incoming")),
    ("m", Instead::Memory),
    ("cpu", Instead::Cpu),
    ("device", Instead::Device),
    ("serial", Console("--serial")),
    ("debugcon", Console("--debugcon")),
    ("enable-kvm", LeaveOut("hypernest always uses KVM")),
    ("accel", LeaveOut("hypernest always uses KVM")),
    ("machine", MACHINE),
    ("M", MACHINE),
    ("nographic", NO_DISPLAY),
    ("display", NO_DISPLAY),
    ("vga", NO_DISPLAY),
    ("vnc", NO_DISPLAY),
    (
        "nodefaults",
        LeaveOut("there are no default devices to remove"),
    ),
    (
        "no-user-config",
        LeaveOut("no configuration is read but that of --config"),
    ),
    ("monitor", CONTROL),
    ("qmp", CONTROL),
    ("drive", NO_DISK),
    ("blockdev", NO_DISK),
    ("hda", NO_DISK),
    ("hdb", NO_DISK),
    ("cdrom", NO_DISK),
    ("boot", NO_DISK),
    ("netdev", NO_NETWORK),
    ("nic", NO_NETWORK),
    ("net", NO_NETWORK),
    ("bios", NO_FIRMWARE),
    ("pflash", NO_FIRMWARE),
    ("hpet", Missing("there is no HPET, as KVM has none")),
    ("no-hpet", LeaveOut("there is no HPET")),
    ("no-reboot", Missing("a reset of the guest resets the VM")),
    ("no-shutdown", Missing("the guest's power-off ends the VM")),
    (
        "daemonize",
        LeaveOut("start it in the background, by a service manager for example"),
    ),
    (
        "pidfile",
        LeaveOut("`hypernest status NAME` shows the process"),
    ),
    (
        "S",
        Missing("pause it after the start: `hypernest pause NAME`"),
    ),
    ("s", Missing("there is no debugger stub")),
    ("gdb", Missing("there is no debugger stub")),
    ("rtc", LeaveOut("the real-time clock is in UTC")),
    ("usb", Missing("there is no USB")),
    (
        "object",
        Missing(
            "guest RAM's host memory is described by --memory: hugepages=2M, prealloc, mergeable, numa=NODES",
        ),
    ),
    ("mem-prealloc", Missing("write --memory SIZE,prealloc")),
    (
        "overcommit",
        Missing("for mem-lock=on write --memory SIZE,lock"),
    ),
];

/// Flags that hypernest accepts with two dashes, too.
fn is_ours(name: &str) -> bool {
    [
        "kernel", "initrd", "name", "incoming", "machine", "cpu", "serial", "debugcon", "append",
        "smp",
    ]
    .contains(&name)
}

/// A line for each flag of QEMU in `arguments`; none if there is no such flag.
pub(super) fn hints(arguments: &[OsString]) -> Vec<String> {
    let mut hints = Vec::new();
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
    let mut value_of_ours = false;
    let mut words = arguments.by_ref().peekable();
    while let Some(word) = words.next() {
        // A value may look like a flag: --cmdline -append.
        if std::mem::take(&mut value_of_ours) {
            continue;
        }
        let (name, ours) = match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(name), _) => (name, is_ours(name)),
            (None, Some(name)) => (name, false),
            (None, None) => continue,
        };
        value_of_ours = matches!(word.as_ref(), "--cmdline" | "--hv" | "--append");
        let Some((_, instead)) = FLAGS.iter().find(|(known, _)| *known == name && !ours) else {
            continue;
        };
        let value = words.next_if(|next| !next.starts_with('-'));
        let value = value.as_deref().unwrap_or_default();
        let shown = format!("{word} {value}");
        hints.push(format!("{}: {}", shown.trim_end(), instead.hint(value)));
    }
    hints
}

impl Instead {
    fn hint(self, value: &str) -> String {
        let given = |value: &str, placeholder: &str| {
            quoted(if value.is_empty() { placeholder } else { value })
        };
        match self {
            Self::Same(flag) => format!("write {flag} {}", given(value, "VALUE")),
            Self::Memory => {
                let size = value.split(',').next().unwrap_or_default();
                let size = size.strip_prefix("size=").unwrap_or(size);
                let unit = if size.ends_with(|c: char| c.is_ascii_digit()) {
                    "M"
                } else {
                    ""
                };
                format!("write --memory {}{unit}", given(size, "2G"))
            }
            Self::Cpu => cpu(value),
            Self::Device if value.starts_with("isa-debug-exit") => {
                let port = value
                    .split(',')
                    .find_map(|part| part.strip_prefix("iobase="));
                format!(
                    "write --debug-exit={}; the exit code is the byte that the guest writes, and not (2 * \
                     byte) | 1",
                    port.unwrap_or("0x501")
                )
            }
            Self::Device => match DeviceType::find(value.split(',').next().unwrap_or_default()) {
                // Buses, addresses and the like exist only in QEMU.
                Some(of) => format!("write --device {of}"),
                None => {
                    let names: Vec<_> = DEVICE_TYPES.iter().map(|row| row.name).collect();
                    format!("there is no such device; --device has {}", names.join(", "))
                }
            },
            Self::Console(flag) => {
                let backend = match value.split_once(':') {
                    None if value == "null" => "none",
                    Some(("mon", rest)) => rest,
                    _ => value,
                };
                let backend = match backend.strip_prefix("unix:") {
                    Some(path) => {
                        format!("socket:{}", path.split(',').next().unwrap_or_default())
                    }
                    None => backend.to_owned(),
                };
                format!("write {flag} {}", given(&backend, "stdio"))
            }
            Self::LeaveOut(why) => format!("leave it out: {why}"),
            Self::Missing(why) => why.to_owned(),
        }
    }
}

/// The equivalent of QEMU's `-cpu MODEL,FEATURE,…`.
fn cpu(value: &str) -> String {
    let mut parts = value.split(',');
    let model = match parts.next() {
        Some(model) if model.starts_with("x86-64-v") => model,
        // Other models have no counterpart.
        _ => "host",
    };
    let mut list = Vec::new();
    let mut nested = false;
    for part in parts {
        let name = part.replace('_', "-");
        if name.starts_with("hv-") {
            list.push(name.trim_end_matches("=on").to_owned());
        }
        nested |= ["+vmx", "+svm", "vmx=on", "svm=on", "vmx", "svm"].contains(&name.as_str());
    }
    let mut text = format!("write --cpu {model}");
    if !list.is_empty() {
        text.push_str(&format!(" --hv {}", quoted(&list.join(","))));
    }
    if nested {
        text.push_str(" --nested");
    }
    text
}

/// Quotes for a shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:=/+".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''").escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Vec<String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        hints(&words)
    }

    #[test]
    fn each_flag_of_qemu_is_answered_with_ours() {
        for (line, hint) in [
            ("-kernel vmlinuz", "-kernel vmlinuz: write --kernel vmlinuz"),
            ("-m 2048", "-m 2048: write --memory 2048M"),
            ("-m 2G", "-m 2G: write --memory 2G"),
            (
                "-m size=1G,slots=2",
                "-m size=1G,slots=2: write --memory 1G",
            ),
            ("-m", "-m: write --memory 2G"),
            ("-smp 4,cores=2", "-smp 4,cores=2: write --cpus 4,cores=2"),
            ("-append quiet", "-append quiet: write --cmdline quiet"),
            ("-cpu host", "-cpu host: write --cpu host"),
            (
                "-cpu host,hv_time,hv-vpindex=on,hv_spinlocks=0x1fff,+vmx,kvm=off",
                "-cpu host,hv_time,hv-vpindex=on,hv_spinlocks=0x1fff,+vmx,kvm=off: write --cpu host --hv \
                 hv-time,hv-vpindex,hv-spinlocks=0x1fff --nested",
            ),
            (
                "-cpu EPYC,+svm",
                "-cpu EPYC,+svm: write --cpu host --nested",
            ),
            (
                "-enable-kvm",
                "-enable-kvm: leave it out: hypernest always uses KVM",
            ),
            (
                "--enable-kvm",
                "--enable-kvm: leave it out: hypernest always uses KVM",
            ),
            (
                "-serial mon:stdio",
                "-serial mon:stdio: write --serial stdio",
            ),
            (
                "-serial unix:/tmp/s,server,nowait",
                "-serial unix:/tmp/s,server,nowait: write --serial socket:/tmp/s",
            ),
            ("-debugcon null", "-debugcon null: write --debugcon none"),
            (
                "-device isa-debug-exit,iobase=0xf4,iosize=4",
                "-device isa-debug-exit,iobase=0xf4,iosize=4: write --debug-exit=0xf4; the exit code is the \
                 byte that \
                 the guest writes, and not (2 * byte) | 1",
            ),
            (
                "-device virtio-rng-pci,bus=pcie.0",
                "-device virtio-rng-pci,bus=pcie.0: write --device virtio-rng",
            ),
            (
                "-device nvme",
                "-device nvme: there is no such device; --device has virtio-rng",
            ),
            (
                "-hda disk.img",
                "-hda disk.img: there are no disks yet: boot from --kernel and --initrd",
            ),
            (
                "-name $(reboot)",
                "-name $(reboot): write --name '$(reboot)'",
            ),
        ] {
            assert_eq!(of(line), [hint], "{line}");
        }
        assert_eq!(of("-enable-kvm -m 1G -nographic").len(), 3);
    }

    #[test]
    fn our_own_flags_are_no_qemu_flags() {
        for line in [
            "--kernel k --cpu host --serial stdio --name x --machine pc-1",
            "--append quiet --smp 4",
            "--cmdline -append --hv -m",
            "run -h",
        ] {
            assert_eq!(of(line), [""; 0], "{line}");
        }
    }
}
