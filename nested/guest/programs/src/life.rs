//! Crashes, resets and the power button, reported or requested as by an operating system.

use hypernest_nested::hyperv::{crash as ctl, msr};

use crate::args::Args;
use crate::hypercall::write_register;
use crate::pages::Page;
use crate::{Exit, cpu, say, smp};

/// `crash msg="TEXT"`: reports a crash with the parameters 0x1000, 0x1001, 0x1002, the message's address and
/// length.
pub(crate) fn crash(args: &Args<'_>) -> Exit {
    let message = args
        .value("msg")
        .unwrap_or("the guest crashed on request")
        .as_bytes();
    let page = Page::new();
    let len = message.len().min(ctl::MESSAGE_MAX);
    for (at, &byte) in message[..len].iter().enumerate() {
        page.write8(at, byte);
    }
    let parameters = [0x1000, 0x1001, 0x1002, page.address(), len as u64];
    for (register, parameter) in (msr::CRASH_P0..).zip(parameters) {
        if write_register(register, parameter).is_err() {
            say!("FAIL crash: register {register:#x} is not there");
            return Exit::Failed;
        }
    }
    say!("crash: reporting");
    if write_register(msr::CRASH_CTL, ctl::NOTIFY | ctl::MESSAGE).is_err() {
        say!("FAIL crash: register {:#x} is not there", msr::CRASH_CTL);
        return Exit::Failed;
    }
    say!("crash: still running");
    Exit::Done
}

/// A byte of the real-time clock's battery-backed RAM that no firmware uses: it marks the first
/// boot.
const MARK_AT: u8 = 0x7E;
const MARK: u8 = 0xB7;

fn clock_ram() -> u8 {
    cpu::out8(0x70, MARK_AT);
    cpu::in8(0x71)
}

fn set_clock_ram(value: u8) {
    cpu::out8(0x70, MARK_AT);
    cpu::out8(0x71, value);
}

/// Marks this boot as the first one.
pub(crate) fn mark_first_boot() {
    set_clock_ram(MARK);
}

/// Whether the previous boot was marked as the first; clears the mark.
pub(crate) fn is_second_boot() -> bool {
    let second = clock_ram() == MARK;
    if second {
        set_clock_ram(0);
    }
    second
}

/// `reset via=hv|keyboard|cf9|triple|panic [forever]`: by the synthetic register, the keyboard controller,
/// the chipset's reset port, a triple fault, or a report to pvpanic, after which the VMM may reset the
/// machine.
///
/// The second boot finds the first one's mark and succeeds; without a clock's RAM, or with `forever`, it
/// resets repeatedly.
pub(crate) fn reset(args: &Args<'_>) -> Exit {
    let via = args.value("via").unwrap_or("hv");
    let forever = args.has("forever");
    if !forever && is_second_boot() {
        say!("ok reset: by {via}, second boot");
        return Exit::Done;
    }
    mark_first_boot();
    say!("reset: by {via}");
    match via {
        "hv" => {
            if write_register(msr::RESET, 1).is_err() {
                say!("FAIL reset: register {:#x} is not there", msr::RESET);
                return Exit::Failed;
            }
        }
        "keyboard" => cpu::out8(0x64, 0xFE),
        // System reset including the CPU, first selected, then executed.
        "cf9" => [0x02, 0x06]
            .into_iter()
            .for_each(|value| cpu::out8(0xCF9, value)),
        "triple" => cpu::triple_fault(),
        // PVPANIC_PANICKED.
        "panic" => cpu::out8(0x505, 1),
        _ => {
            say!("wrong use: reset takes via=hv, via=keyboard, via=cf9, via=triple, via=panic");
            return Exit::WrongUse;
        }
    }
    // Another thread than this processor's may perform the reset.
    let _ = smp::Patience::DEFAULT.until(|| false);
    say!("FAIL reset: still running");
    Exit::Failed
}

/// The second byte of PM1 control for power-off: SLP_EN with SLP_TYP `s5=TYPE`, or 0.
pub(crate) fn power_off(args: &Args<'_>) -> Option<u8> {
    const SLP_EN: u8 = 1 << (13 - 8);
    let of_s5 = args.number("s5").ok()?.unwrap_or(0);
    let of_s5 = u8::try_from(of_s5).ok().filter(|of_s5| *of_s5 < 8)?;
    Some(SLP_EN | of_s5 << (10 - 8))
}

/// `power pm1=PORT [s5=TYPE]`: waits until the power button is pressed, then powers off, both through ACPI's
/// PM1 registers: the status is at PORT and the control four bytes later (ACPI 6.5, 4.8.4).
pub(crate) fn power(args: &Args<'_>) -> Exit {
    /// PWRBTN_STS in the second byte of its register.
    const BUTTON: u8 = 1 << 0;

    let Some(pm1) = args.number("pm1").ok().flatten() else {
        say!("wrong use: power requires pm1=PORT");
        return Exit::WrongUse;
    };
    let Some(pm1) = u16::try_from(pm1).ok().filter(|&pm1| pm1 <= 0xFFF0) else {
        say!("wrong use: pm1= is more than 0xfff0");
        return Exit::WrongUse;
    };
    let Some(off) = power_off(args) else {
        say!("wrong use: s5= is no sleep type");
        return Exit::WrongUse;
    };
    say!("power: waiting for the button");
    while cpu::in8(pm1 + 1) & BUTTON == 0 {
        core::hint::spin_loop();
    }
    cpu::out8(pm1 + 1, BUTTON);
    if cpu::in8(pm1 + 1) & BUTTON != 0 {
        say!("FAIL power: the button's status cannot be cleared");
        return Exit::Failed;
    }
    say!("power: off");
    cpu::out8(pm1 + 5, off);
    let _ = smp::Patience::DEFAULT.until(|| false);
    say!("FAIL power: still running");
    Exit::Failed
}
