//! L1's accesses to the VMCS on an exit, beyond those of handling the exit.

use core::hint::black_box;

use hypernest_nested::l2exit::Touch;
use hypernest_nested::vmx::Field;

use super::Vmx;
use super::fields::Fields;
use crate::l1::vcpu::Cause;

/// Reads fields, each by a separate instruction; with `and write`, it also writes each back.
macro_rules! look {
    ($vmx:ident, $($field:ident),+ $(,)?) => { $( $vmx.look(Field::$field); )+ };
    ($vmx:ident, $($field:ident),+ => and write) => { $(
        let value = $vmx.fields.read(Field::$field);
        $vmx.fields.write(Field::$field, value);
    )+ };
}

impl<F: Fields> Vmx<F> {
    /// Performs the accesses of `touch`.
    #[inline(always)]
    pub(super) fn touch_fields(&mut self, touch: Touch, cause: Cause) {
        match touch {
            Touch::Minimal => {}
            Touch::KvmLike => self.touch_like_kvm(cause),
            Touch::HypervLike => self.touch_like_hyperv(),
            Touch::Fields { reads, writes } => self.touch_some(reads, writes),
        }
    }

    #[inline(always)]
    fn look(&self, field: Field) {
        black_box(self.fields.read(field));
    }

    /// Linux 6.12, arch/x86/kvm/vmx/vmx.c; the handler of the exit reads and writes RIP, as in
    /// `skip_emulated_instruction`.
    fn touch_like_kvm(&mut self, cause: Cause) {
        // vmx_vcpu_enter_exit.
        self.look(Field::IDT_VECTORING_INFO);
        // vmx_vcpu_run, though L0 has marked them too.
        self.fields.all_clean();
        if self.logs_pages {
            // vmx_flush_pml_buffer.
            self.look(Field::PML_INDEX);
        }
        match cause {
            Cause::Cpuid | Cause::ReadMsr | Cause::WriteMsr | Cause::Halt => self.skip_like_kvm(),
            Cause::Hypercall => {
                // is_64_bit_hypercall, then the caller's privilege level.
                self.look(Field::GUEST_CS_ACCESS_RIGHTS);
                self.look(Field::GUEST_SS_ACCESS_RIGHTS);
                self.skip_like_kvm();
            }
            Cause::Xsetbv | Cause::Pause => {
                // kvm_emulate_xsetbv and kvm_vcpu_on_spin read the privilege level.
                self.look(Field::GUEST_SS_ACCESS_RIGHTS);
                self.skip_like_kvm();
            }
            Cause::Port => {
                // handle_io.
                self.look(Field::EXIT_QUALIFICATION);
                self.skip_like_kvm();
            }
            Cause::ControlRegister => {
                // handle_cr, then vmx_load_mmu_pgd.
                self.look(Field::EXIT_QUALIFICATION);
                self.skip_like_kvm();
                self.fields.write(Field::GUEST_CR3, self.guest_cr3);
            }
            Cause::Interrupt | Cause::PreemptionTimer => {
                // vmx_interrupt_allowed before the injection, then vmx_update_cr8_intercept.
                self.look(Field::GUEST_RFLAGS);
                self.look(Field::GUEST_INTERRUPTIBILITY);
                self.fields.write(Field::TPR_THRESHOLD, 0);
            }
            // handle_ept_violation.
            Cause::SecondLevelFault { .. } => self.look(Field::EXIT_QUALIFICATION),
            Cause::Misconfigured { .. } => {
                // x86_emulate_instruction: mode and privilege level before, flags and interrupt shadow after.
                self.look(Field::GUEST_RFLAGS);
                self.look(Field::GUEST_CS_ACCESS_RIGHTS);
                self.look(Field::GUEST_SS_ACCESS_RIGHTS);
                self.look(Field::GUEST_INTERRUPTIBILITY);
                let flags = self.fields.read(Field::GUEST_RFLAGS);
                self.fields.write(Field::GUEST_RFLAGS, flags);
            }
            // handle_exception_nmi.
            Cause::PageFault { .. } => self.look(Field::EXIT_INTERRUPTION_ERROR_CODE),
            Cause::Other { .. } => {}
        }
    }

    /// kvm_skip_emulated_instruction, except for RIP.
    fn skip_like_kvm(&self) {
        self.look(Field::GUEST_RFLAGS);
        self.look(Field::EXIT_INSTRUCTION_LENGTH);
        self.look(Field::GUEST_INTERRUPTIBILITY);
    }

    /// An estimate: Hyper-V's code is not public. It reads the processor's exit information at once, and the
    /// state that an intercept message contains (TLFS, "Intercept messages"); and it writes the guest's basic
    /// state and its events before each entry.
    fn touch_like_hyperv(&mut self) {
        look!(
            self,
            EXIT_QUALIFICATION,
            EXIT_INTERRUPTION_INFO,
            EXIT_INTERRUPTION_ERROR_CODE,
            IDT_VECTORING_INFO,
            IDT_VECTORING_ERROR_CODE,
            EXIT_INSTRUCTION_LENGTH,
            EXIT_INSTRUCTION_INFO,
            GUEST_LINEAR_ADDRESS,
            GUEST_PHYSICAL_ADDRESS,
            GUEST_CS_ACCESS_RIGHTS,
            GUEST_CR0,
            GUEST_CR3,
            GUEST_CR4,
            GUEST_EFER,
        );
        look!(self, GUEST_RSP, GUEST_RFLAGS, GUEST_INTERRUPTIBILITY => and write);
        self.fields.write(Field::ENTRY_INTERRUPTION_INFO, 0);
        self.fields.write(Field::TPR_THRESHOLD, 0);
    }

    /// Fields that KVM as L0 keeps in its shadow VMCS, in turn; a written field keeps its value.
    fn touch_some(&mut self, reads: u32, writes: u32) {
        for turn in 0..reads {
            match turn % 8 {
                0 => self.look(Field::IDT_VECTORING_INFO),
                1 => self.look(Field::EXIT_INSTRUCTION_LENGTH),
                2 => self.look(Field::GUEST_RFLAGS),
                3 => self.look(Field::GUEST_INTERRUPTIBILITY),
                4 => self.look(Field::EXIT_QUALIFICATION),
                5 => self.look(Field::GUEST_RSP),
                6 => self.look(Field::EXIT_INTERRUPTION_INFO),
                _ => self.look(Field::GUEST_CS_ACCESS_RIGHTS),
            }
        }
        for turn in 0..writes {
            match turn % 4 {
                0 => self.fields.write(Field::TPR_THRESHOLD, 0),
                1 => self.fields.write(Field::ENTRY_EXCEPTION_ERROR_CODE, 0),
                2 => self.fields.write(Field::ENTRY_INSTRUCTION_LENGTH, 0),
                _ => self
                    .fields
                    .write(Field::CR4_READ_SHADOW, self.cr4_read_shadow),
            }
        }
    }
}
