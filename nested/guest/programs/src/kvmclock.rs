//! Reads kvmclock and the TSC in a tight loop, as an L2.

use crate::args::Args;
use crate::cpu::{self, wrmsr};
use crate::pages::Page;
use crate::{Exit, say};

/// MSR_KVM_SYSTEM_TIME_NEW: the page's address, and bit 0 to enable it
/// (Documentation/virt/kvm/x86/msr.rst).
const SYSTEM_TIME: u32 = 0x4B56_4D01;

/// `kvmclock [beat=TICKS] [reports=N]`: a line every `beat` ticks of the TSC, with both clocks and the number
/// of steps back of each.
pub(crate) fn run(args: &Args<'_>) -> Exit {
    let number = |name, default| args.number(name).ok().flatten().unwrap_or(default);
    let (beat, reports) = (number("beat", 10_000_000), number("reports", 0));
    let page = Page::new();
    if start(page).is_err() {
        say!("FAIL kvmclock: there is none");
        return Exit::Failed;
    }
    let (mut last, mut back, mut said, mut count) = ((0, 0), (0_u64, 0_u64), 0, 0);
    loop {
        let now = read(page);
        back.0 += u64::from(now.0 < last.0);
        back.1 += u64::from(now.1 < last.1);
        last = now;
        if now.0.wrapping_sub(said) >= beat {
            said = now.0;
            count += 1;
            say!(
                "l2 tsc={} ns={} tsc-back={} ns-back={}",
                now.0,
                now.1,
                back.0,
                back.1
            );
            if count == reports {
                return Exit::Done;
            }
        }
    }
}

#[allow(unsafe_code, reason = "passes the hypervisor a page to write to")]
fn start(page: Page) -> Result<(), cpu::Faulted> {
    // SAFETY: the page has no other use.
    unsafe { wrmsr(SYSTEM_TIME, page.address() | 1) }
}

/// The TSC, and the nanoseconds computed from it by the page: `pvclock_vcpu_time_info` has a version at 0, a
/// TSC at 8, the time at that TSC at 16, a multiplier at 24 and a shift at 28. The version is odd while the
/// page is being written.
#[inline(always)]
fn read(page: Page) -> (u64, u64) {
    loop {
        let version = page.read32(0);
        let tsc = cpu::tsc_serialised();
        let delta = tsc.wrapping_sub(page.read64(8));
        let shift = page.read8(28).cast_signed();
        let shifted = if shift < 0 {
            delta >> shift.unsigned_abs()
        } else {
            delta << shift
        };
        let scaled = (u128::from(shifted) * u128::from(page.read32(24))) >> 32;
        // 64 bits overflow only after centuries.
        let time = page
            .read64(16)
            .wrapping_add((scaled & 0xFFFF_FFFF_FFFF_FFFF) as u64);
        if version & 1 == 0 && version != 0 && page.read32(0) == version {
            return (tsc, time);
        }
    }
}
