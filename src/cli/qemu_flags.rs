//! QEMU's flags, and their equivalents for `hypernest run`.

use crate::devices::table::{DEVICE_TYPES, DeviceType};
use crate::net::passt::Forward;

/// The equivalent of a flag.
#[derive(Clone, Copy)]
pub(super) enum Instead {
    /// This flag, with the same value.
    Same(&'static str),
    /// `--memory`; QEMU's unit is MiB if no suffix is given.
    Memory,
    /// `--cpu`, `--hv` and `--nested`.
    Cpu,
    /// `--debug-exit` for isa-debug-exit, and `--device`.
    Device,
    /// `--disk` by QEMU's keys.
    Drive,
    /// `--net` by QEMU's keys.
    Net,
    /// `--disk` by its image.
    Disk,
    /// `--memory` for RAM, and what takes the place of QEMU's other objects.
    Object,
    /// A serial port or console, with QEMU's back ends.
    Console(&'static str),
    /// The back end of a serial port or console, which the device names here.
    Chardev,
    /// None needed: it is always the case.
    LeaveOut(&'static str),
    /// Not available.
    Missing(&'static str),
}

use Instead::{Console, LeaveOut, Missing, Same};

const BOOT_ORDER: Instead =
    LeaveOut("with --firmware, disks and network cards are booted from in their order");
const NO_DISPLAY: Instead = LeaveOut("there is no display; the guest's COM1 is on the terminal");
const MACHINE: Instead = LeaveOut(
    "the default, --machine pc-1, is like q35; the interrupt controllers are chosen by --irqchip",
);
const FIRMWARE: Instead = Missing("write --firmware uefi, seabios or FILE");
const FLASH: Instead =
    Missing("write --firmware CODE,template=VARS --firmware-vars FILE; uefi finds the first two");
const CONTROL: Instead =
    LeaveOut("`hypernest status`, `pause`, `save` and `migrate` and the control socket do its job");

/// QEMU's names, without dashes.
const FLAGS: [(&str, Instead); 49] = [
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
    ("chardev", Instead::Chardev),
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
    ("drive", Instead::Drive),
    (
        "blockdev",
        Missing("write --disk FILE,cache=…,readonly=…; it makes the device as well"),
    ),
    ("hda", Instead::Disk),
    ("hdb", Instead::Disk),
    ("cdrom", Missing("there is no CD-ROM yet")),
    ("boot", BOOT_ORDER),
    ("netdev", Instead::Net),
    ("nic", Instead::Net),
    ("net", Instead::Net),
    ("bios", FIRMWARE),
    ("pflash", FLASH),
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
    ("object", Instead::Object),
    ("mem-prealloc", Missing("write --memory SIZE,prealloc")),
    (
        "overcommit",
        Missing("for mem-lock=on write --memory SIZE,lock"),
    ),
];

/// QEMU's flags without a value.
const WITHOUT_VALUE: [&str; 12] = [
    "enable-kvm",
    "nographic",
    "nodefaults",
    "no-user-config",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "daemonize",
    "S",
    "s",
    "usb",
    "mem-prealloc",
];

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) text: String,
    /// The arguments that it says to write, if they are complete.
    pub(super) arguments: Vec<String>,
}

impl Hint {
    /// Write these arguments; the text may add something.
    pub(super) fn write(arguments: Vec<String>, more: &str) -> Self {
        let quoted: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
        let text = format!("write {}{more}", quoted.join(" "));
        Self { text, arguments }
    }

    /// Words.
    pub(super) fn say(text: impl Into<String>) -> Self {
        let (text, arguments) = (text.into(), Vec::new());
        Self { text, arguments }
    }

    /// Write this flag with this value; or with a value like the example, if there is none.
    pub(super) fn flag(flag: &str, value: &str, example: &str) -> Self {
        match value {
            "" => Self::say(format!("write {flag} {example}")),
            value => Self::write(vec![flag.to_owned(), value.to_owned()], ""),
        }
    }
}

/// The equivalent of the flag `name`, without its dashes.
pub(super) fn find(name: &str) -> Option<Instead> {
    let (_, instead) = FLAGS.iter().find(|(known, _)| *known == name)?;
    Some(*instead)
}

/// Whether the flag `name` has a value.
pub(super) fn has_value(name: &str) -> bool {
    !WITHOUT_VALUE.contains(&name)
}

impl Instead {
    /// What to write instead of the flag with `value`, which is empty if there is none.
    pub(super) fn hint(self, value: &str) -> Hint {
        match self {
            Self::Same(flag) => Hint::flag(flag, value, "VALUE"),
            Self::Memory => {
                let size = value.split(',').next().unwrap_or_default();
                let size = size.strip_prefix("size=").unwrap_or(size);
                let unit = if size.ends_with(|c: char| c.is_ascii_digit()) {
                    "M"
                } else {
                    ""
                };
                Hint::flag("--memory", &format!("{size}{unit}"), "2G")
            }
            Self::Cpu => cpu(value),
            Self::Device => device(value),
            Self::Object => object(value),
            Self::Drive => drive(value),
            Self::Disk => Hint::flag("--disk", value, "disk.raw"),
            Self::Net => net(value),
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
                Hint::flag(flag, &backend, "stdio")
            }
            Self::Chardev => chardev(value),
            Self::LeaveOut(why) => Hint::say(format!("leave it out: {why}")),
            Self::Missing(why) => Hint::say(why),
        }
    }
}

/// The equivalent of QEMU's `-device TYPE,KEY=VALUE,…`.
fn device(value: &str) -> Hint {
    let mut parts = value.split(',');
    let name = parts.next().unwrap_or_default();
    let pairs: Vec<_> = parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .collect();
    let of_key = |key: &str| {
        pairs
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, value)| *value)
    };
    if name == "isa-debug-exit" {
        let flag = format!("--debug-exit={}", of_key("iobase").unwrap_or("0x501"));
        let more = "; the exit code is the byte that the guest writes, and not (2 * byte) | 1";
        return Hint::write(vec![flag], more);
    }
    for (key, flag) in [("drive", "--disk"), ("netdev", "--net")] {
        if let (Some(_), Some(_)) = (DeviceType::find(name), of_key(key)) {
            return Hint::say(format!("leave it out: {flag} makes the device as well"));
        }
    }
    match name {
        "virtconsole" | "virtserialport" => {
            let name = of_key("name").map(|name| format!(",name={name}"));
            return Hint::say(format!(
                "write --console BACKEND{}, where BACKEND is what its chardev is",
                name.unwrap_or_default()
            ));
        }
        "virtio-serial" | "virtio-serial-pci" | "virtio-serial-device" => {
            return Hint::say("leave it out: --console makes the device as well");
        }
        _ => {}
    }
    let Some(of) = DeviceType::find(name) else {
        let names: Vec<_> = DEVICE_TYPES.iter().map(|row| row.name).collect();
        let names = names.join(", ");
        return Hint::say(format!("there is no such device; --device has {names}"));
    };
    let mut ours = of.to_string();
    let mut left: Vec<&str> = Vec::new();
    let on_bus_0 = of_key("bus").is_none_or(|bus| ["pcie.0", "pci.0"].contains(&bus));
    for (key, value) in &pairs {
        // QEMU reads an address as hexadecimal, with or without 0x.
        let slot = match *key {
            "addr" if on_bus_0 => value.strip_suffix(".0").unwrap_or(value),
            _ => "",
        };
        let slot = u8::from_str_radix(slot.trim_start_matches("0x"), 16).ok();
        let is_ours = of.row().keys.iter().any(|k| k.name == *key);
        match (*key, slot) {
            (_, Some(slot)) => ours.push_str(&format!(",slot={slot}")),
            ("id", _) => ours.push_str(&format!(",id={value}")),
            (key, _) if is_ours => ours.push_str(&format!(",{key}={value}")),
            ("", _) => {}
            (key, _) => left.push(key),
        }
    }
    let more = match left.as_slice() {
        [] => String::new(),
        keys => format!("; {} only QEMU has", keys.join(", ")),
    };
    Hint::write(vec!["--device".to_owned(), ours], &more)
}

/// The equivalent of QEMU's `-chardev KIND,KEY=VALUE,…`.
fn chardev(value: &str) -> Hint {
    let (kind, parts) = value.split_once(',').unwrap_or((value, ""));
    let path = parts.split(',').find_map(|part| part.strip_prefix("path="));
    let backend = match (kind, path) {
        ("stdio" | "pty", _) => kind.to_owned(),
        ("null", _) => "none".to_owned(),
        ("file", Some(path)) => format!("file:{path}"),
        ("socket", Some(path)) => format!("socket:{path}"),
        _ => return Hint::say("back ends are none, stdio, file:PATH, pty and socket:PATH"),
    };
    Hint::say(format!(
        "a device names its back end itself: write --console {backend}, or --serial {backend}"
    ))
}

/// The equivalent of QEMU's `-drive file=FILE,KEY=VALUE,…`.
fn drive(value: &str) -> Hint {
    let mut disk = String::new();
    let mut rest = String::new();
    let mut left: Vec<&str> = Vec::new();
    for part in value.split(',') {
        match part.split_once('=').unwrap_or((part, "")) {
            ("file", file) => disk = file.to_owned(),
            ("format", "raw") => rest.push_str(",format=raw"),
            ("if", "virtio" | "none") | ("media", "disk") => {}
            ("format", format) => {
                return Hint::say(format!(
                    "disks are raw images yet: `qemu-img convert -O raw` makes one of {format}"
                ));
            }
            ("media", _) => return Hint::say("there is no CD-ROM yet"),
            // Its other values have another meaning here.
            ("cache", cache @ ("none" | "writeback" | "writethrough" | "unsafe")) => {
                rest.push_str(&format!(",cache={cache}"));
            }
            (key @ ("id" | "readonly" | "discard" | "serial"), value) => {
                rest.push_str(&format!(",{key}={value}"));
            }
            ("", _) => {}
            (key, _) => left.push(key),
        }
    }
    if disk.is_empty() {
        return Hint::say("write --disk disk.raw");
    }
    let more = match left.as_slice() {
        [] => String::new(),
        keys => format!("; {} only QEMU has", keys.join(", ")),
    };
    Hint::write(vec!["--disk".to_owned(), format!("{disk}{rest}")], &more)
}

/// The equivalent of QEMU's `-netdev KIND,KEY=VALUE,…` and of `-nic`, which is the same with a device.
fn net(value: &str) -> Hint {
    let (kind, parts) = value.split_once(',').unwrap_or((value, ""));
    let kind = match kind {
        "" => return Hint::say("write --net user"),
        "none" | "nic" => {
            return Hint::say("leave it out: a VM has the cards of --net and no others");
        }
        "user" | "passt" => "user",
        "tap" | "stream" => kind,
        "bridge" => {
            return Hint::say("write --net tap,ifname=TAP, where TAP is a port of the bridge");
        }
        "socket" | "dgram" => {
            return Hint::say("write --net stream,path=SOCKET, at one end with server=on");
        }
        kind => return Hint::say(format!("there is no network of the kind {kind}")),
    };
    let mut ours = kind.to_owned();
    let mut left: Vec<&str> = Vec::new();
    for part in parts.split(',') {
        match part.split_once('=').unwrap_or((part, "")) {
            ("", _) | ("model", "virtio" | "virtio-net-pci") | ("addr.type", "unix") => {}
            ("addr.type", _) => {
                return Hint::say(
                    "streams are those of Unix sockets: write --net stream,path=SOCKET",
                );
            }
            ("hostfwd", forward) if Forward::parse(forward).is_none() => {
                return Hint::say(
                    "the guest's address is not given: write --net user,hostfwd=tcp::2222-:22",
                );
            }
            ("restrict", "on" | "yes" | "y") => {
                return Hint::say(
                    "a network cannot be restricted: passt gives the guest the host's",
                );
            }
            ("addr.path", path) => ours.push_str(&format!(",path={path}")),
            ("fds", fds) => ours.push_str(&format!(",fd={fds}")),
            (key @ ("id" | "mac" | "hostfwd" | "ifname" | "fd" | "queues" | "server"), value) => {
                ours.push_str(&format!(",{key}={value}"));
            }
            // There are none.
            ("script" | "downscript", "no" | "") => {}
            (key, _) => left.push(key),
        }
    }
    let more = match left.as_slice() {
        [] => String::new(),
        keys => format!("; {} only QEMU has", keys.join(", ")),
    };
    Hint::write(vec!["--net".to_owned(), ours], &more)
}

/// The equivalent of QEMU's `-object TYPE,…`.
fn object(value: &str) -> Hint {
    let name = value.split(',').next().unwrap_or_default();
    Hint::say(match name.split('-').next().unwrap_or_default() {
        "memory" => {
            "guest RAM's host memory is described by --memory: hugepages=2M, prealloc, mergeable, numa=NODES"
        }
        "rng" => "leave it out: --device virtio-rng has the host's random bytes without it",
        "tls" => "a migration's certificates are named by --tls-cert, --tls-key and --tls-ca",
        "iothread" => "leave it out: devices have their own threads",
        _ => "leave it out: there are no objects of QEMU",
    })
}

/// The equivalent of QEMU's `-cpu MODEL,FEATURE,…`.
fn cpu(value: &str) -> Hint {
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
        if name.starts_with("hv-") && !name.ends_with("=off") {
            list.push(name.trim_end_matches("=on").to_owned());
        }
        nested |= ["+vmx", "+svm", "vmx=on", "svm=on", "vmx", "svm"].contains(&name.as_str());
    }
    let mut arguments = vec!["--cpu".to_owned(), model.to_owned()];
    if !list.is_empty() {
        arguments.extend(["--hv".to_owned(), list.join(",")]);
    }
    if nested {
        arguments.push("--nested".to_owned());
    }
    Hint::write(arguments, "")
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

    fn of(line: &str) -> String {
        let (flag, value) = line.split_once(' ').unwrap_or((line, ""));
        let hint = find(flag.trim_start_matches('-')).unwrap().hint(value);
        format!("{line}: {}", hint.text)
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
                "-chardev socket,path=/run/qga,server=on,wait=off,id=qga",
                "-chardev socket,path=/run/qga,server=on,wait=off,id=qga: a device names its back end \
                 itself: write --console socket:/run/qga, or --serial socket:/run/qga",
            ),
            (
                "-chardev udp,id=x",
                "-chardev udp,id=x: back ends are none, stdio, file:PATH, pty and socket:PATH",
            ),
            (
                "-device virtio-serial-pci",
                "-device virtio-serial-pci: leave it out: --console makes the device as well",
            ),
            (
                "-device virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
                "-device virtserialport,chardev=qga,name=org.qemu.guest_agent.0: write --console \
                 BACKEND,name=org.qemu.guest_agent.0, where BACKEND is what its chardev is",
            ),
            (
                "-device isa-debug-exit,iobase=0xf4,iosize=4",
                "-device isa-debug-exit,iobase=0xf4,iosize=4: write --debug-exit=0xf4; the exit code is the \
                 byte that \
                 the guest writes, and not (2 * byte) | 1",
            ),
            (
                "-device virtio-rng-pci,bus=pcie.0",
                "-device virtio-rng-pci,bus=pcie.0: write --device virtio-rng; bus only QEMU has",
            ),
            (
                "-device virtio-rng-pci,addr=0x5,id=r",
                "-device virtio-rng-pci,addr=0x5,id=r: write --device virtio-rng,slot=5,id=r",
            ),
            (
                "-device virtio-rng-pci,addr=10.0",
                "-device virtio-rng-pci,addr=10.0: write --device virtio-rng,slot=16",
            ),
            (
                "-device virtio-rng-pci,rng=r,bus=root1,addr=5",
                "-device virtio-rng-pci,rng=r,bus=root1,addr=5: write --device virtio-rng; rng, bus, addr \
                 only QEMU has",
            ),
            (
                "-object memory-backend-memfd,id=m",
                "-object memory-backend-memfd,id=m: guest RAM's host memory is described by --memory: \
                 hugepages=2M, prealloc, mergeable, numa=NODES",
            ),
            (
                "-object rng-random,id=r",
                "-object rng-random,id=r: leave it out: --device virtio-rng has the host's random bytes \
                 without it",
            ),
            (
                "-object secret,id=s",
                "-object secret,id=s: leave it out: there are no objects of QEMU",
            ),
            (
                "-device nvme",
                "-device nvme: there is no such device; --device has virtio-balloon, virtio-blk, \
                 virtio-console, virtio-net, virtio-rng",
            ),
            ("-hda disk.img", "-hda disk.img: write --disk disk.img"),
            (
                "-drive file=a.raw,if=virtio,format=raw,cache=none,readonly=on,aio=native",
                "-drive file=a.raw,if=virtio,format=raw,cache=none,readonly=on,aio=native: write --disk \
                 a.raw,format=raw,cache=none,readonly=on; aio only QEMU has",
            ),
            (
                "-drive a.qcow2,format=qcow2",
                "-drive a.qcow2,format=qcow2: disks are raw images yet: `qemu-img convert -O raw` makes one \
                 of qcow2",
            ),
            (
                "-device virtio-blk-pci,drive=d0",
                "-device virtio-blk-pci,drive=d0: leave it out: --disk makes the device as well",
            ),
            (
                "-netdev user,id=n0,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53",
                "-netdev user,id=n0,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53: write --net \
                 user,id=n0,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53",
            ),
            (
                "-netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on",
                "-netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on: write --net \
                 tap,id=n0,ifname=tap0; vhost only QEMU has",
            ),
            (
                "-netdev stream,id=n0,server=on,addr.type=unix,addr.path=/run/n",
                "-netdev stream,id=n0,server=on,addr.type=unix,addr.path=/run/n: write --net \
                 stream,id=n0,server=on,path=/run/n",
            ),
            (
                "-nic user,model=virtio,mac=52:54:00:12:34:56",
                "-nic user,model=virtio,mac=52:54:00:12:34:56: write --net user,mac=52:54:00:12:34:56",
            ),
            (
                "-nic none",
                "-nic none: leave it out: a VM has the cards of --net and no others",
            ),
            (
                "-netdev user,id=n,hostfwd=tcp::1-10.0.2.15:1",
                "-netdev user,id=n,hostfwd=tcp::1-10.0.2.15:1: the guest's address is not given: write \
                 --net user,hostfwd=tcp::2222-:22",
            ),
            (
                "-netdev user,id=n,restrict=on",
                "-netdev user,id=n,restrict=on: a network cannot be restricted: passt gives the guest the \
                 host's",
            ),
            (
                "-netdev stream,id=n,addr.type=inet,addr.port=1",
                "-netdev stream,id=n,addr.type=inet,addr.port=1: streams are those of Unix sockets: write \
                 --net stream,path=SOCKET",
            ),
            (
                "-netdev vde,id=n0",
                "-netdev vde,id=n0: there is no network of the kind vde",
            ),
            (
                "-device virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56",
                "-device virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56: leave it out: --net makes the \
                 device as well",
            ),
            (
                "-name $(reboot)",
                "-name $(reboot): write --name '$(reboot)'",
            ),
        ] {
            assert_eq!(of(line), hint, "{line}");
        }
    }

    #[test]
    fn flags_without_a_value_are_flags() {
        for name in WITHOUT_VALUE {
            assert!(find(name).is_some(), "{name}");
        }
    }
}
