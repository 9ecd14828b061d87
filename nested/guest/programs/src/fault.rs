//! Breaks the virtual machine in the requested way, to test the VMM's reaction.
#![allow(unsafe_code, reason = "jumps to an address without code")]

use crate::args::Args;
use crate::{Exit, cpu, say};

/// An address without a device on all machines of the tests.
const NOWHERE: u64 = 0xFD00_0000;

/// `fault triple|exec [at=ADDRESS]|ud|hang|spin`.
pub(crate) fn run(args: &Args<'_>) -> Exit {
    let kind = args.words().next().unwrap_or("");
    say!("fault: {kind}");
    match kind {
        "triple" => cpu::triple_fault(),
        "hang" => cpu::halt_forever(),
        "spin" => cpu::spin_forever(),
        // Reported by the trap handler, which ends the run.
        "ud" => cpu::undefined(),
        "exec" => {
            let at = args.number("at").ok().flatten().unwrap_or(NOWHERE);
            // SAFETY: there is no code: KVM can fetch no instruction and fails.
            unsafe { cpu::jump(at) }
        }
        _ => {}
    }
    say!("wrong use: fault takes triple, exec, ud, hang, spin");
    Exit::WrongUse
}
