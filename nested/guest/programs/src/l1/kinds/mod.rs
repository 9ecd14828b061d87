//! The kinds of exits: L2's operation, and L1's handling in terms common to both vendors.

mod l2;

use hypernest_nested::l2exit::{Kind, Mode};

use super::l2::Shared;
use super::second_level::{WINDOW, WINDOW_PAGES};
use super::vcpu::{Cause, Intercepts, Vcpu};
use crate::pages::PAGE_SIZE;
use crate::text::Text;
use crate::{apic, cpu, trap};

pub(crate) use l2::{entry, wait};

/// The register for MSR exits; nothing depends on it.
pub(crate) const KERNEL_GS_BASE: u32 = 0xC000_0102;
/// The port for port exits; BIOSes write it for diagnosis.
const PORT: u16 = 0x80;
/// A linear address after everything that start-up mapped.
const NOWHERE: u64 = 5 << 30;

/// The hypercall number in the kind `ipi` by which L2 requests a short halt; 0 requests an interrupt of the
/// other processor.
const GIVE_WAY: u64 = 1;

/// The vector that L1 injects into L2.
const WAKE: u8 = 0x40;
/// The vector that L2 sends to L1's processor.
const SELF: u8 = 0x41;
/// The vector that L1 on the first processor sends to L1 on the second.
const IPI: u8 = 0x43;
/// The vector of L1's timer.
const TIMER: u8 = 0x42;
/// The period of the timer, in its ticks (of 1 ns in KVM).
const TIMER_TICKS: u32 = 20_000;
/// The period of the VMX-preemption timer, in its ticks.
const PREEMPTION_TICKS: u32 = 10_000;

/// Lengths of instructions in L2's code: neither vendor reports all of them on all processors.
mod length {
    pub(super) const CPUID: u64 = 2;
    pub(super) const HYPERCALL: u64 = 3;
    pub(super) const MSR: u64 = 2;
    pub(super) const PORT: u64 = 1;
    pub(super) const HLT: u64 = 1;
    pub(super) const READ: u64 = 2;
    pub(super) const MOV_CR3: u64 = 3;
    pub(super) const XSETBV: u64 = 3;
    pub(super) const PAUSE: u64 = 2;
}

/// L1's action after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was the measured exit: its stamps count.
    Resume,
    /// It was the beginning of a measurement that ends on another processor: only the stamp after the exit
    /// counts.
    HandOver,
    /// It was the end of a measurement that began on another processor: only the stamp before the entry
    /// counts.
    TakeOver,
    /// It was another exit.
    ResumeUnmeasured,
    /// Not an exit of this kind.
    Unexpected,
}

/// The reason why `kind` is not supported here.
pub(crate) fn lacking(kind: Kind, mode: Mode, processors: usize) -> Option<Text> {
    let why = match kind {
        Kind::Xsetbv if !cpu::has_xsave() => "CPUID shows no XSAVE",
        Kind::PreemptionTimer if mode.is_svm() => "SVM has no such timer",
        Kind::Ipi if processors < 2 => "it takes two processors",
        _ => return None,
    };
    Some(Text::new(format_args!("{why}")))
}

/// L1's intercepts for `kind`.
pub(crate) fn intercepts(kind: Kind) -> Intercepts {
    Intercepts {
        msrs: matches!(kind, Kind::Rdmsr | Kind::Wrmsr),
        ports: matches!(kind, Kind::PioOut | Kind::PioIn),
        halt: matches!(kind, Kind::Hlt | Kind::Ipi),
        cr3: kind == Kind::CrWrite,
        page_fault: kind == Kind::PageFault,
        pause: kind == Kind::Pause,
        preemption_timer: (kind == Kind::PreemptionTimer).then_some(PREEMPTION_TICKS),
        direct_flush: kind == Kind::FlushHypercall,
    }
}

/// L1's part in one kind.
#[derive(Debug)]
pub(crate) struct Part {
    kind: Kind,
    shared: &'static Shared,
    /// L0 handles flush hypercalls.
    direct_flush: bool,
    /// The interrupt that L1 waits for, and the number of times it has arrived.
    awaited: u8,
    taken: u32,
}

impl Part {
    /// Sets up everything that `kind` requires, before L2 is prepared.
    pub(crate) fn begin<V: Vcpu>(
        kind: Kind,
        mode: Mode,
        shared: &'static Shared,
        vcpu: &mut V,
    ) -> Self {
        let level = vcpu.second_level();
        for page in 0..WINDOW_PAGES {
            match kind {
                Kind::SecondLevelFault => level.unmap(page),
                Kind::Mmio => level.make_device(page),
                _ => level.map(page),
            }
        }
        vcpu.flush_second_level();
        match kind {
            Kind::Xsetbv => cpu::enable_xsave(),
            Kind::Hlt | Kind::Timer | Kind::Ipi => apic::aim_timer(TIMER),
            _ => {}
        }
        let awaited = match kind {
            Kind::Interrupt => SELF,
            Kind::Ipi => IPI,
            _ => TIMER,
        };
        Self {
            kind,
            shared,
            direct_flush: mode.uses_direct_flush(),
            awaited,
            taken: trap::count(shared.order, awaited),
        }
    }

    /// L1's handling of one exit.
    #[inline(always)]
    pub(crate) fn handle<V: Vcpu>(&mut self, vcpu: &mut V, cause: Cause) -> Step {
        match (self.kind, cause) {
            (Kind::Cpuid | Kind::BitmapSame, Cause::Cpuid) => emulate_cpuid(vcpu),
            (Kind::BitmapChanged, Cause::Cpuid) => {
                vcpu.change_msr_bitmap();
                emulate_cpuid(vcpu);
            }
            (Kind::Hypercall, Cause::Hypercall) => {
                vcpu.registers().rax = 0;
                vcpu.skip(length::HYPERCALL);
            }
            (Kind::FlushHypercall, Cause::Hypercall) if !self.direct_flush => {
                vcpu.registers().rax = 0;
                vcpu.skip(length::HYPERCALL);
            }
            (Kind::Rdmsr, Cause::ReadMsr) => {
                let registers = vcpu.registers();
                registers.rax = 0;
                registers.rdx = 0;
                vcpu.skip(length::MSR);
            }
            (Kind::Wrmsr, Cause::WriteMsr) => vcpu.skip(length::MSR),
            (Kind::PioOut, Cause::Port) => vcpu.skip(length::PORT),
            (Kind::PioIn, Cause::Port) => {
                vcpu.registers().rax |= 0xFF;
                vcpu.skip(length::PORT);
            }
            (Kind::SecondLevelFault, Cause::SecondLevelFault { gpa }) => {
                let Some(page) = window_page(gpa) else {
                    return Step::Unexpected;
                };
                vcpu.second_level().map(page);
            }
            (Kind::SecondLevelFault, Cause::Hypercall) => {
                take_pages_away(vcpu);
                return Step::ResumeUnmeasured;
            }
            (Kind::Mmio, Cause::SecondLevelFault { gpa } | Cause::Misconfigured { gpa })
                if gpa == WINDOW =>
            {
                vcpu.registers().rax = 0;
                vcpu.skip(length::READ);
            }
            (Kind::CrWrite, Cause::ControlRegister) => vcpu.skip(length::MOV_CR3),
            (Kind::PageFault, Cause::PageFault { address }) if address == NOWHERE => {
                vcpu.skip(length::READ);
            }
            (Kind::Xsetbv, Cause::Xsetbv) => vcpu.skip(length::XSETBV),
            (Kind::Pause, Cause::Pause) => vcpu.skip(length::PAUSE),
            (Kind::PreemptionTimer, Cause::PreemptionTimer) => vcpu.inject(WAKE),
            (Kind::Hlt, Cause::Halt) => {
                apic::start_timer(TIMER_TICKS);
                while !self.has_come() {
                    vcpu.halt();
                }
                vcpu.skip(length::HLT);
                vcpu.inject(WAKE);
            }
            (Kind::Ipi, Cause::Hypercall) if vcpu.registers().rcx == GIVE_WAY => {
                apic::start_timer(TIMER_TICKS);
                vcpu.halt();
                if self.shared.other.is_some_and(Shared::has_failed) {
                    return Step::Unexpected;
                }
                vcpu.registers().rax = 0;
                vcpu.skip(length::HYPERCALL);
                return Step::ResumeUnmeasured;
            }
            (Kind::Ipi, Cause::Hypercall) => {
                apic::interrupt_others(IPI);
                vcpu.registers().rax = 0;
                vcpu.skip(length::HYPERCALL);
                return Step::HandOver;
            }
            (Kind::Ipi, Cause::Halt) => {
                self.shared.set_halted(true);
                while !self.has_come() {
                    vcpu.halt();
                }
                self.shared.set_halted(false);
                vcpu.skip(length::HLT);
                vcpu.inject(WAKE);
                return Step::TakeOver;
            }
            (_, Cause::Interrupt) => {
                vcpu.acknowledge();
                if self.shared.other.is_some_and(Shared::has_failed) {
                    return Step::Unexpected;
                }
                if !(matches!(self.kind, Kind::Interrupt | Kind::Timer) && self.has_come()) {
                    // An unrelated exit, which is not measured.
                    return Step::ResumeUnmeasured;
                }
                vcpu.inject(WAKE);
            }
            _ => return Step::Unexpected,
        }
        Step::Resume
    }

    /// Wakes the other processor from any wait, to check its requests.
    pub(crate) fn rouse() {
        apic::interrupt_others(IPI);
    }

    /// Whether the awaited interrupt has come since the last time.
    #[inline(always)]
    fn has_come(&mut self) -> bool {
        let count = trap::count(self.shared.order, self.awaited);
        core::mem::replace(&mut self.taken, count) != count
    }
}

#[inline(always)]
fn emulate_cpuid<V: Vcpu>(vcpu: &mut V) {
    let registers = vcpu.registers();
    registers.rax = 0;
    registers.rbx = 0;
    registers.rcx = 0;
    registers.rdx = 0;
    vcpu.skip(length::CPUID);
}

/// L2 has touched every page of the window and requests that it is unmapped.
#[cold]
fn take_pages_away<V: Vcpu>(vcpu: &mut V) {
    let level = vcpu.second_level();
    for page in 0..WINDOW_PAGES {
        level.unmap(page);
    }
    vcpu.flush_second_level();
    vcpu.registers().rax = 0;
    vcpu.skip(length::HYPERCALL);
}

/// The index of the window's page that contains `gpa`.
#[inline(always)]
fn window_page(gpa: u64) -> Option<u64> {
    let page = gpa.checked_sub(WINDOW)? / PAGE_SIZE;
    (page < WINDOW_PAGES).then_some(page)
}
