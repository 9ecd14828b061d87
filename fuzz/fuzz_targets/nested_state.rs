//! KVM's nested state as a file or another host gives it.
#![no_main]

use hypernest_nested::nested_state::{NestedState, Processor, REVISION, Vmx};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], [bool; 5], u32)| {
    let (bytes, [has_vmx, has_evmcs, has_svm, efer_svme, in_smm], physical_address_bits) = input;
    let Ok(state) = NestedState::parse(bytes) else {
        return;
    };
    let processor = Processor {
        has_vmx,
        has_evmcs,
        has_svm,
        efer_svme,
        in_smm,
        physical_address_bits,
    };
    let taken = state.check(&processor).is_ok();
    assert!(!taken || !state.needs_evmcs() || has_evmcs);
    assert!(!state.to_string().is_empty());
    if let NestedState::Vmx(Vmx::On(on)) = state {
        assert!(!on.guest_mode || on.current.is_some());
        assert!(
            on.current
                .is_none_or(|current| current.vmcs.revision() == REVISION)
        );
    }
});
