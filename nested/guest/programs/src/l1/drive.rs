//! From one exit to the next, on one processor.

use core::sync::atomic::{AtomicU64, Ordering};

use hypernest_nested::l2exit::Touch;

use super::kinds::{Part, Step};
use super::l2::Shared;
use super::vcpu::{Cause, Vcpu};
use crate::cpu;
use crate::text::Text;

/// IA32_DEBUGCTL.
const DEBUGCTL: u32 = 0x1D9;

/// Runs the L2 of `shared`, for which `vcpu` is prepared, until it says that it has finished.
pub(super) fn run<V: Vcpu>(
    vcpu: &mut V,
    shared: &'static Shared,
    part: &mut Part,
    touch: Touch,
) -> Result<(), Text> {
    let unmeasured = AtomicU64::new(0);
    let exited = AtomicU64::new(0);
    let mut resumed: &AtomicU64 = &unmeasured;
    loop {
        if touch == Touch::KvmLike {
            // Linux reads it before each entry (vcpu_enter_guest), whoever made the processor.
            core::hint::black_box(cpu::rdmsr(DEBUGCTL).ok());
        }
        vcpu.enter(resumed, &exited)?;
        let cause = vcpu.cause();
        if shared.is_finished() {
            return Ok(());
        }
        vcpu.touch(touch, cause);
        let step = part.handle(vcpu, cause);
        let sample = shared.sample();
        if matches!(step, Step::Resume | Step::HandOver) {
            let exited = exited.load(Ordering::Relaxed);
            sample.exited.store(exited, Ordering::Relaxed);
        }
        resumed = match step {
            Step::Resume | Step::TakeOver => &sample.resumed,
            Step::HandOver | Step::ResumeUnmeasured => &unmeasured,
            Step::Unexpected => return Err(unexpected(vcpu, shared, cause)),
        };
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
