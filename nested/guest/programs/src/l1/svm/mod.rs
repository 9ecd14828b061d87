//! L1 by SVM, with nested paging.
#![allow(unsafe_code, reason = "registers of SVM and its switch")]

mod enlightened;
mod features;
mod permissions;
mod switch;
mod vmcb;

use core::sync::atomic::AtomicU64;

use hypernest_nested::l2exit::{Mode, Touch};
use hypernest_nested::svm::{clean, exit_code};

use super::l2::{Environment, Start};
use super::second_level::{Format, SecondLevel};
use super::vcpu::{Cause, Intercepts, LastExit, Registers, Vcpu};
use crate::cpu;
use crate::pages::Page;
use crate::text::Text;
use enlightened::Enlightened;
use permissions::Permissions;
use vmcb::Vmcb;

/// Entries of nested paging are those of long mode. Its walks count as a user's accesses (APM volume 2,
/// 15.25.5), and present, writable, user, accessed and dirty are bits 0, 1, 2, 5 and 6; bit 7 makes a 2 MiB
/// page.
const FORMAT: Format = Format {
    table: 0x27,
    page: 0x67,
    large_page: 0xE7,
    // Not present: SVM has no other entry that makes a device's accesses exit.
    device: 0,
};

/// A virtual processor by SVM.
#[derive(Debug)]
pub(crate) struct Svm {
    vmcb: Vmcb,
    /// The page that stores L1's own state of the kind that VMLOAD loads.
    own: Page,
    permissions: Permissions,
    enlightened: Enlightened,
    second_level: SecondLevel,
    registers: Registers,
    /// Whether each entry is wrapped as in KVM. Otherwise L2's hidden state stays loaded and the global
    /// interrupt flag clear from one exit to the next entry.
    wrapped: bool,
    /// Whether L2's hidden state is loaded, and the global interrupt flag clear.
    inside: bool,
}

impl Svm {
    /// Restores L1's state outside of a run: its own hidden state, and interrupts.
    fn come_out(&mut self) {
        if self.inside {
            // SAFETY: `go_in` has entered; `new` stored this processor's own state there.
            unsafe { switch::leave(self.vmcb.page(), self.own) };
            self.inside = false;
        }
    }

    /// Prepares for VMRUN.
    fn go_in(&mut self) {
        if !self.inside {
            // SAFETY: SVM is on since `new`. Only handlers use the loaded state, and they cannot run.
            unsafe { switch::enter(self.vmcb.page()) };
            self.inside = true;
        }
    }
}

impl Vcpu for Svm {
    fn new(mode: Mode, order: usize) -> Result<Self, Text> {
        features::check()?;
        features::enable(Page::new())?;
        let own = Page::new();
        // SAFETY: SVM is on; the page is new.
        unsafe { switch::keep(own) };
        Ok(Self {
            vmcb: Vmcb::new(),
            own,
            permissions: Permissions::new(),
            enlightened: Enlightened::new(mode, order)?,
            second_level: SecondLevel::new(FORMAT),
            registers: Registers::default(),
            wrapped: true,
            inside: false,
        })
    }

    fn prepare(
        &mut self,
        intercepts: &Intercepts,
        environment: &Environment,
        start: Start,
        touch: Touch,
    ) -> Result<(), Text> {
        if intercepts.preemption_timer.is_some() {
            return Err(Text::new(format_args!("SVM has no preemption timer")));
        }
        self.permissions.set(intercepts);
        self.vmcb
            .set_up(&mut self.permissions, intercepts, self.second_level.root());
        self.enlightened.set_up(self.vmcb, intercepts);
        self.vmcb.begin(environment, start);
        self.registers = Registers {
            rdi: start.rdi,
            ..Registers::default()
        };
        self.wrapped = matches!(touch, Touch::KvmLike | Touch::HypervLike);
        Ok(())
    }

    #[inline(always)]
    fn enter(&mut self, resumed: &AtomicU64, exited: &AtomicU64) -> Result<(), Text> {
        self.go_in();
        // SAFETY: SVM is on and the save area set since `new`; `prepare` described an L2 that runs code of
        // this image on a separate stack.
        unsafe { switch::run(&mut self.registers, self.vmcb.page(), resumed, exited) };
        if self.wrapped {
            self.come_out();
        }
        self.vmcb.exited();
        if self.vmcb.exit_code() == exit_code::INVALID {
            return Err(Text::new(format_args!(
                "VMRUN refuses the VMCB: a reserved bit or an impossible state"
            )));
        }
        Ok(())
    }

    #[inline(always)]
    fn cause(&mut self) -> Cause {
        match self.vmcb.exit_code() {
            exit_code::CPUID => Cause::Cpuid,
            exit_code::VMMCALL => Cause::Hypercall,
            // EXITINFO1 distinguishes reads from writes.
            exit_code::MSR if self.vmcb.exit_info_1() & 1 == 0 => Cause::ReadMsr,
            exit_code::MSR => Cause::WriteMsr,
            exit_code::IO => Cause::Port,
            exit_code::HLT => Cause::Halt,
            exit_code::INTERRUPT => Cause::Interrupt,
            exit_code::NESTED_PAGE_FAULT => Cause::SecondLevelFault {
                gpa: self.vmcb.exit_info_2(),
            },
            exit_code::CR3_WRITE => Cause::ControlRegister,
            exit_code::PAGE_FAULT => Cause::PageFault {
                address: self.vmcb.exit_info_2(),
            },
            exit_code::XSETBV => Cause::Xsetbv,
            exit_code::PAUSE => Cause::Pause,
            reason => Cause::Other {
                reason,
                qualification: self.vmcb.exit_info_1(),
            },
        }
    }

    #[inline(always)]
    fn reason(&self) -> u64 {
        self.vmcb.exit_code()
    }

    #[inline(always)]
    fn touch(&mut self, touch: Touch, _cause: Cause) {
        self.vmcb.touch(touch);
    }

    #[inline(always)]
    fn skip(&mut self, length: u64) {
        self.vmcb.skip(length);
    }

    #[inline(always)]
    fn inject(&mut self, vector: u8) {
        self.vmcb.inject(vector);
    }

    fn acknowledge(&mut self) {
        self.come_out();
        cpu::take_interrupts();
    }

    fn halt(&mut self) {
        self.come_out();
        cpu::wait_for_interrupt();
        cpu::disable_interrupts();
    }

    fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    #[inline(always)]
    fn change_msr_bitmap(&mut self) {
        self.permissions.change();
        self.vmcb.mark(clean::ENLIGHTENMENTS);
    }

    fn second_level(&mut self) -> &mut SecondLevel {
        &mut self.second_level
    }

    fn flush_second_level(&mut self) {
        self.vmcb.flush();
    }

    fn last_exit(&mut self) -> LastExit {
        LastExit {
            reason: self.vmcb.exit_code(),
            qualification: self.vmcb.exit_info_1(),
            rip: self.vmcb.rip(),
        }
    }

    fn leave(&mut self) {
        self.come_out();
    }
}
