//! Times exits from the guest: the round trip to the handler and back.

use crate::args::Args;
use crate::{Exit, console, cpu, pages, say};
use hypernest_nested::hyperv::msr;

/// Every kind that requires no address.
pub(crate) const ALL: &str = "cpuid,pio-out,pio-in,msr";

/// Used by BIOSes for diagnosis: writes have no effect.
const POST_PORT: u16 = 0x80;
/// The maximum number of samples in one frame.
const MOST: u64 = hypernest_nested::probe::MAX_COUNT as u64;

/// `n=N warmup=N kinds=LIST mmio=ADDRESS port-in=PORT`.
///
/// For each kind a mark, the samples' block and another mark; before them the block `empty`, of intervals
/// with nothing in between.
pub(crate) fn run(args: &Args<'_>, kinds: &str) -> Exit {
    match try_run(args, kinds) {
        Ok(()) => Exit::Done,
        Err((name, value)) => {
            say!("wrong use: {name}={value}");
            Exit::WrongUse
        }
    }
}

fn try_run<'a>(args: &Args<'a>, kinds: &'a str) -> Result<(), (&'static str, &'a str)> {
    let number = |name: &'static str, default| {
        args.number(name)
            .map(|n| n.unwrap_or(default))
            .map_err(|v| (name, v))
    };
    let warmup = number("warmup", 50)?;
    let n = number("n", 1000)?;
    let count = usize::try_from(n)
        .ok()
        .filter(|_| n <= MOST)
        .ok_or(("n", "more than 1048576"))?;
    let mmio = args.number("mmio").map_err(|value| ("mmio", value))?;
    let port_in = u16::try_from(number("port-in", POST_PORT.into())?)
        .map_err(|_| ("port-in", "more than 0xffff"))?;
    let kinds = args.value("kinds").unwrap_or(kinds);

    let sampler = &mut Sampler {
        warmup,
        buffer: pages::array(count),
    };
    sampler.measure("empty", || ());
    for kind in kinds.split(',') {
        match kind {
            "cpuid" => sampler.measure(kind, || _ = cpu::cpuid(0, 0)),
            "pio-out" => sampler.measure(kind, || cpu::out8(POST_PORT, 0)),
            "pio-in" => sampler.measure(kind, || _ = cpu::in8(port_in)),
            // Owned by the VMM where reenlightenment is offered, else a #GP.
            "msr" => match cpu::rdmsr(msr::REENLIGHTENMENT_CONTROL) {
                Ok(_) => sampler.measure(kind, || _ = cpu::rdmsr(msr::REENLIGHTENMENT_CONTROL)),
                Err(cpu::Faulted) => say!(
                    "skipped msr: {:#x} is not there",
                    msr::REENLIGHTENMENT_CONTROL
                ),
            },
            "mmio" => {}
            _ => return Err(("kinds", kind)),
        }
    }
    match mmio.map(pages::Device::new) {
        None => {}
        Some(Some(address)) => sampler.measure("mmio", || _ = address.read32()),
        Some(None) => return Err(("mmio", "unaligned, used by the program, or past 4 GiB")),
    }
    say!("done");
    Ok(())
}

struct Sampler {
    warmup: u64,
    buffer: &'static mut [u64],
}

impl Sampler {
    #[inline(always)]
    fn measure(&mut self, name: &str, operation: impl Fn()) {
        for _ in 0..self.warmup {
            operation();
        }
        console::mark("begin");
        for sample in self.buffer.iter_mut() {
            let start = cpu::tsc_serialised();
            operation();
            *sample = cpu::tsc_serialised().wrapping_sub(start);
        }
        console::mark("end");
        console::samples(name, self.buffer);
    }
}
