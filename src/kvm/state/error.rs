use std::io;

use hypernest_nested::nested_state::{Malformed, Refused};
use thiserror::Error;

use super::order::Part;
use crate::units::{Msr, VpIndex};

/// Why state could not be read from KVM or restored to it.
#[derive(Debug, Error)]
pub enum TransferError {
    /// A part of a vCPU's state could not be read.
    #[error("cannot save {part:?} of vCPU {vp}")]
    Save {
        /// Which vCPU.
        vp: VpIndex,
        /// Which part.
        part: Part,
        /// The kernel's error.
        source: io::Error,
    },
    /// KVM refused a part of a vCPU's state.
    #[error("cannot restore {part:?} of vCPU {vp}: this host's KVM refuses it")]
    Restore {
        /// Which vCPU.
        vp: VpIndex,
        /// Which part.
        part: Part,
        /// The kernel's error.
        source: io::Error,
    },
    /// KVM refused a value of an MSR.
    #[error(
        "cannot restore MSR {msr} of vCPU {vp} to {value:#x}: this host's KVM refuses the value"
    )]
    Msr {
        /// Which vCPU.
        vp: VpIndex,
        /// The MSR.
        msr: Msr,
        /// The value.
        value: u64,
    },
    /// The nested state is malformed.
    #[error("the nested state of vCPU {vp} is not valid: {why}")]
    Nested {
        /// Which vCPU.
        vp: VpIndex,
        /// The problem.
        why: Malformed,
    },
    /// The nested state does not fit the vCPU.
    #[error("cannot restore the nested state of vCPU {vp}: {why}")]
    NestedHere {
        /// Which vCPU.
        vp: VpIndex,
        /// The reason.
        why: Refused,
    },
    /// The nested state needs a KVM that nests.
    #[error(
        "cannot restore the nested state of vCPU {vp}: this host's KVM does not nest; load kvm_intel or \
         kvm_amd with nested=1"
    )]
    NoNesting {
        /// Which vCPU.
        vp: VpIndex,
    },
    /// The floating-point state is larger than this host's.
    #[error(
        "cannot restore the floating-point state of vCPU {vp}: it has {saved} bytes, and this host's CPU \
         supports {host}; restore on a host that has all of the guest's XSAVE features"
    )]
    XsaveSize {
        /// Which vCPU.
        vp: VpIndex,
        /// Bytes saved.
        saved: usize,
        /// Bytes here.
        host: usize,
    },
    /// The state of an interrupt controller or of the timer could not be moved.
    #[error("cannot {doing} the VM's {what}")]
    Vm {
        /// `save` or `restore`.
        doing: &'static str,
        /// The part.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("cannot save or restore a VM here: KVM lacks {capability} (Linux {since})")]
    Kernel {
        /// The capability's name in the KVM API.
        capability: &'static str,
        /// The first Linux that has it.
        since: &'static str,
    },
}
