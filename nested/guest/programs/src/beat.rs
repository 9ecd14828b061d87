//! Fills memory, writes to some of it, and sends a beat periodically, so that a host that migrates the VM can
//! measure its downtime.

use hypernest_nested::probe::CONSOLE_PORT;

use crate::args::Args;
use crate::cpu::{self, tsc_serialised};
use crate::{Exit, pages, say};

/// Words of 64 bits in a page and in a MiB.
const PAGE: usize = 512;
const MIB: usize = 1 << 17;

/// `beat [fill=MIB] [dirty=PAGES] [every=TICKS]`: fills `fill` MiB with nonzero data; then, every TICKS of
/// the TSC, writes to PAGES of them, in sequence, and a dot to the debug console. Never ends.
pub(crate) fn run(args: &Args<'_>) -> Exit {
    let [fill, dirty, every] = match numbers(args) {
        Ok(numbers) => numbers,
        Err(value) => {
            say!("wrong use: {value} is no number");
            return Exit::WrongUse;
        }
    };
    let words = usize::try_from(fill).unwrap_or(usize::MAX);
    let memory = pages::array(words.saturating_mul(MIB));
    for (number, page) in (1..).zip(memory.chunks_exact_mut(PAGE)) {
        page[0] = number;
    }
    say!("beat: begins");
    let mut next_page = 0;
    let mut last = tsc_serialised();
    loop {
        let now = tsc_serialised();
        if now.wrapping_sub(last) < every {
            continue;
        }
        last = now;
        for _ in 0..dirty {
            if let Some(word) = memory.get_mut(next_page * PAGE) {
                *word = now | 1;
                next_page += 1;
            } else {
                next_page = 0;
            }
        }
        // Written data may be read by others.
        core::hint::black_box(&mut *memory);
        cpu::out8(CONSOLE_PORT, b'.');
    }
}

fn numbers<'a>(args: &Args<'a>) -> Result<[u64; 3], &'a str> {
    let number = |name, default| Ok(args.number(name)?.unwrap_or(default));
    Ok([
        number("fill", 0)?,
        number("dirty", 0)?,
        number("every", 1_000_000)?,
    ])
}
