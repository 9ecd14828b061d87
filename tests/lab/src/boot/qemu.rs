//! The AMD lab: QEMU's TCG with SVM and nested paging.

use std::os::unix::net::UnixListener;
use std::process::Command;

use super::{BootError, Files, KERNEL_PARAMETERS, Listener, at};
use crate::host::Machine;
use crate::owned::tied;

pub(super) fn command(
    machine: &Machine,
    files: &Files<'_>,
) -> Result<(Listener, Command), BootError> {
    let program = files.held("QEMU", "qemu/qemu-system-x86_64")?;
    let kernel = files.held("kernel", &format!("{}/vmlinux", machine.kernel.directory()))?;
    let socket = files.run.join("line");
    let listener = UnixListener::bind(&socket).map_err(at(&socket))?;
    let without = machine.without.iter();
    let without: String = without.map(|f| format!(",{}=off", f.name())).collect();
    let mut command = tied(program).map_err(at(files.run))?;
    command
        .args([
            "-machine",
            "q35",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-accel", "tcg,thread=multi"])
        .args(["-cpu", &format!("EPYC,svm=on,npt=on{without}")])
        .args(["-smp", &machine.cpus.to_string()])
        .args(["-m", &format!("{}M", machine.memory_mib)])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(files.initramfs)
        .args(["-append", KERNEL_PARAMETERS])
        .args([
            "-chardev",
            &format!("file,id=log,path={}", escape(files.kernel_log)),
        ])
        .args([
            "-chardev",
            &format!("socket,id=line,path={}", escape(&socket)),
        ])
        .args(["-serial", "chardev:log", "-serial", "chardev:line"]);
    // The file of what is written to the disks, which has no name.
    command.env("TMPDIR", files.run);
    for (number, disk) in machine.disks.iter().enumerate() {
        let image = files.held("disk", disk)?;
        let format = match image.extension() {
            Some(ending) if ending == "qcow2" => "qcow2",
            _ => "raw",
        };
        // Nothing of it is kept, so nothing need be flushed.
        let drive = format!(
            "if=none,id=disk{number},format={format},snapshot=on,cache=unsafe,file={}",
            escape(&image)
        );
        let device = format!("virtio-blk-pci,drive=disk{number}");
        command.args(["-drive", &drive, "-device", &device]);
    }
    Ok((Listener::Unix(listener), command))
}

/// A comma in the value of a QEMU option is written twice.
fn escape(path: &std::path::Path) -> String {
    path.display().to_string().replace(',', ",,")
}
