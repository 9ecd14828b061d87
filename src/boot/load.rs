//! Puts it all together: what kind of kernel it is, what goes where, and how it is entered.

use super::claims::{ClaimError, Claims};
use super::elf::{self, Elf};
use super::entry::{self, Entry};
use super::error::BootError;
use super::files::BootFiles;
use super::firmware::{self, Platform};
use super::image::{Content, Image, Role};
use super::kind::{self, Kind};
use super::linux;
use super::memory_map::MemoryRange;
use super::multiboot;
use super::pvh::{self, LoadedModule};
use crate::boot::{Boot, KernelBoot};
use crate::layout;
use crate::memory::GuestRam;
use crate::units::Gpa;

/// Page size.
const PAGE: u64 = 0x1000;
/// Bounds the strings in low memory; real kernels take 1 to 4 KiB.
const MULTIBOOT_CMDLINE_MAX: usize = 4095;

/// Whether the kernel of `boot` is one that [`load`] can start, as far as its format shows it.
///
/// # Errors
/// If the file is missing, damaged, or of another format.
pub fn check(boot: &KernelBoot, most: u64) -> Result<(), BootError> {
    identify(&Image::open(Role::Kernel, &boot.kernel)?, most).map(drop)
}

/// The first bytes and the format of `kernel`, and what it unpacks to, at most `most` bytes, if it is packed.
fn identify(kernel: &Image, most: u64) -> Result<(Option<Image>, Vec<u8>, Kind), BootError> {
    let mut unpacked = None;
    let mut head = kernel.head(kind::HEAD)?;
    let mut found = kind::kind(&head);
    if found == Ok(Kind::Gzip) {
        let inner = unpacked.insert(kernel.gunzip(most)?);
        head = inner.head(kind::HEAD)?;
        found = match kind::kind(&head) {
            Ok(Kind::Gzip) => Err("it is gzipped twice"),
            found => found,
        };
    }
    match found {
        Ok(found) => Ok((unpacked, head, found)),
        Err(reason) => Err(BootError::NoKernel {
            path: kernel.path().to_owned(),
            reason,
        }),
    }
}

/// Makes `ram` ready for the kernel of `boot`: firmware tables for `platform`, the kernel, and what it is
/// given.
///
/// `ram` must be all zero, as it is when it is new: what a kernel file wants cleared is not written. To start
/// again after a reset, discard the old content first.
///
/// # Errors
/// If a file is missing, damaged, or not startable, or something does not fit into RAM.
pub fn load(boot: &KernelBoot, ram: &GuestRam, platform: &Platform) -> Result<Entry, BootError> {
    let files = BootFiles::open(&Boot::Kernel(boot.clone()))?;
    load_files(boot, &files, ram, platform)
}

/// The same with the `files` of `boot`, which are open already.
///
/// # Errors
/// As [`load`].
pub fn load_files(
    boot: &KernelBoot,
    files: &BootFiles,
    ram: &GuestRam,
    platform: &Platform,
) -> Result<Entry, BootError> {
    files.all().try_for_each(Image::check)?;
    let ram_size: u64 = ram.pieces().map(|piece| piece.len).sum();
    let (unpacked, head, found) = identify(files.first(), ram_size)?;
    let kernel = unpacked.as_ref().unwrap_or(files.first());
    let firmware = firmware::install(ram, platform)?;
    let mut loader = Loader {
        boot,
        files,
        ram,
        kernel,
        claims: Claims::new(&firmware.map),
        map: &firmware.map,
        rsdp: firmware.rsdp,
    };
    loader.claim_at(
        "the BIOS data area",
        firmware::LOW_DATA.start,
        firmware::LOW_DATA.end,
    )?;
    match found {
        Kind::BzImage => loader.linux(&head),
        Kind::Elf => loader.elf(&head),
        // `open` has unpacked it.
        Kind::Multiboot | Kind::Gzip => {
            let header = multiboot::Header::find(&head);
            loader.multiboot(header, None)
        }
    }
}

struct Loader<'a> {
    boot: &'a KernelBoot,
    files: &'a BootFiles,
    ram: &'a GuestRam,
    kernel: &'a Image,
    claims: Claims,
    map: &'a [MemoryRange],
    rsdp: Gpa,
}

impl<'a> Loader<'a> {
    fn linux(mut self, head: &[u8]) -> Result<Entry, BootError> {
        let path = &self.boot.kernel;
        let refused = |source| BootError::Linux {
            path: path.clone(),
            source,
        };
        if !self.boot.modules.is_empty() {
            return Err(BootError::ModulesForLinux { path: path.clone() });
        }
        let header = linux::Header::parse(head, self.kernel.len()).map_err(refused)?;
        header.check_cmdline(&self.boot.cmdline).map_err(refused)?;
        self.check_cmdline(&self.boot.cmdline, usize::MAX)?;
        let initrd = self.files.initrd();

        let kernel = header.place(&mut self.claims).map_err(refused)?;
        let cmdline = self.claim_low("the command line", self.boot.cmdline.len() as u64 + 1)?;
        let zero_page = self.claim_low("the zero page", PAGE)?;
        let page_tables = self.claim_low("page tables", entry::PAGE_TABLES_LEN)?;
        let initrd_at = match initrd {
            Some(image) => Some((
                header
                    .place_initrd(&mut self.claims, image.len())
                    .map_err(refused)?,
                image.len(),
            )),
            None => None,
        };

        self.kernel
            .copy_to(self.ram, kernel, header.kernel_offset, header.kernel_len)?;
        if let (Some(image), Some((gpa, len))) = (initrd, initrd_at) {
            image.copy_to(self.ram, gpa, 0, len)?;
        }
        let params = header
            .zero_page(&linux::Given {
                kernel,
                cmdline,
                initrd: initrd_at,
                rsdp: self.rsdp,
                map: self.map,
            })
            .map_err(refused)?;
        self.ram.write(zero_page, &params)?;
        // RAM is zero, so the string ends by itself.
        self.ram.write(cmdline, self.boot.cmdline.as_bytes())?;
        self.ram
            .write(page_tables, &entry::identity_page_tables(page_tables))?;
        let gdt = self.claim_low("the GDT", entry::GDT_LEN.into())?;
        self.finish(Entry::long64(
            header.entry(kernel),
            zero_page,
            page_tables,
            gdt,
        ))
    }

    fn elf(mut self, head: &[u8]) -> Result<Entry, BootError> {
        let refused = |source| BootError::Elf {
            path: self.boot.kernel.clone(),
            source,
        };
        let elf = elf::parse(self.kernel).map_err(refused)?;
        let Some(pvh_entry) = elf.pvh_entry else {
            return match multiboot::Header::find(head) {
                None => Err(BootError::NoEntry {
                    path: self.boot.kernel.clone(),
                }),
                header => self.multiboot(header, Some(&elf)),
            };
        };
        self.check_cmdline(&self.boot.cmdline, pvh::CMDLINE_MAX)?;
        elf.claim(&mut self.claims).map_err(|e| self.no_room(e))?;
        let files = self.modules();
        // Below 4 GiB, because the kernel is entered without paging; high, where they are in nobody's way.
        let modules = self.place_modules(&files, |claims, what, len| {
            claims.highest(
                what,
                len,
                PAGE,
                &(layout::HIGH_MEMORY.0..layout::RAM_ABOVE_4G.0),
            )
        })?;
        let given = pvh::Given {
            cmdline: &self.boot.cmdline,
            rsdp: self.rsdp,
            map: self.map,
            modules: &modules,
        };
        let len = pvh::start_info(Gpa(0), &given).len() as u64;
        let info = self.claim_low("the start info", len)?;
        elf.load(self.kernel, self.ram)?;
        self.copy_modules(&files, &modules)?;
        self.ram.write(info, &pvh::start_info(info, &given))?;
        let gdt = self.claim_low("the GDT", entry::GDT_LEN.into())?;
        self.finish(Entry::protected32(Gpa(pvh_entry.into()), 0, info, gdt))
    }

    fn multiboot(
        mut self,
        header: Option<multiboot::Header>,
        elf: Option<&Elf>,
    ) -> Result<Entry, BootError> {
        let path = &self.boot.kernel;
        let refused = |source| BootError::Multiboot {
            path: path.clone(),
            source,
        };
        let no_entry = || BootError::NoEntry { path: path.clone() };
        let header = header.ok_or_else(no_entry)?;
        header.check().map_err(refused)?;
        let cmdline = with_name(self.kernel, &self.boot.cmdline);
        self.check_cmdline(&cmdline, MULTIBOOT_CMDLINE_MAX)?;
        // Addresses in the header win over the ELF headers (3.1.3).
        let flat = header.flat(self.kernel.len()).map_err(refused)?;
        let (entry, end) = match (&flat, elf) {
            (Some(flat), _) => {
                flat.claim(&mut self.claims).map_err(|e| self.no_room(e))?;
                (flat.entry, flat.physical + flat.memory_len)
            }
            (None, Some(elf)) => {
                elf.claim(&mut self.claims).map_err(|e| self.no_room(e))?;
                (Gpa(elf.physical_entry()), elf.end())
            }
            (None, None) => return Err(no_entry()),
        };
        if entry.0 >= layout::RAM_ABOVE_4G.0 {
            return Err(refused(multiboot::MultibootError::Entry(entry.0)));
        }
        let mut files = self.modules();
        for (image, cmdline) in &mut files {
            *cmdline = with_name(image, cmdline);
            self.check_cmdline(cmdline, MULTIBOOT_CMDLINE_MAX)?;
        }
        // Behind the kernel, as boot loaders do it: Xen moves itself to high memory.
        let behind = end.max(layout::HIGH_MEMORY.0)..layout::RAM_ABOVE_4G.0;
        let modules = self.place_modules(&files, |claims, what, len| {
            claims.lowest(what, len, PAGE, &behind)
        })?;
        let given = multiboot::Given {
            cmdline: &cmdline,
            map: self.map,
            modules: &modules,
        };
        let len = multiboot::info(Gpa(0), &given).len() as u64;
        let info = self.claim_low("the multiboot information", len)?;
        if let Some(flat) = flat {
            self.kernel
                .copy_to(self.ram, Gpa(flat.physical), flat.offset, flat.file_len)?;
        } else if let Some(elf) = elf {
            elf.load(self.kernel, self.ram)?;
        }
        self.copy_modules(&files, &modules)?;
        self.ram.write(info, &multiboot::info(info, &given))?;
        firmware::install_bios_calls(self.ram)?;
        let gdt = self.claim_low("the GDT", entry::GDT_LEN.into())?;
        self.finish(Entry::protected32(entry, multiboot::BOOT_MAGIC, info, gdt))
    }

    fn finish(&self, entry: Entry) -> Result<Entry, BootError> {
        self.ram.write(entry.gdt, &entry.gdt_bytes())?;
        Ok(entry)
    }

    /// The initrd, if any, and the modules, with their command lines.
    fn modules(&self) -> Vec<(&'a Image, String)> {
        let initrd = self.boot.initrd.iter().map(|_| String::new());
        let modules = self.boot.modules.iter().map(|m| m.cmdline.clone());
        let files = self.files.others().iter();
        files.zip(initrd.chain(modules)).collect()
    }

    fn place_modules(
        &mut self,
        files: &[(&Image, String)],
        place: impl Fn(&mut Claims, &str, u64) -> Result<Gpa, ClaimError>,
    ) -> Result<Vec<LoadedModule>, BootError> {
        let mut modules = Vec::new();
        for (image, cmdline) in files {
            self.check_cmdline(cmdline, MULTIBOOT_CMDLINE_MAX)?;
            let what = format!("the {} {}", image.role(), image.path().display());
            let gpa = place(&mut self.claims, &what, image.len()).map_err(|e| self.no_room(e))?;
            modules.push(LoadedModule {
                gpa,
                len: image.len(),
                cmdline: cmdline.clone(),
            });
        }
        Ok(modules)
    }

    fn copy_modules(
        &self,
        files: &[(&Image, String)],
        modules: &[LoadedModule],
    ) -> Result<(), BootError> {
        for ((image, _), module) in files.iter().zip(modules) {
            image.copy_to(self.ram, module.gpa, 0, module.len)?;
        }
        Ok(())
    }

    fn check_cmdline(&self, cmdline: &str, most: usize) -> Result<(), BootError> {
        let problem = if cmdline.contains('\0') {
            "contains a zero byte".to_owned()
        } else if cmdline.len() > most {
            format!(
                "has {} bytes, but no more than {most} are seen by a kernel: shorten it",
                cmdline.len()
            )
        } else {
            return Ok(());
        };
        Err(BootError::Cmdline {
            path: self.boot.kernel.clone(),
            problem,
        })
    }

    /// A place below 640 KiB, on pages of its own.
    fn claim_low(&mut self, what: &str, len: u64) -> Result<Gpa, BootError> {
        self.claims
            .lowest(
                what,
                len.next_multiple_of(PAGE),
                PAGE,
                &(0..layout::EBDA.start),
            )
            .map_err(|e| self.no_room(e))
    }

    fn claim_at(&mut self, what: &str, start: u64, end: u64) -> Result<(), BootError> {
        self.claims
            .at(what, start, end - start)
            .map(|_| ())
            .map_err(|e| self.no_room(e))
    }

    fn no_room(&self, source: ClaimError) -> BootError {
        BootError::Claim {
            path: self.boot.kernel.clone(),
            source,
        }
    }
}

/// A command line that begins with the file's name, as multiboot kernels expect it.
fn with_name(image: &Image, cmdline: &str) -> String {
    if cmdline.is_empty() {
        image.name()
    } else {
        format!("{} {cmdline}", image.name())
    }
}
