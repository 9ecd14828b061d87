//! VMX.
#![allow(unsafe_code, reason = "enters L2; INVEPT")]

mod capabilities;
mod enlightened;
mod fields;
mod rules;
mod state;
mod switch;
mod touch;

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypernest_nested::l2exit::{Mode, Touch};
use hypernest_nested::vmx::controls::secondary;
use hypernest_nested::vmx::{Field, ept, exit_reason, interruption};

use super::l2::{Environment, Start};
use super::second_level::{Format, SecondLevel};
use super::vcpu::{Cause, Intercepts, LastExit, Registers, Vcpu};
use crate::pages::{self, Page};
use crate::text::Text;
use crate::trap;
use capabilities::Capabilities;
pub(crate) use enlightened::Enlightened;
pub(crate) use fields::Classic;
use fields::Fields;
pub(crate) use rules::run as evmcs_rules;
use state::{ControlRegisters, Pointers};
use switch::{Failed, Frame};

/// A virtual processor whose VMCS is accessed by `F`.
#[derive(Debug)]
pub(crate) struct Vmx<F> {
    order: usize,
    capabilities: Capabilities,
    fields: F,
    frame: &'static mut Frame,
    launched: bool,
    /// The exit-reason field, as [`Vcpu::cause`] read it.
    reason: u32,
    msr_bitmap: Page,
    io_bitmaps: [Page; 2],
    second_level: SecondLevel,
    /// Page-modification logging is offered.
    logs_pages: bool,
    /// The constant values of these fields of L2.
    guest_cr3: u64,
    cr4_read_shadow: u64,
}

/// The first entry is a VMRESUME, which only an enlightened VMCS accepts.
pub(super) static RESUME_FIRST: AtomicBool = AtomicBool::new(false);

const FORMAT: Format = Format {
    table: ept::ALL_ACCESSES,
    page: ept::ALL_ACCESSES | ept::WRITE_BACK,
    large_page: ept::ALL_ACCESSES | ept::WRITE_BACK | ept::LARGE,
    device: ept::MISCONFIGURED,
};

/// Exception vector of a page fault.
const PAGE_FAULT: u8 = 14;

impl<F: Fields> Vcpu for Vmx<F> {
    fn new(mode: Mode, order: usize) -> Result<Self, Text> {
        let capabilities = Capabilities::read()?;
        capabilities.turn_on()?;
        let control = ControlRegisters::read();
        Ok(Self {
            order,
            capabilities,
            fields: F::new(mode, order, &capabilities)?,
            frame: Frame::new(),
            launched: false,
            reason: 0,
            msr_bitmap: Page::new(),
            io_bitmaps: [Page::new(), Page::new()],
            second_level: SecondLevel::new(FORMAT),
            logs_pages: capabilities
                .secondary(secondary::PAGE_MODIFICATION_LOG)
                .is_ok(),
            guest_cr3: control.cr3,
            cr4_read_shadow: control.cr4,
        })
    }

    fn prepare(
        &mut self,
        intercepts: &Intercepts,
        environment: &Environment,
        start: Start,
        _touch: Touch,
    ) -> Result<(), Text> {
        self.launched = RESUME_FIRST.load(Ordering::Relaxed);
        bitmaps::set_msrs(self.msr_bitmap, intercepts.msrs);
        bitmaps::set_ports(self.io_bitmaps, intercepts.ports);
        let pointers = Pointers {
            io_bitmaps: self.io_bitmaps.map(Page::address),
            msr_bitmap: self.msr_bitmap.address(),
            ept_root: self.second_level.root(),
        };
        self.fields.begin();
        state::write_controls(&mut self.fields, &self.capabilities, intercepts, pointers)?;
        state::write_host(&mut self.fields, self.frame);
        state::write_guest(&mut self.fields, environment, start);
        self.frame.registers = Registers {
            rdi: start.rdi,
            ..Registers::default()
        };
        Ok(())
    }

    #[inline(always)]
    fn enter(&mut self, resumed: &AtomicU64, exited: &AtomicU64) -> Result<(), Text> {
        self.try_enter(resumed, exited)
            .map_err(|failed| self.not_entered(failed))
    }

    #[inline(always)]
    fn cause(&mut self) -> Cause {
        self.reason = low32(self.fields.read(Field::EXIT_REASON));
        if self.reason & exit_reason::ENTRY_FAILED != 0 {
            return self.other();
        }
        match exit_reason::basic(self.reason) {
            exit_reason::CPUID => Cause::Cpuid,
            exit_reason::VMCALL => Cause::Hypercall,
            exit_reason::RDMSR => Cause::ReadMsr,
            exit_reason::WRMSR => Cause::WriteMsr,
            exit_reason::IO => Cause::Port,
            exit_reason::HLT => Cause::Halt,
            exit_reason::EXTERNAL_INTERRUPT => Cause::Interrupt,
            exit_reason::EPT_VIOLATION => Cause::SecondLevelFault {
                gpa: self.fields.read(Field::GUEST_PHYSICAL_ADDRESS),
            },
            exit_reason::EPT_MISCONFIGURATION => Cause::Misconfigured {
                gpa: self.fields.read(Field::GUEST_PHYSICAL_ADDRESS),
            },
            exit_reason::CONTROL_REGISTER => Cause::ControlRegister,
            exit_reason::XSETBV => Cause::Xsetbv,
            exit_reason::PAUSE => Cause::Pause,
            exit_reason::PREEMPTION_TIMER => Cause::PreemptionTimer,
            exit_reason::EXCEPTION_OR_NMI => {
                let info = low32(self.fields.read(Field::EXIT_INTERRUPTION_INFO));
                if interruption::vector(info) == PAGE_FAULT {
                    Cause::PageFault {
                        address: self.fields.read(Field::EXIT_QUALIFICATION),
                    }
                } else {
                    self.other()
                }
            }
            _ => self.other(),
        }
    }

    #[inline(always)]
    fn reason(&self) -> u64 {
        self.reason.into()
    }

    #[inline(always)]
    fn touch(&mut self, touch: Touch, cause: Cause) {
        self.touch_fields(touch, cause);
    }

    #[inline(always)]
    fn skip(&mut self, length: u64) {
        let rip = self.fields.read(Field::GUEST_RIP);
        self.fields
            .write(Field::GUEST_RIP, rip.wrapping_add(length));
    }

    #[inline(always)]
    fn inject(&mut self, vector: u8) {
        let event = interruption::external(vector);
        self.fields
            .write(Field::ENTRY_INTERRUPTION_INFO, event.into());
    }

    #[inline(always)]
    fn acknowledge(&mut self) {
        // The exit has already acknowledged it at the interrupt controller.
        let info = low32(self.fields.read(Field::EXIT_INTERRUPTION_INFO));
        trap::took(self.order, interruption::vector(info));
    }

    #[inline(always)]
    fn registers(&mut self) -> &mut Registers {
        &mut self.frame.registers
    }

    #[inline(always)]
    fn change_msr_bitmap(&mut self) {
        bitmaps::change_msrs(self.msr_bitmap);
        self.fields.msr_bitmap_changed();
    }

    fn second_level(&mut self) -> &mut SecondLevel {
        &mut self.second_level
    }

    fn flush_second_level(&mut self) {
        let descriptor = [0_u64; 2];
        // SAFETY: flushes translations.
        unsafe {
            asm!(
                "invept {kind}, [{descriptor}]",
                "ja 2f",
                "ud2",
                "2:",
                kind = in(reg) ept::INVEPT_ALL,
                descriptor = in(reg) &raw const descriptor,
                options(nostack),
            );
        }
    }

    fn last_exit(&mut self) -> LastExit {
        LastExit {
            reason: self.fields.read(Field::EXIT_REASON),
            qualification: self.fields.read(Field::EXIT_QUALIFICATION),
            rip: self.fields.read(Field::GUEST_RIP),
        }
    }
}

impl<F: Fields> Vmx<F> {
    #[inline(always)]
    fn try_enter(&mut self, resumed: &AtomicU64, exited: &AtomicU64) -> Result<(), Failed> {
        // SAFETY: `prepare` made this VMCS current and wrote the host's state into it. L2 runs this image's
        // code, with separate tables and a separate stack.
        let entered = unsafe { self.frame.enter(!self.launched, resumed, exited) };
        self.launched = true;
        entered
    }

    #[cold]
    fn other(&mut self) -> Cause {
        Cause::Other {
            reason: self.reason.into(),
            qualification: self.fields.read(Field::EXIT_QUALIFICATION),
        }
    }

    #[cold]
    fn not_entered(&mut self, failed: Failed) -> Text {
        match failed {
            Failed::Invalid => Text::new(format_args!(
                "the entry fails: there is no current VMCS (VMfailInvalid)"
            )),
            Failed::Valid => Text::new(format_args!(
                "the entry fails: instruction error {}, exit reason {:#x}, qualification {:#x}",
                self.fields.read(Field::INSTRUCTION_ERROR),
                self.fields.read(Field::EXIT_REASON),
                self.fields.read(Field::EXIT_QUALIFICATION),
            )),
        }
    }
}

/// The value of a 32-bit field.
const fn low32(value: u64) -> u32 {
    (value & 0xFFFF_FFFF) as u32
}

mod bitmaps {
    //! The MSR and I/O bitmaps (SDM volume 3, 26.6.4 and 26.6.9).

    use hypernest_nested::probe::DOORBELL_PORT;

    use super::{Page, pages};

    const KERNEL_GS_BASE: u32 = 0xC000_0102;
    /// The last register of the same range, which no processor has.
    const UNUSED: u32 = 0xC000_1FFF;
    /// The offset of the bitmaps of the registers from 0xC000_0000 on.
    const READ_HIGH: usize = 1024;
    const WRITE_HIGH: usize = 3072;

    fn place(msr: u32) -> (usize, u8) {
        let index = pages::as_usize(u64::from(msr & 0x1FFF));
        (index / 8, 1 << (index % 8))
    }

    pub(super) fn set_msrs(page: Page, intercepted: bool) {
        let (byte, bit) = place(KERNEL_GS_BASE);
        for half in [READ_HIGH, WRITE_HIGH] {
            page.write8(half + byte, if intercepted { bit } else { 0 });
        }
    }

    /// Toggles the interception of a register that no code uses.
    #[inline(always)]
    pub(super) fn change_msrs(page: Page) {
        let (byte, bit) = place(UNUSED);
        let at = READ_HIGH + byte;
        page.write8(at, page.read8(at) ^ bit);
    }

    pub(super) fn set_ports([low, high]: [Page; 2], intercepted: bool) {
        let all = if intercepted { u64::MAX } else { 0 };
        for at in (0..4096).step_by(8) {
            low.write64(at, all);
            high.write64(at, all);
        }
        // Four bytes wide: the intercepts of all four ports apply.
        for port in DOORBELL_PORT..DOORBELL_PORT + 4 {
            let byte = usize::from(port / 8);
            low.write8(byte, low.read8(byte) & !(1 << (port % 8)));
        }
    }
}
