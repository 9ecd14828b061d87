//! Hyper-V's interface in user space, as a guest accesses it: hypercalls, synthetic MSRs, crash messages.

use std::cell::RefCell;
use std::sync::OnceLock;

use hypernest::hyperv::partition::WriteOutcome;
use hypernest::hyperv::{
    CrashReport, Enlightenment, EnlightenmentSet, GuestBytes, Partition, UserHypercalls,
};
use hypernest::state::{Decoder, Encoder};
use hypernest::units::{Gpa, Msr};

use crate::Input;

/// Guest memory from 0 up.
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn range(&self, gpa: Gpa, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(gpa.0).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.0.borrow().len()).then_some(start..end)
    }
}

impl GuestBytes for Ram {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        self.range(gpa, bytes.len())
            .map(|range| bytes.copy_from_slice(&self.0.borrow()[range]))
            .is_some()
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        self.range(gpa, bytes.len())
            .map(|range| self.0.borrow_mut()[range].copy_from_slice(bytes))
            .is_some()
    }
}

/// Five parameters of eight bytes, then guest memory.
pub(crate) fn crash_message(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let params = std::array::from_fn(|_| input.u64());
    let report = CrashReport {
        params,
        has_message: true,
    };
    let ram = Ram(RefCell::new(input.rest().to_vec()));
    let message = report.read(&ram).message;
    if let Some(message) = &message {
        assert!(message.chars().all(|c| c == '\n' || !c.is_control()));
    }
    message.is_some()
}

/// Calls of `input u64`, and two parameters of eight bytes, over a page of memory.
pub(crate) fn hypercalls(bytes: &[u8]) -> bool {
    static CALLS: OnceLock<[UserHypercalls; 2]> = OnceLock::new();
    let calls = CALLS.get_or_init(|| [false, true].map(UserHypercalls::with_extended));
    let mut input = Input::new(bytes);
    let ram = Ram(RefCell::new(vec![0xa5; 4096]));
    let mut succeeded = false;
    while !input.is_empty() {
        let (call, params) = (input.u64(), [input.u64(), input.u64()]);
        for calls in calls {
            let status = calls.call(call, params, &ram);
            // HV_STATUS is 16 bits; no call here has repetitions to report.
            assert!(status <= 0xffff, "{call:#x}: {status:#x}");
            succeeded |= status == 0;
        }
    }
    succeeded
}

/// Accesses of `what, number u32, value u64` to the MSRs that hypernest owns.
pub(crate) fn msrs(bytes: &[u8]) -> bool {
    let all = || {
        let mut set = EnlightenmentSet::default();
        Enlightenment::all().for_each(|id| set.insert(id));
        Partition::with(set)
    };
    let mut input = Input::new(bytes);
    let mut partition = all();
    let mut accepted = false;
    while !input.is_empty() {
        let (what, number, value) = (input.u8(), input.u32(), input.u64());
        // Mostly near the two groups of registers that hypernest owns.
        let msr = Msr(match what & 3 {
            0 => 0x4000_0100 + (number & 7),
            1 => 0x4000_0106 + (number & 3),
            _ => number,
        });
        if what & 4 == 0 {
            let _value = partition.rdmsr(msr);
        } else {
            accepted |= partition.wrmsr(msr, value) != WriteOutcome::GeneralProtection;
        }
    }
    let mut saved = Encoder::new();
    partition.save(&mut saved);
    let body = saved.into_body();
    let mut decoder = Decoder::new("hyperv", Partition::VERSION, &body);
    let mut again = all();
    again
        .load(&mut decoder)
        .expect("any state that a guest causes can be loaded");
    assert!(partition.registers().eq(again.registers()));
    accepted
}
