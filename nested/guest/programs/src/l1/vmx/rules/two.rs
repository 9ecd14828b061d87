//! Two processors and one page.

use core::arch::naked_asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use hypernest_nested::vmx::Field;

use super::super::state;
use super::{Rig, SEEN, look_between_stops, seen};
use crate::checks::{Check, Stop, Tally, equal, failed};
use crate::cpu::{self, Faulted, rdmsr, wrmsr};
use crate::l1::l2::Shared;
use crate::l1::vcpu::Registers;
use crate::pages::Page;
use crate::smp::Processors;
use crate::text::Text;

/// The other processor's number.
const OTHER: usize = 1;
const SYSENTER_ESP: u32 = 0x175;
const START: u64 = 0x1000;

pub(super) fn check(rig: &mut Rig, processors: Processors, tally: &mut Tally<'_>) {
    if processors.count < 2 {
        for name in ["moved", "moved-uncleared", "page-on-two"] {
            let why = Text::new(format_args!("it takes two processors (cpus=2)"));
            tally.note(&name, Err(Stop::Absent(why)));
        }
        return;
    }
    let mut other = Other {
        processors,
        rig: None,
        page: rig.page(),
        registers: Registers::default(),
        task: lap,
        outcome: Ok(0),
    };
    tally.note(&"moved", moved(rig, &mut other));
    tally.note(&"moved-uncleared", moved_uncleared(rig, &mut other));
    tally.note(&"page-on-two", page_on_two(rig, &mut other));
}

/// L2 increments its MSR, on whichever processor it runs.
extern "sysv64" fn counts(_: &'static Shared) -> ! {
    loop {
        look_between_stops(|| rdmsr(SYSENTER_ESP).unwrap_or(0));
        // SAFETY: no code here uses SYSENTER.
        let _: Result<(), Faulted> = unsafe { wrmsr(SYSENTER_ESP, seen() + 1) };
    }
}

/// From L2's first stop to its next first stop: the value that it has read.
fn lap(rig: &mut Rig) -> Result<u64, Stop> {
    rig.run_to_stop()?;
    let seen = seen();
    rig.run_to_stop()?;
    Ok(seen)
}

/// L2 begins on this processor and has counted by one.
fn begin(rig: &mut Rig) -> Check {
    rig.begin(counts)?;
    rig.write(Field::GUEST_SYSENTER_ESP, START);
    rig.run_to_stop()?;
    equal("before the move", lap(rig)?, START)
}

/// With VMCLEAR before each move L2 finds its state on the other processor, and again on this one.
fn moved(rig: &mut Rig, other: &mut Other) -> Check {
    begin(rig)?;
    rig.vmx.fields.deactivate();
    equal("after the move", other.run(rig, lap)?, START + 1)?;
    rig.take_over(other.page, other.registers);
    equal("after the move back", lap(rig)?, START + 2)
}

/// Without VMCLEAR before the move, this processor runs the old state of L2 on its return.
fn moved_uncleared(rig: &mut Rig, other: &mut Other) -> Check {
    begin(rig)?;
    equal("after the move", other.run(rig, lap)?, START + 1)?;
    // The next entry is a VMRESUME with every clean bit set, as L0 left them on the other processor.
    equal("on the return, stale", lap(rig)?, START + 1)
}

/// Two processors enter with one page: KVM does not detect it. RIP, which has no clean bit, is then the other
/// L2's.
fn page_on_two(rig: &mut Rig, other: &mut Other) -> Check {
    rig.begin(first)?;
    rig.run_to_stop()?;
    rig.run_to_stop()?;
    equal("what the first L2 has seen", seen(), FIRST)?;
    other.run(rig, |rig| {
        rig.begin(second)?;
        rig.run_to_stop()?;
        Ok(0)
    })?;
    rig.run_to_stop()?;
    equal("what the first L2 has seen", seen(), SECOND)
}

const FIRST: u64 = 1;
const SECOND: u64 = 2;

/// Stores its number at each stop, without a register that has a meaning.
#[unsafe(naked)]
extern "sysv64" fn first(_: &'static Shared) -> ! {
    naked_asm!(
        "2:",
        "cpuid",
        "mov qword ptr [rip + {seen}], {value}",
        "jmp 2b",
        seen = sym SEEN,
        value = const FIRST,
    )
}

#[unsafe(naked)]
extern "sysv64" fn second(_: &'static Shared) -> ! {
    naked_asm!(
        "2:",
        "cpuid",
        "mov qword ptr [rip + {seen}], {value}",
        "jmp 2b",
        seen = sym SEEN,
        value = const SECOND,
    )
}

impl Rig {
    /// Continues the L2 of `page`, which another processor has run.
    fn take_over(&mut self, page: Page, registers: Registers) {
        self.vmx.fields.use_page(page);
        state::write_host(&mut self.vmx.fields, self.vmx.frame);
        self.vmx.frame.registers = registers;
        self.vmx.launched = false;
    }
}

type Task = fn(&mut Rig) -> Result<u64, Stop>;

/// The other processor.
struct Other {
    processors: Processors,
    /// Created there, at its first task.
    rig: Option<Rig>,
    /// The L2 that it continues, and then leaves.
    page: Page,
    registers: Registers,
    task: Task,
    outcome: Result<u64, Stop>,
}

/// The [`Other`] for the other processor.
static HANDED: AtomicPtr<Other> = AtomicPtr::new(ptr::null_mut());

impl Other {
    /// Makes it continue the L2 of `rig`, do `task` and clear the page.
    fn run(&mut self, rig: &Rig, task: Task) -> Result<u64, Stop> {
        self.page = rig.page();
        self.registers = rig.vmx.frame.registers;
        self.task = task;
        let processors = self.processors;
        // Until the work has ended it belongs to the other processor.
        HANDED.store(self, Ordering::Release);
        if processors.run(OTHER, serve).is_none() {
            return Err(failed!("the other processor does not come back"));
        }
        core::mem::replace(&mut self.outcome, Ok(0))
    }

    fn serve(&mut self) -> Result<u64, Stop> {
        let rig = match &mut self.rig {
            Some(rig) => rig,
            none => none.insert(Rig::new(OTHER)?),
        };
        rig.take_over(self.page, self.registers);
        let result = (self.task)(rig);
        self.registers = rig.vmx.frame.registers;
        rig.vmx.fields.deactivate();
        result
    }
}

fn serve(_: usize) -> u64 {
    // SAFETY: `run` stored it there and does not use it before this function has returned.
    let other = unsafe { &mut *HANDED.load(Ordering::Acquire) };
    cpu::disable_interrupts();
    other.outcome = other.serve();
    cpu::enable_interrupts();
    0
}
