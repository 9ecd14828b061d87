//! Ends, resets or pauses the machine, and marks every instruction that it executes after that.

use hypernest_nested::hyperv::{crash as ctl, msr};
use hypernest_nested::probe::{CONSOLE_PORT, EXIT_PORT};

use crate::args::Args;
use crate::hypercall::write_register;
use crate::smp::{Patience, Processors};
use crate::{Exit, MAX_CPUS, cpu, life, say};

/// The byte written forever after the access. No other code writes it.
const MARK: u8 = b'!';
/// A port that reads without effect.
const POST: u16 = 0x80;
const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1 << 0;

/// `ending via=WAY cpus=N pm1=PORT [s5=TYPE]`: makes the access with `N` processors busy. A second boot
/// succeeds.
///
/// WAY is debug-exit, outs (the same by `rep outsb`), acpi, keyboard, output-port, cf9, port92, hv, pvpanic
/// or hv-crash.
pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let via = args.value("via").unwrap_or("debug-exit");
    if life::is_second_boot() {
        say!("ok ending: by {via}, second boot");
        return Exit::Done;
    }
    if let Err(exit) = start(args, trampoline, busy) {
        return exit;
    }
    life::mark_first_boot();
    say!("ending: by {via}");
    let mut written = Ok(());
    match via {
        "debug-exit" => cpu::out8(EXIT_PORT, 7),
        "outs" => cpu::out_string8(EXIT_PORT, &[7, 8, 9, 10]),
        "acpi" => {
            let pm1 = args.number("pm1").ok().flatten();
            let Some(pm1) = pm1.and_then(|pm1| u16::try_from(pm1).ok()) else {
                say!("wrong use: ending via=acpi takes pm1=PORT");
                return Exit::WrongUse;
            };
            let Some(off) = life::power_off(args) else {
                say!("wrong use: s5= is no sleep type");
                return Exit::WrongUse;
            };
            cpu::out8(pm1.wrapping_add(5), off);
        }
        "keyboard" => cpu::out8(0x64, 0xFE),
        "output-port" => {
            cpu::out8(0x64, 0xD1);
            cpu::out8(0x60, 0xDE);
        }
        "cf9" => {
            cpu::out8(0xCF9, 0x02);
            cpu::out8(0xCF9, 0x06);
        }
        "port92" => cpu::out8(0x92, 0x01),
        "pvpanic" => cpu::out8(PVPANIC, PANICKED),
        "hv" => written = write_register(msr::RESET, 1),
        "hv-crash" => written = write_register(msr::CRASH_CTL, ctl::NOTIFY),
        _ => {
            say!("wrong use: no ending via={via}");
            return Exit::WrongUse;
        }
    }
    loop {
        cpu::out8(CONSOLE_PORT, MARK);
        if written.is_err() {
            say!("FAIL ending: the register is not there");
            return Exit::Failed;
        }
    }
}

/// `storm cpus=N`: every processor reports crashes by pvpanic and, with `hv`, by the crash registers,
/// forever.
pub(crate) fn storm(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let work = if args.has("hv") {
        crashes_by_both
    } else {
        panics
    };
    say!("storm");
    if let Err(exit) = start(args, trampoline, work) {
        return exit;
    }
    work(0);
    Exit::Failed
}

fn start(args: &Args<'_>, trampoline: &[u8], work: fn(usize) -> u64) -> Result<(), Exit> {
    let count = args.number("cpus").ok().flatten().unwrap_or(1);
    let Some(count) = usize::try_from(count)
        .ok()
        .filter(|n| (1..=MAX_CPUS).contains(n))
    else {
        say!("wrong use: cpus= takes 1 to {MAX_CPUS}");
        return Err(Exit::WrongUse);
    };
    match Processors::start(trampoline, count, Patience::DEFAULT) {
        Ok(processors) => {
            for order in processors.others() {
                processors.begin(order, work);
            }
            Ok(())
        }
        Err(running) => {
            say!("FAIL processors: {running} of {count} run");
            Err(Exit::Failed)
        }
    }
}

fn busy(_order: usize) -> u64 {
    loop {
        cpu::in8(POST);
    }
}

fn panics(_order: usize) -> u64 {
    loop {
        cpu::out8(PVPANIC, PANICKED);
        cpu::out8(CONSOLE_PORT, MARK);
    }
}

fn crashes_by_both(_order: usize) -> u64 {
    loop {
        for _ in 0..40 {
            cpu::out8(PVPANIC, PANICKED);
        }
        if write_register(msr::CRASH_CTL, ctl::NOTIFY).is_err() {
            return 1;
        }
        cpu::out8(CONSOLE_PORT, MARK);
    }
}
