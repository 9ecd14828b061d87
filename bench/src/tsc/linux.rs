//! `--guest linux` and `linux-l2`: a stock kernel with tscprobe as its init, and the same as an L2.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use hypernest::cpuid::CpuVendor;
use hypernest_lab::cpio::Writer;
use hypernest_lab::plan::LAB_DIR_VARIABLE;

use super::args::{Args, Linux};
use super::check::no_kernel;
use super::model::GuestKind;
use super::{TscError, file};
use crate::program;
use crate::usage::Usage;

pub(super) const PROBE: &str = "tscprobe";
/// The directory of modules in the guest.
const MODULES: &str = "modules";
/// The configuration of L2 in L1's initramfs.
const L2: &str = "l2.toml";

/// Writes the guest's initramfs to `initrd`, and returns the path of its kernel.
pub(super) fn files(args: &Args, vendor: CpuVendor, initrd: &Path) -> Result<PathBuf, TscError> {
    let kernel = kernel(&args.linux).ok_or_else(|| Usage::of(no_kernel(args.guest)))?;
    let probe = probe(&args.linux);
    if args.guest == GuestKind::Linux {
        write(initrd, &probe, &args.linux.modules, |_| Ok(()))?;
        return Ok(kernel);
    }
    let own = initrd.with_extension("l2");
    write(&own, &probe, &[], |_| Ok(()))?;
    let modules = if args.linux.modules.is_empty() {
        modules(&kernel, vendor)
    } else {
        args.linux.modules.clone()
    };
    let hypernest = on_path(&args.hypernest());
    write(initrd, &probe, &modules, |archive| {
        archive.copy("hypernest", &hypernest)?;
        archive.copy("vmlinux", &kernel)?;
        archive.copy("l2", &own)?;
        archive.file(L2, 0o644, l2(args).as_bytes())
    })?;
    Ok(kernel)
}

/// The modules of KVM beside the kernel.
fn modules(kernel: &Path, vendor: CpuVendor) -> Vec<PathBuf> {
    let of_vendor = match vendor {
        CpuVendor::Amd => "kvm-amd.ko",
        _ => "kvm-intel.ko",
    };
    let all = ["irqbypass.ko", "kvm.ko", of_vendor];
    all.map(|name| kernel.with_file_name("modules").join(name))
        .to_vec()
}

/// The configuration of L2 for L1's hypernest.
fn l2(args: &Args) -> String {
    format!(
        "name = \"l2\"\nkernel = \"vmlinux\"\ninitrd = \"l2\"\nmemory = \"192M\"\ncpus = {}\nserial = \
         \"none\"\n\
         serial2 = \"stdio\"\nhv = [\"windows\"]\ncmdline = \"{}\"\n",
        args.vcpus,
        probing(args)
    )
}

type Archive<'a> = Writer<BufWriter<File>>;

/// Writes an initramfs with the probe as its init.
fn write(
    to: &Path,
    probe: &Path,
    modules: &[PathBuf],
    more: impl FnOnce(&mut Archive<'_>) -> io::Result<()>,
) -> Result<(), TscError> {
    let name = to.display().to_string();
    let out = File::create(to).map_err(file(format!("cannot create {name}")))?;
    let mut archive = Writer::new(BufWriter::new(out));
    archive.copy("init", probe).map_err(file(format!(
        "cannot copy {} (--probe FILE names a static tscprobe)",
        probe.display()
    )))?;
    for (number, module) in modules.iter().enumerate() {
        archive
            .copy(&format!("{MODULES}/{number:02}.ko"), module)
            .map_err(file(format!("cannot copy {}", module.display())))?;
    }
    more(&mut archive)
        // Linux opens it for init's standard streams.
        .and_then(|()| archive.character_device("dev/console", 5, 1))
        .and_then(|()| archive.finish()?.flush())
        .map_err(file(format!("cannot write {name}")))
}

/// The kernel: as given, or the lab's.
pub(super) fn kernel(linux: &Linux) -> Option<PathBuf> {
    let of_lab = || {
        let lab = std::env::var_os(LAB_DIR_VARIABLE)?;
        Some(PathBuf::from(lab).join("linux-6.12/vmlinux"))
    };
    linux.kernel.clone().or_else(of_lab)
}

/// The path of the probe: as given, beside this program, or on the PATH.
fn probe(linux: &Linux) -> PathBuf {
    let found = || program::find(PROBE).unwrap_or_else(|| PROBE.into());
    linux.probe.clone().unwrap_or_else(found)
}

/// The path that a shell would find.
pub(super) fn on_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|directory| directory.join(program));
    all.find(|program| program.is_file())
        .unwrap_or_else(|| program.to_owned())
}

/// The kernel's command line, with the probe's arguments after `--`.
pub(super) fn line(args: &Args) -> String {
    match args.guest {
        GuestKind::LinuxL2 => format!(
            "console=ttyS0 quiet panic=-1 rdinit=/init {} -- --serial /dev/ttyS1 --modules /{MODULES} \
             --relay /hypernest run --config /{L2}",
            args.linux.append
        ),
        _ => probing(args),
    }
}

/// The command line of the Linux whose clocks are sampled.
fn probing(args: &Args) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 rdinit=/init {} -- --serial /dev/ttyS1 --beat-us {} --modules \
         /{MODULES}",
        args.linux.append, args.beat_us
    )
}
