//! Tests everything that the hypervisor announces, one line per check:
//! `ok NAME`, `FAIL NAME: DETAIL`, or `absent NAME: FEATURE` if CPUID does not announce it.

mod assist;
mod calls;
mod clock;
mod partition;
mod synic;

use core::fmt;

use hypernest_nested::hyperv::{leaf, msr};

use crate::args::Args;
use crate::checks::{Check, Stop, Tally, equal, failed};
use crate::cpu::{self, Cpuid, Faulted, cpuid, rdmsr};
use crate::hypercall::Hypercalls;
use crate::smp::{Patience, Processors};
use crate::text::Text;
use crate::{Exit, MAX_CPUS, say};

/// The CPUID bit of a feature.
#[derive(Clone, Copy)]
struct Feature {
    leaf: u32,
    register: Register,
    bit: u32,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Feature {
    const fn privilege(bit: u32) -> Self {
        Self {
            leaf: leaf::FEATURES,
            register: Register::Eax,
            bit,
        }
    }

    const fn high_privilege(bit: u32) -> Self {
        Self {
            leaf: leaf::FEATURES,
            register: Register::Ebx,
            bit,
        }
    }

    const fn available(bit: u32) -> Self {
        Self {
            leaf: leaf::FEATURES,
            register: Register::Edx,
            bit,
        }
    }

    const fn recommended(bit: u32) -> Self {
        Self {
            leaf: leaf::RECOMMENDATIONS,
            register: Register::Eax,
            bit,
        }
    }

    fn is_announced(self) -> bool {
        let base = self.leaf & 0xFFFF_FF00;
        if cpuid(base, 0).eax < self.leaf {
            return false;
        }
        let Cpuid { eax, ebx, ecx, edx } = cpuid(self.leaf, 0);
        let register = match self.register {
            Register::Eax => eax,
            Register::Ebx => ebx,
            Register::Ecx => ecx,
            Register::Edx => edx,
        };
        register >> self.bit & 1 != 0
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = match self.register {
            Register::Eax => "eax",
            Register::Ebx => "ebx",
            Register::Ecx => "ecx",
            Register::Edx => "edx",
        };
        write!(f, "cpuid {:#x} {register} bit {} is 0", self.leaf, self.bit)
    }
}

/// The context that every check gets.
struct Guest {
    processors: Processors,
    patience: Patience,
    calls: Option<Hypercalls>,
}

impl Guest {
    fn needs(&self, feature: Feature) -> Check {
        if feature.is_announced() {
            Ok(())
        } else {
            Err(Stop::Absent(Text::new(format_args!("{feature}"))))
        }
    }

    /// The hypercall page, which an earlier check enabled.
    fn calls(&self) -> Result<Hypercalls, Stop> {
        self.needs(partition::HYPERCALLS)?;
        self.calls
            .ok_or_else(|| failed!("there is no hypercall page"))
    }

    fn expect(&self, what: &str, condition: impl Fn() -> bool) -> Check {
        if self.patience.until(condition) {
            Ok(())
        } else {
            Err(failed!("waited in vain: {what}"))
        }
    }
}

fn read(register: u32) -> Result<u64, Stop> {
    rdmsr(register).map_err(|Faulted| failed!("reading {register:#x} faults"))
}

fn write(register: u32, value: u64) -> Check {
    crate::hypercall::write_register(register, value)
        .map_err(|Faulted| failed!("writing {value:#x} to {register:#x} faults"))
}

/// Writes a value that must fault.
fn refuses(register: u32, value: u64) -> Check {
    match crate::hypercall::write_register(register, value) {
        Err(Faulted) => Ok(()),
        Ok(()) => Err(failed!(
            "writing {value:#x} to {register:#x} does not fault"
        )),
    }
}

/// Writes and reads back.
fn keeps(register: u32, value: u64) -> Check {
    write(register, value)?;
    equal("what was written", read(register)?, value)
}

type NamedCheck = (&'static str, fn(&mut Guest) -> Check);

/// In the order of execution: the hypercall page comes before the calls, the reference counter before the
/// timers.
const CHECKS: &[NamedCheck] = &[
    ("interface", partition::interface),
    ("hypercall-page", partition::hypercall_page),
    ("bad-hypercall", calls::unknown),
    ("vpindex", partition::vp_index),
    ("runtime", partition::runtime),
    ("crash-registers", partition::crash_registers),
    ("reset-register", partition::reset_register),
    ("reenlightenment", partition::reenlightenment),
    ("tsc-invariant", partition::tsc_invariant),
    ("relaxed", partition::relaxed),
    ("evmcs", partition::evmcs),
    ("reference-counter", clock::reference_counter),
    ("reference-tsc-page", clock::reference_tsc_page),
    ("frequencies", clock::frequencies),
    ("assist-page", assist::page),
    ("assist-eoi", assist::end_of_interrupt),
    ("apic-registers", assist::apic_registers),
    ("spinlocks", calls::long_spin_wait),
    ("tlbflush-space", calls::flush_space),
    ("tlbflush-list", calls::flush_list),
    ("tlbflush-space-ex", calls::flush_space_ex),
    ("tlbflush-list-ex", calls::flush_list_ex),
    ("tlbflush-xmm", calls::flush_xmm),
    ("tlbflush-ext", calls::flush_extended_ranges),
    ("tlbflush-bad", calls::flush_bad),
    ("ipi", calls::ipi),
    ("ipi-ex", calls::ipi_ex),
    ("ipi-xmm", calls::ipi_xmm),
    ("ipi-bad", calls::ipi_bad),
    ("synic", synic::registers),
    ("stimer-message", synic::timer_message),
    ("stimer-periodic", synic::timer_periodic),
    ("stimer-direct", synic::timer_direct),
    ("post-message", calls::post_message),
    ("signal-event", calls::signal_event),
    ("ext-hypercalls", calls::extended),
];

/// Registers and the feature that gives access to them.
const GATED: &[(u32, Feature)] = &[
    (msr::GUEST_OS_ID, partition::HYPERCALLS),
    (msr::VP_INDEX, partition::VP_INDEX),
    (msr::RESET, partition::RESET),
    (msr::VP_RUNTIME, partition::RUNTIME),
    (msr::TIME_REF_COUNT, clock::COUNTER),
    (msr::REFERENCE_TSC, clock::TSC_PAGE),
    (msr::TSC_FREQUENCY, clock::FREQUENCIES),
    (msr::APIC_FREQUENCY, clock::FREQUENCIES),
    (msr::TPR, assist::APIC_REGISTERS),
    (msr::VP_ASSIST_PAGE, assist::APIC_REGISTERS),
    (msr::SCONTROL, synic::SYNIC),
    (msr::SINT0, synic::SYNIC),
    (msr::STIMER0_CONFIG, synic::TIMERS),
    (msr::CRASH_P0, partition::CRASH),
    (msr::CRASH_CTL, partition::CRASH),
    (msr::REENLIGHTENMENT_CONTROL, partition::REENLIGHTENMENT),
    (msr::TSC_INVARIANT_CONTROL, partition::TSC_INVARIANT),
];

/// `hvtest [cpus=N] [require=all|NAME,NAME…] [enforced] [patience=TICKS]`.
///
/// A required check fails if its feature is absent. With `enforced`, registers of absent features must fault.
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let cpus = match args.number("cpus") {
        Ok(cpus) => cpus.unwrap_or(1),
        Err(_) => 0,
    };
    let Some(cpus) = usize::try_from(cpus)
        .ok()
        .filter(|cpus| (1..=MAX_CPUS).contains(cpus))
    else {
        say!("wrong use: cpus= takes 1 to {MAX_CPUS}");
        return Exit::WrongUse;
    };
    let patience = args
        .number("patience")
        .ok()
        .flatten()
        .map_or(Patience::DEFAULT, Patience);
    let processors = match Processors::start(trampoline, cpus, patience) {
        Ok(processors) => processors,
        Err(running) => {
            say!("FAIL processors: {running} of {cpus} run");
            return Exit::Failed;
        }
    };
    cpu::enable_interrupts();

    let mut tally = Tally::new(args);
    let mut guest = Guest {
        processors,
        patience,
        calls: None,
    };
    for (name, check) in CHECKS {
        let result = check(&mut guest);
        tally.note(name, result);
    }
    if args.has("enforced") {
        for (register, feature) in GATED.iter().filter(|(_, feature)| !feature.is_announced()) {
            let name = Text::new(format_args!("enforced-{register:x}"));
            let result = match rdmsr(*register) {
                Err(Faulted) => Ok(()),
                Ok(value) => Err(failed!("reads {value:#x}, though {feature}")),
            };
            tally.note(&name, result);
        }
    }
    tally.verdict("hvtest")
}
