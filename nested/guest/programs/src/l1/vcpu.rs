//! The interface common to VMX and SVM: a virtual processor on which L1 runs an L2.

use core::sync::atomic::AtomicU64;

use hypernest_nested::l2exit::{Mode, Touch};

use super::l2::{Environment, Start};
use super::second_level::SecondLevel;
use crate::cpu;
use crate::text::Text;

/// L2's exit reason, in terms common to both vendors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// CPUID.
    Cpuid,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// RDMSR of a register that L1 intercepts.
    ReadMsr,
    /// WRMSR of a register that L1 intercepts.
    WriteMsr,
    /// IN or OUT.
    Port,
    /// HLT.
    Halt,
    /// An interrupt for L1; [`Vcpu::acknowledge`] takes it.
    Interrupt,
    /// An access that the second level of translation has no page for.
    SecondLevelFault { gpa: u64 },
    /// An access through an entry of the second level that has a forbidden value: the way to MMIO on VMX.
    Misconfigured { gpa: u64 },
    /// MOV to CR3.
    ControlRegister,
    /// #PF in L2, at this linear address.
    PageFault { address: u64 },
    /// XSETBV.
    Xsetbv,
    /// PAUSE.
    Pause,
    /// VMX's own timer ran out.
    PreemptionTimer,
    /// Nothing that a kind asks for.
    Other { reason: u64, qualification: u64 },
}

/// The events of L2 that L1 intercepts.
///
/// CPUID, hypercalls and XSETBV come out always, and so do interrupts for L1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Intercepts {
    /// Reads and writes of KERNEL_GS_BASE; no other register is intercepted.
    pub(crate) msrs: bool,
    /// Every port but the doorbell.
    pub(crate) ports: bool,
    /// HLT.
    pub(crate) halt: bool,
    /// MOV to CR3.
    pub(crate) cr3: bool,
    /// #PF.
    pub(crate) page_fault: bool,
    /// PAUSE.
    pub(crate) pause: bool,
    /// An end after so many ticks of VMX's own timer, from each entry on.
    pub(crate) preemption_timer: Option<u32>,
    /// L2 may have L0 flush translations by hypercall, where the mode has that.
    pub(crate) direct_flush: bool,
}

/// L2's registers that the processor leaves to software. RSP and RIP are the processor's; RAX is on VMX only.
///
/// SVM keeps RAX in the VMCB: its switch copies it here and back.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Registers {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) r8: u64,
    pub(crate) r9: u64,
    pub(crate) r10: u64,
    pub(crate) r11: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
}

/// The processor's description of the last exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LastExit {
    pub(crate) reason: u64,
    pub(crate) qualification: u64,
    pub(crate) rip: u64,
}

/// A virtual processor of L1's.
///
/// Called with interrupts off. What an implementation reads and writes in each call is what the profile
/// `minimal` counts: [`Vcpu::cause`] one read, [`Vcpu::skip`] one read and one write, and no more than its
/// purpose needs in the rest.
pub(crate) trait Vcpu: Sized {
    /// Checks that `mode` is offered and makes this processor a hypervisor's. `Err` says what is missing.
    fn new(mode: Mode, order: usize) -> Result<Self, Text>;

    /// Sets everything up anew: L2 begins at `start` with the registers of a new guest, and what `touch` has
    /// L1 do around each entry is done from now on. `Err` says which intercept this processor does not have.
    fn prepare(
        &mut self,
        intercepts: &Intercepts,
        environment: &Environment,
        start: Start,
        touch: Touch,
    ) -> Result<(), Text>;

    /// Runs L2 until its next exit. The switch itself stores the TSC: in `resumed` just before entering, in
    /// `exited` just after leaving.
    fn enter(&mut self, resumed: &AtomicU64, exited: &AtomicU64) -> Result<(), Text>;

    /// L2's exit reason.
    fn cause(&mut self) -> Cause;

    /// What [`Vcpu::cause`] has read last.
    fn reason(&self) -> u64;

    /// What `touch` reads and writes on an exit beyond what handling it needs.
    fn touch(&mut self, touch: Touch, cause: Cause);

    /// Continues L2 after an instruction of `length` bytes.
    fn skip(&mut self, length: u64);

    /// Injects the interrupt `vector` at the next entry; L2 must have interrupts enabled.
    fn inject(&mut self, vector: u8);

    /// Takes the interrupt that ended L2: it is counted by [`crate::trap`] and ended at the interrupt
    /// controller.
    fn acknowledge(&mut self);

    /// Halts L1 until an interrupt has come and been handled.
    fn halt(&mut self) {
        cpu::wait_for_interrupt();
        cpu::disable_interrupts();
    }

    /// Restores the processor's state from before the first entry; L1 does not enter this L2 again.
    fn leave(&mut self) {}

    /// L2's general registers.
    fn registers(&mut self) -> &mut Registers;

    /// Changes a bit of the MSR bitmap that no kind depends on, and notifies L0 by the mode's protocol.
    fn change_msr_bitmap(&mut self);

    /// The second level of translation; the same for every call of [`Vcpu::prepare`].
    fn second_level(&mut self) -> &mut SecondLevel;

    /// Drops the translations that the processor keeps of the second level, as must be after something in it
    /// was taken away. What was only added needs none.
    fn flush_second_level(&mut self);

    /// The processor's words for the board and for failures.
    fn last_exit(&mut self) -> LastExit;
}
