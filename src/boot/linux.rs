//! Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst in the kernel's source).

use linux_loader::loader::bootparam::{
    LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, boot_e820_entry, boot_params,
    setup_header,
};
use thiserror::Error;
use vm_memory::ByteValued;

use super::claims::{ClaimError, Claims};
use super::memory_map::MemoryRange;
use crate::layout;
use crate::units::Gpa;

/// Where the setup header begins in the file and in the zero page.
const HEADER_AT: usize = 0x1f1;
/// `boot_flag`.
const BOOT_FLAG_AT: usize = 0x1fe;
const BOOT_FLAG: [u8; 2] = [0x55, 0xaa];
/// The jump instruction, whose operand says where the header ends.
const JUMP_AT: usize = 0x200;
/// `header`: "HdrS".
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// Protocol 2.12 brought `xloadflags`, which tells whether there is a 64-bit entry point (kernel 3.8).
const PROTOCOL_MIN: u16 = 0x20c;
/// The 64-bit entry point is here, counted from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const SECTOR: u64 = 512;

/// Why a bzImage cannot be started.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LinuxError {
    /// The file ends within the header.
    #[error("the setup header is cut off: the file is damaged or not wholly downloaded")]
    HeaderCutOff,
    /// The kernel is too old.
    #[error(
        "it speaks boot protocol {}.{}, but 2.12 is needed: use a kernel from 3.8 on", .0 >> 8, .0 & 0xff
    )]
    TooOld(u16),
    /// A zImage.
    #[error("it is a zImage, which is loaded below 1 MiB: build a bzImage")]
    ZImage,
    /// A 32-bit kernel.
    #[error("it has no 64-bit entry point: use a kernel for x86-64")]
    No64,
    /// The file ends within the kernel.
    #[error(
        "the header promises {promised} bytes, but the file has {found}: it is damaged or not wholly \
         downloaded"
    )]
    CutOff {
        /// Setup and kernel.
        promised: u64,
        /// The file.
        found: u64,
    },
    /// The alignment makes no sense.
    #[error("its alignment {0:#x} is not a power of two: the file is damaged")]
    Alignment(u32),
    /// The command line is too long.
    #[error("the command line has {len} bytes, but this kernel takes {most}: shorten --cmdline")]
    Cmdline {
        /// Bytes without the terminating zero.
        len: usize,
        /// Bytes that fit.
        most: u32,
    },
    /// Something does not fit into RAM.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The memory map is too long.
    #[error("the memory map has {0} entries, but the zero page takes 128")]
    MapTooLong(usize),
}

/// Whether `head` is the beginning of a bzImage (or a zImage).
pub fn is_bzimage(head: &[u8]) -> bool {
    head.get(BOOT_FLAG_AT..JUMP_AT) == Some(&BOOT_FLAG)
        && head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// A bzImage's header, checked.
#[derive(Clone, Debug)]
pub struct Header {
    setup: setup_header,
    /// Where the kernel proper begins in the file.
    pub kernel_offset: u64,
    /// Its bytes.
    pub kernel_len: u64,
}

impl Header {
    /// The header in a file of `file_len` bytes that begins with `head`.
    ///
    /// # Errors
    /// If the kernel is damaged or cannot be entered in 64-bit mode.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, LinuxError> {
        let jump = head.get(JUMP_AT + 1).ok_or(LinuxError::HeaderCutOff)?;
        let end = MAGIC_AT + usize::from(*jump);
        let raw = head.get(HEADER_AT..end).ok_or(LinuxError::HeaderCutOff)?;
        // What is beyond the fields known here is not for a loader to set, and reads as zero.
        let mut setup = setup_header::default();
        let known = raw.len().min(setup.as_slice().len());
        setup.as_mut_slice()[..known].copy_from_slice(&raw[..known]);

        if setup.version < PROTOCOL_MIN {
            return Err(LinuxError::TooOld(setup.version));
        }
        if setup.loadflags & LOADED_HIGH == 0 {
            return Err(LinuxError::ZImage);
        }
        if setup.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(LinuxError::No64);
        }
        if setup.relocatable_kernel != 0 && !setup.kernel_alignment.is_power_of_two() {
            return Err(LinuxError::Alignment(setup.kernel_alignment));
        }
        let sectors = match setup.setup_sects {
            0 => 4,
            n => u64::from(n),
        };
        let kernel_offset = (sectors + 1) * SECTOR;
        // In paragraphs, rounded up; behind it there may be a signature.
        let promised = u64::from(setup.syssize) * 16;
        let found = file_len.saturating_sub(kernel_offset);
        if found == 0 || found + 15 < promised {
            return Err(LinuxError::CutOff {
                promised: kernel_offset + promised,
                found: file_len,
            });
        }
        Ok(Self {
            setup,
            kernel_offset,
            kernel_len: promised.min(found),
        })
    }

    /// Finds room for the kernel: where it wants to be, or else as low as it can be.
    ///
    /// # Errors
    /// If there is none.
    pub fn place(&self, claims: &mut Claims) -> Result<Gpa, LinuxError> {
        const WHAT: &str = "the kernel";
        // The kernel unpacks itself within `init_size` bytes from where it is loaded.
        let len = self.kernel_len.max(self.setup.init_size.into());
        let preferred = self.setup.pref_address;
        let below_4g = layout::HIGH_MEMORY.0..layout::RAM_ABOVE_4G.0;
        let fits = below_4g.contains(&preferred) && preferred.saturating_add(len) <= below_4g.end;
        let placed = if fits {
            claims.at(WHAT, preferred, len)
        } else {
            Err(ClaimError::NoRoom {
                what: WHAT.to_owned(),
                len,
                start: preferred,
                end: below_4g.end,
            })
        };
        if placed.is_ok() || self.setup.relocatable_kernel == 0 {
            return Ok(placed?);
        }
        Ok(claims.lowest(WHAT, len, self.setup.kernel_alignment.into(), &below_4g)?)
    }

    /// Finds room for an initrd of `len` bytes: high in low RAM, or above 4 GiB if the kernel allows it and
    /// must.
    ///
    /// # Errors
    /// If there is none.
    pub fn place_initrd(&self, claims: &mut Claims, len: u64) -> Result<Gpa, LinuxError> {
        const WHAT: &str = "the initrd";
        let end = (u64::from(self.setup.initrd_addr_max) + 1).min(layout::RAM_ABOVE_4G.0);
        let low = claims.highest(WHAT, len, 0x1000, &(layout::HIGH_MEMORY.0..end));
        if low.is_ok() || self.setup.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G == 0 {
            return Ok(low?);
        }
        claims
            .highest(WHAT, len, 0x1000, &(layout::HIGH_MEMORY.0..u64::MAX))
            .or(low)
            .map_err(Into::into)
    }

    /// Refuses a command line that the kernel would cut off.
    ///
    /// # Errors
    /// If it does.
    pub fn check_cmdline(&self, cmdline: &str) -> Result<(), LinuxError> {
        let most = self.setup.cmdline_size;
        if cmdline.len() as u64 > u64::from(most) {
            return Err(LinuxError::Cmdline {
                len: cmdline.len(),
                most,
            });
        }
        Ok(())
    }

    /// The entry point of the kernel loaded at `kernel`.
    pub fn entry(&self, kernel: Gpa) -> Gpa {
        Gpa(kernel.0 + ENTRY_64)
    }

    /// The zero page: the setup header with a loader's answers, and the memory map.
    ///
    /// # Errors
    /// If the map is too long for it.
    pub fn zero_page(&self, given: &Given<'_>) -> Result<Vec<u8>, LinuxError> {
        let mut params = boot_params {
            hdr: self.setup,
            acpi_rsdp_addr: given.rsdp.0,
            ..boot_params::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.code32_start = low_half(given.kernel.0);
        params.hdr.cmd_line_ptr = low_half(given.cmdline.0);
        params.ext_cmd_line_ptr = high_half(given.cmdline.0);
        if let Some((initrd, len)) = given.initrd {
            params.hdr.ramdisk_image = low_half(initrd.0);
            params.ext_ramdisk_image = high_half(initrd.0);
            params.hdr.ramdisk_size = low_half(len);
            params.ext_ramdisk_size = high_half(len);
        }
        let too_long = || LinuxError::MapTooLong(given.map.len());
        let mut table = params.e820_table;
        for (entry, range) in table
            .get_mut(..given.map.len())
            .ok_or_else(too_long)?
            .iter_mut()
            .zip(given.map)
        {
            *entry = boot_e820_entry {
                addr: range.start,
                size: range.len,
                r#type: range.kind as u32,
            };
        }
        params.e820_table = table;
        params.e820_entries = u8::try_from(given.map.len()).map_err(|_| too_long())?;
        Ok(params.as_slice().to_vec())
    }
}

/// What the zero page tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Where the kernel lies.
    pub kernel: Gpa,
    /// Where the command line lies.
    pub cmdline: Gpa,
    /// Where the initrd lies, and its bytes.
    pub initrd: Option<(Gpa, u64)>,
    /// Where the RSDP lies.
    pub rsdp: Gpa,
    /// The memory map.
    pub map: &'a [MemoryRange],
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the other half goes into another field"
)]
fn low_half(value: u64) -> u32 {
    value as u32
}

fn high_half(value: u64) -> u32 {
    low_half(value >> 32)
}
