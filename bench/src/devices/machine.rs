//! The command line of each VMM for the same machine.

use std::process::Command;

use super::Bench;
use crate::program;
use crate::vmm::contender::Contender;

/// The scratch disk's serial number, by which the guest finds it.
pub(super) const SERIAL: &str = "bench-scratch";

/// A VMM with the guest's disk and the scratch disk, and the guest's console on standard input and output.
pub(super) fn command(who: Contender, bench: &Bench) -> Command {
    match who {
        Contender::Hypernest => ours(bench),
        _ => theirs(bench),
    }
}

fn ours(bench: &Bench) -> Command {
    let mut command = Command::new(program::hypernest());
    command.arg("run").arg("--kernel").arg(&bench.kernel);
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
    command
}

fn theirs(bench: &Bench) -> Command {
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
    command
}

#[cfg(test)]
mod tests {
    use super::*;
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
            jobs: Vec::new(),
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

    #[test]
    fn hypernest_accepts_its_command_line() {
        let bench = bench();
        let arguments = arguments(&command(Contender::Hypernest, &bench));
        assert_eq!(arguments[0], "run");
        let flags: Vec<(&str, &str)> = arguments[1..]
            .chunks(2)
            .map(|pair| (pair[0].trim_start_matches("--"), &*pair[1]))
            .collect();
        assert_eq!(flags.iter().filter(|(name, _)| *name == "disk").count(), 2);
        assert_eq!(usage::of_vm(&flags), [""; 0]);
    }

    #[test]
    fn both_have_the_same_devices() {
        let bench = bench();
        let both = [Contender::Hypernest, Contender::Q35].map(|who| {
            let arguments = arguments(&command(who, &bench));
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
            ] {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
    }
}
