//! A stock Debian on a disk, for guests: its image, kernel and initramfs. It is built from packages when a
//! test first needs it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User};

use super::apt::{self, Area, command, run};
use super::tree::{Tree, at, below, copy};
use super::{Optional, SetupError};

/// It, among the parts of the lab that are made when they are first needed.
pub const PART: Optional = Optional {
    directory: DEBIAN,
    name: "Debian",
    make,
};

/// Its directory in the lab's directory; the number changes with its contents.
pub const DEBIAN: &str = "debian-1";
/// The disk: an ext4 file system without partitions, in a packed image for QEMU.
pub const IMAGE: &str = "debian-1/disk.qcow2";
/// Debian's kernel for PCs, as its package has it.
pub const KERNEL: &str = "debian-1/vmlinuz";
/// The initramfs that the kernel's package made, with the modules for most machines.
pub const INITRAMFS: &str = "debian-1/initrd";
/// e2fsck with its libraries, for hosts.
pub const E2FSCK: &str = "debian-1/e2fsprogs";

/// What disables irrelevant work that is slow in an emulated host.
pub const PARAMETERS: &str = "quiet mitigations=off cryptomgr.notests systemd.show_status=false";

const SUITES: [&str; 2] = ["trixie", "trixie-security"];

/// The tools that make the image, and a library that mke2fs loads to read an archive.
const TOOLS: [&str; 4] = ["mmdebstrap", "e2fsprogs", "libarchive13t64", "qemu-utils"];

/// Beside the packages that every Debian has.
const PACKAGES: [&str; 14] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "login",
    "passwd",
    "iproute2",
    "iputils-ping",
    "kmod",
    "e2fsprogs",
    "fio",
    "iperf3",
    "initramfs-tools",
    "zstd",
    "linux-image-amd64",
];

/// Its set-up, run by a shell on this machine when the packages are installed.
const SET_UP: &str = include_str!("debian.sh");

/// The size of the disk. The files take a quarter of it.
const SIZE: &str = "1536M";

/// How mmdebstrap gets the rights of root over the files that it installs.
fn mode() -> Result<&'static str, SetupError> {
    if Uid::effective().is_root() {
        return Ok("root");
    }
    let missing = |what: &str| SetupError::Lacks {
        what: "building a root file system".to_owned(),
        missing: what.to_owned(),
    };
    let works = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works("unshare", &["--user", "true"]) {
        return Err(missing("root, or the right to make user namespaces"));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|part| part.join("newuidmap").exists()) {
        return Err(missing("root, or newuidmap (package uidmap)"));
    }
    let user = User::from_uid(Uid::current()).ok().flatten();
    let user = user.map(|user| user.name).unwrap_or_default();
    let has_range = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .any(|line| line.split(':').next() == Some(&*user))
    };
    if !has_range("/etc/subuid") || !has_range("/etc/subgid") {
        return Err(missing(
            "root, or ranges of subordinate ids (in /etc/subuid and /etc/subgid)",
        ));
    }
    Ok("unshare")
}

fn make(making: &Path, finished: &Path) -> Result<(), SetupError> {
    let mode = mode()?;
    let area = Area::open(&making.join("apt"), &apt::archives()?, &SUITES)?;
    area.closure(None, &TOOLS)?;
    let root = making.join("tools");
    area.unpack(&root, |_| true)?;
    let tools = Tree::new(root);

    let archive = making.join("root.tar");
    let mut mmdebstrap = command("perl")?;
    mmdebstrap
        .arg(tools.find(&["usr/bin/mmdebstrap"])?)
        .arg(format!("--mode={mode}"))
        .args(["--format=tar", "--variant=apt", "--architectures=amd64"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(["--aptopt", "Apt::Install-Recommends \"false\""])
        .args(["--customize-hook", SET_UP])
        .arg(SUITES[0])
        .arg(&archive)
        .arg(area.sources());
    for line in apt::network()?.lines() {
        mmdebstrap.args(["--aptopt", line]);
    }
    if mode == "root" {
        // So that nothing is left elsewhere if it is killed. The ids of a namespace cannot enter.
        mmdebstrap.env("TMPDIR", making);
    }
    run(
        "building a root file system with mmdebstrap",
        &mut mmdebstrap,
    )?;

    // The kernel and its initramfs.
    let mut tar = command("tar")?;
    tar.arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(making)
        .args(["--no-same-owner", "./boot"]);
    run("unpacking the kernel", &mut tar)?;
    let boot = making.join("boot");
    for (prefix, name) in [("vmlinuz-", KERNEL), ("initrd.img-", INITRAMFS)] {
        let entries = fs::read_dir(&boot).map_err(at(&boot))?.flatten();
        let mut files = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with(prefix))
        });
        let file = files.next().ok_or_else(|| SetupError::NotInPackage {
            path: format!("{prefix}… in Debian's /boot"),
        })?;
        copy(&file.path(), &below(finished, name))?;
    }

    let disk = making.join("disk.raw");
    let mut mke2fs = tools.command(&tools.find(&["usr/sbin/mke2fs"])?)?;
    mke2fs
        .env("MKE2FS_CONFIG", tools.find(&["etc/mke2fs.conf"])?)
        .args(["-q", "-t", "ext4", "-L", "root", "-d"])
        .arg(&archive)
        // A guest would do later what is left undone here.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(&disk)
        .arg(SIZE);
    run("making an ext4 image", &mut mke2fs)?;
    let mut pack = tools.command(&tools.find(&["usr/bin/qemu-img"])?)?;
    pack.args([
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
    ])
    .arg(&disk)
    .arg(below(finished, IMAGE));
    run("packing the image", &mut pack)?;
    let e2fsck = tools.find(&["usr/sbin/e2fsck"])?;
    tools.bundle(&below(finished, E2FSCK), &e2fsck, &[], "", "")
}
