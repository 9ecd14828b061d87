//! The state in which the boot vCPU starts, as plain data. The other vCPUs wait for a start-up IPI; KVM sees
//! to that.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::units::Gpa;

/// CR0: protection enabled.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: extension type; reads as one on every CPU since the 486.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension; long mode needs it.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always one. Interrupts are off.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Selector of the flat code segment: `__BOOT_CS` of the Linux boot protocol.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the flat data segment: `__BOOT_DS` of the Linux boot protocol.
pub const DATA_SELECTOR: u16 = 0x18;

/// The processor mode in which the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit code, paging on with an identity map.
    Long64,
    /// 32-bit code, flat segments, paging off.
    Protected32,
}

/// What a segment register holds, hidden part included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index into the GDT.
    pub selector: u16,
    /// First byte.
    pub base: u64,
    /// Last byte's offset.
    pub limit: u32,
    /// Segment type (Intel SDM vol. 3, 3.4.5.1 and 3.5).
    pub kind: u8,
    /// Code or data, not a system segment.
    pub code_or_data: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit operands by default.
    pub big: bool,
    /// The limit counts 4 KiB pages.
    pub pages: bool,
}

/// Execute and read, accessed.
const KIND_CODE: u8 = 0xb;
/// Read and write, accessed.
const KIND_DATA: u8 = 0x3;
/// A busy 32-bit (in long mode: 64-bit) task state segment, the only kind that VM entry accepts in TR.
const KIND_BUSY_TSS: u8 = 0xb;

impl Segment {
    const fn flat(selector: u16, kind: u8, long: bool) -> Self {
        Self {
            selector,
            base: 0,
            limit: u32::MAX,
            kind,
            code_or_data: true,
            long,
            big: !long,
            pages: true,
        }
    }

    /// The 8-byte descriptor of this segment.
    pub fn descriptor(&self) -> u64 {
        let limit = if self.pages {
            u64::from(self.limit) >> 12
        } else {
            u64::from(self.limit)
        };
        let access = u64::from(self.kind) | u64::from(self.code_or_data) << 4 | 1 << 7;
        let flags =
            u64::from(self.long) << 1 | u64::from(self.big) << 2 | u64::from(self.pages) << 3;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }

    fn to_kvm(self) -> kvm_segment {
        kvm_segment {
            base: self.base,
            limit: self.limit,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: self.big.into(),
            s: self.code_or_data.into(),
            l: self.long.into(),
            g: self.pages.into(),
            avl: 0,
            unusable: 0,
            padding: 0,
        }
    }
}

/// Everything that differs from the boot vCPU's reset state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The processor mode.
    pub mode: Mode,
    /// The first instruction.
    pub rip: u64,
    /// Multiboot's magic number.
    pub rax: u64,
    /// The address of what PVH and multiboot hand to the kernel.
    pub rbx: u64,
    /// The address of Linux's zero page.
    pub rsi: u64,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
    /// The GDT.
    pub gdt: Gpa,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the page tables, if any.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enables.
    pub efer: u64,
}

/// Bytes in the GDT: a null descriptor, an unused one, code and data.
pub const GDT_LEN: u16 = 4 * 8;

impl Entry {
    /// Enters 64-bit code at `rip` with the page tables at `page_tables`; RSI holds `zero_page`.
    pub fn long64(rip: Gpa, zero_page: Gpa, page_tables: Gpa, gdt: Gpa) -> Self {
        Self {
            rsi: zero_page.0,
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: page_tables.0,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..Self::new(Mode::Long64, rip, gdt)
        }
    }

    /// Enters 32-bit code at `rip`; EAX holds `magic`, EBX holds `info`.
    pub fn protected32(rip: Gpa, magic: u32, info: Gpa, gdt: Gpa) -> Self {
        Self {
            rax: magic.into(),
            rbx: info.0,
            cr0: CR0_PE | CR0_ET,
            ..Self::new(Mode::Protected32, rip, gdt)
        }
    }

    fn new(mode: Mode, rip: Gpa, gdt: Gpa) -> Self {
        Self {
            mode,
            rip: rip.0,
            rax: 0,
            rbx: 0,
            rsi: 0,
            code: Segment::flat(CODE_SELECTOR, KIND_CODE, mode == Mode::Long64),
            data: Segment::flat(DATA_SELECTOR, KIND_DATA, false),
            task: Segment {
                selector: 0,
                base: 0,
                limit: 0x67,
                kind: KIND_BUSY_TSS,
                code_or_data: false,
                long: false,
                big: false,
                pages: false,
            },
            gdt,
            cr0: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
        }
    }

    /// The GDT that the selectors mean, to be written at [`Self::gdt`].
    pub fn gdt_bytes(&self) -> Vec<u8> {
        [0, 0, self.code.descriptor(), self.data.descriptor()]
            .iter()
            .flat_map(|d: &u64| d.to_le_bytes())
            .collect()
    }

    /// The general registers for `KVM_SET_REGS`.
    pub fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.rip,
            rax: self.rax,
            rbx: self.rbx,
            rsi: self.rsi,
            rflags: RFLAGS_FIXED,
            ..kvm_regs::default()
        }
    }

    /// The special registers for `KVM_SET_SREGS`: those of the vCPU's reset state, changed where the kernel's
    /// entry differs.
    pub fn sregs(&self, reset: &kvm_sregs) -> kvm_sregs {
        let data = self.data.to_kvm();
        kvm_sregs {
            cs: self.code.to_kvm(),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: self.task.to_kvm(),
            gdt: kvm_dtable {
                base: self.gdt.0,
                limit: GDT_LEN - 1,
                ..kvm_dtable::default()
            },
            // No interrupt can come before the kernel has an IDT of its own.
            idt: kvm_dtable::default(),
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            ..*reset
        }
    }
}

/// Page tables that map the first 4 GiB to themselves with 2 MiB pages, to be written at `at`.
pub fn identity_page_tables(at: Gpa) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const ENTRIES: u64 = 512;
    let table = |index: u64| (at.0 + index * 0x1000) | PRESENT_WRITABLE;
    // One PML4, one page directory pointer table, four page directories.
    let pml4 = (0..ENTRIES).map(|i| if i == 0 { table(1) } else { 0 });
    let pdpt = (0..ENTRIES).map(|i| if i < 4 { table(2 + i) } else { 0 });
    let directories = (0..4 * ENTRIES).map(|i| i << 21 | LARGE | PRESENT_WRITABLE);
    pml4.chain(pdpt)
        .chain(directories)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// Bytes in [`identity_page_tables`].
pub const PAGE_TABLES_LEN: u64 = 6 * 0x1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_flat_segments() {
        let long = Entry::long64(Gpa(0x100_0200), Gpa(0x1000), Gpa(0x2000), Gpa(0x500));
        assert_eq!(long.code.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(long.data.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(long.gdt_bytes().len(), usize::from(GDT_LEN));
        assert_eq!(
            long.gdt_bytes()[usize::from(CODE_SELECTOR)..][..8],
            long.code.descriptor().to_le_bytes()
        );
        let protected = Entry::protected32(Gpa(0x100_0000), 0, Gpa(0x1000), Gpa(0x500));
        assert_eq!(protected.code.descriptor(), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn a_descriptor_spreads_base_and_limit() {
        let segment = Segment {
            base: 0x1234_5678,
            limit: 0xf_edcb,
            pages: false,
            ..Entry::long64(Gpa(0), Gpa(0), Gpa(0), Gpa(0)).data
        };
        assert_eq!(segment.descriptor(), 0x124f_9334_5678_edcb);
    }

    #[test]
    fn long_mode_has_paging_and_protected_mode_has_not() {
        let reset = kvm_sregs {
            apic_base: 0xfee0_0900,
            ..kvm_sregs::default()
        };
        let long = Entry::long64(Gpa(0x100_0200), Gpa(0x1000), Gpa(0x2000), Gpa(0x500));
        let sregs = long.sregs(&reset);
        assert_eq!(
            (
                sregs.cr0,
                sregs.cr3,
                sregs.cr4,
                sregs.efer,
                sregs.cs.l,
                sregs.cs.db
            ),
            (0x8000_0011, 0x2000, 0x20, 0x500, 1, 0)
        );
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 31));
        assert_eq!(
            (long.regs().rip, long.regs().rsi, long.regs().rflags),
            (0x100_0200, 0x1000, 2)
        );

        let protected = Entry::protected32(Gpa(0x20_0000), 0x2bad_b002, Gpa(0x9000), Gpa(0x500));
        let sregs = protected.sregs(&reset);
        assert_eq!(
            (
                sregs.cr0,
                sregs.cr3,
                sregs.cr4,
                sregs.efer,
                sregs.cs.l,
                sregs.cs.db
            ),
            (0x11, 0, 0, 0, 0, 1)
        );
        assert_eq!(
            (protected.regs().rax, protected.regs().rbx),
            (0x2bad_b002, 0x9000)
        );
    }

    #[test]
    fn the_page_tables_map_4_gib_to_itself() {
        let at = Gpa(0x5000);
        let bytes = identity_page_tables(at);
        assert_eq!(bytes.len() as u64, PAGE_TABLES_LEN);
        let entry = |table: u64, index: u64| {
            let offset = usize::try_from(table - at.0 + 8 * index).unwrap();
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
        };
        for address in [0_u64, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xffff_ffff] {
            let pdpt = entry(at.0, address >> 39) & !0xfff;
            let directory = entry(pdpt, address >> 30 & 511) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0xfff, 0x83);
            assert_eq!(page & !0xfff, address & !0x1f_ffff);
        }
        assert_eq!(entry(at.0, 1), 0);
        assert_eq!(entry(at.0 + 0x1000, 4), 0);
    }
}
