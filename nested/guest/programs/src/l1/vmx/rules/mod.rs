//! KVM's behaviour for an L1 that uses the enlightened VMCS correctly, and for one that does not.
#![allow(unsafe_code, reason = "code that L2 runs")]

mod entry;
mod stale;
mod two;

use core::sync::atomic::{AtomicU64, Ordering};

use hypernest_nested::evmcs;
use hypernest_nested::l2exit::{Mode, Touch};
use hypernest_nested::vmx::{Field, exit_reason};

use super::enlightened::Enlightened;
use super::fields::Fields;
use super::switch::Failed;
use super::{Vmx, low32};
use crate::args::Args;
use crate::checks::{Stop, Tally, failed};
use crate::l1::board::BoardPage;
use crate::l1::l2::{Entry, Environment, Shared, Vendor};
use crate::l1::vcpu::{Intercepts, Vcpu};
use crate::smp::{Patience, Processors};
use crate::text::Text;
use crate::{Exit, MAX_CPUS, cpu, say};

/// The last value that L2 has read.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn seen() -> u64 {
    SEEN.load(Ordering::Relaxed)
}

/// `evmcs-rules [cpus=N] [require=all|NAME,NAME…]`.
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let cpus = args.number("cpus").ok().map_or(0, |n| n.unwrap_or(1));
    let Some(cpus) = usize::try_from(cpus)
        .ok()
        .filter(|cpus| (1..=MAX_CPUS).contains(cpus))
    else {
        say!("wrong use: cpus= takes 1 to {MAX_CPUS}");
        return Exit::WrongUse;
    };
    let processors = match Processors::start(trampoline, cpus, Patience::DEFAULT) {
        Ok(processors) => processors,
        Err(running) => {
            say!("refused: {running} of {cpus} processors run");
            return Exit::Failed;
        }
    };
    let mut rig = match Rig::new(0) {
        Ok(rig) => rig,
        Err(why) => {
            say!("refused: {why}");
            return Exit::Failed;
        }
    };
    let mut tally = Tally::new(args);
    for (name, check) in entry::CHECKS {
        let result = check(&mut rig);
        tally.note(name, result);
    }
    for group in stale::GROUPS {
        let result = group.check(&mut rig);
        tally.note(&Text::new(format_args!("stale-{}", group.name)), result);
    }
    two::check(&mut rig, processors, &mut tally);
    tally.verdict("evmcs-rules")
}

/// A processor with an L2 that stops at CPUID instructions.
struct Rig {
    vmx: Vmx<Enlightened>,
    environment: Environment,
    shared: &'static Shared,
}

impl Rig {
    fn new(order: usize) -> Result<Self, Text> {
        let shared: &Shared = Shared::new(order, Vendor::Intel, BoardPage::unheard(), 1, 0);
        Ok(Self {
            vmx: Vmx::new(Mode::Evmcs, order)?,
            environment: Environment::new(shared),
            shared,
        })
    }

    /// A new L2 at `entry`, in a page that L0 has not seen.
    fn begin(&mut self, entry: Entry) -> Result<(), Stop> {
        SEEN.store(0, Ordering::Relaxed);
        self.shared.clear();
        let start = self.environment.start(entry);
        let (intercepts, touch) = (Intercepts::default(), Touch::Minimal);
        Ok(self
            .vmx
            .prepare(&intercepts, &self.environment, start, touch)?)
    }

    fn read(&self, field: Field) -> u64 {
        self.vmx.fields.read(field)
    }

    fn write(&mut self, field: Field, value: u64) {
        self.vmx.fields.write(field, value);
    }

    fn enter(&mut self) -> Result<(), Failed> {
        let unmeasured = AtomicU64::new(0);
        self.vmx.try_enter(&unmeasured, &unmeasured)
    }

    /// Runs L2 past its next CPUID; returns the reason of the first other exit before it.
    fn run_to_stop(&mut self) -> Result<Option<u32>, Stop> {
        const MOST_EXITS: u32 = 8;
        let mut other = None;
        for _ in 0..MOST_EXITS {
            if let Err(failed) = self.enter() {
                return Err(self.vmx.not_entered(failed).into());
            }
            let reason = low32(self.read(Field::EXIT_REASON));
            let qualification = self.read(Field::EXIT_QUALIFICATION);
            if reason & exit_reason::ENTRY_FAILED != 0 {
                return Err(failed!(
                    "the entry fails: exit reason {reason:#x}, qualification {qualification:#x}"
                ));
            }
            if reason == u32::from(exit_reason::CPUID) {
                self.vmx.skip(CPUID_LENGTH);
                return Ok(other);
            }
            other = other.or(Some(reason));
            match exit_reason::basic(reason) {
                // L2 is already past the call.
                _ if reason == evmcs::EXIT_TRAP_AFTER_FLUSH => {}
                // The processor reports no length for an exception.
                exit_reason::EXCEPTION_OR_NMI => self.vmx.skip(UD2_LENGTH),
                _ => {
                    let length = self.read(Field::EXIT_INSTRUCTION_LENGTH);
                    self.vmx.skip(length);
                }
            }
        }
        Err(failed!(
            "L2 does not come to its stop: exit reason {:#x}, rip {:#x}",
            self.read(Field::EXIT_REASON),
            self.read(Field::GUEST_RIP)
        ))
    }
}

const CPUID_LENGTH: u64 = 2;
const UD2_LENGTH: u64 = 2;

/// L2: stops, reads a value, stores it, stops.
#[inline(always)]
fn look_between_stops(look: impl Fn() -> u64) {
    cpu::cpuid(0, 0);
    SEEN.store(look(), Ordering::Relaxed);
    cpu::cpuid(0, 0);
}

/// L2: the same, forever.
#[inline(always)]
fn looking(look: impl Fn() -> u64) -> ! {
    loop {
        look_between_stops(&look);
    }
}
