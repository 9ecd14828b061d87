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
    /// An interrupt for L1; [`Vcpu::acknowledge`] accepts it.
    Interrupt,
    /// An access to a page that the second level of translation does not map.
    SecondLevelFault { gpa: u64 },
    /// An access through a misconfigured entry of the second level: used for MMIO on VMX.
    Misconfigured { gpa: u64 },
    /// MOV to CR3.
    ControlRegister,
    /// #PF in L2, at this linear address.
    PageFault { address: u64 },
    /// XSETBV.
    Xsetbv,
    /// PAUSE.
    Pause,
    /// The VMX-preemption timer expired.
    PreemptionTimer,
    /// An exit that no kind requests.
    Other { reason: u64, qualification: u64 },
}

/// The events of L2 that L1 intercepts.
///
/// CPUID, hypercalls and XSETBV always exit, and so do interrupts for L1.
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
    /// The number of ticks of the VMX-preemption timer, from each entry on.
    pub(crate) preemption_timer: Option<u32>,
    /// Whether L2 may flush translations by hypercalls to L0, if the mode supports it.
    pub(crate) direct_flush: bool,
}

/// L2's registers that the processor leaves to software. RSP and RIP are the processor's; RAX is here only on
/// VMX.
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

/// A virtual processor of L1.
///
/// Called with interrupts off. The reads and writes of an implementation in each call are those of the
/// profile `minimal`: [`Vcpu::cause`] one read, [`Vcpu::skip`] one read and one write, and no more than its
/// purpose requires in the rest.
pub(crate) trait Vcpu: Sized {
    /// Checks that `mode` is offered and enables this processor's virtualization. `Err` names the missing
    /// feature.
    fn new(mode: Mode, order: usize) -> Result<Self, Text>;

    /// Sets everything up again: L2 begins at `start` with the registers of a new guest, and L1 performs the
    /// accesses of `touch` around each entry from now on. `Err` names an intercept that this processor does
    /// not have.
    fn prepare(
        &mut self,
        intercepts: &Intercepts,
        environment: &Environment,
        start: Start,
        touch: Touch,
    ) -> Result<(), Text>;

    /// Runs L2 until its next exit. The switch itself stores the TSC: in `resumed` just before the entry, in
    /// `exited` just after the exit.
    fn enter(&mut self, resumed: &AtomicU64, exited: &AtomicU64) -> Result<(), Text>;

    /// L2's exit reason.
    fn cause(&mut self) -> Cause;

    /// The last value that [`Vcpu::cause`] read.
    fn reason(&self) -> u64;

    /// The accesses of `touch` on an exit beyond those of handling it.
    fn touch(&mut self, touch: Touch, cause: Cause);

    /// Continues L2 after an instruction of `length` bytes.
    fn skip(&mut self, length: u64);

    /// Injects the interrupt `vector` at the next entry; L2 must have interrupts enabled.
    fn inject(&mut self, vector: u8);

    /// Accepts the interrupt that ended L2: [`crate::trap`] counts it and sends its EOI.
    fn acknowledge(&mut self);

    /// Halts L1 until an interrupt has arrived and been handled.
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

    /// Flushes the processor's translations of the second level, which is required after an entry was
    /// removed, but not after one was added.
    fn flush_second_level(&mut self);

    /// The processor's exit information, for the board and for failures.
    fn last_exit(&mut self) -> LastExit;
}
