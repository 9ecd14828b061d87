//! Prints the hypervisor's CPUID leaves and MSRs, one line each and identical at each run, for a comparison
//! between hypervisors.

use core::ops::RangeInclusive;

use crate::args::Args;
use crate::cpu::{Cpuid, Faulted, cpuid, rdmsr};
use crate::{Exit, say};
use hypernest_nested::hyperv::msr;

/// The registers of the Hyper-V interface.
const SYNTHETIC: RangeInclusive<u32> = 0x4000_0000..=0x4000_01FF;
/// Registers that change by themselves: only their presence is printed.
const MOVING: [u32; 2] = [msr::VP_RUNTIME, msr::TIME_REF_COUNT];

/// `hvdump [all]`: with `all` the processor's own leaves too.
pub(crate) fn run(args: &Args<'_>) -> Exit {
    if args.has("all") {
        basic_leaves();
    }
    for base in (0x4000_0000..=0x4000_FF00).step_by(0x100) {
        let highest = cpuid(base, 0).eax;
        let known = base == 0x4000_0000 || (base..=base + 0xFF).contains(&highest);
        // Hypervisors place their leaves in steps of 0x100, from the first on.
        if !known {
            break;
        }
        (base..=base + 0xFF)
            .filter(|&leaf| leaf == base || leaf <= highest)
            .for_each(|leaf| print_leaf(leaf, None));
    }
    for register in SYNTHETIC {
        match rdmsr(register) {
            Ok(_) if MOVING.contains(&register) => say!("msr {register:08x} moving"),
            Ok(value) => say!("msr {register:08x} {value:016x}"),
            Err(Faulted) => {}
        }
    }
    Exit::Done
}

fn basic_leaves() {
    let highest = cpuid(0, 0).eax.min(0x40);
    for leaf in 0..=highest {
        match leaf {
            4 => subleaves(leaf, |cpuid| cpuid.eax & 0x1F != 0),
            0xB | 0x1F => subleaves(leaf, |cpuid| cpuid.ecx & 0xFF00 != 0),
            7 => (0..=cpuid(7, 0).eax.min(8)).for_each(|subleaf| print_leaf(leaf, Some(subleaf))),
            0xD => (0..64)
                .filter(|&s| s < 2 || cpuid(leaf, s).eax != 0)
                .for_each(|s| print_leaf(leaf, Some(s))),
            _ => print_leaf(leaf, None),
        }
    }
    let highest = cpuid(0x8000_0000, 0).eax;
    (0x8000_0000..=highest.min(0x8000_0040)).for_each(|leaf| print_leaf(leaf, None));
}

/// Prints subleaves as long as `more` holds.
fn subleaves(leaf: u32, more: impl Fn(Cpuid) -> bool) {
    (0..16)
        .take_while(|&subleaf| more(cpuid(leaf, subleaf)))
        .for_each(|subleaf| print_leaf(leaf, Some(subleaf)));
}

fn print_leaf(leaf: u32, subleaf: Option<u32>) {
    let Cpuid { eax, ebx, ecx, edx } = cpuid(leaf, subleaf.unwrap_or(0));
    match subleaf {
        None => say!("cpuid {leaf:08x} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}"),
        Some(subleaf) => {
            say!("cpuid {leaf:08x}.{subleaf:x} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}");
        }
    }
}
