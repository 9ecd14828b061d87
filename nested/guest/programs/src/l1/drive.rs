//! The loop from one exit to the next, on one processor.
#![allow(unsafe_code, reason = "finds the last run again after a crash")]

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use hypernest_nested::l2exit::{Kind, Touch};

use super::kinds::{Part, Step};
use super::l2::Shared;
use super::vcpu::{Cause, Vcpu};
use crate::text::Text;
use crate::{cpu, say};

/// IA32_DEBUGCTL.
const DEBUGCTL: u32 = 0x1D9;

/// The latest run.
static RUNNING: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// Prints the last stamp of the last run, for failure reports.
pub(crate) fn say_last_stamp() {
    let shared = RUNNING.load(Ordering::Acquire);
    // SAFETY: null, or from a reference that is never freed.
    let Some(shared) = (unsafe { shared.as_ref() }) else {
        return;
    };
    let reason = shared.board.last_reason();
    let kind = shared.board.kind().map_or("no kind", Kind::name);
    match shared.at() {
        Some(at) => say!("last stamp: {kind}, sample {at}, last exit reason {reason:#x}"),
        None => say!("last stamp: {kind}, no sample that counts, last exit reason {reason:#x}"),
    }
}

/// Runs the L2 of `shared`, for which `vcpu` is prepared, until L2 reports its end.
pub(super) fn run<V: Vcpu>(
    vcpu: &mut V,
    shared: &'static Shared,
    part: &mut Part,
    touch: Touch,
) -> Result<(), Text> {
    RUNNING.store(ptr::from_ref(shared).cast_mut(), Ordering::Release);
    let unmeasured = AtomicU64::new(0);
    let mut next = one_exit(vcpu, shared, part, touch, &unmeasured, &unmeasured)?;
    // L0 has write-protected L1's tables for L2 since the first entry, and with them all else that it maps by
    // the same huge page (tdp_mmu.c, write_protect_gfn): L1's next write to each 4 KiB of it is an exit. None
    // of these may come after the first sample that counts.
    if next.is_some() && shared.at().is_none() {
        shared.write_samples();
    }
    while let Some(resumed) = next {
        next = one_exit(vcpu, shared, part, touch, resumed, &unmeasured)?;
    }
    Ok(())
}

/// Runs L2 to its next exit and handles that; `resumed` receives the time of the entry. Returns where the
/// time of the next entry belongs, `unmeasured` for one of no sample; `None` if L2 has finished.
#[inline(always)]
fn one_exit<'a, V: Vcpu>(
    vcpu: &mut V,
    shared: &'static Shared,
    part: &mut Part,
    touch: Touch,
    resumed: &AtomicU64,
    unmeasured: &'a AtomicU64,
) -> Result<Option<&'a AtomicU64>, Text> {
    let exited = AtomicU64::new(0);
    if touch == Touch::KvmLike {
        // Linux reads it before each entry (vcpu_enter_guest) on processors of all vendors.
        core::hint::black_box(cpu::rdmsr(DEBUGCTL).ok());
    }
    vcpu.enter(resumed, &exited)?;
    let cause = vcpu.cause();
    if shared.is_finished() {
        if cause == Cause::Interrupt {
            // The interrupt that reports it to the second processor must not stay in service.
            vcpu.acknowledge();
        }
        return Ok(None);
    }
    shared.board.exited(vcpu.reason());
    vcpu.touch(touch, cause);
    let step = part.handle(vcpu, cause);
    let sample = shared.sample();
    if matches!(step, Step::Resume | Step::HandOver) {
        let exited = exited.load(Ordering::Relaxed);
        sample.exited.store(exited, Ordering::Relaxed);
    }
    match step {
        Step::Resume | Step::TakeOver => Ok(Some(&sample.resumed)),
        Step::HandOver | Step::ResumeUnmeasured => Ok(Some(unmeasured)),
        Step::Unexpected => Err(unexpected(vcpu, shared, cause)),
    }
}

#[cold]
fn unexpected<V: Vcpu>(vcpu: &mut V, shared: &Shared, cause: Cause) -> Text {
    match shared.exception() {
        Some(exception) => Text::new(format_args!(
            "exception in L2: vector {} error {:#x} rip {:#x} address {:#x}",
            exception.vector, exception.error, exception.rip, exception.address
        )),
        None => {
            let last = vcpu.last_exit();
            Text::new(format_args!(
                "unexpected exit {cause:?}: reason {:#x} qualification {:#x} rip {:#x}",
                last.reason, last.qualification, last.rip
            ))
        }
    }
}
