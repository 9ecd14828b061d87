//! The output of guest programs in memory and on the console, and KVM's nested state.

use hypernest_nested::board::{MAX_CAPACITY, Split, read, samples};
use hypernest_nested::nested_state::{NestedState, Processor, REVISION, Vmx};
use hypernest_nested::probe::{Item, next_item};
use hypernest_nested::tsc::{Next, next_said};

use crate::Input;

/// The measurements of an L1 guest program, in the layout of the guest's memory.
pub(crate) fn board(memory: &[u8]) -> bool {
    let reading = read(memory);
    if let Ok(reading) = &reading {
        assert!(reading.capacity as u64 <= MAX_CAPACITY);
        let end = reading
            .samples_gpa
            .checked_add(reading.samples_len() as u64);
        assert!(end.is_some());
    }
    for sample in samples(memory) {
        if let Split::Parts {
            l2_to_l1,
            l1,
            l1_to_l2,
        } = sample.split()
        {
            assert_eq!(l2_to_l1 + l1 + l1_to_l2, sample.after - sample.before);
        }
    }
    reading.is_ok()
}

/// `processor u8, physical address bits u8`, and the state from a file or another host.
pub(crate) fn nested_state(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let (has, physical_address_bits) = (input.u8(), input.u8().into());
    let Ok(state) = NestedState::parse(input.rest()) else {
        return false;
    };
    let processor = Processor {
        has_vmx: has & 1 != 0,
        has_evmcs: has & 2 != 0,
        has_svm: has & 4 != 0,
        efer_svme: has & 8 != 0,
        in_smm: has & 16 != 0,
        physical_address_bits,
    };
    let taken = state.check(&processor).is_ok();
    assert!(!taken || !state.needs_evmcs() || processor.has_evmcs);
    assert!(!state.to_string().is_empty());
    if let NestedState::Vmx(Vmx::On(on)) = state {
        assert!(!on.guest_mode || on.current.is_some());
        assert!(
            on.current
                .is_none_or(|current| current.vmcs.revision() == REVISION)
        );
    }
    taken
}

/// The output of guest programs on the debug console.
pub(crate) fn probe_stream(stream: &[u8]) -> bool {
    let mut rest = stream;
    let mut samples_seen = false;
    while let Ok(Some((item, taken))) = next_item(rest) {
        assert!(taken > 0 && taken <= rest.len());
        if let Item::Samples(samples) = item {
            assert_eq!(samples.iter().count(), samples.iter().len());
            samples_seen = true;
        }
        rest = &rest[taken..];
    }
    samples_seen
}

/// The output of clock samplers on the debug console or a serial port.
pub(crate) fn tsc_stream(stream: &[u8]) -> bool {
    let mut rest = stream;
    let mut said = false;
    loop {
        let taken = match next_said(rest) {
            Next::Incomplete => return said,
            Next::Skip { bytes, .. } => bytes,
            Next::Said(_, taken) => {
                said = true;
                taken
            }
        };
        assert!(taken > 0 && taken <= rest.len());
        rest = &rest[taken..];
    }
}
