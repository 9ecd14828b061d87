//! The freestanding guest programs.
//!
//! One image contains them all; the first word of the command line that names a program selects it:
//!
//! | program | description |
//! |---|---|
//! | `hello` | prints a greeting and ends: for boot times and smoke tests |
//! | `hvdump` | prints CPUID and every readable synthetic MSR |
//! | `hvtest` | tests everything that the hypervisor announces |
//! | `l2` | times exits from the guest, by default of CPUID |
//! | `exits` | the same, by default of every kind |
//! | `l1` | is a hypervisor: runs an L2 and stamps its exits |
//! | `evmcs-rules` | uses the enlightened VMCS correctly and incorrectly, and checks KVM's behaviour |
//! | `fault` | fails in the requested way |
//! | `crash` | reports a crash by the crash registers and continues |
//! | `reset` | resets the machine in the requested way |
//! | `ending` | ends, resets or pauses the machine and marks what it executes after that |
//! | `storm` | reports crashes on every processor forever |
//! | `power` | waits for the power button and powers off |
//! | `keep` | sets state of all kinds, and checks that it is kept |
//! | `kvmclock` | reads kvmclock and the TSC, and reports both periodically |
//! | `reenlighten` | handles a change of the TSC's frequency |
//! | `tsc` | samples its clocks on every processor, forever |
//! | `fwcfg` | prints the numbers that the firmware configuration device offers |
//!
//! A program reports on the debug console ([`hypernest_nested::probe`]) and ends by the debug-exit port.
//!
//! This crate is a plain library, so that it is linted, documented and tested with the rest; the image
//! itself, with its start-up assembly, is built from `../elf`.
#![no_std]

mod apic;
mod args;
mod beat;
mod boot;
mod checks;
mod console;
mod cpu;
mod ending;
mod exits;
mod fault;
mod fwcfg;
mod hvdump;
mod hvtest;
mod hypercall;
mod keep;
mod kvmclock;
mod l1;
mod life;
mod pages;
mod reenlighten;
mod smp;
mod text;
mod trap;
mod tsc;
mod window;

use args::Args;
pub use boot::{Boot, application_processor, boot_processor};
pub use hypernest_nested::probe::{ALIVE, CONSOLE_PORT};

/// The maximum number of processors that are started; more stay halted.
pub const MAX_CPUS: usize = 16;
/// Bytes of each processor's stack.
pub const STACK_SIZE: usize = 16 * 1024;

/// A program's result, written to the debug-exit port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
    WrongUse,
    Panicked,
}

impl Exit {
    const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::WrongUse => 2,
            Self::Panicked => 3,
        }
    }
}

fn run(start: &boot::Start) -> ! {
    let args = Args::new(start.command_line());
    let exit = match args.program() {
        Some("hello") => {
            say!("hello from the guest: {}", start.protocol);
            Exit::Done
        }
        Some("hvdump") => hvdump::run(&args),
        Some("hvtest") => hvtest::run(&args, start.trampoline),
        Some("l2") => exits::run(&args, "cpuid"),
        Some("exits") => exits::run(&args, exits::ALL),
        Some("l1") => l1::run(&args, start.trampoline),
        Some("evmcs-rules") => l1::evmcs_rules(&args, start.trampoline),
        Some("fault") => fault::run(&args),
        Some("crash") => life::crash(&args),
        Some("reset") => life::reset(&args),
        Some("ending") => ending::run(&args, start.trampoline),
        Some("storm") => ending::storm(&args, start.trampoline),
        Some("power") => life::power(&args),
        Some("keep") => keep::run(&args, start.trampoline),
        Some("kvmclock") => kvmclock::run(&args),
        Some("reenlighten") => reenlighten::run(&args, start.trampoline),
        Some("tsc") => tsc::run(&args, start.trampoline),
        Some("beat") => beat::run(&args),
        Some("fwcfg") => fwcfg::run(),
        _ => {
            say!(
                "no program in the command line {:?}; there are {:?}",
                start.command_line(),
                args::PROGRAMS
            );
            Exit::WrongUse
        }
    };
    end(exit)
}

/// Reports a panic and ends.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("PANIC: {info}");
    l1::say_last_stamp();
    end(Exit::Panicked)
}

fn end(exit: Exit) -> ! {
    cpu::out8(hypernest_nested::probe::EXIT_PORT, exit.code());
    // The port is not implemented.
    cpu::halt_forever()
}
