//! What starts in the guest, as asked for.

use std::path::PathBuf;

/// What starts in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// A bzImage, an ELF file with a PVH note, or a multiboot 1 image; told apart by content.
    pub kernel: PathBuf,
    /// Handed to a Linux kernel (or as the first module to PVH and multiboot).
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Further modules for PVH and multiboot, in order.
    pub modules: Vec<BootModule>,
}

/// A file handed to the kernel as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootModule {
    /// The file.
    pub path: PathBuf,
    /// Its own command line.
    pub cmdline: String,
}
