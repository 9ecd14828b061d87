//! Why nothing could be started.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::claims::ClaimError;
use super::elf::ElfError;
use super::image::Role;
use super::linux::LinuxError;
use super::multiboot::MultibootError;
use crate::memory::NoRam;
use crate::units::Gpa;

/// Why the guest could not be made ready to start.
#[derive(Debug, Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read the {role} {}", .path.display())]
    Unreadable {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("the {role} {} is not a regular file", .path.display())]
    NotAFile {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file is empty.
    #[error("the {role} {} is empty", .path.display())]
    Empty {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// No flash image.
    #[error("the {role} {} has {len} bytes: flash memory takes whole blocks of 4096 bytes, at most 8 MiB; is \
        it the right file (OVMF_CODE_4M.fd, for example)?", .path.display())]
    NoFlash {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A saved VM's or a migration's boot files are not those of its configuration.
    #[error("{found} boot files came with the VM, and its configuration names {expected}")]
    OtherFiles {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A saved boot file's content is not what was saved.
    #[error("the {role} {} is damaged in the saved VM: its CRC32C is {found:#010x} and should be \
        {expected:#010x}", .path.display())]
    Damaged {
        /// What it is for.
        role: Role,
        /// Its name when the VM was started.
        path: PathBuf,
        /// As it was saved.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// The gzip data are damaged.
    #[error("cannot unpack the {role} {}: its gzip data are damaged", .path.display())]
    Gzip {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// The gzip data are too much.
    #[error("the {role} {} unpacks to more than {} MiB, which the guest has no room for: give it more with \
        --memory", .path.display(), .most >> 20)]
    UnpacksTooLarge {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        most: u64,
    },
    /// The file cannot be copied into the guest.
    #[error("cannot copy the {role} {} to guest address {gpa}: did the file change \
        meanwhile?", .path.display())]
    Copy {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Where to.
        gpa: Gpa,
        /// What vm-memory said.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// No kernel format is recognized.
    #[error("{} is not a kernel that hypernest can start ({reason}): it takes a bzImage, an ELF file with a \
        PVH note, or a multiboot 1 image", .path.display())]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// An ELF file without a way to start it.
    #[error("{} is an ELF file with neither a PVH note nor a multiboot header: build the kernel with \
        CONFIG_PVH, or use its bzImage", .path.display())]
    NoEntry {
        /// The file.
        path: PathBuf,
    },
    /// The bzImage cannot be started.
    #[error("cannot start the Linux kernel {}", .path.display())]
    Linux {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinuxError,
    },
    /// The ELF file cannot be loaded.
    #[error("cannot load the ELF kernel {}", .path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// The multiboot image cannot be started.
    #[error("cannot start the multiboot kernel {}", .path.display())]
    Multiboot {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: MultibootError,
    },
    /// A bzImage takes no modules.
    #[error("the Linux kernel {} takes an initrd but no modules: modules are for PVH and multiboot \
        kernels", .path.display())]
    ModulesForLinux {
        /// The file.
        path: PathBuf,
    },
    /// A command line that no kernel would see as a whole.
    #[error("the command line of {} {problem}", .path.display())]
    Cmdline {
        /// Whose command line it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What the kernel needs does not fit into RAM.
    #[error("the guest's RAM has no room for what {} needs to start", .path.display())]
    Claim {
        /// The kernel.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: ClaimError,
    },
    /// The tables that firmware would leave do not fit.
    #[error(
        "the guest has too little RAM for its firmware tables: give it at least 2 MiB with --memory"
    )]
    TooLittleRam,
    /// There is no RAM where there must be.
    #[error("cannot write boot data")]
    NoRam(#[from] NoRam),
}

impl BootError {
    /// Whether the configuration names the wrong file or says the wrong thing about it, as opposed to a file
    /// that is damaged or cannot be read.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::NotAFile { .. }
                | Self::Empty { .. }
                | Self::NoFlash { .. }
                | Self::NoKernel { .. }
                | Self::NoEntry { .. }
                | Self::ModulesForLinux { .. }
                | Self::Cmdline { .. }
        )
    }
}
