//! The second processor, for kinds that use two: a separate L1, whose L2 is halted except for interrupts from
//! the first one's.
#![allow(unsafe_code, reason = "passes itself to another processor")]

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use hypernest_nested::l2exit::{Kind, Mode, Touch};

use super::NotMeasured;
use super::kinds::{self, Part};
use super::l2::{Environment, Shared};
use super::vcpu::Vcpu;
use super::{Plan, drive};
use crate::cpu;
use crate::smp::Processors;
use crate::text::Text;

/// Its number.
const ORDER: usize = 1;

/// The [`Second`] that the second processor is to run.
static HANDED: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// The second processor.
pub(super) struct Second<V> {
    processors: Processors,
    mode: Mode,
    touch: Touch,
    shared: &'static Shared,
    environment: Environment,
    /// Created on that processor, at its first run.
    vcpu: Option<V>,
    outcome: Result<(), NotMeasured>,
}

impl<V: Vcpu> Second<V> {
    /// One of `processors`, of which there are two or more.
    pub(super) fn new(processors: Processors, plan: &Plan<'_>, shared: &'static Shared) -> Self {
        Self {
            processors,
            mode: plan.mode,
            touch: plan.touch,
            shared,
            environment: Environment::new(shared),
            vcpu: None,
            outcome: Ok(()),
        }
    }

    /// Runs its L2 while `first` lasts.
    pub(super) fn beside(
        &mut self,
        first: impl FnOnce() -> Result<(), NotMeasured>,
    ) -> Result<(), NotMeasured> {
        let (shared, processors) = (self.shared, self.processors);
        shared.clear();
        // From here to the end of the work `self` belongs to the other processor.
        HANDED.store(ptr::from_mut(self).cast(), Ordering::Release);
        processors.begin(ORDER, work::<V>);
        let outcome = first();
        shared.finish();
        Part::rouse();
        let back = processors.end(ORDER);
        assert!(back.is_some(), "the second processor does not come back");
        // A failure there is the cause of the failure here.
        core::mem::replace(&mut self.outcome, Ok(())).and(outcome)
    }

    /// On the second processor.
    fn run(&mut self) -> Result<(), NotMeasured> {
        let vcpu = match &mut self.vcpu {
            Some(vcpu) => vcpu,
            none => none.insert(V::new(self.mode, ORDER).map_err(NotMeasured::Failed)?),
        };
        let mut part = Part::begin(Kind::Ipi, self.mode, self.shared, vcpu);
        let prepared = vcpu.prepare(
            &kinds::intercepts(Kind::Ipi),
            &self.environment,
            self.environment.start(kinds::wait),
            self.touch,
        );
        prepared.map_err(NotMeasured::Lacking)?;
        let result = drive::run(vcpu, self.shared, &mut part, self.touch);
        vcpu.leave();
        result
            .map_err(|why| NotMeasured::Failed(Text::new(format_args!("second processor: {why}"))))
    }
}

/// The second processor's part.
fn work<V: Vcpu>(_: usize) -> u64 {
    let second = HANDED.load(Ordering::Acquire).cast::<Second<V>>();
    // SAFETY: `beside` stored it there, of this type, and does not use it again before this function has
    // returned.
    let second = unsafe { &mut *second };
    cpu::disable_interrupts();
    second.outcome = second.run();
    if second.outcome.is_err() {
        second.shared.fail();
        Part::rouse();
    }
    cpu::enable_interrupts();
    0
}
