//! The hypercalls that KVM forwards to user space (KVM_EXIT_HYPERV, type HCALL).
//!
//! The other types need no action: SYNIC reports a changed SynIC page or control, which concerns only a
//! module that posts messages there; SYNDBG does not occur, as hv-syndbg is never on. The vCPU just
//! continues.

use super::enlightenment::Enlightenment as E;
use super::resolve::Resolved;
use crate::units::Gpa;

/// Guest memory for hypercalls and crash reports. An access is done completely or not at all.
pub trait GuestBytes {
    /// Copies guest memory at `gpa` to `bytes`.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool;

    /// Copies `bytes` to guest memory at `gpa`.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool;
}

/// HvCallPostMessage.
const POST_MESSAGE: u64 = 0x005c;
/// HvCallSignalEvent.
const SIGNAL_EVENT: u64 = 0x005d;
/// HvExtCallQueryCapabilities.
const QUERY_CAPABILITIES: u64 = 0x8001;

/// Input value: the call's code.
const CODE: u64 = 0xffff;
/// Input value: parameters are in registers.
const FAST: u64 = 1 << 16;
/// Input value: size of a variable header, and the repeat count and start.
const VARIABLE_OR_REP: u64 = 0x03fe_0000 | 0x0fff << 32 | 0x0fff << 48;

// TLFS, appendix "Hypercall Status Codes".
const SUCCESS: u64 = 0;
const INVALID_HYPERCALL_CODE: u64 = 2;
const INVALID_HYPERCALL_INPUT: u64 = 3;
const INVALID_ALIGNMENT: u64 = 4;
const INVALID_CONNECTION_ID: u64 = 0x12;

const PAGE: u64 = 4096;
/// The input of HvCallPostMessage: connection, type and size, and 240 bytes of payload.
const POST_MESSAGE_INPUT: u64 = 256;
/// The output of HvExtCallQueryCapabilities.
const CAPABILITIES_OUTPUT: u64 = 8;

/// Handles the hypercalls that reach user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserHypercalls {
    extended: bool,
}

impl UserHypercalls {
    /// For a VM with the enlightenments of `resolved`.
    pub fn new(resolved: &Resolved) -> Self {
        Self::with_extended(resolved.has(E::ExtHypercalls))
    }

    /// With or without extended hypercalls.
    pub fn with_extended(extended: bool) -> Self {
        Self { extended }
    }

    /// Handles a call: `input` and `params` as in `kvm_hyperv_exit`. Returns its `result`.
    pub fn call(&self, input: u64, params: [u64; 2], memory: &impl GuestBytes) -> u64 {
        let fast = input & FAST != 0;
        match input & CODE {
            _ if input & VARIABLE_OR_REP != 0 => INVALID_HYPERCALL_INPUT,
            // There is no VMBus, hence no connection.
            POST_MESSAGE if fast => INVALID_HYPERCALL_INPUT,
            POST_MESSAGE if !fits(params[0], POST_MESSAGE_INPUT) => INVALID_ALIGNMENT,
            POST_MESSAGE | SIGNAL_EVENT => INVALID_CONNECTION_ID,
            QUERY_CAPABILITIES if self.extended => {
                if fast {
                    INVALID_HYPERCALL_INPUT
                } else if !fits(params[1], CAPABILITIES_OUTPUT) {
                    INVALID_ALIGNMENT
                } else if memory.write(Gpa(params[1]), &0u64.to_le_bytes()) {
                    SUCCESS
                } else {
                    INVALID_HYPERCALL_INPUT
                }
            }
            _ => INVALID_HYPERCALL_CODE,
        }
    }
}

/// Parameters are 8-byte aligned and do not cross a page (TLFS, "Hypercall Interface": "Alignment
/// Requirements").
fn fits(address: u64, length: u64) -> bool {
    address.is_multiple_of(8) && address % PAGE <= PAGE - length
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::super::host::tests::intel;
    use super::super::{EnlightenmentRequest, Profile, resolve};
    use super::*;

    /// Guest memory from 0 up.
    pub(crate) struct Ram(RefCell<Vec<u8>>);

    impl Ram {
        pub(crate) fn new(size: usize) -> Self {
            Self(RefCell::new(vec![0xa5; size]))
        }

        pub(crate) fn write_at(&mut self, at: usize, bytes: &[u8]) {
            self.0.get_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn range(&self, gpa: Gpa, len: usize) -> Option<std::ops::Range<usize>> {
            let start = usize::try_from(gpa.0).ok()?;
            let end = start.checked_add(len)?;
            (end <= self.0.borrow().len()).then_some(start..end)
        }
    }

    impl GuestBytes for Ram {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
            self.range(gpa, bytes.len())
                .map(|r| bytes.copy_from_slice(&self.0.borrow()[r]))
                .is_some()
        }

        fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
            self.range(gpa, bytes.len())
                .map(|r| self.0.borrow_mut()[r].copy_from_slice(bytes))
                .is_some()
        }
    }

    fn calls(list: &str) -> UserHypercalls {
        let request = EnlightenmentRequest::parse(list, Profile::Windows).unwrap();
        UserHypercalls::new(&resolve(&request, &intel(), false).unwrap())
    }

    #[test]
    fn statuses() {
        let ram = Ram::new(0x2000);
        let windows = calls("windows,ext-hypercalls");
        for (input, params, status) in [
            (0x5c, [0x1000, 0], 0x12),
            (0x5c, [0x1f00, 0], 0x12),
            (0x5c, [0x1f08, 0], 4),
            (0x5c, [0x1001, 0], 4),
            (0x5c | FAST, [0, 0], 3),
            (0x5c | 1 << 32, [0x1000, 0], 3),
            (0x5c | 1 << 17, [0x1000, 0], 3),
            (0x5d, [0x1000, 0], 0x12),
            (0x5d | FAST, [1, 0], 0x12),
            (0x5d | 1 << 48, [1, 0], 3),
            (0x8001, [0, 0x1008], 0),
            (0x8001, [0, 0x1004], 4),
            (0x8001, [0, 0x2000], 3),
            (0x8001, [0, !7], 3),
            (0x8001 | FAST, [0, 0], 3),
            (0x8002, [0, 0x1000], 2),
            (0x8041, [0, 0x1000], 2),
            (0x69, [0, 0], 2),
            (0, [0, 0], 2),
        ] {
            assert_eq!(
                windows.call(input, params, &ram),
                status,
                "{input:#x} {params:x?}"
            );
        }
        assert_eq!(calls("windows").call(0x8001, [0, 0x1000], &ram), 2);
    }

    #[test]
    fn no_extended_capability_is_reported() {
        let ram = Ram::new(0x2000);
        assert_eq!(
            calls("ext-hypercalls").call(0x8001, [0, 0x1010], &ram),
            SUCCESS
        );
        let mut bytes = [0; 10];
        assert!(ram.read(Gpa(0x100f), &mut bytes));
        assert_eq!(bytes, [0xa5, 0, 0, 0, 0, 0, 0, 0, 0, 0xa5]);
    }

    proptest! {
        #[test]
        fn any_input_gets_a_result(input: u64, low in 0u64..0x10000, params: [u64; 2]) {
            let ram = Ram::new(0x2000);
            for input in [input, input & !CODE | low, low] {
                prop_assert!(calls("windows,ext-hypercalls").call(input, params, &ram) < 0x100);
            }
        }
    }
}
