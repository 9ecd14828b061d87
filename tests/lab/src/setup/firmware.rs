//! Firmware for guests as Debian has it, and a disk that it boots: GRUB, which starts the kernel of the next
//! disk. It is made from packages when a test first needs it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::apt::{self, Area, run};
use super::tree::{Tree, at, below, copy};
use super::{Optional, SetupError, debian};

/// It, among the parts of the lab that are made when they are first needed.
pub const PART: Optional = Optional {
    directory: FIRMWARE,
    name: "firmware",
    make,
};

/// Its directory in the lab's directory; the number changes with its contents.
pub const FIRMWARE: &str = "firmware-1";
/// SeaBIOS.
pub const SEABIOS: &str = "firmware-1/bios-256k.bin";
/// OVMF, 4 MiB with its variables.
pub const OVMF_CODE: &str = "firmware-1/OVMF_CODE_4M.fd";
/// Its variables for a new VM.
pub const OVMF_VARS: &str = "firmware-1/OVMF_VARS_4M.fd";
/// A GPT disk with GRUB for both. It says [`GRUB_SAYS`], and boots Debian from the second disk, or a kernel
/// and an initramfs that are the second and the third disk.
pub const GRUB_DISK: &str = "firmware-1/grub.raw";
/// The length of the second disk, if it is a kernel.
pub const KERNEL_LEN: u64 = 16 << 20;
/// The length of the third disk, if it is an initramfs.
pub const INITRAMFS_LEN: u64 = 8 << 20;
/// On the serial port, before anything is loaded.
pub const GRUB_SAYS: &str = "GRUB has started";

const SUITES: [&str; 2] = ["trixie", "trixie-security"];

const PACKAGES: [&str; 8] = [
    "ovmf",
    "seabios",
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "gdisk",
    "dosfstools",
    "mtools",
];

const SECTOR: u64 = 512;
/// The first sector after the primary GPT.
const CORE: u64 = 34;
const ESP: u64 = 2048;
const ESP_LEN: u64 = 8 << 20;
/// With room for the backup GPT.
const DISK_LEN: u64 = 11 << 20;

/// What GRUB's images have built in.
const MODULES: [&str; 13] = [
    "memdisk", "tar", "normal", "test", "echo", "serial", "terminal", "part_gpt", "fat", "ext2",
    "linux", "boot", "reboot",
];

fn make(making: &Path, finished: &Path) -> Result<(), SetupError> {
    let area = Area::open(&making.join("apt"), &apt::archives()?, &SUITES)?;
    area.closure(None, &PACKAGES)?;
    let root = making.join("tools");
    area.unpack(&root, |_| true)?;
    let tools = Tree::new(root);
    for (from, to) in [
        ("usr/share/OVMF/OVMF_CODE_4M.fd", OVMF_CODE),
        ("usr/share/OVMF/OVMF_VARS_4M.fd", OVMF_VARS),
        ("usr/share/seabios/bios-256k.bin", SEABIOS),
    ] {
        copy(&tools.find(&[from])?, &below(finished, to))?;
    }

    let disk = making.join("disk");
    let file = File::create(&disk).map_err(at(&disk))?;
    file.set_len(DISK_LEN).map_err(at(&disk))?;
    let last = (ESP * SECTOR + ESP_LEN) / SECTOR - 1;
    let mut sgdisk = tools.command(&tools.find(&["usr/sbin/sgdisk", "sbin/sgdisk"])?)?;
    sgdisk
        .args(["--clear", "--set-alignment=1"])
        .arg(format!("--new=1:{CORE}:{}", ESP - 1))
        .arg("--typecode=1:ef02")
        .arg(format!("--new=2:{ESP}:{last}"))
        .arg("--typecode=2:ef00")
        .arg(&disk);
    run("partitioning the disk", &mut sgdisk)?;
    let embedded = embedded(making)?;
    bios(&tools, making, &embedded, &disk)?;
    uefi(&tools, making, &embedded, &disk)?;
    copy(&disk, &below(finished, GRUB_DISK))
}

/// An archive with GRUB's configuration.
fn embedded(making: &Path) -> Result<PathBuf, SetupError> {
    let configuration = format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input serial\n\
         terminal_output serial\n\
         echo {GRUB_SAYS}\n\
         if [ -e (hd1)/vmlinuz ]; then\n\
         linux (hd1)/vmlinuz root=/dev/vdb rw console=ttyS0 {}\n\
         initrd (hd1)/initrd.img\n\
         else\n\
         linux (hd1)0+{} console=ttyS0 panic=-1\n\
         initrd (hd2)0+{}\n\
         fi\n\
         boot\n",
        debian::PARAMETERS,
        KERNEL_LEN / SECTOR,
        INITRAMFS_LEN / SECTOR
    );
    let directory = making.join("embedded");
    let file = directory.join("boot/grub/grub.cfg");
    fs::create_dir_all(directory.join("boot/grub")).map_err(at(&directory))?;
    fs::write(&file, configuration).map_err(at(&file))?;
    let archive = making.join("embedded.tar");
    let mut tar = apt::command("tar")?;
    tar.arg("--create")
        .arg("--file")
        .arg(&archive)
        .args(["--format=ustar", "--owner=0", "--group=0", "--directory"])
        .arg(&directory)
        .arg("boot");
    run("packing GRUB's configuration", &mut tar)?;
    Ok(archive)
}

/// An image of GRUB for a platform.
fn grub(
    tools: &Tree,
    platform: &str,
    more: &[&str],
    embedded: &Path,
    to: &Path,
) -> Result<(), SetupError> {
    let modules = tools.find(&[&format!("usr/lib/grub/{platform}")])?;
    let mut grub = tools.command(&tools.find(&["usr/bin/grub-mkimage"])?)?;
    grub.arg(format!("--format={platform}"))
        .arg("--directory")
        .arg(modules)
        .arg("--prefix=(memdisk)/boot/grub")
        .arg("--memdisk")
        .arg(embedded)
        .arg("--output")
        .arg(to)
        .args(MODULES)
        .args(more);
    run(&format!("making GRUB for {platform}"), &mut grub)?;
    Ok(())
}

/// GRUB for a BIOS: the first sector starts the image in the first partition.
fn bios(tools: &Tree, making: &Path, embedded: &Path, disk: &Path) -> Result<(), SetupError> {
    /// In the boot sector and at the end of the image's first sector: where the rest is, in sectors
    /// (GRUB_BOOT_MACHINE_KERNEL_SECTOR and the block list of diskboot.S).
    const FIRST: usize = 0x5c;
    const REST: usize = 0x1f4;
    /// What of a boot sector is code.
    const CODE: usize = 440;
    let image = making.join("core.img");
    grub(tools, "i386-pc", &["biosdisk"], embedded, &image)?;
    let read = |path: &Path| fs::read(path).map_err(at(path));
    let sector = tools.find(&["usr/lib/grub/i386-pc/boot.img"])?;
    let (mut sector, mut image) = (read(&sector)?, read(&image)?);
    let too_short = || SetupError::NotInPackage {
        path: "GRUB's boot sector and image".to_owned(),
    };
    let place = |bytes: &mut Vec<u8>, offset: usize, sector: u64| {
        let field = bytes.get_mut(offset..offset + 8).ok_or_else(too_short)?;
        field.copy_from_slice(&sector.to_le_bytes());
        Ok::<_, SetupError>(())
    };
    place(&mut sector, FIRST, CORE)?;
    place(&mut image, REST, CORE + 1)?;
    let file = OpenOptions::new()
        .write(true)
        .open(disk)
        .map_err(at(disk))?;
    let code = sector.get(..CODE).ok_or_else(too_short)?;
    file.write_all_at(code, 0).map_err(at(disk))?;
    file.write_all_at(&image, CORE * SECTOR).map_err(at(disk))
}

/// GRUB for UEFI: a file in the EFI system partition.
fn uefi(tools: &Tree, making: &Path, embedded: &Path, disk: &Path) -> Result<(), SetupError> {
    let image = making.join("BOOTX64.EFI");
    grub(tools, "x86_64-efi", &[], embedded, &image)?;
    let esp = making.join("esp");
    let file = File::create(&esp).map_err(at(&esp))?;
    file.set_len(ESP_LEN).map_err(at(&esp))?;
    let mkfs = tools.find(&["usr/sbin/mkfs.fat", "sbin/mkfs.fat"])?;
    run("making a FAT file system", tools.command(&mkfs)?.arg(&esp))?;
    let mtools = tools.find(&["usr/bin/mtools"])?;
    let fill = |tool: &str, from: Option<&Path>, to: &[&str]| {
        let mut command = tools.command(&mtools)?;
        command
            .env("MTOOLS_SKIP_CHECK", "1")
            .args(["-c", tool, "-i"])
            .arg(&esp)
            .args(from)
            .args(to);
        run("filling the EFI system partition", &mut command)?;
        Ok::<_, SetupError>(())
    };
    fill("mmd", None, &["::/EFI", "::/EFI/BOOT"])?;
    fill("mcopy", Some(&image), &["::/EFI/BOOT/BOOTX64.EFI"])?;
    let file = OpenOptions::new()
        .write(true)
        .open(disk)
        .map_err(at(disk))?;
    let content = fs::read(&esp).map_err(at(&esp))?;
    file.write_all_at(&content, ESP * SECTOR).map_err(at(disk))
}
