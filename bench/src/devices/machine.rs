//! The command line of each VMM for the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Bench;
use super::network::{MAC, TAPS};
use crate::program;
use crate::vmm::contender::Contender;

/// The scratch disk's serial number, by which the guest finds it.
pub(super) const SERIAL: &str = "bench-scratch";

/// The name of hypernest's VM.
pub(super) const NAME: &str = "bench";

/// Where a VMM runs: before a migration, or after it.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory of its files, which both places share.
    pub(super) dir: PathBuf,
    /// The directory of hypernest's control socket.
    pub(super) runtime: PathBuf,
    tap: &'static str,
    is_destination: bool,
}

impl Place {
    /// Where a VM is started.
    pub(super) fn near(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            runtime: dir.join("near"),
            tap: TAPS[0],
            is_destination: false,
        }
    }

    /// Where it is migrated to.
    pub(super) fn other(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            runtime: self.dir.join("far"),
            tap: TAPS[1],
            is_destination: true,
        }
    }

    /// The socket at which the destination waits.
    pub(super) fn incoming(&self) -> PathBuf {
        self.dir.join("to")
    }

    /// The socket of QEMU's monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.dir.join("monitor")
    }
}

/// A VMM with the guest's disk, the scratch disk and a network card if there is a network, and the guest's
/// console on standard input and output.
pub(super) fn command(who: Contender, bench: &Bench, place: &Place) -> Command {
    match (who, place.is_destination) {
        (Contender::Hypernest, false) => ours(bench, place),
        (Contender::Hypernest, true) => our_destination(bench, place),
        _ => theirs(bench, place),
    }
}

fn our_destination(bench: &Bench, place: &Place) -> Command {
    let mut command = Command::new(program::hypernest());
    command.env("XDG_RUNTIME_DIR", &place.runtime);
    command.args(["run", "--name", NAME, "--incoming"]);
    command.arg(format!("unix:{}", place.incoming().display()));
    for disk in [&*bench.root, bench.scratch.path()] {
        command.arg("--disk").arg(disk);
    }
    command.args(["--net", &format!("tap,ifname={}", place.tap)]);
    command
}

fn ours(bench: &Bench, place: &Place) -> Command {
    let mut command = Command::new(program::hypernest());
    command.env("XDG_RUNTIME_DIR", &place.runtime);
    command.args(["run", "--name", NAME]);
    command.arg("--kernel").arg(&bench.kernel);
    if let Some(initrd) = &bench.initrd {
        command.arg("--initrd").arg(initrd);
    }
    command.args(["--cmdline", &bench.cmdline, "--hv", bench.terms.hv()]);
    command.args(["--memory", &format!("{}M", bench.memory_mib)]);
    command.args(["--cpus", &bench.cpus.to_string()]);
    command.args(["--disk", &bench.root.display().to_string()]);
    let scratch = bench.scratch.path().display();
    let (cache, queues) = (bench.cache.name(), bench.cpus);
    command.arg("--disk");
    command.arg(format!(
        "{scratch},cache={cache},serial={SERIAL},num-queues={queues}"
    ));
    if bench.has_network() {
        command.arg("--net");
        command.arg(format!("tap,ifname={},mac={MAC}", place.tap));
    }
    command
}

fn theirs(bench: &Bench, place: &Place) -> Command {
    let qemu = bench.terms.qemu();
    let mut command = qemu
        .expect("QEMU is measured only if it is there")
        .command();
    command.args(["-M", "q35", "-bios", "qboot.rom"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    // The threads have names.
    command.args(["-no-reboot", "-name", "bench,debug-threads=on"]);
    command.args(["-accel", "kvm", "-cpu", bench.terms.cpu()]);
    command.args(["-m", &format!("{}M", bench.memory_mib)]);
    command.args(["-smp", &bench.cpus.to_string()]);
    command.arg("-kernel").arg(&bench.kernel);
    if let Some(initrd) = &bench.initrd {
        command.arg("-initrd").arg(initrd);
    }
    command.args(["-append", &bench.cmdline]);
    command.args(["-chardev", "stdio,id=console,signal=off"]);
    command.args(["-serial", "chardev:console"]);
    command.args(["-object", "iothread,id=io"]);
    let engine = bench.engine.name();
    let (root, scratch) = (bench.root.display(), bench.scratch.path().display());
    let cache = bench.cache.name();
    let virtio = "virtio-blk-pci,disable-legacy=on,iothread=io";
    let queues = bench.cpus;
    for (drive, device) in [
        (
            format!("file={root},id=root,cache=writeback,aio=threads"),
            format!("{virtio},drive=root,num-queues=1"),
        ),
        (
            format!("file={scratch},id=scratch,cache={cache},aio={engine}"),
            format!("{virtio},drive=scratch,serial={SERIAL},num-queues={queues}"),
        ),
    ] {
        command.arg("-drive");
        command.arg(format!("if=none,format=raw,discard=unmap,{drive}"));
        command.args(["-device", &device]);
    }
    if bench.has_network() {
        // hypernest has no vhost.
        let tap = place.tap;
        command.arg("-netdev");
        command.arg(format!(
            "tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"
        ));
        command.arg("-device");
        command.arg(format!(
            "virtio-net-pci,disable-legacy=on,netdev=net,mac={MAC},romfile="
        ));
    }
    if place.is_destination {
        command.arg("-incoming");
        command.arg(format!("unix:{}", place.incoming().display()));
    } else if bench.migrates() {
        let monitor = place.monitor();
        command.arg("-qmp");
        command.arg(format!("unix:{},server=on,wait=off", monitor.display()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::loads::chosen;
    use crate::devices::scratch::Scratch;
    use crate::devices::{Cache, Engine};
    use crate::qemu::Qemu;
    use crate::usage;
    use crate::vmm::contender::Terms;
    use hypernest::hyperv::HostHv;
    use hypernest::kvm::host::{HostCaps, KvmFacts, System};
    use std::time::Duration;

    fn bench() -> Bench {
        let host = HostCaps {
            system: System::default(),
            kvm: KvmFacts::default(),
        };
        let qemu = Some(Qemu::Program("qemu".into()));
        Bench {
            loads: chosen(&[]),
            files: tempfile::tempdir().unwrap(),
            contenders: Vec::new(),
            terms: Terms::new("none", &HostHv::from(&host), qemu).unwrap(),
            kernel: "/proc/self/exe".into(),
            initrd: Some("/proc/self/exe".into()),
            root: "/proc/self/exe".into(),
            cmdline: "root=/dev/vda".to_owned(),
            prompt: "#".to_owned(),
            scratch: Scratch::new(None, None, 1).unwrap(),
            size_mib: 1,
            cache: Cache::None,
            engine: Engine::Threads,
            rounds: 1,
            seconds: 1,
            cpus: 2,
            memory_mib: 512,
            limit: Duration::from_secs(1),
        }
    }

    fn arguments(command: &Command) -> Vec<String> {
        let arguments = command.get_args();
        arguments
            .map(|a| a.to_string_lossy().into_owned())
            .collect()
    }

    fn flags(arguments: &[String]) -> Vec<(&str, &str)> {
        let pairs = arguments.chunks(2);
        pairs
            .map(|pair| (pair[0].trim_start_matches("--"), &*pair[1]))
            .collect()
    }

    #[test]
    fn hypernest_accepts_its_command_line() {
        let bench = bench();
        let near = Place::near(Path::new("/tmp"));
        let arguments = arguments(&command(Contender::Hypernest, &bench, &near));
        assert_eq!(arguments[0], "run");
        let flags = flags(&arguments[1..]);
        let count = |flag| flags.iter().filter(|(name, _)| *name == flag).count();
        assert_eq!((count("disk"), count("net")), (2, 1));
        assert_eq!(usage::of_vm(&flags), [""; 0]);
    }

    #[test]
    fn both_have_the_same_devices() {
        let bench = bench();
        let near = Place::near(Path::new("/tmp"));
        let both = [Contender::Hypernest, Contender::Q35].map(|who| {
            let arguments = arguments(&command(who, &bench, &near));
            arguments.join(" ")
        });
        let scratch = bench.scratch.path().display().to_string();
        for line in &both {
            for part in [
                &*scratch,
                "cache=none",
                "serial=bench-scratch",
                "num-queues=2",
                "512M",
                "ifname=bench0",
                MAC,
            ] {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
    }

    #[test]
    fn a_destination_has_a_tap_of_its_own() {
        let bench = bench();
        let far = Place::near(Path::new("/tmp")).other();
        let line = |who| arguments(&command(who, &bench, &far)).join(" ");
        let (ours, theirs) = (line(Contender::Hypernest), line(Contender::Q35));
        for line in [&ours, &theirs] {
            for part in ["ifname=bench1", "incoming unix:/tmp/to"] {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
        // All else comes from the source.
        assert!(!ours.contains("--kernel") && theirs.contains("-kernel"));
    }

    #[test]
    fn without_its_loads_there_is_no_network() {
        let bench = Bench {
            loads: chosen(&["disk".to_owned(), "memory".to_owned()]),
            ..bench()
        };
        let near = Place::near(Path::new("/tmp"));
        for who in [Contender::Hypernest, Contender::Q35] {
            let line = arguments(&command(who, &bench, &near)).join(" ");
            assert!(!line.contains("tap") && !line.contains("-qmp"), "{line}");
        }
    }
}
