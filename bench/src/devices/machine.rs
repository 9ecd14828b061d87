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
