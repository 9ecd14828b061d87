//! What starts in the guest, as asked for.

use std::path::PathBuf;

/// What starts in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, in the state that firmware would have left.
    Kernel(KernelBoot),
    /// Firmware, from the reset vector on.
    Firmware(FirmwareBoot),
}

/// A kernel that is started directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBoot {
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

/// Firmware in flash memory that ends at 4 GiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareBoot {
    /// Its code, which is read-only.
    pub code: PathBuf,
    /// The variables that a new VM starts with; none for firmware that keeps none.
    pub template: Option<PathBuf>,
    /// The VM's own file of variables. Without one, they are gone when the VM ends.
    pub vars: Option<PathBuf>,
}

impl Boot {
    /// The kernel, if one is started directly.
    pub fn kernel(&self) -> Option<&KernelBoot> {
        match self {
            Self::Kernel(kernel) => Some(kernel),
            Self::Firmware(_) => None,
        }
    }

    /// The firmware, if it starts.
    pub fn firmware(&self) -> Option<&FirmwareBoot> {
        match self {
            Self::Firmware(firmware) => Some(firmware),
            Self::Kernel(_) => None,
        }
    }
}
