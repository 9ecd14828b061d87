//! The other processors: started together, then halted until there is work.
#![allow(
    unsafe_code,
    reason = "start-up code in low memory, functions passed as addresses"
)]

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::{MAX_CPUS, apic, cpu};

/// Number of a page below 1 MiB that is RAM on every PC; the loader's structures have been copied.
const TRAMPOLINE_PAGE: u8 = 8;
/// Signals that there may be work.
const WAKE_VECTOR: u8 = 0x20;

/// Another processor's work: it receives its number and returns a value.
pub(crate) type Work = fn(usize) -> u64;

struct Slot {
    /// A [`Work`], or null.
    work: AtomicPtr<()>,
    result: AtomicU64,
}

static SLOTS: [Slot; MAX_CPUS] = [const {
    Slot {
        work: AtomicPtr::new(core::ptr::null_mut()),
        result: AtomicU64::new(0),
    }
}; MAX_CPUS];
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A timeout, in ticks of the TSC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) u64);

impl Patience {
    /// Some seconds.
    pub(crate) const DEFAULT: Self = Self(1 << 33);

    /// Waits until `condition` holds; returns whether it did before the timeout.
    pub(crate) fn until(self, condition: impl Fn() -> bool) -> bool {
        let start = cpu::tsc_serialised();
        loop {
            if condition() {
                return true;
            }
            if cpu::tsc_serialised().wrapping_sub(start) > self.0 {
                return false;
            }
            core::hint::spin_loop();
        }
    }
}

/// The running processors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processors {
    /// Including the boot processor.
    pub(crate) count: usize,
    patience: Patience,
}

impl Processors {
    /// Starts the others, `count - 1` in number.
    ///
    /// # Errors
    /// The number of running processors, if there are fewer.
    pub(crate) fn start(
        trampoline: &[u8],
        count: usize,
        patience: Patience,
    ) -> Result<Self, usize> {
        assert!(
            (1..=MAX_CPUS).contains(&count),
            "1 to {MAX_CPUS} processors can run"
        );
        if count > 1 {
            let low =
                core::ptr::with_exposed_provenance_mut::<u8>(usize::from(TRAMPOLINE_PAGE) << 12);
            // SAFETY: free RAM, see TRAMPOLINE_PAGE, larger than the code and not part of it.
            unsafe { low.copy_from_nonoverlapping(trampoline.as_ptr(), trampoline.len()) };
            apic::init_others();
            // INIT to SIPI: 10 ms on hardware (MultiProcessor Specification, B.4); virtual processors require
            // no delay.
            let _ = Patience(1 << 20).until(|| false);
            let running = || STARTED.load(Ordering::Acquire) as usize + 1;
            apic::start_others(TRAMPOLINE_PAGE);
            // The second start-up interrupt is for those that missed the first.
            if !Patience(patience.0 / 4).until(|| running() >= count) {
                apic::start_others(TRAMPOLINE_PAGE);
            }
            if !patience.until(|| running() >= count) {
                return Err(running());
            }
        }
        Ok(Self { count, patience })
    }

    /// The numbers of the others.
    pub(crate) fn others(self) -> core::ops::Range<usize> {
        1..self.count
    }

    /// Runs `work` on processor `order`, another one; `None` if it does not finish.
    pub(crate) fn run(self, order: usize, work: Work) -> Option<u64> {
        self.begin(order, work);
        self.end(order)
    }

    /// Starts `work` on processor `order`, another one.
    pub(crate) fn begin(self, order: usize, work: Work) {
        SLOTS[order].work.store(work as *mut (), Ordering::Release);
        apic::interrupt_others(WAKE_VECTOR);
    }

    /// The result of the work that processor `order` began; `None` if it does not finish.
    pub(crate) fn end(self, order: usize) -> Option<u64> {
        let slot = &SLOTS[order];
        self.patience
            .until(|| slot.work.load(Ordering::Acquire).is_null())
            .then(|| slot.result.load(Ordering::Acquire))
    }
}

/// The main loop of an application processor.
pub(crate) fn work_for_ever(order: usize) -> ! {
    STARTED.fetch_add(1, Ordering::Release);
    let slot = &SLOTS[order];
    loop {
        cpu::disable_interrupts();
        let work = slot.work.load(Ordering::Acquire);
        if work.is_null() {
            cpu::wait_for_interrupt();
            continue;
        }
        // SAFETY: `Processors::run` stored it there, from a `Work`.
        let work = unsafe { core::mem::transmute::<*mut (), Work>(work) };
        cpu::enable_interrupts();
        slot.result.store(work(order), Ordering::Release);
        slot.work.store(core::ptr::null_mut(), Ordering::Release);
    }
}
