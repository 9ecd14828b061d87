//! The Intel lab: Bochs with VMX, EPT and shadow VMCS.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use super::flat::flat_image;
use super::{BootError, Files, KERNEL_PARAMETERS, Listener, at, run_program};
use crate::host::{IntelCpu, Kernel, Machine};
use crate::isolated;
use crate::owned::{OwnedChild, tied};

/// The maximum memory of Bochs.
const MAX_MEMORY_MIB: u32 = 2048;

/// The kernel refuses Skylake's TSC deadline timer (its microcode has no version), and assumes that the local
/// APIC's timer runs at the 24 MHz that CPUID reports; in Bochs it runs at the TSC's 3.5 GHz. With one-shot
/// timers each tick takes some 900 premature interrupts, and nearly every measurement contains one. A
/// periodic timer interrupts once in 96,000 instructions.
const PERIODIC_TICK: &str = "highres=off nohz=off";

pub(super) fn command(
    machine: &Machine,
    files: &Files<'_>,
) -> Result<(Listener, Command), BootError> {
    if machine.memory_mib > MAX_MEMORY_MIB {
        return Err(BootError::TooMuch(format!(
            "the Intel lab has at most {MAX_MEMORY_MIB} MiB of memory, not {}",
            machine.memory_mib
        )));
    }
    if !machine.disks.is_empty() {
        return Err(BootError::TooMuch(
            "the Intel lab has no disks: --disk is for the AMD lab".to_owned(),
        ));
    }
    if !machine.without.is_empty() {
        return Err(BootError::TooMuch(
            "the Intel lab's CPUs are fixed: --without is for the AMD lab".to_owned(),
        ));
    }
    let program = files.held("Bochs", "bochs/bochs")?;
    let share = files.held("Bochs firmware", "bochs/share")?;
    let iso = iso(files, &kernel(machine, files)?, machine)?;
    let debugger = has_debugger(&program)?;
    let Line {
        listener,
        port,
        mut command,
    } = line(&program, debugger, files)?;
    let mut configuration = format!(
        "megs: {memory}\n\
         cpu: model={model}, count={cpus}, ips=25000000, reset_on_triple_fault=0\n\
         romimage: file=\"{share}/BIOS-bochs-latest\"\n\
         vgaromimage: file=\"{share}/VGABIOS-lgpl-latest\"\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path=\"{iso}\", status=inserted\n\
         boot: cdrom\n\
         clock: sync=none\n\
         com1: enabled=1, mode=file, dev=\"{log}\"\n\
         com2: enabled=1, mode=socket-client, dev=\"127.0.0.1:{port}\"\n\
         log: \"{run}/bochs.log\"\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n",
        memory = machine.memory_mib,
        model = machine.intel.model(),
        cpus = machine.cpus,
        share = share.display(),
        iso = iso.display(),
        log = files.kernel_log.display(),
        run = files.run.display(),
    );
    configuration.push_str(if debugger {
        // The packaged Bochs has no other display that needs neither a terminal nor X.
        "display_library: rfb, options=\"timeout=0\"\n"
    } else {
        "display_library: nogui\n"
    });
    let configuration_file = files.run.join("bochsrc");
    fs::write(&configuration_file, configuration).map_err(at(&configuration_file))?;
    command
        .env("TERM", "dumb")
        .arg("-q")
        .arg("-f")
        .arg(&configuration_file);
    if debugger {
        let script = files.run.join("debugger");
        fs::write(&script, "c\n").map_err(at(&script))?;
        command.arg("-rc").arg(script);
    }
    Ok((listener, command))
}

/// The listening end of the control line, and the program that connects to it at a TCP port.
struct Line {
    listener: Listener,
    port: u16,
    command: Command,
}

/// The port in Bochs's own namespace; VNC uses those from 5900 on.
const ISOLATED_PORT: u16 = 7000;

/// A Bochs with its debugger opens VNC to all interfaces, so it runs in its own network namespace if this
/// machine supports that.
fn line(program: &Path, debugger: bool, files: &Files<'_>) -> Result<Line, BootError> {
    let busybox = files.held("busybox", "busybox")?;
    let isolated = if debugger {
        isolated::available(&busybox)
    } else {
        Err("")
    };
    if isolated.is_ok() {
        let socket = files.run.join("line");
        let listener = UnixListener::bind(&socket).map_err(at(&socket))?;
        return Ok(Line {
            listener: Listener::Unix(listener),
            port: ISOLATED_PORT,
            command: isolated::command(&busybox, &socket, ISOLATED_PORT, program)
                .map_err(at(files.run))?,
        });
    }
    if let Err(why) = isolated
        && debugger
    {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            eprintln!(
                "lab: warning: while the Intel lab runs, Bochs serves its screen by VNC at port 5900 or the \
                 next free one of \
                 all interfaces, without a password; this machine gives it no network namespace of its own \
                 ({why}). Close the \
                 port to strangers, or name a Bochs built with nogui by HYPERNEST_LAB_BOCHS"
            );
        });
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(at(files.run))?;
    Ok(Line {
        port: listener.local_addr().map_err(at(files.run))?.port(),
        listener: Listener::Tcp(listener),
        command: tied(program).map_err(at(files.run))?,
    })
}

/// Whether Bochs is built with its debugger: it then waits for commands, and has an option for them.
fn has_debugger(program: &Path) -> Result<bool, BootError> {
    let output = tied(program).and_then(|mut command| OwnedChild::output(command.arg("--help")));
    let output = output.map_err(at(program))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).contains("-rc "))
}

fn kernel(machine: &Machine, files: &Files<'_>) -> Result<Vec<u8>, BootError> {
    let held = |name: &str| files.held("kernel", &format!("{}/{name}", machine.kernel.directory()));
    let (bzimage, vmlinux) = (held("vmlinuz")?, held("vmlinux")?);
    let bytes = |path: &Path| fs::read(path).map_err(at(path));
    flat_image(&bytes(&bzimage)?, &bytes(&vmlinux)?).map_err(|error| BootError::Kernel {
        path: vmlinux,
        error,
    })
}

fn iso(
    files: &Files<'_>,
    kernel: &[u8],
    machine: &Machine,
) -> Result<std::path::PathBuf, BootError> {
    let root = files.run.join("iso");
    fs::create_dir(&root).map_err(at(&root))?;
    for name in ["isolinux.bin", "ldlinux.c32"] {
        let from = files.held("isolinux", &format!("iso/{name}"))?;
        fs::copy(&from, root.join(name)).map_err(at(&from))?;
    }
    fs::write(root.join("kernel"), kernel).map_err(at(&root))?;
    fs::rename(files.initramfs, root.join("initrd")).map_err(at(files.initramfs))?;
    let configuration = root.join("isolinux.cfg");
    let tick = match machine.intel {
        IntelCpu::Skylake => PERIODIC_TICK,
        IntelCpu::IceLake => "",
    };
    // Kernels after 6.12 do not boot with the XSAVE of this CPU; earlier ones switch it off by themselves
    // ("XSAVE consistency problem").
    let xsave = match machine.kernel {
        Kernel::Newest => "noxsave",
        Kernel::Linux61 | Kernel::Linux612 => "",
    };
    let text = format!(
        "default lab\nprompt 0\ntimeout 0\nlabel lab\n kernel /kernel\n initrd /initrd\n \
         append {KERNEL_PARAMETERS} {tick} {xsave}\n"
    );
    fs::write(&configuration, text).map_err(at(&configuration))?;
    let iso = files.run.join("host.iso");
    let held = files.held.join("iso/genisoimage");
    let program = if held.exists() {
        held
    } else {
        "genisoimage".into()
    };
    let mut command = tied(program).map_err(at(&iso))?;
    command
        .args([
            "-quiet",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
        ])
        .args(["-b", "isolinux.bin", "-c", "boot.cat", "-o"])
        .arg(&iso)
        .arg(&root);
    run_program(&mut command, "genisoimage")?;
    fs::remove_dir_all(&root).map_err(at(&root))?;
    Ok(iso)
}
