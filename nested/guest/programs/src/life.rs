//! Crashes and resets, as an operating system would report or ask for them.

use hypernest_nested::hyperv::{crash as ctl, msr};

use crate::args::Args;
use crate::hypercall::write_register;
use crate::pages::Page;
use crate::{Exit, cpu, say, smp};

/// `crash msg="TEXT"`: reports a crash with the parameters 0x1000, 0x1001, 0x1002, the message's address and length.
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

/// `reset via=hv|keyboard|cf9`: by the synthetic register, the keyboard controller, or the chipset's reset port.
pub(crate) fn reset(args: &Args<'_>) -> Exit {
    let via = args.value("via").unwrap_or("hv");
    say!("reset: by {via}");
    match via {
        "hv" => {
            if write_register(msr::RESET, 1).is_err() {
                say!("FAIL reset: register {:#x} is not there", msr::RESET);
                return Exit::Failed;
            }
        }
        "keyboard" => cpu::out8(0x64, 0xFE),
        // System reset with the CPU's, first chosen, then done.
        "cf9" => [0x02, 0x06]
            .into_iter()
            .for_each(|value| cpu::out8(0xCF9, value)),
        _ => {
            say!("wrong use: reset knows via=hv, via=keyboard, via=cf9");
            return Exit::WrongUse;
        }
    }
    // Whoever resets may be another thread than the one that runs this processor.
    let _ = smp::Patience::DEFAULT.until(|| false);
    say!("FAIL reset: still running");
    Exit::Failed
}
